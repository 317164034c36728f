"""Objectives, what they need and return, and the models that they are given."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

from torch import Tensor

from prefopt.types.batch import Axis, Batch, Outputs

Unit = Literal["prompt", "completion", "token", "step"]
"""What a loss is averaged over."""

StepRewards = Literal["reward", "logit"]
"""What a scorer of steps gives at the end of a step: its reward, or the log-odds that it is right."""


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
        step_rewards: outputs carry `step_rewards` as well, and what they are: the scorer is one of steps, and is saved as such.
        statistics: outputs carry these of "entropy", "log_sum_squares", "kl_policy_ref", "kl_ref_policy".
        watched: outputs carry these statistics as well, without a gradient: they are logged and not learnt from.
        whole_batch: rows are coupled: `loss` sees the logical batch whole, never sliced.
        one_update: there is no ratio to the policy that wrote the batch, so it is good for one update only.
        per: the unit whose count divides the summed loss.
        axes: of `columns` that are not of the prompt, {"helpful": "completion"}: then they are ordered and cut together with
            the completions. Columns in `AXES` need not be named.
        named_scores: these `batch.named_scores` are there; they come from feedback.
        contrast: it learns from the differences among a prompt's completions alone: of one, or of several that are all the
            same, it learns nothing, and rollouts that could be nothing else are refused.
        signs: it reads of each completion whether it is desirable. Of a single one that is its label; a single rating has no
            zero to be above or below, and is left out.
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
    axes: Mapping[str, Axis] = field(default_factory=dict, hash=False)
    named_scores: tuple[str, ...] = ()
    contrast: bool = False
    signs: bool = False
    step_rewards: StepRewards | None = None

    def count(self, batch: Batch) -> int:
        """The number of `per` units in a batch: the denominator of its summed loss."""
        if self.per == "prompt":
            return len(batch)
        if self.per == "step":
            return int(batch.step_ends.sum())
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


class Monitor(Protocol):
    """Numbers about every logical batch, beside what objectives report."""

    needs: Needs

    def __call__(self, batch: Batch, old: Outputs, reference: Outputs | None) -> Mapping[str, float]:
        """Metrics, from what the policy said before the update, and the reference where the run has one."""
        ...
