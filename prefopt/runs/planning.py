"""What a run will do: everything of a recipe that can be found, loaded and checked before a model is."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefopt import recipe
from prefopt.data import DiskRows, Example, Split, load_examples, prompts
from prefopt.data.selecting import EMBED, project
from prefopt.data.splits import divided
from prefopt.evaluation.metrics import check_metrics
from prefopt.feedback import check_feedback
from prefopt.objectives import load_objective
from prefopt.objectives.contract import BASIC, check_objective
from prefopt.objectives.terms import Term, merged_needs
from prefopt.policy import check_sampler, find_model
from prefopt.runs.folder import RunFolder
from prefopt.sources.writers import SUPPLIED, without_writers
from prefopt.support.downloads import rows_awaited
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import checked_fields
from prefopt.support.sharing import shared, stamp
from prefopt.training.callbacks import check_callbacks
from prefopt.types import Needs, Objective

EMBEDDINGS = "embeddings"
"""The column that `source.embeddings` adds."""


WRITTEN = SUPPLIED | {"cost", "gold", "ended", "temperature", "sampler_logps"}
"""Columns that rollouts put into a batch themselves."""

DEMONSTRATED = Needs(completions=1, ordered=True)
"""What rollouts need of the data where the data's own completions play, too: the best one of each prompt."""


