"""Tokens held against the positions of models, after the rows are tokenised and before a model is loaded.

A model with a table of positions cannot compute beyond it, and is refused; one that computes its positions (rotary ones) was never
trained there, and that is said with the numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prefopt import recipe
from prefopt.data import Example, Tokenised
from prefopt.data.text_episodes import as_seen
from prefopt.data.texts import texts
from prefopt.feedback import judges_of, reward_models_of
from prefopt.feedback.judges import Judge
from prefopt.policy import find_model
from prefopt.policy.positions import positions_of
from prefopt.recipe import most_tokens
from prefopt.support.errors import PrefoptError


class Longest(NamedTuple):
    """The most tokens that a model will be given at a time for one purpose.

    Attributes:
        tokens: prompt and completion.
        what: which prompt and completion, in words.
        shorten: the keys of the recipe that make it shorter.
    """

    tokens: int
    what: str
    shorten: str


def longest_of(settings: recipe.Recipe, data: Mapping[str, Sequence[Tokenised]]) -> list[Longest]:
    """The longest that policy and reference will read, and write, in training and in evaluations.

    Args:
        settings: of the run.
        data: tokenised rows by the part of the data.
    """
    rollouts, sampling = settings.source.rollouts, settings.evaluate.sampling
    found = []
    for part, rows in data.items():
        if part != "train" or rollouts is None:
            found += _recorded(rows, f"{part} row")
        if part == "train" and rollouts is not None:
            most, key = most_tokens(rollouts.sampling, rollouts.environment)
            found += sampled(rows, most, "rollouts", f"source.rollouts.{key}", "source.max_prompt_tokens")
        if part != "train" and settings.evaluate.prompts:
            most, key = most_tokens(sampling, settings.evaluated_in)
            found += sampled(rows, most, f"samples of {part} rows", f"evaluate.{key}", "source.max_prompt_tokens")
    return found


def sampled(rows: Sequence[Tokenised], most: int, what: str, key: str, prompt_key: str) -> list[Longest]:
    """The longest prompt of the rows with a completion of the most tokens that are sampled."""
    prompt = max((len(row.prompt_ids) for row in rows), default=0)
    if not prompt:
        return []
    return [Longest(prompt + most, f"{what}: a prompt of {prompt} and up to {most} sampled", f"{key} or {prompt_key}")]


def _recorded(rows: Sequence[Tokenised], what: str) -> list[Longest]:
    """The longest row."""
    best: tuple[int, int, str] = (0, 0, "")
    for row in rows:
        completion = max((len(ids) for ids in row.completion_ids), default=0)
        best = max(best, (len(row.prompt_ids) + completion, completion, row.where))
    tokens, completion, where = best
    if not tokens:
        return []
    described = f"{what} {where}: a prompt of {tokens - completion} and a completion of {completion}"
    return [Longest(tokens, described, "source.max_completion_tokens or source.max_prompt_tokens")]


def models_of(settings: recipe.Recipe, scorer: bool) -> dict[str, recipe.Names]:
    """The models that read the policy's tokens, by their keys."""
    models = {"policy.model": settings.policy.model}
    if not scorer and settings.reference.model is not None:
        models["reference.model"] = settings.reference.model
    if not scorer and settings.policy.critic.model is not None:
        models["policy.critic.model"] = settings.policy.critic.model
    return models


def position_warnings(models: Mapping[str, recipe.Names], longest: Sequence[Longest]) -> Iterator[str]:
    """Hold every length against every model.

    Args:
        models: by their keys in the recipe.
        longest: what they will be given.

    Yields:
        A sentence for each model without a table that is given more than it was made for.

    Raises:
        PrefoptError: a model with a table of positions is given more.
    """
    for key, names in models.items():
        name = find_model(names)
        positions = positions_of(name)
        for one in longest if positions is not None else ():
            assert positions is not None
            if one.tokens <= positions.number:
                continue
            sentence = f"{key} {name} has {positions.number} positions, and {one.what} are {one.tokens} tokens"
            if positions.table:
                raise PrefoptError(f"{sentence}: it cannot read more than it has positions for; lower {one.shorten}")
            yield f"{sentence}: beyond its positions it computes, and was never trained; lower {one.shorten}"


