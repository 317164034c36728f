"""Transforms of rewards, applied before anything learns from them: penalties, clipping, normalisation.

A transform is a function of scores [B, K] and of what was scored: transform(scores, prompts, completions, rows) → scores [B, K].
`Transformed` applies a list of them, the first one to the feedback's own scores, each further one to the scores before it. A
missing verdict (NaN) stays missing.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from prefopt import recipe
from prefopt.data.texts import written_text
from prefopt.feedback.calling import fit, is_unfitted, restore, run_feedback, state_of
from prefopt.feedback.verdicts import refuse_infinite
from prefopt.policy import find_model, load_tokenizer
from prefopt.support.domains import Count, Finite, NonNegative, Positive
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import users_code
from prefopt.types import Completion, Feedback, Prompt, Verdict

Completions = Sequence[Sequence[Completion]]
Rows = Sequence[Mapping[str, Any]]


class Transform(Protocol):
    """Scores to scores, [B, K]. NaN stands for no verdict, and stays NaN whatever a transform returns for it."""

    def __call__(self, scores: Tensor, prompts: Sequence[Prompt], completions: Completions, rows: Rows) -> Tensor:
        """The transformed scores."""
        ...


@dataclass(frozen=True)
class LengthPenalty:
    """r − weight · max(0, n − limit), n the length of the completion.

    The length is in words (what white space separates), or in tokens of a tokenizer, without special ones. A price for length
    above a limit is one of many forms; Singhal et al., arXiv 2310.03716, measure what rewards owe to length without one.

    Attributes:
        limit: words or tokens that cost nothing.
        weight: price of each one more.
        tokenizer: model whose tokens are counted (folder, run folder or hub id); None counts words.
    """

    limit: Annotated[int, Field(ge=0)]
    weight: NonNegative
    tokenizer: str | None = None

    def __call__(self, scores: Tensor, prompts: Sequence[Prompt], completions: Completions, rows: Rows) -> Tensor:
        """Scores [B, K]."""
        return scores - self.weight * _each(completions, scores, lambda text: max(0, self.length(text) - self.limit))

    def length(self, text: str) -> int:
        """In words or tokens."""
        if self.tokenizer is None:
            return len(text.split())
        return len(self._counter(text, add_special_tokens=False, verbose=False)["input_ids"])

    def check(self) -> None:
        """Find the tokenizer's model."""
        if self.tokenizer is not None:
            find_model((self.tokenizer,))

    def load(self) -> None:
        """Load the tokenizer."""
        if self.tokenizer is not None:
            _ = self._counter

    @cached_property
    def _counter(self) -> Any:
        return load_tokenizer(recipe.Policy(model=(str(self.tokenizer),)))


@dataclass(frozen=True)
class RepetitionPenalty:
    """r − weight · (1 − distinct / all), over the n-grams of words of the completion.

    The share is 0 where no n-gram comes twice, and for texts of fewer than n words; n words repeated over and over bring it near
    1. It is one minus distinct-n (Li et al., arXiv 1510.03055), within each completion.

    Attributes:
        weight: price of a completion that is nothing but repetition.
        n: words in an n-gram.
    """

    weight: NonNegative = 1.0
    n: Count = 3

    def __call__(self, scores: Tensor, prompts: Sequence[Prompt], completions: Completions, rows: Rows) -> Tensor:
        """Scores [B, K]."""
        return scores - self.weight * _each(completions, scores, self.repeated)

    def repeated(self, text: str) -> float:
        """The share of n-grams that were there before."""
        words = text.split()
        grams = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class Clip:
    """min(max(r, low), high).

    Attributes:
        low: smallest score; None sets no limit.
        high: largest score; None sets no limit.

    Raises:
        ValueError: no limit at all, or low above high.
    """

    low: Finite | None = None
    high: Finite | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("give low, high or both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")

    def __call__(self, scores: Tensor, prompts: Sequence[Prompt], completions: Completions, rows: Rows) -> Tensor:
        """Scores [B, K]."""
        return scores.clamp(self.low, self.high)


