"""Rollouts as rows of data: a prompt with what was written on it and what feedback says about it."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prefopt.data import Tokenised, collate
from prefopt.data.example import task_column
from prefopt.data.text_episodes import EOS, told_apart
from prefopt.environments.episodes import MESSAGES
from prefopt.sources.scoring import PromptCompletions
from prefopt.sources.writing import Completer, prompt_seen, text_episode, told, up_to_last_turn
from prefopt.support.errors import PrefoptError
from prefopt.types import STOP_REASONS, Axis, Batch, Verdict, Written

COLUMNS = ("origin", "trained", "ended", "stop_reason", "temperature", "sampler_logps", "cost", "gold")
"""Columns of a batch of rollouts, those of feedback where there is one."""

REWARDS, WHOLE, VERSION, NAMED = "rollouts: rewards", "rollouts: whole", "rollouts: version", "rollouts: score "
"""Columns that become fields of the batch of their own (rewards of turns, scores of whole completions without them, versions), and
the beginning of those that become `named_scores`."""


def judged_row(
    group: PromptCompletions,
    verdicts: Mapping[str, Verdict],
    number: int,
    constrained: bool,
    further: Mapping[str, Any],
) -> Tokenised:
    """A prompt with its completions and all that is said about them, as if it were a row of data.

    Args:
        group: the prompt and its completions.
        verdicts: of the batch, by what they fill: "scores", "cost", "gold".
        number: of the prompt among those of the verdicts.
        constrained: a completion whose cost is not known cannot be learnt from.
        further: more columns: who wrote the completions, at which temperature.

    Raises:
        PrefoptError: a verdict does not have a number for each turn of a completion.
    """
    scores = preference = None
    axes: dict[str, Axis] = {**group.row.axes, VERSION: "completion"}
    columns = {**group.row.columns, **_of_written(group.written), **further}
    columns |= {name: verdicts[name].totals[number].tolist() for name in ("cost", "gold") if name in verdicts}
    if (verdict := verdicts.get("scores")) is not None:
        given = verdict.totals[number]
        if constrained:
            given = given + 0 * verdicts["cost"].totals[number]  # NaN where the cost is
        scores = tuple(None if math.isnan(score) else score for score in given.tolist())
        preference = None if verdict.preference is None else tuple(map(tuple, verdict.preference[number].tolist()))
        for name, values in verdict.named.items():
            columns[f"{NAMED}{name}"], axes[f"{NAMED}{name}"] = values[number].tolist(), "completion"
        if verdict.steps is not None:
            columns[REWARDS], axes[REWARDS] = _rewards(group.written, verdict.steps[number]), "token"
            columns[WHOLE], axes[WHOLE] = verdict.scores[number].nan_to_num().tolist(), "completion"
    example = dataclasses.replace(
        group.row.example,
        completions=tuple(group.texts),
        scores=scores,
        preference=preference,
        columns=columns,
        axes=axes,
        steps=None,
    )
    return dataclasses.replace(
        group.row,
        prompt_ids=next((one.prompt for one in group.written if one.prompt is not None), group.row.prompt_ids),
        completion_ids=tuple(one.ids for one in group.written),
        scores=scores,
        preference=preference,
        example=example,
        masks=tuple(one.mask for one in group.written),
        completions_cut=tuple(not one.ended for one in group.written),
        step_ends=None,
    )


def _of_written(completions: Sequence[Written]) -> dict[str, Any]:
    """The columns that say how completions were written."""
    return {
        "ended": [one.ended for one in completions],
        "stop_reason": [STOP_REASONS.index(one.stop) for one in completions],
        "sampler_logps": [
            torch.full((len(one.ids),), math.nan) if one.logps is None else torch.tensor(one.logps)
            for one in completions
        ],
        VERSION: [-1 if one.version is None else one.version for one in completions],
    }


def _rewards(completions: Sequence[Written], steps: Sequence[Sequence[float]]) -> list[torch.Tensor]:
    """Of each completion [T]: the number of each turn at its last token, 0 elsewhere."""
    rewards = []
    for k, (one, values) in enumerate(zip(completions, steps, strict=True)):
        values = values if one.turns else ()  # of an episode that did not begin, whatever is said of it
        if len(values) != len(one.turns):
            raise PrefoptError(
                f"the feedback gives {len(values)} numbers in `steps` to completion {k + 1} of a prompt, which has "
                f"{len(one.turns)} turn{'s' * (len(one.turns) > 1)}; it needs one for each turn"
            )
        reward = torch.zeros(len(one.ids))
        for turn, value in zip(one.turns, values, strict=True):
            reward[turn.stop - 1] = value
        rewards.append(reward)
    return rewards


ENDS = ("rollouts/ended", *(f"rollouts/stop_{reason}" for reason in STOP_REASONS))
"""The names of `end_metrics`."""


def end_metrics(groups: Sequence[Sequence[Written]]) -> dict[str, float]:
    """Shares of completions by why they ended; those are among them that have no verdict, as where an environment failed."""
    every = [one for group in groups for one in group]
    reasons = Counter(one.stop for one in every)
    counts = (sum(one.ended for one in every), *(reasons[reason] for reason in STOP_REASONS))
    return {name: count / len(every) for name, count in zip(ENDS, counts, strict=True)}


def episode_metrics(groups: Sequence[Sequence[Written]]) -> dict[str, float]:
    """Means over episodes of their turns and of what their environments log, `environment/…`; {} where there is none."""
    episodes = [one for group in groups for one in group if one.prompt is not None]
    if not episodes:
        return {}
    names = dict.fromkeys(name for one in episodes for name in one.info)
    means = {name: math.fsum(one.info.get(name, 0.0) for one in episodes) / len(episodes) for name in names}
    means |= {"turns": sum(len(one.turns) for one in episodes) / len(episodes)}  # whatever an environment calls so
    return {f"environment/{name}": value for name, value in means.items()}


def record(group: PromptCompletions, k: int, score: float | None, completer: Completer) -> dict[str, Any]:
    """A completion for a person to read, and for `source.data`: an episode is messages, as `prefopt label` writes them.

    Beside what `told` says: of rows that are tasks, which one; and `unread`, what an environment said behind the last turn.

    Args:
        group: the prompt and its completions.
        k: which of them.
        score: of it; None or NaN where there is none.
        completer: wrote it.
    """
    example, one, text = group.row.example, group.written[k], group.texts[k]
    columns: dict[str, Any] = {"prompt": example.prompt} | task_column(example)
    if one.prompt is None or completer.episodes is None:
        columns["completion"] = text if isinstance(text, str) else completer.text(one, example.prompt)
    elif isinstance(example.prompt, str):
        episode, ended = text_episode(one, completer.episodes.encoder)
        columns |= {"completion": told_apart(episode), EOS: ended}
    else:
        columns |= {"prompt": prompt_seen(example.prompt, [one.opening]), "completion": up_to_last_turn(text)}
    read = up_to_last_turn(one.messages) if one.messages else ()
    return {
        **columns,
        **({"unread": unread} if (unread := one.messages[len(read) :]) else {}),
        "score": None if score is None or math.isnan(score) else score,
        "stop": one.stop,
        "tokens": len(one.ids),
        **{name: value for name, value in told(one).items() if name not in ("opening", MESSAGES)},
    }


def batch_of(rows: Sequence[Tokenised], columns: Sequence[str], whole: bool = False) -> Batch:
    """Rows of `judged_row` as a batch.

    Args:
        rows: of which one batch is made.
        columns: of the prompts, to go into the batch as well.
        whole: the objective reads scores of whole completions alone, as those do that were made for recorded data: rewards of
            turns are in `scores`, and not beside them.
    """
    known = rows[0].columns
    further = [name for name in known if name in (REWARDS, WHOLE, VERSION) or name.startswith(NAMED)]
    batch = collate(rows, [*columns, *(name for name in COLUMNS if name in known), *further])
    named = {name.removeprefix(NAMED): batch.columns[name] for name in further if name.startswith(NAMED)}
    return dataclasses.replace(
        batch,
        columns={name: column for name, column in batch.columns.items() if name not in further},
        axes={name: axis for name, axis in batch.axes.items() if name not in further},
        scores=batch.scores if whole else batch.columns.get(WHOLE, batch.scores),
        rewards=None if whole else batch.columns.get(REWARDS),
        named_scores=named,
        version=batch.columns[VERSION],
    )