def reward_model_warnings(settings: recipe.Recipe, train: Sequence[Tokenised]) -> Iterator[str]:
    """Hold what rollouts may write against the positions of reward models; counted in tokens of the policy.

    Args:
        settings: of the run.
        train: the prompts.

    Yields:
        A sentence for each reward model that may be given more.
    """
    rollouts = settings.source.rollouts
    if rollouts is None or not train:
        return
    most, key = most_tokens(rollouts.sampling, rollouts.environment)
    (longest,) = sampled(train, most, "rollouts", f"source.rollouts.{key}", "source.max_prompt_tokens")
    sections = {"feedback": settings.feedback, "cost": settings.cost}
    described = {name: reward_models_of(spec, name) for name, spec in sections.items() if spec is not None}
    for section, name in ((section, model.found) for section, models in described.items() for model in models):
        positions = positions_of(name)
        if positions is None or longest.tokens <= positions.number:
            continue
        reads_part = "of longer texts it reads a part, which `rollouts/feedback_cut` counts"
        beyond = reads_part if positions.table else "beyond its positions it computes, and was never trained"
        yield (
            f"{section}: the reward model {name} has {positions.number} positions, and {longest.what} are {longest.tokens} tokens "
            f"of the policy: {beyond}; lower {longest.shorten}"
        )


def judge_warnings(
    spec: recipe.Feedback, key: str, rows: Sequence[Example], most: int | None, shorten: str
) -> Iterator[str]:
    """Hold the questions of local judges against their positions: what is too long has no verdict.

    Args:
        spec: the feedback that may hold judges.
        key: its key in the recipe.
        rows: about whose prompts they will be asked.
        most: tokens of the longest completion, which a word each stands for; None where the rows have the completions.
        shorten: the keys of the recipe that make completions shorter.

    Yields:
        A sentence for each judge that cannot read the longest prompt with the longest completions.

    Raises:
        PrefoptError: a judge cannot even read the shortest prompt, so that there would be no verdict at all.
    """
    for judge in judges_of(spec, key):
        if judge.local is None or (positions := judge.local.positions) is None or not rows:
            continue
        shortest, longest = min(rows, key=_characters), max(rows, key=_characters)
        has = f"{key}: the judge {judge.local.name} has {positions} positions"
        if (tokens := _asked(judge, shortest, 1 if most else None)) > positions:
            raise PrefoptError(
                f"{has}, and its shortest question takes {tokens} tokens, so that there would be no verdict at all: take a judge "
                "with more positions, or shorten the rubric"
            )
        if (tokens := _asked(judge, longest, most)) > positions:
            yield (
                f"{has}, and a question about {longest.where} may take {tokens} tokens; what is too long has no verdict. Take a "
                f"judge with more positions, or lower {shorten}"
            )


def _characters(row: Example) -> int:
    return len(repr((row.prompt, row.completions)))


def _asked(judge: Judge, row: Example, most: int | None) -> int:
    """Tokens of the longest question about two completions of so many words, or about those of the row."""
    row = as_seen(row)
    completions = texts(row) if most is None else [" a" * most, " b" * most]
    return judge.longest_question(row.prompt, completions, {**row.columns, "ended": [True] * len(completions)})


def check_encoder(key: str, names: recipe.Names, most: int) -> None:
    """Refuse to let an encoder read more than it has positions for.

    Raises:
        PrefoptError: says how many it has.
    """
    name = find_model(names)
    positions = positions_of(name)
    if positions is not None and positions.table and most > positions.number:
        raise PrefoptError(
            f"{key}.max_tokens is {most}, and {name} has {positions.number} positions: write {positions.number}"
        )
