"""What a run will do: everything of a recipe that can be found, loaded and checked before a model is."""

import glob
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from prefopt import recipe
from prefopt.data import DiskRows, Example, Split
from prefopt.data.example import content_key
from prefopt.data.loading import Loaded, load
from prefopt.data.selecting import select_checked
from prefopt.data.splits import divided
from prefopt.data.steps import in_steps, separator_of
from prefopt.data.text_episodes import as_seen
from prefopt.environments.checking import Shown
from prefopt.environments.making import check_section
from prefopt.evaluation import win_rates
from prefopt.evaluation.breakdown import check_by
from prefopt.evaluation.held_out import check_held_out
from prefopt.evaluation.metrics import check_metrics, metric_key
from prefopt.feedback import check_feedback
from prefopt.objectives import load_objective
from prefopt.objectives.contract import BASIC, check_objective
from prefopt.objectives.terms import Term, merged_needs
from prefopt.policy import check_policy, check_sampler, check_stops, find_model
from prefopt.runs.choosing import check_choice
from prefopt.runs.folder import RunFolder
from prefopt.runs.lengths import check_encoder, judge_warnings
from prefopt.runs.limits import (
    data_warnings,
    distinct,
    messages_as_text,
    rounded_scores,
    settings_warnings,
    shared_prompts,
    trained_on,
    unfinished_labellings,
    unread_columns,
)
from prefopt.runs.matching import match, training_rows
from prefopt.runs.quantising import check_weights
from prefopt.runs.step_metrics import check_limits, step_metrics
from prefopt.support.downloads import rows_awaited
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import checked_fields
from prefopt.support.sharing import shared, stamp
from prefopt.support.wording import counted
from prefopt.training.callbacks import check_callbacks
from prefopt.training.devices import refuse_environment
from prefopt.training.optimisers import check_training
from prefopt.types import Needs, Objective