@dataclass
class Normalise:
    """(r − m) / s, with mean m and standard deviation s (population) of all scores so far, those of this call among them.

    The numbers move with each call (Welford's update, for batches: Chan, Golub and LeVeque 1979), and a checkpoint holds them.
    While all scores are equal, s counts as 1. What a score is worth thus depends on when it was given: where rewards of two
    steps are to be compared, `ReferenceNormalise` has fixed numbers.

    Every process sees the whole verdict, so all agree.

    Attributes:
        center: whether m is taken off; otherwise scores are only divided by s, so that their signs stay.
        count: scores so far, and two running numbers of them: `mean`, and `squares`, the sum of squared deviations from it.
    """

    center: bool = True
    count: int = field(default=0, init=False)
    mean: float = field(default=0.0, init=False)
    squares: float = field(default=0.0, init=False)

    def __call__(self, scores: Tensor, prompts: Sequence[Prompt], completions: Completions, rows: Rows) -> Tensor:
        """Scores [B, K]; moves the running numbers first."""
        self._see(scores[~scores.isnan()].double())
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return (scores - (self.mean if self.center else 0.0)) / (deviation or 1.0)

    def _see(self, scores: Tensor) -> None:
        new = scores.numel()
        if not new:
            return
        mean, total = scores.mean().item(), self.count + new
        shift = mean - self.mean
        self.squares += (scores - mean).square().sum().item() + shift**2 * self.count * new / total
        self.mean += shift * new / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """The running numbers."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count, self.mean, self.squares = int(state["count"]), float(state["mean"]), float(state["squares"])


@dataclass
class ReferenceNormalise:
    """gain · r + bias, with numbers that are fixed before training: samples of the reference have this mean and deviation.

    gain = std / s₀,  bias = mean − gain · m₀,  m₀ and s₀ (population) of the scores of reference samples

    A Bradley–Terry reward is known only up to a constant and of any scale; with this, a KL coefficient or a clip
    means the same with each reward model.

    Source: Ziegler et al., arXiv 1909.08593, who normalise the reward model so on samples of the pretrained model; their code
    keeps gain and bias.

    Attributes:
        gain: fixed by hand, together with bias; None for both lets `fit` find them.
        bias: the same.
        mean: what the scores of reference samples are to average.
        std: and their standard deviation.

    Raises:
        ValueError: gain without bias, or the reverse.
    """

    gain: Finite | None = None
    bias: Finite | None = None
    mean: Finite = 0.0
    std: Positive = 1.0

    def __post_init__(self) -> None:
        if (self.gain is None) != (self.bias is None):
            raise ValueError("give gain and bias, or neither of them and let reference samples fix them")

    @property
    def unfitted(self) -> bool:
        """Whether gain and bias are still to be found."""
        return self.gain is None

    moves = unfitted

    def fit(self, scores: Tensor) -> None:
        """Fix gain and bias by scores of reference samples, of any shape; NaN is left out.

        Raises:
            PrefoptError: fewer than two scores, or all equal.
        """
        known = scores[~scores.isnan()].double()
        deviation = known.std(correction=0).item() if len(known) > 1 else 0.0
        if deviation == 0:
            what = f"{len(known)} scores" if len(known) < 2 else f"{len(known)} equal scores"
            raise PrefoptError(
                f"ReferenceNormalise cannot be fitted to {what} of reference samples; give it gain and bias, or more samples"
            )
        self.gain = self.std / deviation
        self.bias = self.mean - self.gain * known.mean().item()

    def __call__(self, scores: Tensor, prompts: Sequence[Prompt], completions: Completions, rows: Rows) -> Tensor:
        """Scores [B, K].

        Raises:
            PrefoptError: nothing has fixed gain and bias.
        """
        if self.gain is None or self.bias is None:
            raise PrefoptError(
                "ReferenceNormalise has no gain and bias yet: give both, or fit it to samples of the reference first"
            )
        return self.gain * scores + self.bias

    def state_dict(self) -> dict[str, Any]:
        """Gain and bias, so that a resumed run does not fit them anew."""
        return {"gain": self.gain, "bias": self.bias}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up again."""
        self.gain, self.bias = state["gain"], state["bias"]


@dataclass(frozen=True)
class MissingEOS:
    """A completion that does not end by itself within its tokens scores r − penalty, or a fixed score instead of r.

    It reads `rows[i]["ended"]`, K truth values, which rollouts and the evaluation of samples put there: a feedback sees
    text, in which EOS is not to be seen. A fixed score that stands before a normalisation is normalised, too; to keep it as it is,
    put this last.

    Source: Ziegler et al., arXiv 1909.08593, whose code gives −1 to samples without their stop token.

    Attributes:
        penalty: taken off the score.
        score: takes the place of the score.

    Raises:
        ValueError: both or none of the two.
    """

    penalty: NonNegative | None = None
    score: Finite | None = None

    def __post_init__(self) -> None:
        if (self.penalty is None) == (self.score is None):
            raise ValueError("give either penalty or score")

    def __call__(self, scores: Tensor, prompts: Sequence[Prompt], completions: Completions, rows: Rows) -> Tensor:
        """Scores [B, K].

        Raises:
            PrefoptError: the rows do not say what has ended.
        """
        ended = torch.ones_like(scores, dtype=torch.bool)
        for b, (row, texts) in enumerate(zip(rows, completions, strict=True)):
            flags = row.get("ended")
            if flags is None or len(flags) < len(texts):
                raise PrefoptError(
                    f"MissingEOS: the row of prompt {b + 1} has no `ended` with a truth value for each of {len(texts)} "
                    "completions; rollouts have it, recorded completions do not"
                )
            ended[b, : len(texts)] = torch.tensor([bool(value) for value in flags[: len(texts)]])
        given = scores - (self.penalty or 0.0) if self.score is None else torch.full_like(scores, self.score)
        return torch.where(ended, scores, given)


