"""Language models on this machine as backends of a judge."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from pydantic import Field

from prefopt import recipe
from prefopt.feedback.judges.question import Answer, Question
from prefopt.feedback.judges.reading import Reading, Turns
from prefopt.policy import Policy, find_model, load_policy, load_tokenizer
from prefopt.policy.positions import positions_of
from prefopt.support.downloads import is_awaited
from prefopt.support.errors import PrefoptError


@dataclass(frozen=True)
class Local:
    """Any causal LM: a folder, a run folder or a hub id.

    Questions are read in batches. What all of them begin with, the rubric and its examples, is read once and kept; each question is
    read once for all its labels. A model without a chat template reads the turns as plain text.

    Attributes:
        model: folder, run folder or hub id; of several, the first that is on disk.
        tokenizer: folder or hub id; None is the model's own.
        template: whether turns are written by the model's chat template, where it has one. False makes plain text of them, which
            suits worked examples and small models better.
        dtype: of its weights.
        batch_size: questions read together; memory and speed only.
        remote_code: allow the model's repository to run its own code.
        chat_template_kwargs: what the chat template takes beside the turns, {enable_thinking: false} perhaps.
        accelerator: knows the device; None finds it.
    """

    model: str | tuple[str, ...]
    tokenizer: str | None = None
    template: bool = True
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    batch_size: Annotated[int, Field(gt=0)] = 32
    remote_code: bool = False
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    accelerator: Accelerator | None = field(default=None, repr=False, compare=False)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its name, its files' sizes and times, and how it is read."""
        name = find_model(self._names)
        folder = Path(name)
        paths = sorted(f for f in folder.iterdir() if f.is_file()) if folder.is_dir() else []
        files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in paths]
        own: dict[str, Any] = {"tokenizer": self.tokenizer, "template": self.template, "dtype": self.dtype}
        own |= _settings(self.chat_template_kwargs)
        return {"kind": "local", "model": name, "files": files, **own}

    def check(self) -> None:
        """Find it, loading nothing.

        Raises:
            PrefoptError: it is not there.
        """
        find_model(self._names)

    def render(self, question: Question) -> str:
        """The question as the model will read it; loads the tokenizer alone."""
        if is_awaited(find_model(self._names)):
            return ""
        return Turns(load_tokenizer(self._spec), self.template, self.chat_template_kwargs).text(question)

    @property
    def name(self) -> str:
        """The folder or hub id that is there."""
        return find_model(self._names)

    @property
    def positions(self) -> int | None:
        """The most tokens that it can read and write; None where it has no limit, or is not on disk yet."""
        found = positions_of(self.name)
        return None if found is None else found.number

    def tokens(self, question: Question) -> int:
        """Of the question and the room for its answer; loads the tokenizer alone."""
        turns = Turns(load_tokenizer(self._spec), self.template, self.chat_template_kwargs)
        return len(turns.ids(question)) + question.room

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """Answers, a batch at a time."""
        return self.reading.answers(questions)

    @cached_property
    def reading(self) -> Reading:
        """The model, loaded once."""
        policy = load_policy(self._spec, load_tokenizer(self._spec), seed=0).eval().requires_grad_(False)
        accelerator = self.accelerator or Accelerator(cpu=not torch.accelerator.is_available())
        return Reading(policy.to(accelerator.device), self.batch_size, self.template, self.chat_template_kwargs)

    @property
    def _spec(self) -> recipe.Policy:
        return recipe.Policy(
            model=self._names, tokenizer=self.tokenizer, dtype=self.dtype, remote_code=self.remote_code
        )

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.model,) if isinstance(self.model, str) else tuple(self.model)


@dataclass(frozen=True)
class TrainedPolicy:
    """The policy that is being trained, as its own judge (self-rewarding, arXiv 2401.10020). It answers with its present weights.

    Attributes:
        policy: with a tokenizer; None until there is one, when nothing can be asked.
        batch_size: questions read together; memory and speed only.
        template: as of `Local`.
        chat_template_kwargs: as of `Local`.
    """

    policy: Policy | None
    batch_size: int = 32
    template: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> Mapping[str, Any]:
        """A fingerprint of the weights as they are now: an answer that is remembered is of these weights."""
        policy = self.the_policy()
        sums = [float(p.detach().double().abs().sum()) for p in policy.parameters()]
        dots = [float(p.detach().double().flatten() @ _ramp(p)) for p in policy.parameters()]
        own = _settings(self.chat_template_kwargs)
        return {"kind": "live", "template": self.template, **own, "sums": sums, "dots": dots}

    def check(self) -> None:
        """Nothing can be wrong that is known before there is a policy."""

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """Answers of the policy as it is now."""
        # A new reading every time, because the cache of the last one was computed with other weights.
        reading = Reading(self.the_policy(), self.batch_size, self.template, self.chat_template_kwargs)
        return reading.answers(questions)

    def the_policy(self) -> Policy:
        """The policy.

        Raises:
            PrefoptError: there is none.
        """
        if self.policy is None:
            raise PrefoptError("a judge with `model: self` is the policy of a run that trains one: there is none here")
        return self.policy


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """For the identity; nothing where nothing is given, so that answers of earlier versions are remembered."""
    return {"chat_template_kwargs": dict(given)} if given else {}


def _ramp(parameter: torch.Tensor) -> torch.Tensor:
    """Different weights for the places of a parameter, so that two that change places are seen."""
    return torch.linspace(0, 1, parameter.numel(), dtype=torch.float64, device=parameter.device)