@dataclass(frozen=True)
class Plan:
    """A recipe with everything found, loaded and checked that can be before a model is.

    Attributes:
        recipe: as resolved.
        model: the folder or hub id of the policy.
        objectives: one for each term.
        needs: of the terms that share the run's source.
        wanted: what its data must bring of these.
        data: of the run's source, and of each term's own, by the term's number.
        rows: of the run's source that are trained on.
    """

    recipe: recipe.Recipe
    model: str
    objectives: Sequence[Objective]
    needs: Needs
    wanted: Needs
    data: Split[Example]
    own: Mapping[int, Split[Example]]
    rows: int

    @property
    def steps(self) -> int:
        """Logical batches to train on."""
        train = self.recipe.train
        if train.steps is not None:
            return train.steps
        assert train.epochs is not None
        return max(1, int(self.rows * train.epochs) // train.batch_size)

    @property
    def compares(self) -> bool:
        """Whether there is a reference: for objectives, for samples in evaluation, and to watch the KL of rollouts."""
        settings = self.recipe
        return bool(self.needs.reference or settings.evaluate.prompts or settings.source.rollouts is not None)


def plan(settings: recipe.Recipe) -> Plan:
    """Load what is cheap and refuse what cannot work.

    Raises:
        PrefoptError: an unknown objective or field, terms that do not fit together, data that lack what an objective needs, a
            model, reference or feedback that is not there, a whole-batch objective with minibatches, a user's objective that
            does not run or returns another shape.
    """
    objectives = [checked_fields(load_objective(term.name, **term.fields), term.name) for term in settings.objective]
    for objective, term in zip(objectives, settings.objective, strict=True):
        if ":" in term.name:
            check_objective(objective, only=BASIC)
    shared = [Term(o) for o, term in zip(objectives, settings.objective, strict=True) if term.source is None]
    if not shared:
        raise PrefoptError("every term has a source of its own; leave out that of the one that the run is about")
    needs = merged_needs(shared)
    _check_terms(settings, objectives, needs)
    model = find_model(settings.policy.model)
    if settings.reference.model is not None:
        find_model(settings.reference.model)
    for source in (settings.source, *(term.source for term in settings.objective)):
        if source is not None and source.embeddings is not None and source.embeddings.model is not None:
            find_model(source.embeddings.model)
    _check_feedbacks(settings)
    check_callbacks(settings.train.callbacks)
    seed = settings.seed_of("data")
    own = {
        i: _splits(term.source, wanted(objectives[i].needs, term.source, term.name), seed)[0]
        for i, term in enumerate(settings.objective)
        if term.source is not None
    }
    name = " + ".join(term.name for term in shared)
    if settings.source.rollouts is not None:
        _check_rollouts(settings, needs, name)
        asked = wanted(replace(needs, columns=tuple(set(needs.columns) - WRITTEN)), _alone(settings), name)
        shares = replace(DEMONSTRATED, columns=asked.columns)
    else:
        shares = wanted(needs, settings.source, name)
    data, rows = _splits(settings.source, shares, seed)
    if rows < settings.train.batch_size and not rows_awaited():
        raise PrefoptError(
            f"train.batch_size is {settings.train.batch_size}, and the data have {rows} rows to train on"
        )
    return Plan(settings, model, objectives, needs, shares, data, own, rows)


def to_train_on(rows: Sequence[Example], needs: Needs, source: recipe.Source) -> Iterator[Example]:
    """The rows of a source as batches will have them: what an objective needs of them, or the prompts that rollouts begin with.

    Raises:
        PrefoptError: the rows lack what is needed.
    """
    if not rows and rows_awaited():  # by a dry run: there is nothing to refuse yet
        return
    if source.rollouts is None or "dataset" in source.writers:
        yield from project(rows, needs, source.ties)
        return
    for row in prompts(rows):
        _check_columns(row, needs)
        yield row


def _check_columns(row: Example, needs: Needs) -> None:
    if missing := set(needs.columns) - set(row.columns) - {"row"}:
        names = ", ".join(map(repr, sorted(missing)))
        hint = f" ({EMBED})" if EMBEDDINGS in missing else ""
        raise PrefoptError(f"{row.where}: the prompt has no column {names}, which the objective needs{hint}")


def _alone(settings: recipe.Recipe) -> recipe.Source:
    """The source without its writers, which are checked apart."""
    return settings.source.model_copy(update={"writers": ()})


def wanted(needs: Needs, source: recipe.Source, name: str) -> Needs:
    """What the data of a source must bring themselves, for an objective or several of this name.

    Raises:
        PrefoptError: the source must add something else to them.
    """
    needs = without_writers(needs, source.writers, name)
    if source.embeddings is None:
        return needs
    if EMBEDDINGS not in needs.columns:
        raise PrefoptError(f"source.embeddings is given, and {name} does not compare prompts: leave it out")
    if needs.rewards and source.embeddings.model is None:
        raise PrefoptError(
            f"{name} trains a scorer, which embeds no prompts: name a sentence encoder in source.embeddings.model"
        )
    return replace(needs, columns=tuple(column for column in needs.columns if column != EMBEDDINGS))


def _check_rollouts(settings: recipe.Recipe, needs: Needs, name: str) -> None:
    """Refuses what rollouts with this recipe could not put into a batch."""
    source = settings.source
    assert source.rollouts is not None
    if needs.rewards:
        raise PrefoptError(f"{name} trains a scorer, which writes nothing: leave out source.rollouts")
    total = source.rollouts.completions + len(source.writers)
    judged = needs.scores or needs.preference or (needs.ordered and total > 1)
    if judged and settings.feedback is None:
        raise PrefoptError(
            f"{name} learns from scores of what the policy writes; say where they come from, for example "
            "`feedback: {name: RewardModel, model: runs/…}` or `feedback: file.py:function`"
        )
    if "cost" in needs.columns and settings.cost is None:
        raise PrefoptError(f"{name} keeps a cost low; say where it comes from: `cost: file.py:function`")
    if SUPPLIED & set(needs.columns) and not source.writers:
        raise PrefoptError(
            f"{name} compares with completions that are not the policy's own; list who writes them in `source.writers`: "
            f"{', '.join(recipe.WRITERS['rollouts'])}"
        )
    if source.writers and needs.rollouts and not SUPPLIED & set(needs.columns):
        raise PrefoptError(
            f"source.writers is {list(source.writers)}, and {name} does not look at who wrote a completion: it would learn from "
            "theirs as if they were the policy's; leave it out"
        )
    if source.rollouts.refill and total < 2:
        raise PrefoptError("source.rollouts.refill compares the completions of a prompt: draw at least 2 of each")
    check_sampler(source.rollouts)
    wants = needs.completions
    if wants is not None and (total < wants or (total > wants and not needs.ordered)):
        raise PrefoptError(
            f"{name} takes {wants} completions of each prompt, and source.rollouts.completions is "
            f"{source.rollouts.completions}{f' with {len(source.writers)} more by source.writers' * bool(source.writers)}"
        )


def _check_feedbacks(settings: recipe.Recipe) -> None:
    for key, spec in (("evaluate.gold", settings.evaluate.gold), ("evaluate.judge", settings.evaluate.judge)):
        if spec is not None:
            check_feedback(spec, key, fixed=True)
    check_metrics(settings.evaluate.metrics)
    if settings.evaluate.against is not None:
        try:
            RunFolder(Path(settings.evaluate.against)).samples()
        except PrefoptError as error:
            raise PrefoptError(f"evaluate.against: {error}") from error
    for key, spec in (("feedback", settings.feedback), ("cost", settings.cost)):
        if spec is None:
            continue
        check_feedback(spec, key)
        if settings.source.rollouts is None:
            raise PrefoptError(
                f"`{key}` is given, and the run learns from recorded completions, which it would not score: leave it out, "
                "or let the policy write with `source.rollouts`"
            )


def _check_terms(settings: recipe.Recipe, objectives: Sequence[Objective], needs: Needs) -> None:
    train = settings.train
    if needs.rollouts and settings.source.rollouts is None:
        raise PrefoptError(
            "this objective needs completions from the current policy, and `source` holds recorded ones: write "
            "`source: {rollouts: {completions: 4}}`, and `feedback` for their scores"
        )
    if needs.rewards and needs.reference:
        raise PrefoptError("one term trains a scorer and another a language model; run them apart")
    if needs.one_update and (train.passes > 1 or train.minibatch_size not in (None, train.batch_size)):
        names = [type(o).__name__ for o in objectives if o.needs.one_update]
        raise PrefoptError(
            f"{' and '.join(names)} has no ratio to the policy that wrote a batch, so a batch is good for one update: leave out "
            "train.passes and train.minibatch_size, or take a method with a ratio (PPO, GRPO)"
        )
    if needs.whole_batch and train.minibatch_size not in (None, train.batch_size):
        names = [type(o).__name__ for o in objectives if o.needs.whole_batch]
        raise PrefoptError(
            f"{' and '.join(names)} couples the rows of a batch, which must not be cut: "
            f"leave out train.minibatch_size or set it to train.batch_size ({train.batch_size})"
        )


def _splits(source: recipe.Source, needs: Needs, seed: int) -> tuple[Split[Example], int]:
    """Train, validation and test, and the number of rows to train on; parts with data of their own take nothing from the rest."""
    rows = _examples(source)
    train, validation, test = divided(rows, source.split, seed)
    if source.validation is not None:
        train += validation
    if source.test is not None:
        train += test
    parts = Split(
        rows.select(train),
        rows.select(validation) if source.validation is None else _examples(source.validation),
        rows.select(test) if source.test is None else _examples(source.test),
    )
    return parts, sum(1 for _ in to_train_on(parts.train, needs, source))


def _examples(data: recipe.Data) -> DiskRows[Example]:
    files = [file for name in data.data for file in [name.partition(":")[0], *glob.glob(name, recursive=True)]]
    key = (data.model_dump_json(include={"data", "arguments", "hub_split", "adapt"}), *map(stamp, files))
    rows = shared(
        "examples", key, lambda: load_examples(list(data.data), data.arguments, split=data.hub_split, adapt=data.adapt)
    )
    return rows[: data.limit]
