"""From the section of a recipe to a feedback."""

import inspect
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
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import LATER, check_call, make
from prefopt.support.profile import timed
from prefopt.types import Feedback, Prompt, Verdict

T = TypeVar("T")

FEEDBACKS: dict[str, type] = {cls.__name__: cls for cls in (Rule, RewardModel, Judge, Ensemble, Panel)}
"""Every feedback by the name that recipes give it."""

CALLED_WITH = ("prompts", "completions", "rows")
"""What every feedback is called with."""

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
        accelerator: given to every feedback whose constructor asks for it by this name, members of an ensemble included.
        where: what messages call the section.
        live: the policy that is being trained, given likewise as `live` or `policy`: a judge with `model: self` is it.

    Raises:
        PrefoptError: an unknown name or field (with the nearest known one), a value that cannot be, a model that cannot be loaded.
    """
    made = _made(spec, where, {"accelerator": accelerator, "live": live, "policy": live})
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
    made = _made(spec, where, dict.fromkeys(("accelerator", "live", "policy"), LATER))
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
    feedback = make(spec.name, fields, "feedback", known=FEEDBACKS, where=where, running=running)
    if inspect.isroutine(feedback):
        feedback = Rule(spec.name)
    check_call(feedback.function if isinstance(feedback, Rule) else feedback, CALLED_WITH, f"{where}: {spec.name}")
    accelerator = {"accelerator": running["accelerator"]}
    transforms = tuple(
        make(
            transform.name,
            transform.fields,
            "transform",
            known=TRANSFORMS,
            where=f"{where}.transforms.{i}",
            running=accelerator,
        )
        for i, transform in enumerate(spec.transforms)
    )
    name = feedback.path if isinstance(feedback, Rule) else spec.name
    return Transformed(feedback, transforms, name, spec.timeout)


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