@dataclass(frozen=True)
class OwnSource:
    """The data of a term with a source of its own.

    Attributes:
        needs: what they must bring.
        data: train, validation and test.
        notes: on how they were read.
    """

    needs: Needs
    data: Split[Example]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """A recipe with everything found, loaded and checked that can be before a model is.

    Attributes:
        recipe: as resolved.
        model: the folder or hub id of the policy.
        objectives: one for each term.
        needs: of the terms that share the run's source.
        wanted: what its data must bring of these.
        data: of the run's source.
        own: of each term with a source of its own, by the term's number.
        rows: of the run's source that are trained on.
        sets: further held-out rows, by the name of the set.
        warnings: what can be and is hardly meant, a sentence each.
        notes: what the data were read as, and how many rows were left out.
        counts: of each part, how many rows, prompts or completions were dropped, cut, repeated, …; known once they are tokens.
        left: of each part, how many rows there are then; of those to train on, as batches take them.
        shown: what environments showed in their check, by their key.
    """

    recipe: recipe.Recipe
    model: str
    objectives: Sequence[Objective]
    needs: Needs
    wanted: Needs
    data: Split[Example]
    own: Mapping[int, OwnSource]
    rows: int
    sets: Mapping[str, DiskRows[Example]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)
    shown: Mapping[str, Shown] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, DiskRows[Example]]:
        """The rows of all parts of the data: those to train on, validation and test rows, and further sets."""
        return {**self.data._asdict(), **self.sets}

    @property
    def held_out(self) -> dict[str, DiskRows[Example]]:
        """The same without those to train on."""
        return {name: rows for name, rows in self.parts.items() if name != "train"}

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
            does not run or returns another shape, an environment that asks for sharded weights.
    """
    refuse_environment()
    check_training(settings.train)
    objectives = [checked_fields(load_objective(term.name, **term.fields), term.name) for term in settings.objective]
    for objective, term in zip(objectives, settings.objective, strict=True):
        if ":" in term.name:
            check_objective(objective, only=BASIC)
    shared = [Term(o) for o, term in zip(objectives, settings.objective, strict=True) if term.source is None]
    if not shared:
        raise PrefoptError("every term has a source of its own; leave out that of the one that the run is about")
    needs = merged_needs(shared)
    _check_terms(settings, objectives, needs)
    check_weights(settings, merged_needs([Term(o) for o in objectives]))
    steps = step_metrics(settings, objectives) if settings.train.limits or settings.evaluate.sets else ()
    check_limits(settings.train.limits, steps)
    model = find_model(settings.policy.model)
    if settings.reference.model is not None:
        find_model(settings.reference.model)
    for source in (settings.source, *(term.source for term in settings.objective)):
        if source is not None and source.embeddings is not None and source.embeddings.model is not None:
            check_encoder("source.embeddings", source.embeddings.model, source.embeddings.max_tokens)
    _check_feedbacks(settings)
    check_callbacks(settings.train.callbacks)
    name, seed = " + ".join(t.name for t in shared), settings.seed_of("data")
    scored = settings.feedback is not None or _environment(settings) is not None
    wanted = match(needs, settings.source, name, scored, settings.cost is not None)
    if settings.source.rollouts is not None:
        check_sampler(settings.source.rollouts, settings=settings)
    own = {
        i: _own(objectives[i].needs, term.source, term.name, seed)
        for i, term in enumerate(settings.objective)
        if term.source is not None
    }
    data, rows, notes = _splits(settings.source, wanted, seed)
    shown = _check_environment(settings, data)
    sets, of_sets = _sets(settings.evaluate)
    of_own = [f"{settings.objective[i].name}: {note}" for i, one in own.items() for note in one.notes]
    notes = [*notes, *of_own, *of_sets]
    planned = Plan(settings, model, objectives, needs, wanted, data, own, rows, sets, notes=notes, shown=shown)
    planned = _in_steps(planned)
    for held_out in planned.held_out.values():
        check_held_out(held_out[: settings.evaluate.rows])
    check_choice(settings, needs.rewards, None if rows_awaited() else data.validation)
    if not rows_awaited():
        refuse_few(planned)
        _check_sets(planned, steps)
        _check_prompts(settings, data)
    # Last, because it reads the tokenizer; so does what follows.
    check_policy(settings.policy, needs.rewards, needs.step_rewards is not None)
    check_stops(settings.evaluate.samples, settings.policy, "evaluate")
    if settings.source.rollouts is not None:
        check_stops(settings.source.rollouts, settings.policy)
    return planned if rows_awaited() else replace(planned, warnings=tuple(_warnings(planned)))


def refuse_few(planned: Plan) -> None:
    """Refuse a batch that is larger than all rows.

    Raises:
        PrefoptError: says how many there are.
    """
    size = planned.recipe.train.batch_size
    if planned.rows < size:
        online = planned.recipe.source.rollouts is not None
        what, more = counted(planned.rows, "rows to train on"), ""
        if online:
            what, more = (
                f"{planned.rows} distinct prompt{'s' * (planned.rows != 1)}",
                ", or draw more completions of each",
            )
        raise PrefoptError(
            f"train.batch_size is {size}, and the data have {what}{_whereabouts(planned)}: make it smaller{more}, or give more"
        )


def _whereabouts(planned: Plan) -> str:
    """Where the other rows of the data are: held out, or dropped."""
    settings, train = planned.recipe.source, planned.data.train
    parts = {"validation": settings.validation, "test": settings.test}
    held_out = {part: len(rows) for part, rows in planned.data._asdict().items() if parts.get(part, part) is None}
    split = " and ".join(f"{count} held out for {part}" for part, count in held_out.items() if count)
    counts = Counter(planned.counts.get("train", ()))
    if not counts and settings.rollouts is None:
        for _ in select_checked(train, planned.wanted, settings.ties, counts):
            pass
    dropped = [counted(count, what) for what, count in counts.items() if count and " dropped: " in what]
    reasons = [*[f"{split} (source.split)"] * bool(split), *dropped]
    return f" (of {len(train) + sum(held_out.values())}: {'; '.join(reasons)})" if reasons else ""


def _warnings(planned: Plan) -> Iterator[str]:
    settings, source = planned.recipe, planned.recipe.source
    trains = settings.train.steps != 0
    yield from settings_warnings(settings, planned.steps, trains)
    scored = trains and (planned.wanted.signs or planned.wanted.scores)
    rows = list(training_rows(planned.data.train, planned.wanted, source)) if scored else []
    held_out = planned.held_out[settings.evaluate.part]
    yield from data_warnings(settings, planned.wanted, held_out, rows)
    if trains:
        yield from shared_prompts(settings.evaluate.part, held_out, planned.data.train)
    if trains:
        yield from _of_scores(planned, rows)
    yield from unread_columns(settings, planned.needs, planned.data.train)
    yield from _of_judges(settings, held_out, planned.data.train)
    yield from messages_as_text(planned.data.train)
    yield from unfinished_labellings(settings)
    yield from trained_on(planned.data.train, planned.sets)
    if settings.evaluate.every is not None and trains and not planned.data.validation:
        yield "evaluate.every asks for evaluations on validation rows, and there are none: give some in source.validation"


def _of_scores(planned: Plan, rows: Sequence[Example]) -> Iterator[str]:
    """What becomes of recorded scores, in each source whose objectives read them; `rows` are those of the run's own."""
    if planned.wanted.scores:
        yield from rounded_scores(rows)
    for number, own in planned.own.items():
        source = planned.recipe.objective[number].source
        if own.needs.scores and source is not None:
            yield from rounded_scores(training_rows(own.data.train, own.needs, source))


