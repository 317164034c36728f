"""From the section of a recipe to a feedback."""

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from accelerate import Accelerator

from prefopt import recipe
from prefopt.environments.episodes import EnvironmentReward
from prefopt.feedback.calling import (
    Composite,
    Loadable,
    Moving,
    Prefetching,
    Spending,
    Stateful,
    by_all,
    by_main,
    is_collective,
    parts_of,
    run_feedback,
)
from prefopt.feedback.ensemble import Ensemble
from prefopt.feedback.judges.judge import Judge
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
from prefopt.feedback.weighted import WeightedSum
from prefopt.policy import Policy, Scorer
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import LATER, NotYet, asks_for, check_call, find, make
from prefopt.support.profile import timed
from prefopt.types import Completion, Feedback, Prompt, Verdict

T = TypeVar("T")

FEEDBACKS: dict[str, type] = {
    cls.__name__: cls for cls in (Rule, RewardModel, Judge, Ensemble, Panel, WeightedSum, EnvironmentReward)
}
"""Every feedback by the name that recipes give it."""

CALLED_WITH = ("prompts", "completions", "rows")
"""What every feedback is called with."""

TRANSFORMS: dict[str, type] = {
    cls.__name__: cls for cls in (LengthPenalty, RepetitionPenalty, Clip, Normalise, ReferenceNormalise, MissingEOS)
}
"""Every transform by the name that recipes give it."""


def make_feedback(
    spec: recipe.Feedback, accelerator: Accelerator, where: str = "feedback", policy: Policy | None = None
) -> Transformed:
    """What a recipe's section describes, loaded and ready.

    Args:
        spec: the section `feedback`, `cost` or `evaluate.gold`.
        accelerator: given to every feedback whose constructor asks for it by this name, members of an ensemble included.
        where: what messages call the section.
        policy: the policy that is being trained, given likewise: a judge with `model: self` is it.

    Raises:
        PrefoptError: an unknown name or field (with the nearest known one), a value that cannot be, a model that cannot be loaded.
    """
    feedback = _from_section(spec, where, {"accelerator": accelerator, "policy": policy})
    for part in parts_of(feedback):
        if isinstance(part, Loadable):
            part.load()
    return feedback


def bare(feedback: Transformed) -> Transformed | None:
    """The feedback without the transforms of its scores; None where asking it again would change or cost something.

    That is where something in it has running numbers, is the policy itself, is still to be fitted, or is paid for, as a language
    model that judges is.
    """
    own = dataclasses.replace(feedback, transforms=())
    kept = not any(_moves(part) or isinstance(part, Spending | NotYet) for part in parts_of(own))
    return own if kept and not own.unfitted else None


def is_bare(spec: recipe.Feedback) -> bool:
    """Whether there will be a `bare` one of this section; loads no model."""
    running = dict.fromkeys(("accelerator", "policy"), LATER)
    return bare(_from_section(spec, "feedback", running)) is not None


def check_feedback(spec: recipe.Feedback, where: str = "feedback", fixed: bool = False) -> None:
    """Refuse what `make_feedback` would, as far as that can be known without loading a model.

    Args:
        spec: the section.
        where: what messages call it.
        fixed: refuse running numbers, too: what measures must be the same before and after.

    Raises:
        PrefoptError: says where, what, and what to do.
    """
    feedback = _from_section(spec, where, dict.fromkeys(("accelerator", "policy"), LATER))
    for part in parts_of(feedback):
        if isinstance(part, Loadable):
            try:
                part.check()
            except PrefoptError as error:
                raise PrefoptError(f"{where}: {error}") from error
    moving = [part for part in parts_of(feedback) if _moves(part)]
    if fixed and moving:
        name = type(moving[0]).__name__
        if not isinstance(moving[0], Stateful):
            raise PrefoptError(
                f"{where}: {name} of `model: self` is the policy as it is when it is asked, and what measures or labels must stay "
                "the same: name a model of its own"
            )
        raise PrefoptError(
            f"{where}: {name} has numbers that move with what it sees, so earlier and later scores could not be "
            "compared; leave it out, or use ReferenceNormalise with gain and bias"
        )


def ask(
    feedback: Feedback,
    name: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    rows: Sequence[Mapping[str, Any]],
    accelerator: Accelerator,
) -> Verdict:
    """`run_feedback` with one verdict for all processes, `together`.

    Raises:
        PrefoptError: on every process, whatever stopped the one that asked.
    """
    with timed("feedback"):
        return together(feedback, accelerator, lambda: run_feedback(feedback, name, prompts, completions, rows))


