"""What a recipe names and that is not there: told at once, since nothing here imports torch or loads a model."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prefopt import recipe
from prefopt.objectives.names import check_terms
from prefopt.recipe.names import WithFields
from prefopt.runs.label.recipe import LabelRecipe
from prefopt.support.downloads import HUB_ID, no_model
from prefopt.support.errors import PrefoptError
from prefopt.support.files import files_like
from prefopt.support.given import Given
from prefopt.support.plugins import refuse_missing, unknown_name


def refuse_unknown_names(settings: recipe.Recipe | LabelRecipe, later: Sequence[Path] = ()) -> None:
    """Refuse what a look at names alone can tell; planning finds the rest. Fields of one's own classes are theirs.

    Args:
        settings: of a run, or of a labelling.
        later: folders that are written before this runs; what is below them may not be there yet.

    Raises:
        PrefoptError: an objective or hyperparameter, a feedback, transform or sampler that there is not; a file of data or of a
            user's code that is not on disk; a model that is neither on disk nor a hub id.
    """
    if isinstance(settings, recipe.Recipe):
        check_terms(settings.objective)
    for key, section in _sections(settings):
        _check_section(key, section, later)


def refuse_unknown_measures(evaluate: recipe.Evaluate) -> None:
    """The same of what a finished run is to be measured by, whose own data and models planning looks for.

    Raises:
        PrefoptError: as `refuse_unknown_names`.
    """
    for key, section in _sections(evaluate, "evaluate"):
        _check_section(key, section, ())


def _sections(section: BaseModel, key: str = "") -> Iterator[tuple[str, BaseModel]]:
    """A section and those within it, each with its dotted key; the items of a list go by their number, of which one needs none."""
    yield key, section
    for name in type(section).model_fields:
        value, where = getattr(section, name), f"{key}.{name}".lstrip(".")
        within = dict(value) if isinstance(value, Mapping) else {}
        if isinstance(value, tuple):
            within = {str(number): item for number, item in enumerate(value)}
        for part, item in within.items():
            if isinstance(item, BaseModel):
                yield from _sections(item, where if name == "objective" and len(within) == 1 else f"{where}.{part}")
        if isinstance(value, BaseModel):
            yield from _sections(value, where)


def _check_section(key: str, section: BaseModel, later: Sequence[Path]) -> None:
    if isinstance(section, recipe.Feedback):
        _check_known(section.name, "feedback", recipe.FEEDBACKS, key)
    elif isinstance(section, recipe.Transform):
        _check_known(section.name, "transform", recipe.TRANSFORMS, key)
    elif isinstance(section, recipe.Samples | recipe.Evaluate):
        _check_known(section.sampler, "sampler", recipe.SAMPLERS, f"{key}.sampler")
    elif isinstance(section, recipe.Policy | recipe.Reference | recipe.Critic):
        _check_model(section.model, later)
    if isinstance(section, recipe.Data):
        for name in section.data:
            if not isinstance(name, Given) and Path(name).suffix in recipe.DATA_FILES and not _is_below(name, later):
                files_like(name)
            _check_file(f"{key}.data", name)
        _check_known(section.adapt, "dialect", recipe.DIALECTS, f"{key}.adapt")
        _check_file(f"{key}.adapt", section.adapt)
    if isinstance(section, WithFields):
        _check_file(key, getattr(section, "name", None))


def _check_known(name: Any, what: str, known: tuple[str, ...], where: str) -> None:
    if isinstance(name, str) and not isinstance(name, Given) and ":" not in name and name not in known:
        raise unknown_name(name, what, known, where)


def _check_model(names: tuple[str, ...] | None, later: Sequence[Path]) -> None:
    if names and not any(
        isinstance(name, Given)
        or HUB_ID.fullmatch(name.partition("@")[0])
        or Path(name).expanduser().exists()
        or _is_below(name, later)
        for name in names
    ):
        raise no_model(names)


def _is_below(name: str, folders: Sequence[Path]) -> bool:
    return any(Path(name).is_relative_to(folder) for folder in folders)


def _check_file(key: str, name: Any) -> None:
    """Refuse `file.py:Name` whose file is not there, or which has no such name."""
    place = name.rpartition(":")[0] if isinstance(name, str) and not isinstance(name, Given) else ""
    if place.endswith(".py"):
        try:
            refuse_missing(name)
        except PrefoptError as error:
            raise PrefoptError(f"{key}: {error}") from None
