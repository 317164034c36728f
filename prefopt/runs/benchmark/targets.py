"""Who is measured on a benchmark: a run folder, a model, or the judge, feedback or policy of a recipe, as a feedback."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from pydantic import Field, model_validator

from prefopt import recipe
from prefopt.data import load_examples
from prefopt.evaluation.benchmarks.cases import Case
from prefopt.evaluation.benchmarks.implicit import ImplicitReward, Kind
from prefopt.evaluation.benchmarks.measuring import in_turns, without_prompts
from prefopt.evaluation.judges.report import JudgeRecipe
from prefopt.feedback import RewardModel, check_feedback, make_feedback
from prefopt.objectives import load_objective
from prefopt.policy import Policy, find_model, load_policy, load_tokenizer, make_reference
from prefopt.policy.scorer_loading import is_scorer
from prefopt.recipe import FeedbackOrName, Section
from prefopt.runs.folder import RunFolder
from prefopt.runs.inspecting import trained
from prefopt.runs.label.recipe import LabelRecipe
from prefopt.runs.manifest import date_of
from prefopt.support.dates import current_date
from prefopt.support.errors import PrefoptError
from prefopt.types import Feedback

Prompts = Literal["text", "turns", "none"]


@dataclass(frozen=True)
class Manner:
    """How a target reads the rows of a benchmark.

    Attributes:
        reward: of a policy; None: `logratio` where its objective compares with a reference or one is named, else `mean_logp`.
        reference: of a policy; None is the run's own.
        prompts: text as it is, a turn of the user, or none; None: as the target was trained.
        batch_size: answers in a forward pass.
    """

    reward: Kind | None = None
    reference: str | None = None
    prompts: Prompts | None = None
    batch_size: int = 16


@dataclass(frozen=True)
class Target:
    """Who is measured.

    Attributes:
        name: as it was given.
        settings: what says how it computes, and what a record of it is made from.
        make: the feedback, on a device.
        shown: the cases as it reads them.
        about: what a record says of it beside its settings.
        threads: of the CPU, as in a recipe.
        precision: as in a recipe.
        date: that chat templates write.
        language_model: what it is, where it is a policy; None of others.
    """

    name: str
    settings: Section
    make: Callable[[Accelerator], Feedback]
    shown: Callable[[Sequence[Case]], Sequence[Case]] = field(default=lambda cases: cases)
    about: Mapping[str, Any] = field(default_factory=dict)
    threads: int | recipe.Threads | None = None
    precision: str = "auto"
    date: date = field(default_factory=current_date)
    language_model: recipe.Policy | None = None


class JudgedRecipe(Section):
    """Of a recipe whose judge or feedback is measured: what concerns it."""

    name: str = Field("judge", description="a file's default is its folder and name")
    variables: dict[str, str] = Field(default_factory=dict, description="used elsewhere as ${name}")
    seed: int = Field(0, ge=0, description="not used")
    judge: FeedbackOrName | None = Field(None, description="what is measured")
    feedback: FeedbackOrName | None = Field(None, description="what is measured, where there is no judge")
    precision: recipe.Precision = Field("auto", description="arithmetic of models")
    threads: recipe.ThreadsOrMost | None = Field(None, description=recipe.PLAIN_THREADS)

    @model_validator(mode="after")
    def _someone(self) -> "JudgedRecipe":
        if self.judge is None and self.feedback is None:
            raise ValueError("names no `judge`, no `feedback` and no `policy`, of which one is to be measured")
        return self


def find_target(name: str, overrides: Sequence[str], manner: Manner) -> Target:
    """Who a name means, as far as can be told without loading a model.

    Args:
        name: a run folder; a folder or hub id of a model; or the YAML file of a recipe: its judge, else its feedback, else its
            policy before training.
        overrides: of the recipe.
        manner: how it reads.

    Raises:
        PrefoptError: there is nothing of this name, or it cannot be measured so.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return _of_recipe(name, overrides, manner)
    if RunFolder(path).begun:
        run = RunFolder(path)
        return _of_run(name, trained(path, overrides), manner, run)
    if overrides:
        raise PrefoptError(
            f"{name} is a model and has no recipe, so there is nothing that {overrides[0]} could override"
        )
    return _of_model(name, manner)


def _of_recipe(name: str, overrides: Sequence[str], manner: Manner) -> Target:
    sections = recipe.sections_of(name)
    if "policy" in sections and not sections & {"judge", "feedback"}:
        return _of_run(name, recipe.load_recipe(name, overrides), manner, None)
    tree = recipe.interpolated(recipe.read(name, overrides))
    theirs = recipe.Recipe if "objective" in sections else JudgeRecipe if "judge" in sections else LabelRecipe
    known = theirs.model_fields.keys() - JudgedRecipe.model_fields.keys()
    settings = recipe.checked(JudgedRecipe, {k: v for k, v in tree.items() if k not in known}, name, overrides)
    key = "judge" if settings.judge is not None else "feedback"
    spec = settings.judge or settings.feedback
    assert spec is not None
    if manner.reward or manner.reference:
        raise PrefoptError(f"{name}: its {key} is measured, and --reward and --reference are for policies")
    check_feedback(spec, key, fixed=True)
    shown = _shown(manner.prompts)
    return Target(
        name, settings, lambda accelerator: make_feedback(spec, accelerator, key), shown, {"who": key, "prompts": manner.prompts},
        threads=settings.threads, precision=settings.precision,
    )  # fmt: skip


