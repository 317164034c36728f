"""The nouns: what moves between sources, models, objectives and the trainer.

Shapes: B prompts, K completions of each, T completion tokens. Everything here is frozen, and nothing here computes more
than a sum.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

Message = Mapping[str, Any]
"""One turn of a conversation: `role` and `content`."""

Prompt = str | Sequence[Message]
"""Plain text, or the conversation so far."""

Unit = Literal["prompt", "completion", "token"]
"""What a loss is averaged over."""

COMPLETION_COLUMNS = frozenset({"sampler_logps", "cost", "gold", "origin", "trained", "ended"})
"""Columns whose second dimension is K; they are permuted and cut together with the completions."""

ORIGINS = ("dataset", "policy", "reference", "mixture", "greedy", "mismatched")
"""Where a completion came from; the column `origin` holds places in this list."""


@dataclass(frozen=True)
class Batch:
    """B prompts with K completions each: the one shape of every method.

    Attributes:
        prompt_ids: B token sequences, ragged.
        completion_ids: [B, K, T] int64, right-padded.
        mask: [B, K, T] bool; True on tokens the policy wrote, EOS included. An absent completion is all False.
        scores: [B, K]; larger is better. A bare preference is (+.5, −.5), a label is +.5 or −.5.
        preference: [B, K, K]; P(y_i beats y_j), for soft or multi-rater labels.
        columns: anything else with leading dimension B; those in `COMPLETION_COLUMNS` have K as their second.

    Raises:
        ValueError: a field whose shape or dtype contradicts the others, by name.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    completion_ids: Tensor
    mask: Tensor
    scores: Tensor | None = None
    preference: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.completion_ids.ndim != 3:
            raise ValueError(f"completion_ids must be [B, K, T], got {list(self.completion_ids.shape)}")
        prompts, completions, _ = self.completion_ids.shape
        if len(self.prompt_ids) != prompts:
            raise ValueError(f"{len(self.prompt_ids)} prompts for {prompts} rows of completions")
        if self.mask.dtype != torch.bool or self.mask.shape != self.completion_ids.shape:
            raise ValueError(
                f"mask must be bool {list(self.completion_ids.shape)} like completion_ids, "
                f"got {self.mask.dtype} {list(self.mask.shape)}"
            )
        for name, tensor, shape in (
            ("scores", self.scores, (prompts, completions)),
            ("preference", self.preference, (prompts, completions, completions)),
        ):
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        for name, column in self.columns.items():
            expected = (prompts, completions) if name in COMPLETION_COLUMNS else (prompts,)
            if column.shape[: len(expected)] != expected:
                raise ValueError(f"column {name!r} must start with {list(expected)}, got {list(column.shape)}")

    def __len__(self) -> int:
        return self.completion_ids.shape[0]

    @property
    def present(self) -> Tensor:
        """[B, K] bool; False where a prompt has fewer than K completions."""
        return self.mask.any(-1)

    def rows(self, index: Tensor | slice) -> Self:
        """These prompts alone, in this order; `index` is [b] int64 or a slice."""
        numbers = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index].tolist()
        index = torch.tensor(numbers, dtype=torch.long, device=self.mask.device)
        return dataclasses.replace(
            self,
            prompt_ids=tuple(self.prompt_ids[i] for i in numbers),
            completion_ids=self.completion_ids[index],
            mask=self.mask[index],
            scores=None if self.scores is None else self.scores[index],
            preference=None if self.preference is None else self.preference[index],
            columns={name: column[index] for name, column in self.columns.items()},
        )

    def first(self, completions: int) -> Self:
        """The first few completions of every prompt; all other fields are cut alike."""
        if completions == self.completion_ids.shape[1]:
            return self
        return dataclasses.replace(
            self,
            completion_ids=self.completion_ids[:, :completions],
            mask=self.mask[:, :completions],
            scores=None if self.scores is None else self.scores[:, :completions],
            preference=None if self.preference is None else self.preference[:, :completions, :completions],
            columns={n: c[:, :completions] if n in COMPLETION_COLUMNS else c for n, c in self.columns.items()},
        )

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        return _map_tensors(self, lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class Outputs:
    """What a model says about a batch. `values[t]` and `logps[t]` both see only the tokens before t.

    Attributes:
        mask: [B, K, T] bool, the batch's.
        logps: [B, K, T] log-probabilities of the tokens, at the sampling temperature; 0 outside the mask.
        values: [B, K, T] from a value head or a critic.
        rewards: [B, K] from a scorer.
        statistics: [B, K, T] full-vocabulary numbers, those that `Needs.statistics` named.
    """

    mask: Tensor
    logps: Tensor | None = None
    values: Tensor | None = None
    rewards: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def sum(self) -> Tensor:
        """[B, K] log-probability of each completion."""
        return self._logps().masked_fill(~self.mask, 0).sum(-1)

    def mean(self) -> Tensor:
        """[B, K] mean log-probability of a token; 0 for an absent completion."""
        return self.sum() / self.mask.sum(-1).clamp(min=1)

    def _logps(self) -> Tensor:
        if self.logps is None:
            raise ValueError("these outputs hold no log-probabilities: the model is a scorer, not a language model")
        return self.logps

    def rows(self, index: Tensor | slice) -> Self:
        """The outputs of these prompts alone, in this order."""
        return _map_tensors(self, lambda tensor: tensor[index])

    def first(self, completions: int) -> Self:
        """The outputs of the first few completions of every prompt."""
        return _map_tensors(self, lambda tensor: tensor[:, :completions])

    def detach(self) -> Self:
        """The same numbers, without their history."""
        return _map_tensors(self, Tensor.detach)


@dataclass(frozen=True)
class Needs:
    """What an objective must be given; a recipe that cannot is refused before any model is loaded.

    Attributes:
        completions: exact K, or None for any, absent ones allowed. 1 with `ordered` means the best one: a batch that holds
            more, for the sake of another term, is cut to it.
        ordered: completions come best first.
        scores: `batch.scores` is there.
        preference: `batch.preference` is there.
        columns: these `batch.columns` are there.
        reference: `targets` gets the reference's outputs.
        old: `targets` gets the policy's outputs from before the update.
        rollouts: completions come from the current policy.
        values: outputs carry `values`.
        rewards: outputs carry `rewards`: the model is a scorer.
        statistics: outputs carry these of "entropy", "log_sum_squares", "kl_policy_ref", "kl_ref_policy".
        watched: outputs carry these statistics as well, without a gradient: they are logged and not learnt from.
        whole_batch: rows are coupled: `loss` sees the logical batch whole, never sliced.
        one_update: there is no ratio to the policy that wrote the batch, so it is good for one update only.
        per: the unit whose count divides the summed loss.
    """

    completions: int | None = None
    ordered: bool = False
    scores: bool = False
    preference: bool = False
    columns: tuple[str, ...] = ()
    reference: bool = False
    old: bool = False
    rollouts: bool = False
    values: bool = False
    rewards: bool = False
    statistics: frozenset[str] = frozenset()
    watched: frozenset[str] = frozenset()
    whole_batch: bool = False
    one_update: bool = False
    per: Unit = "prompt"

    def count(self, batch: Batch) -> int:
        """The number of `per` units in a batch: the denominator of its summed loss."""
        if self.per == "prompt":
            return len(batch)
        return int((batch.present if self.per == "completion" else batch.mask).sum())

    def view(self, batch: Batch) -> Batch:
        """The part of a shared batch that this objective reads."""
        return batch.first(1) if self.completions == 1 and self.ordered else batch


@dataclass(frozen=True)
class Targets:
    """What `Objective.targets` computed once for a logical batch.

    Attributes:
        rows: tensors with leading dimension B, sliced together with the batch.
        metrics: numbers over the whole logical batch.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def select(self, index: Tensor | slice) -> Self:
        """The targets of these prompts alone, in this order."""
        return dataclasses.replace(self, rows={name: row[index] for name, row in self.rows.items()})


@dataclass(frozen=True)
class Loss:
    """What `Objective.loss` returns.

    Attributes:
        total: [B] un-normalised sums. The loss of a step is sum(total) / number of `needs.per` units.
        metrics: each [B], without gradient; averaged over prompts. NaN means that it does not apply to the prompt.
    """

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass whose fields are its hyperparameters and its running numbers.

    `targets` runs once per logical batch, without gradient, and sees that batch whole on every process: advantages,
    whitening, reference log-ratios, random draws. `loss` runs per minibatch and is pure: no device, configuration, logging,
    randomness or distributed call.
    """

    @property
    def needs(self) -> Needs:
        """What it must be given: an attribute of the class, or a property where it depends on the fields."""
        ...

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """What `loss` will need, from what the models said before the update."""
        ...

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """The loss of these rows, given `targets` of these rows."""
        ...


@runtime_checkable
class Adaptive(Objective, Protocol):
    """An objective with running numbers: BCO's δ, a KL controller, a Lagrange multiplier."""

    def adapted(self, metrics: Mapping[str, float]) -> Self:
        """Itself with the numbers moved on; called once per logical batch, with metrics reduced over all processes."""
        ...


class Model(Protocol):
    """A policy, a scorer, a reference, a tabular bandit: anything that can say something about a batch."""

    def __call__(self, batch: Batch, needs: Needs) -> Outputs:
        """What `needs` asks for, of every completion in the batch."""
        ...


@runtime_checkable
class Moving(Model, Protocol):
    """A reference that moves: an EMA, a periodic copy, the last iterate of self-play."""

    def follow(self, model: Any, step: int) -> None:
        """Move, perhaps, now that the policy has made this step; called between logical batches."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return there."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What a feedback thinks of B prompts with K completions each.

    Attributes:
        scores: [B, K]; NaN = no verdict, and that completion becomes absent.
        preference: [B, K, K]; P(y_i beats y_j), from feedback that compares.
        notes: what is worth keeping beside each prompt: rationales, costs.
    """

    scores: Tensor
    preference: Tensor | None = None
    notes: Sequence[Mapping[str, Any]] = ()


@runtime_checkable
class Feedback(Protocol):
    """A rule, a reward model, a judge, an ensemble: prompts and completions to scores."""

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """B prompts, K completions of each, and the other columns of their rows."""
        ...


@dataclass(frozen=True)
class Sampled:
    """Completions a sampler drew.

    Attributes:
        completion_ids: [B, K, T] int64, right-padded.
        mask: [B, K, T] bool, EOS included.
        logps: [B, K, T] the sampler's own log-probs at its temperature, before top-p and top-k; None where it has none.
    """

    completion_ids: Tensor
    mask: Tensor
    logps: Tensor | None = None


class Sampler(Protocol):
    """Draws completions: transformers generation, or a server. `seeds` is [B] int64: the noise belongs to the row."""

    def __call__(
        self, model: Any, prompt_ids: Sequence[Sequence[int]], completions: int, settings: Any, seeds: Tensor
    ) -> Sampled:
        """K completions of each of B prompts."""
        ...


class Source(Protocol):
    """Logical batches, and a place among them that can be saved and restored. Every process sees the same ones."""

    def __iter__(self) -> Iterator[Batch]:
        """Logical batches from the place on; the place moves as they are taken."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a place."""
        ...


class Watch(Protocol):
    """Numbers about every logical batch, beside what objectives report."""

    needs: Needs

    def __call__(self, batch: Batch, old: Outputs, reference: Outputs | None) -> Mapping[str, float]:
        """Metrics, from what the policy said before the update, and the reference where the run has one."""
        ...


def _map_tensors(record: Any, function: Any) -> Any:
    """A frozen dataclass with `function` applied to its tensors and to those in its mappings."""

    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, Mapping):
            return {key: apply(item) for key, item in value.items()}
        return value

    return dataclasses.replace(record, **{f.name: apply(getattr(record, f.name)) for f in dataclasses.fields(record)})


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate.
        low: lower end of the percentile bootstrap interval; NaN where there are fewer than two prompts.
        high: upper end.
        prompts: how many were resampled.
    """

    value: float
    low: float
    high: float
    prompts: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
