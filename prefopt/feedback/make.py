"""From the section of a recipe to a feedback."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from prefopt import recipe
from prefopt.feedback.calling import Foreseeing, Loadable, Spending, Stateful, run_feedback
from prefopt.feedback.ensemble import Ensemble
from prefopt.feedback.judges.judge import SELF, Judge
from prefopt.feedback.panel import Panel
from prefopt.feedback.reward_model import RewardModel
from prefopt.feedback.rule import Rule
from prefopt.feedback.transforms import (
    Clip,
    LengthPenalty,
    MissingEOS,
    Normalise,
    ReferenceNormalise,
    RepetitionPenalty,
    Transformed,
)
from prefopt.policy import Policy, Scorer
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.plugins import checked_fields, load_object
from prefopt.support.profile import timed
from prefopt.types import Feedback, Prompt, Verdict

T = TypeVar("T")

FEEDBACKS: dict[str, type] = {cls.__name__: cls for cls in (Rule, RewardModel, Judge, Ensemble, Panel)}
"""Every feedback by the name that recipes give it."""

TRANSFORMS: dict[str, type] = {
    cls.__name__: cls for cls in (LengthPenalty, RepetitionPenalty, Clip, Normalise, ReferenceNormalise, MissingEOS)
}
"""Every transform by the name that recipes give it."""


def make_feedback(
    spec: recipe.Feedback, accelerator: Accelerator, where: str = "feedback", live: Policy | None = None
) -> Transformed:
    """What a recipe's section describes, loaded and ready.

    Args:
        spec: the section `feedback`, `cost` or `evaluate.gold`.
        accelerator: given to every feedback that has a field of this name, members of an ensemble included.
        where: what messages call the section.
        live: the policy that is being trained, given likewise: a judge with `model: self` is it.

    Raises:
        PrefoptError: an unknown name or field (with the nearest known one), a value that cannot be, a model that cannot be loaded.
    """
    made = _made(spec, where, {"accelerator": accelerator, "live": live})
    for part in _parts(made):
        if isinstance(part, Loadable):
            part.load()
    return made


def check_feedback(spec: recipe.Feedback, where: str = "feedback", fixed: bool = False) -> None:
    """Refuse what `make_feedback` would, as far as that can be known without loading a model.

    Args:
        spec: the section.
        where: what messages call it.
        fixed: refuse running numbers, too: what measures must be the same before and after.

    Raises:
        PrefoptError: says where, what, and what to do.
    """
    made = _made(spec, where, {"accelerator": None, "live": None})
    for part in _parts(made):
        if isinstance(part, Loadable):
            try:
                part.check()
            except PrefoptError as error:
                raise PrefoptError(f"{where}: {error}") from error
    moving = [type(part).__name__ for part in _parts(made) if _moves(part)]
    if fixed and moving:
        raise PrefoptError(
            f"{where}: {moving[0]} has numbers that move with what it sees, so earlier and later scores could not be "
            "compared; leave it out, or use ReferenceNormalise with gain and bias"
        )


def ask(
    feedback: Feedback,
    name: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
    accelerator: Accelerator,
) -> Verdict:
    """`run_feedback` with one verdict for all processes, `together`.

    Raises:
        PrefoptError: on every process, whatever stopped the one that asked.
    """
    with timed("feedback"):
        return together(feedback, accelerator, lambda: run_feedback(feedback, name, prompts, completions, rows))


def foreseeing(feedback: Any) -> list[Foreseeing]:
    """What there is in a feedback that can be asked ahead."""
    return [part for part in _parts(feedback) if isinstance(part, Foreseeing) and part.foresees]


def together(feedback: Any, accelerator: Accelerator, call: Callable[[], T]) -> T:
    """What a call of this feedback comes to, the same on all processes.

    A reward model deals its work to all of them, so all call it. Anything else is called by the main process alone: a judge is paid
    once, and a verdict with chance in it is the same everywhere.

    Raises:
        PrefoptError: on every process, for the others would wait for ever.
    """
    if accelerator.num_processes == 1 or any(isinstance(part, RewardModel) for part in _parts(feedback)):
        return call()
    said: list[Any] = [None, ""]
    if accelerator.is_main_process:
        try:
            said = [call(), ""]
        except PrefoptError as error:
            said = [None, str(error)]
    answer, wrong = broadcast_object_list(said)
    if wrong:
        raise PrefoptError(wrong)
    return answer


def reward_models(feedback: Any) -> dict[str, Scorer]:
    """The reward models in a feedback, by the names of their checkpoints: a manifest keeps their fingerprints."""
    found = [part for part in _parts(feedback) if isinstance(part, RewardModel)]
    return {str(part.model): part.scorer for part in found}


def spent_by(feedback: Any) -> dict[str, float]:
    """What a feedback and all its parts have used so far, by name: calls, tokens, money."""
    total: Counter[str] = Counter()
    for part in _parts(feedback):
        if isinstance(part, Spending):
            total.update(part.spent)
    return dict(total)


def _made(spec: recipe.Feedback, where: str, running: Mapping[str, Any]) -> Transformed:
    members = tuple(_made(member, f"{where}.members.{i}", running) for i, member in enumerate(spec.members))
    fields = spec.fields | ({"members": members} if members else {})
    found = _named(spec.name, FEEDBACKS, "feedback", where)
    if isinstance(found, type):
        feedback = _record(found, spec.name, fields, where, running)
    elif fields:
        raise PrefoptError(
            f"{where}: {spec.name} is a function, which has no fields ({', '.join(fields)}); make it a dataclass with __call__"
        )
    else:
        feedback = Rule(spec.name)
    if not callable(feedback):
        raise PrefoptError(
            f"{where}: {spec.name} cannot be called; a feedback is called with prompts, completions and rows"
        )
    transforms = tuple(_transform(transform, f"{where}.transforms.{i}") for i, transform in enumerate(spec.transforms))
    name = feedback.path if isinstance(feedback, Rule) else spec.name
    return Transformed(feedback, transforms, name, spec.timeout)


def _transform(spec: recipe.Transform, where: str) -> Any:
    found = _named(spec.name, TRANSFORMS, "transform", where)
    if isinstance(found, type):
        return _record(found, spec.name, spec.fields, where, {"accelerator": None})
    if spec.fields:
        raise PrefoptError(f"{where}: {spec.name} is a function, which has no fields ({', '.join(spec.fields)})")
    return found


def _named(name: str, known: Mapping[str, type], what: str, where: str) -> Any:
    """The class or function of that name."""
    if ":" in name:
        try:
            found = load_object(name)
        except PrefoptError as error:
            raise PrefoptError(f"{where}: {error}") from error
        if not callable(found):
            raise PrefoptError(f"{where}: {name} is no function or class")
        return found
    if name not in known:
        raise PrefoptError(
            f"{where}: unknown {what} {name!r}.{nearest(name, known)} Known: {', '.join(known)}. "
            "Your own is named `package.module:name` or `file.py:name`."
        )
    return known[name]


def _record(cls: type, name: str, given: Mapping[str, Any], where: str, running: Mapping[str, Any]) -> Any:
    """An object of a class with these fields, and those of the run that it has, checked where it is a dataclass."""
    if dataclasses.is_dataclass(cls):
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        known = [field for field in fields if field not in running]
        for field in given:
            if field not in known:
                raise PrefoptError(
                    f"{where}: {name} has no field {field!r}.{nearest(field, known)} It has: {', '.join(known) or 'none'}."
                )
        missing = [
            field
            for field in known
            if field not in given
            and fields[field].default is dataclasses.MISSING
            and fields[field].default_factory is dataclasses.MISSING
        ]
        if missing:
            raise PrefoptError(f"{where}: {name} needs {' and '.join(map(repr, missing))}")
        given = {**given, **{name: value for name, value in running.items() if name in fields}}
    try:
        record = cls(**given)
    except (TypeError, ValueError) as error:
        raise PrefoptError(f"{where}: {name} cannot be made: {error}") from error
    return checked_fields(record, f"{where}: {name}") if dataclasses.is_dataclass(cls) else record


def _parts(feedback: Any) -> Iterator[Any]:
    """A feedback, its transforms, and those of its members."""
    yield feedback
    if isinstance(feedback, Transformed):
        yield from _parts(feedback.feedback)
        yield from feedback.transforms
    if isinstance(feedback, Ensemble | Panel):
        for member in feedback.members:
            yield from _parts(member)


def _moves(part: Any) -> bool:
    """Whether it has running numbers of its own, waits for samples to fix them, or is the policy itself."""
    if isinstance(part, ReferenceNormalise):
        return part.unfitted
    if isinstance(part, Judge):
        return part.model == SELF
    return isinstance(part, Stateful) and not isinstance(part, Transformed | Ensemble | Panel)