@dataclass(frozen=True)
class Transformed:
    """A feedback and the transforms of its scores. Each call is checked and limited in time.

    `make_feedback` makes one of every feedback in a recipe. Preference, named scores and steps are left as they
    are: a transform is of `scores` alone. With transforms, each
    prompt's note keeps the feedback's own scores as `untransformed`.

    Attributes:
        feedback: any.
        transforms: applied in this order.
        name: what messages call the feedback.
        timeout: seconds that a call of it may take; None is any time.
    """

    feedback: Feedback
    transforms: tuple[Transform, ...] = ()
    name: str = ""
    timeout: float | None = None

    def __call__(self, prompts: Sequence[Prompt], completions: Completions, rows: Rows) -> Verdict:
        """Scores [B, K].

        Raises:
            PrefoptError: the feedback or a transform raised something, took too long or returned something else.
        """
        verdict = self._raw(prompts, completions, rows)
        if not self.transforms:
            return verdict
        scores = verdict.scores
        for transform in self.transforms:
            scores = _applied(transform, scores, prompts, completions, rows)
        notes = verdict.notes or [{}] * len(prompts)
        raw = [[None if score != score else score for score in row] for row in verdict.scores.tolist()]
        return dataclasses.replace(
            verdict,
            scores=scores,
            notes=[{**note, "untransformed": own} for note, own in zip(notes, raw, strict=True)],
        )

    @property
    def parts(self) -> Sequence[Any]:
        """The feedback and its transforms."""
        return (self.feedback, *self.transforms)

    @property
    def unfitted(self) -> bool:
        """Whether a `ReferenceNormalise` in it wants `fit` to be called before anything is scored."""
        return is_unfitted(self.feedback) or any(
            isinstance(transform, ReferenceNormalise) and transform.unfitted for transform in self.transforms
        )

    def fit(self, prompts: Sequence[Prompt], completions: Completions, rows: Rows) -> None:
        """Fix every `ReferenceNormalise` in it by samples of the reference, each by the scores that reach it.

        Args:
            prompts: B of them.
            completions: K samples of the reference for each.
            rows: the other columns of each, as for a call.
        """
        fit(self.feedback, prompts, completions, rows)
        if not self.unfitted:
            return
        scores = self._raw(prompts, completions, rows).scores
        for transform in self.transforms:
            if isinstance(transform, ReferenceNormalise) and transform.unfitted:
                transform.fit(scores)
            # A copy, because what runs over the policy's scores must not begin with the reference's.
            scores = _applied(copy.copy(transform), scores, prompts, completions, rows)

    def state_dict(self) -> dict[str, Any]:
        """The running numbers of the feedback and its transforms."""
        return {
            "feedback": state_of(self.feedback),
            "transforms": [state_of(transform) for transform in self.transforms],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up again."""
        restore(self.feedback, state["feedback"])
        saved = state["transforms"] if "transforms" in state else state["shapes"]  # the name in older checkpoints
        for transform, own in zip(self.transforms, saved, strict=True):
            restore(transform, own)

    def _raw(self, prompts: Sequence[Prompt], completions: Completions, rows: Rows) -> Verdict:
        name = self.name or type(self.feedback).__name__
        return run_feedback(self.feedback, name, prompts, completions, rows, self.timeout)


def _applied(
    transform: Transform, scores: Tensor, prompts: Sequence[Prompt], completions: Completions, rows: Rows
) -> Tensor:
    """The transformed scores, checked; a missing verdict stays missing."""
    name = getattr(transform, "__name__", type(transform).__name__)
    with users_code(f"the transform {name}"):
        transformed = transform(
            scores.clone(), list(prompts), [list(t) for t in completions], [dict(row) for row in rows]
        )
    if not isinstance(transformed, Tensor) or transformed.shape != scores.shape:
        given = (
            f"shape {list(transformed.shape)}" if isinstance(transformed, Tensor) else f"a {type(transformed).__name__}"
        )
        raise PrefoptError(f"the transform {name} must return scores of shape {list(scores.shape)}, not {given}")
    transformed = torch.where(scores.isnan(), scores, transformed.to(scores))
    if (lost := transformed.isnan() & ~scores.isnan()).any():
        b, k = lost.nonzero()[0].tolist()
        raise PrefoptError(
            f"the transform {name} made NaN of the score {scores[b, k]:g} of completion {k + 1} of prompt {b + 1}"
        )
    refuse_infinite(transformed, f"the transform {name}")
    return transformed


def _each(completions: Completions, scores: Tensor, measure: Callable[[str], float]) -> Tensor:
    """[B, K] of something measured of what the policy wrote: every text, or the assistant's turns of a conversation."""
    measured = torch.zeros_like(scores)
    for b, texts in enumerate(completions):
        for k, text in enumerate(texts):
            measured[b, k] = measure(written_text(text))
    return measured
