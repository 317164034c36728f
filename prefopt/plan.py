"""What a run will do: everything of a recipe that can be found, loaded and checked before a model is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prefopt import recipe
from prefopt.checks import BASIC, check_objective
from prefopt.data import Example, Split, load_examples, prompts, split
from prefopt.errors import PrefoptError
from prefopt.feedback import check_feedback
from prefopt.objectives import load_objective
from prefopt.players import without_players
from prefopt.plugins import checked_fields
from prefopt.policy import find_model
from prefopt.sources import project
from prefopt.terms import Term, merged_needs
from prefopt.types import Needs, Objective

EMBEDDINGS = "embeddings"
"""The column that `source.embeddings` adds."""


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
    """

    recipe: recipe.Recipe
    model: str
    objectives: Sequence[Objective]
    needs: Needs
    wanted: Needs
    data: Split[Example]
    own: Mapping[int, Split[Example]]

    @property
    def steps(self) -> int:
        """Logical batches to train on."""
        train = self.recipe.train
        if train.steps is not None:
            return train.steps
        rows, _ = project(self.data.train, self.wanted, self.recipe.source.ties)
        assert train.epochs is not None
        return max(1, int(len(rows) * train.epochs) // train.batch_size)


def plan(settings: recipe.Recipe) -> Plan:
    """Load what is cheap and refuse what cannot work.

    Raises:
        PrefoptError: an unknown objective or field, terms that do not fit together, data that lack what an objective needs, a
            model, reference or gold reward that is not there, a whole-batch objective with minibatches, a user's objective that
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
    if settings.evaluate.gold is not None and not callable(load_object(settings.evaluate.gold)):
        raise PrefoptError(f"evaluate.gold: {settings.evaluate.gold} is no function")
    seed = settings.seed_of("data")
    own = {
        i: _splits(term.source, wanted(objectives[i].needs, term.source, term.name), seed)
        for i, term in enumerate(settings.objective)
        if term.source is not None
    }
    shares = wanted(needs, settings.source, " + ".join(term.name for term in shared))
    data = _splits(settings.source, shares, seed)
    rows = len(project(data.train, shares, settings.source.ties)[0])
    if rows < settings.train.batch_size:
        raise PrefoptError(
            f"train.batch_size is {settings.train.batch_size}, and the data have {rows} rows to train on"
        )
    return Plan(settings, model, objectives, needs, shares, data, own)


def wanted(needs: Needs, source: recipe.Source, name: str) -> Needs:
    """What the data of a source must bring themselves, for an objective or several of this name.

    Raises:
        PrefoptError: the source must add something else to them.
    """
    needs = without_players(needs, source.players, name)
    if source.embeddings is None:
        return needs
    if EMBEDDINGS not in needs.columns:
        raise PrefoptError(f"source.embeddings is given, and {name} does not compare prompts: leave it out")
    if needs.rewards and source.embeddings.model is None:
        raise PrefoptError(
            f"{name} trains a scorer, which embeds no prompts: name a sentence encoder in source.embeddings.model"
        )
    return replace(needs, columns=tuple(column for column in needs.columns if column != EMBEDDINGS))


def _check_terms(settings: recipe.Recipe, objectives: Sequence[Objective], needs: Needs) -> None:
    train = settings.train
    if needs.rollouts:
        raise PrefoptError("this objective needs completions from the current policy; `source` holds recorded ones")
    if needs.values:
        raise PrefoptError("this objective needs a value head, and the policy has none")
    if needs.rewards and needs.reference:
        raise PrefoptError("one term trains a scorer and another a language model; run them apart")
    if needs.whole_batch and train.minibatch_size not in (None, train.batch_size):
        names = [type(o).__name__ for o in objectives if o.needs.whole_batch]
        raise PrefoptError(
            f"{' and '.join(names)} couples the rows of a batch, which must not be cut: "
            f"leave out train.minibatch_size or set it to train.batch_size ({train.batch_size})"
        )


def _splits(source: recipe.Source, needs: Needs, seed: int) -> Split[Example]:
    """Train, validation and test; parts that have data of their own take nothing from the rest."""
    parts = split(_examples(source), source.split, seed)
    if source.validation is not None:
        parts = Split(parts.train + parts.validation, _examples(source.validation), parts.test)
    if source.test is not None:
        parts = Split(parts.train + parts.test, parts.validation, _examples(source.test))
    project(parts.train, needs, source.ties)  # refuses data that lack what the objective needs
    return parts


def _examples(data: recipe.Data) -> list[Example]:
    return load_examples(list(data.data), data.arguments, split=data.hub_split)[: data.limit]