def prefetching(feedback: Any) -> list[Prefetching]:
    """The parts of a feedback that can be asked ahead."""
    return [part for part in parts_of(feedback) if isinstance(part, Prefetching) and part.prefetches]


def together(feedback: Any, accelerator: Accelerator, call: Callable[[], T]) -> T:
    """The result of a call of this feedback, the same on all processes.

    Where a part of it is `Collective`, as a reward model is, all processes call it, and within it such parts. Anything else is
    called by the main process alone, beside a reward model, too: a judge is paid once, and a verdict with chance in it is the
    same everywhere.

    Raises:
        PrefoptError: on every process, for the others would wait for ever.
    """
    if accelerator.num_processes == 1:
        return call()
    return (by_all if is_collective(feedback) else by_main)(accelerator, call)


def reward_models(feedback: Any) -> dict[str, Scorer]:
    """The reward models in a feedback, by the names of their checkpoints: a manifest keeps their fingerprints."""
    return {str(part.model): part.scorer for part in parts_of(feedback) if isinstance(part, RewardModel)}


def judge_records(feedback: Any) -> list[dict[str, Any]]:
    """The judges in a feedback: who answers, what a server says of its model now, and by which rubric, for a manifest."""
    found = [part for part in parts_of(feedback) if isinstance(part, Judge)]
    return [part.answerer | {"rubric": part.text.fingerprint} for part in found]


def judges_of(spec: recipe.Feedback, where: str = "feedback") -> list[Judge]:
    """The judges that a section describes, members among them; loads none."""
    return [part for part in _described(spec, where) if isinstance(part, Judge)]


def reward_models_of(spec: recipe.Feedback, where: str = "feedback") -> list[RewardModel]:
    """The reward models that a section describes, members among them; loads none."""
    return [part for part in _described(spec, where) if isinstance(part, RewardModel)]


def asking_the_policy(spec: recipe.Feedback, where: str) -> list[str]:
    """Those of a section and its members that ask the policy that is trained: judges with `model: self`, a user's own classes."""
    own = ":" in spec.name and asks_for("policy", find(spec.name, "feedback", known=FEEDBACKS, where=where))
    asking = [str(spec.name)] if own or spec.fields.get("model") == "self" else []
    for number, member in enumerate(spec.members):
        asking += asking_the_policy(member, f"{where}.members.{number}")
    return asking


def _described(spec: recipe.Feedback, where: str) -> list[Any]:
    return list(parts_of(_from_section(spec, where, dict.fromkeys(("accelerator", "policy"), LATER))))


def spent_by(feedback: Any) -> dict[str, float]:
    """What a feedback and all its parts have used so far, by name: calls, tokens, money."""
    total: Counter[str] = Counter()
    for part in parts_of(feedback):
        if isinstance(part, Spending):
            total.update(part.spent)
    return dict(total)


def _from_section(spec: recipe.Feedback, where: str, running: Mapping[str, Any]) -> Transformed:
    members = tuple(_from_section(member, f"{where}.members.{i}", running) for i, member in enumerate(spec.members))
    fields = spec.fields | ({"members": members} if members else {})
    feedback = make(spec.name, fields, "feedback", known=FEEDBACKS, where=where, running=running)
    if inspect.isroutine(feedback):
        feedback = Rule(spec.name)
    check_call(feedback.function if isinstance(feedback, Rule) else feedback, CALLED_WITH, f"{where}: {spec.name}")
    if members and not isinstance(feedback, Composite | NotYet):
        raise PrefoptError(
            f"{where}: {spec.name} is given members and does not say what it holds: give it a property `parts` that returns "
            "them, so that they are loaded, fitted and saved, and called by all processes where they have to be"
        )
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
    if transforms and any(isinstance(part, EnvironmentReward) for part in parts_of(feedback)):
        raise PrefoptError(
            f"{where}: transforms change scores of whole completions, and an environment's rewards are of turns, which they would "
            "leave as they are: leave the transforms out, or give them to the other members"
        )
    name = feedback.path if isinstance(feedback, Rule) else spec.name
    if where.startswith("evaluate.metrics."):
        name = f"{name} ({where})"
    return Transformed(feedback, transforms, name, spec.timeout)


def _moves(part: Any) -> bool:
    """Whether it may score the same completion differently later: it has running numbers, or is the policy itself."""
    if isinstance(part, Moving):
        return part.moves
    return isinstance(part, Stateful) and not isinstance(part, Composite)