def _of_judges(settings: recipe.Recipe, held_out: Sequence[Example], train: Sequence[Example]) -> Iterator[str]:
    """What local judges will be asked, held against their positions."""
    evaluate, rollouts = settings.evaluate, settings.source.rollouts
    fixed = {"evaluate.gold": evaluate.gold, "evaluate.judge": evaluate.judge}
    fixed |= {metric_key(name): spec for name, spec in evaluate.metrics.items()}
    for key, spec in fixed.items():
        if spec is not None and evaluate.prompts:
            most, shorten = recipe.most_tokens(evaluate.sampling, settings.evaluated_in)
            yield from judge_warnings(spec, key, held_out, most, f"evaluate.{shorten}")
    for key, spec in (("feedback", settings.feedback), ("cost", settings.cost)):
        if spec is not None and rollouts is not None:
            most, shorten = recipe.most_tokens(rollouts.sampling, rollouts.environment)
            yield from judge_warnings(spec, key, train, most, f"source.rollouts.{shorten}")


def _check_prompts(settings: recipe.Recipe, data: Split[Example]) -> None:
    """Refuses what wants several prompts where there is one, and a comparison with a run of other prompts."""
    # What an environment says first may tell prompts of one text apart; otherwise other tasks of a prompt are no other prompts.
    asked = (row.asks if _environment(settings) else content_key(as_seen(row).prompt) for row in data.train)
    if "mismatched" in settings.source.writers and distinct(asked, 2) < 2:
        raise PrefoptError(
            f"source.writers has `mismatched`, which gives each prompt another's completion, and all {len(data.train)} rows "
            "to train on have one prompt: give other prompts, or take an objective that compares completions of one prompt"
        )
    against, part = settings.evaluate.against, settings.evaluate.part
    if against is None:
        return
    if part != "test":
        raise PrefoptError(f"evaluate.against: that run has samples of test rows alone, and evaluate.part is {part}")
    others = RunFolder(Path(against)).samples()
    if data.test and not any(win_rates.key_of(row) in others for row in data.test):
        raise PrefoptError(
            f"evaluate.against: none of the {len(data.test)} test rows has a prompt of {against}, which sampled for "
            f"{len(others)} others: compare with a run on the same data, split and seeds.data"
        )


def _check_sets(planned: Plan, steps: Sequence[str]) -> None:
    """Refuses sets whose names are taken or that have no rows, and columns that metrics cannot be broken down by."""
    evaluate = planned.recipe.evaluate
    for name, rows in planned.sets.items():
        if any(metric.startswith(f"{name}/") for metric in steps):
            raise PrefoptError(f"evaluate.sets: metrics of training begin with {name}/; give the set another name")
        if not rows:
            raise PrefoptError(f"evaluate.sets.{name}: there is no row")
    if rows := planned.held_out[evaluate.part]:
        check_by(evaluate.by, rows, evaluate.part)


def _environment(settings: recipe.Recipe) -> recipe.Environment | None:
    return None if settings.source.rollouts is None else settings.source.rollouts.environment