def _of_run(name: str, settings: recipe.Recipe, manner: Manner, run: RunFolder | None) -> Target:
    needs = [load_objective(term.name, **term.fields).needs for term in settings.objective]
    rest: dict[str, Any] = {"threads": settings.train.threads, "precision": settings.train.precision}
    rest["date"] = date_of(run.manifest()) if run is not None else current_date()
    prompts = manner.prompts or ("turns" if _in_conversations(settings, run) else "text")
    if any(one.rewards for one in needs):
        if run is None:
            raise PrefoptError(f"{name} trains a reward model, which is not trained yet: name its run folder")
        return Target(name, settings, *_scorer(name, settings.policy, prompts, manner), **rest)
    named = settings.reference.model if manner.reference is None else (manner.reference,)
    compares = any(one.reference for one in needs) or manner.reference is not None
    reward = manner.reward or ("logratio" if compares and named is not None else "mean_logp")
    if reward == "logratio" and named is None:
        raise PrefoptError(
            f"{name}: before training a policy is its own reference, so that every log-ratio is 0; name another one with "
            "--reference, or a reward without one: --reward mean_logp"
        )
    source = settings.source
    longest = (source.max_prompt_tokens, source.max_completion_tokens)
    make = _policy(
        settings.policy, settings.reference.model_copy(update={"model": named, "every": None}), reward, longest, manner
    )
    about = {"who": "policy", "reward": reward, "prompts": prompts}
    return Target(name, settings, make, _shown(prompts), about, language_model=settings.policy, **rest)


def _of_model(name: str, manner: Manner) -> Target:
    spec = recipe.Policy(model=(name,))
    found = find_model(spec.model)
    tokenizer = load_tokenizer(spec)
    prompts = manner.prompts or ("turns" if tokenizer.chat_template else "text")
    if is_scorer(found):
        return Target(name, spec, *_scorer(name, spec, prompts, manner))
    reward = manner.reward or ("logratio" if manner.reference else "mean_logp")
    if reward == "logratio" and manner.reference is None:
        raise PrefoptError(
            f"{name} is a model without a run, so nothing says what it is compared with: name it with --reference"
        )
    reference = recipe.Reference(model=(manner.reference,) if manner.reference else None)
    make = _policy(spec, reference, reward, (None, None), manner)
    about = {"who": "policy", "reward": reward, "prompts": prompts}
    return Target(name, spec, make, _shown(prompts), about, language_model=spec)


def _scorer(
    name: str, spec: recipe.Policy, prompts: Prompts, manner: Manner
) -> tuple[Callable[[Accelerator], Feedback], Callable[[Sequence[Case]], Sequence[Case]], dict[str, Any]]:
    if manner.reward or manner.reference:
        raise PrefoptError(f"{name} is a reward model, and --reward and --reference are for policies")
    model = RewardModel(
        name, prompt=prompts != "none", batch_size=manner.batch_size, dtype=spec.dtype, remote_code=spec.remote_code
    )
    model.check()
    about = {"who": "reward model", "prompts": prompts}
    return lambda accelerator: _on(model, accelerator), _shown("turns" if prompts == "turns" else "text"), about


def _on(model: RewardModel, accelerator: Accelerator) -> Feedback:
    placed = RewardModel(**{**vars(model), "accelerator": accelerator})
    placed.load()
    return placed


def _policy(
    spec: recipe.Policy,
    reference: recipe.Reference,
    reward: Kind,
    longest: tuple[int | None, int | None],
    manner: Manner,
) -> Callable[[Accelerator], Feedback]:
    def make(accelerator: Accelerator) -> Feedback:
        policy = load_language_model(spec, accelerator)
        other = make_reference(policy, reference, spec) if reward == "logratio" else None
        return ImplicitReward(policy, other, reward, *longest, manner.batch_size, accelerator)

    return make


def load_language_model(spec: recipe.Policy, accelerator: Accelerator) -> Policy:
    """A policy to be measured, on its device."""
    policy: Policy = load_policy(spec, load_tokenizer(spec), seed=0).to(accelerator.device)
    return policy.eval().requires_grad_(False)


def _shown(prompts: Prompts | None) -> Callable[[Sequence[Case]], Sequence[Case]]:
    return {"turns": in_turns, "none": without_prompts}.get(prompts or "text", lambda cases: cases)


def _in_conversations(settings: recipe.Recipe, run: RunFolder | None) -> bool:
    """Whether the rows that a run is about are conversations: its samples tell, else its data."""
    evaluation = None if run is None else run.last_evaluation(settings.evaluate.part)
    if evaluation is not None and evaluation.samples:
        return not isinstance(evaluation.samples[0]["prompt"], str)
    source = settings.source
    try:
        rows = load_examples(list(source.data), source.arguments, split=source.hub_split, adapt=source.adapt)
    except PrefoptError as error:
        raise PrefoptError(
            f"whether it was trained on text or on conversations cannot be told from its data ({error}); say it: --prompts"
        ) from error
    return not isinstance(rows[0].prompt, str)