def _check_environment(settings: recipe.Recipe, data: Split[Example]) -> dict[str, Shown]:
    """What environments show for the first prompt; refuses those of another shape, and what was not written in one."""
    rollouts = _environment(settings)
    if rollouts is not None and "dataset" in settings.source.writers:
        raise PrefoptError(
            "source.writers has `dataset`, whose completions were not written in source.rollouts.environment and have no reward of "
            "it: leave one out"
        )
    held_out = data.validation if settings.evaluate.part == "validation" else data.test
    given = (
        ("source.rollouts.environment", rollouts, data.train),
        ("evaluate.environment", settings.evaluate.environment, held_out),
    )
    return {
        key: check_section(spec, key, {**rows[0].columns, "prompt": rows[0].prompt})
        for key, spec, rows in given
        if spec is not None and rows
    }


def _check_feedbacks(settings: recipe.Recipe) -> None:
    check_sampler(settings.evaluate.samples, "evaluate", settings)
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


def _own(needs: Needs, source: recipe.Source, name: str, seed: int) -> OwnSource:
    wanted = match(needs, source, name)
    data, _, notes = _splits(source, wanted, seed)
    return OwnSource(wanted, data, notes)


class _Parts(NamedTuple):
    """The data of a source: its parts, the number of rows to train on, and what is to be said of how they were read."""

    data: Split[Example]
    rows: int
    notes: Sequence[str]


def _splits(source: recipe.Source, needs: Needs, seed: int) -> _Parts:
    """The parts of a source; those with data of their own take nothing from the rest."""
    rows, notes = _loaded(source)
    own = {
        part: _loaded(data)
        for part, data in (("validation", source.validation), ("test", source.test))
        if data is not None
    }
    notes += tuple(f"{part}: {note}" for part, read in own.items() for note in read.notes if note not in notes)
    train, validation, test = divided(rows, source.split, seed)
    if source.validation is not None:
        train += validation
    if source.test is not None:
        train += test
    if rows and not train:
        groups = len({row.group for row in rows})
        raise PrefoptError(
            f"source.split {list(source.split)} leaves nothing to train on: the {len(rows)} rows are of {groups} group"
            f"{'s' * (groups > 1)} (a prompt, or the column `group`), a group is never divided, and all were held out. "
            "Give more prompts, set source.split to [1, 0, 0] and name held-out rows in source.test, or try another seeds.data"
        )
    parts = Split(
        rows.select(train),
        own["validation"].rows if "validation" in own else rows.select(validation),
        own["test"].rows if "test" in own else rows.select(test),
    )
    return _Parts(parts, sum(1 for _ in training_rows(parts.train, needs, source)), notes)


def _in_steps(planned: Plan) -> Plan:
    """Of a scorer of steps, held-out texts as the steps that end like those of its training rows, unless they have steps."""
    separator = separator_of(planned.data.train) if planned.needs.step_rewards else None
    if separator is None:
        return planned

    def cut(rows: DiskRows[Example]) -> DiskRows[Example]:
        return DiskRows.of(in_steps(example, separator) for example in rows)

    data = planned.data._replace(validation=cut(planned.data.validation), test=cut(planned.data.test))
    return replace(planned, data=data, sets={name: cut(rows) for name, rows in planned.sets.items()})


def _sets(evaluate: recipe.Evaluate) -> tuple[dict[str, DiskRows[Example]], list[str]]:
    """The rows of further held-out sets, and what is to be said of how they were read."""
    read = {name: _loaded(spec) for name, spec in evaluate.sets.items()}
    notes = [f"{name}: {note}" for name, one in read.items() for note in one.notes]
    return {name: one.rows for name, one in read.items()}, notes


def _loaded(data: recipe.Data) -> Loaded:
    files = [file for name in data.data for file in [name.partition(":")[0], *glob.glob(name, recursive=True)]]
    key = (data.model_dump_json(include={"data", "arguments", "hub_split", "adapt"}), *map(stamp, files))
    read = shared(
        "examples", key, lambda: load(list(data.data), data.arguments, split=data.hub_split, adapt=data.adapt)
    )
    return read._replace(rows=read.rows[: data.limit])
