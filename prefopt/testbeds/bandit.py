"""Bandits that can be solved exactly: each has a closed form that a real objective, trained by the real trainer, must reach.

A prompt is the number of a context, a completion is one action. With every pair in one batch there is no sampling noise, so
any difference from the closed form is due to the objective.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from scipy.optimize import brentq
from scipy.special import lambertw
from torch import Tensor, nn

from prefopt import recipe
from prefopt.objectives.terms import Term
from prefopt.policy.head import DIVERGENCES, STATISTICS
from prefopt.support.errors import PrefoptError
from prefopt.training.loop import Trainer
from prefopt.types import Batch, Loss, Needs, Objective, Outputs, Targets


class Bandit(nn.Module):
    """A policy over A actions in C contexts, with a value for each context. A `Model`; `tabular` makes the usual one.

    Args:
        scores: contexts, [B] int64, to logits [B, A].
        contexts: C. Values start at 0.
    """

    def __init__(self, scores: nn.Module, contexts: int):
        super().__init__()
        self.scores = scores
        # The trainer gives parameters under `critic` their own learning rate.
        self.critic = nn.ParameterDict({"value": torch.zeros(contexts, dtype=torch.float64)})
        # In a tuple, so that it is no submodule, as in `Policy`.
        self._reference: tuple[Frozen, ...] = ()

    @property
    def probabilities(self) -> Tensor:
        """[C, A], without gradient."""
        return self.scores(torch.arange(len(self.critic["value"]))).detach().softmax(-1)

    def frozen(self) -> "Frozen":
        """A copy that is not trained: a reference."""
        return Frozen(copy.deepcopy(self).requires_grad_(False))

    def attach_reference(self, reference: "Frozen") -> None:
        """The reference for exact divergences, where an objective needs them."""
        self._reference = (reference,)

    def forward(self, batch: Batch, needs: Needs) -> Outputs:
        """`logps` [B, K, 1], `values` and the statistics in `needs`; 0 outside the mask.

        Logits are divided by the column `temperature`, if there is one.

        Raises:
            PrefoptError: `needs` asks for something that a table of logits does not give, or a completion has more than one token.
        """
        if needs.rewards:
            raise PrefoptError("this objective needs rewards; a bandit's policy gives none")
        if unknown := needs.statistics - STATISTICS.keys() - DIVERGENCES.keys():
            raise PrefoptError(f"unknown statistics {sorted(unknown)}; known: {sorted({*STATISTICS, *DIVERGENCES})}")
        if batch.mask.shape[-1] != 1:
            raise PrefoptError(f"a bandit's completion is one token; these have up to {batch.mask.shape[-1]}")
        contexts, temperature, case = _cases(batch)
        own = (self.scores(contexts) / temperature).log_softmax(-1)
        outputs = {"logps": own[case[:, None], batch.completion_ids[..., 0]]}
        if needs.values:
            outputs["values"] = self.critic["value"][contexts][case][:, None]
        outputs |= {name: STATISTICS[name](own)[case][:, None] for name in needs.statistics & STATISTICS.keys()}
        if names := needs.statistics & DIVERGENCES.keys():
            other = (self._attached().scores(contexts) / temperature).log_softmax(-1).detach()
            outputs |= {name: DIVERGENCES[name](own, other)[case][:, None] for name in names}
        placed = {name: value[..., None].where(batch.mask, 0.0) for name, value in outputs.items()}
        return Outputs(batch.mask, placed.pop("logps"), placed.pop("values", None), statistics=placed)

    def _attached(self) -> "Bandit":
        if not self._reference:
            raise PrefoptError("exact KL needs the reference: call `policy.attach_reference(reference)`")
        return self._reference[0].policy


def _cases(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The contexts [U] and temperatures [U, 1] that occur together in a batch, and which of them each row has, [B]."""
    contexts = contexts_of(batch.prompt_ids)
    temperature = batch.columns.get("temperature", torch.ones(len(batch))).double()
    cases, case = torch.stack([contexts.double(), temperature], 1).unique(dim=0, return_inverse=True)
    return cases[:, 0].long(), cases[:, 1:], case


class Table(nn.Module):
    """One logit for each context and action, in float64: the log of these probabilities [C, A]; zeros stay zeros."""

    def __init__(self, probabilities: Tensor):
        super().__init__()
        self.logits = nn.Parameter(probabilities.double().log())

    def forward(self, contexts: Tensor) -> Tensor:
        """[B, A] logits in these contexts, [B] int64."""
        return self.logits[contexts]


def tabular(probabilities: Tensor) -> Bandit:
    """A policy that is a table and starts at these probabilities, [C, A]."""
    return Bandit(Table(probabilities), len(probabilities))


@dataclass(frozen=True)
class Frozen:
    """A bandit's policy that is not trained. A `Model`.

    Like `prefopt.policy.Reference` it computes neither divergences nor values.
    """

    policy: Bandit

    def __call__(self, batch: Batch, needs: Needs) -> Outputs:
        """Its outputs, without gradient."""
        own = replace(needs, statistics=needs.statistics - DIVERGENCES.keys(), values=False)
        with torch.no_grad():
            return self.policy(batch, own)


def contexts_of(prompt_ids: Sequence[Sequence[int]]) -> Tensor:
    """[B] int64: the contexts that these prompts name."""
    return torch.tensor([prompt[0] for prompt in prompt_ids])


def optimum(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """π*(y) ∝ π_ref(y)·exp(r(y)/β), [..., A]: the maximum of `value`.

    With r(y) = mean_y′ P(y ≻ y′) and β = τ it is what IPO has for its optimum on all pairs (Azar et al., 2310.12036, §5).
    """
    return (reference.log() + rewards / beta).softmax(-1)


def value(policy: Tensor, reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J(π) = E_π r − β·KL(π‖π_ref), [...]; −∞ for a policy with mass where the reference has none."""
    return (policy * rewards).sum(-1) - beta * divergence(policy, reference)


def best_value(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J* = β·log Σ_y π_ref(y)·exp(r(y)/β), [...]."""
    return beta * (reference.log() + rewards / beta).logsumexp(-1)


def frontier(divergences: Tensor, reference: Tensor, rewards: Tensor) -> Tensor:
    """The most reward that any policy has at these KLs to the reference, [N]: that of π ∝ π_ref·exp(r/β) at the β with this KL.

    Args:
        divergences: [N], above 0 and below that of the best action alone.
        reference: [A].
        rewards: [A].
    """

    def tilted(log_beta: float) -> Tensor:
        return optimum(reference, rewards, math.exp(log_beta))

    def reward(kl: float) -> float:
        log_beta = brentq(lambda x: divergence(tilted(x), reference).item() - kl, -7, 15, xtol=1e-13)
        return (tilted(log_beta) * rewards).sum().item()

    return torch.tensor([reward(kl) for kl in divergences.tolist()], dtype=torch.float64)


def divergence(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(π‖π_ref), [...]."""
    return (torch.xlogy(policy, policy) - torch.xlogy(policy, reference)).sum(-1)


def total_variation(one: Tensor, other: Tensor) -> Tensor:
    """½·Σ|π − π′|, [...]."""
    return (one - other).abs().sum(-1) / 2


def worst_gap(one: Tensor, other: Tensor, beta: float) -> Tensor:
    """The largest difference, over pairs of actions, between the gaps β(Δ_i − Δ_j) that two policies imply, [...].

    The reference cancels. Near collapse, total variation is blind to margins, and this is not.
    """
    ratio = one.log() - other.log()
    return beta * (ratio.amax(-1) - ratio.amin(-1))


def bradley_terry(rewards: Tensor) -> Tensor:
    """P(y_i ≻ y_j) = σ(r_i − r_j), [..., A, A]."""
    return (rewards[..., :, None] - rewards[..., None, :]).sigmoid()


def flipped(preference: Tensor, epsilon: float) -> Tensor:
    """Preferences whose labels are each reversed with probability ε."""
    return (1 - epsilon) * preference + epsilon * (1 - preference)


def regression_optimum(reference: Tensor, targets: Tensor) -> Tensor:
    """argmin_π Σ_y (log(π(y)/π_ref(y)) − t(y))², [A]: SPPO's solution on all pairs.

    Probabilities sum to 1, so in general no π has all these log-ratios. With a multiplier λ, log(π/π_ref) = t − λπ, which is
    λπ·exp(λπ) = λ·π_ref·exp(t): π = W(λ·π_ref·exp(t))/λ with Lambert's W, and λ is the root of Σπ = 1.

    Args:
        reference: [A].
        targets: [A], t: for SPPO η(mean_{y′≠y} P(y ≻ y′) − ½).

    Raises:
        ValueError: there is no such root on the main branch of W.
    """
    scale = (reference * targets.exp()).numpy()

    def policy(multiplier: float) -> np.ndarray:
        return lambertw(multiplier * scale).real / multiplier if multiplier else scale

    # W is real above −1/e (a hair, for rounding), and W(x) ≤ √x.
    ends = (1e-12 - math.exp(-1)) / scale.max(), np.sqrt(scale).sum() ** 2
    return torch.from_numpy(policy(brentq(lambda multiplier: policy(multiplier).sum() - 1, *ends, xtol=1e-14)))


def best_of_n(reference: Tensor, rewards: Tensor, n: int) -> Tensor:
    """The policy that keeps the best of n draws from the reference, [..., A]; ties go to the one drawn first."""
    better = (rewards[..., None, :] > rewards[..., :, None]).to(reference) @ reference[..., None]
    level = (rewards[..., None, :] == rewards[..., :, None]).to(reference) @ reference[..., None]
    below, level = (1 - better - level).squeeze(-1).clamp(min=0), level.squeeze(-1)
    return ((below + level) ** n - below**n) * reference / level


def best_of_n_divergence(n: int) -> float:
    """KL(best of n‖π_ref) = log n − (n − 1)/n for rewards without ties; with ties it is an upper bound."""
    return math.log(n) - (n - 1) / n


def population(preference: Tensor, rewards: Tensor | None = None) -> Batch:
    """Every ordered pair of different actions, in every context, that is ever labelled so: winner first.

    Args:
        preference: [C, A, A], P(row beats column); total orders and cycles are zeros and ones.
        rewards: [C, A], which become the scores.

    Returns:
        B ≤ C·A·(A − 1) rows of two completions. `preference` is exact, for objectives with soft labels; the column `weight`
        is the label's probability, for `Weighted` objectives with hard ones.
    """
    other = ~torch.eye(preference.shape[-1], dtype=torch.bool)
    c, winner, loser = ((preference > 0) & other).nonzero(as_tuple=True)
    pair = torch.stack([winner, loser], -1)
    return Batch(
        prompt_ids=tuple((context,) for context in c.tolist()),
        completion_ids=pair[..., None],
        mask=torch.ones(len(c), 2, 1, dtype=torch.bool),
        scores=None if rewards is None else rewards[c[:, None], pair],
        preference=preference[c[:, None, None], pair[:, :, None], pair[:, None, :]],
        columns={"weight": preference[c, winner, loser]},
    )


@dataclass(frozen=True)
class Weighted:
    """An objective with each row's loss multiplied by the column `weight`.

    On a `population`, the mean over rows is then the expectation over hard labels, exactly, up to a factor.

    Attributes:
        objective: the other one.
    """

    objective: Objective

    @property
    def needs(self) -> Needs:
        """The other's, and the column."""
        return replace(self.objective.needs, columns=(*self.objective.needs.columns, "weight"))

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """The other's."""
        return self.objective.targets(batch, old, reference)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """The other's, weighted."""
        loss = self.objective.loss(batch, policy, targets)
        return Loss(loss.total * batch.columns["weight"], loss.metrics)


@dataclass(frozen=True)
class SameBatch:
    """A source that yields the same batch in every step.

    Attributes:
        batch: the batch.
    """

    batch: Batch

    def __iter__(self) -> Iterator[Batch]:
        """That batch."""
        while True:
            yield self.batch

    def state_dict(self) -> dict[str, Any]:
        """It has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It has no state."""


def make_trainer(
    policy: nn.Module, objective: Objective, batch: Batch, reference: Frozen | None, steps: int = 1, **settings: Any
) -> Trainer:
    """The project's trainer on full batches: Adam with short memories, its learning rate annealed to 0, unclipped.

    A step takes the same batch as the last one and goes through it `passes` times.

    Args:
        policy: what is trained, in place; or a scorer.
        objective: what is minimised.
        batch: all there is to learn from.
        reference: what the objective compares with.
        steps: logical batches.
        settings: of the recipe's `train`, where they are to differ.
    """
    chosen: dict[str, Any] = {"lr": 1.0, "betas": (0.8, 0.95), "schedule": "cosine", "warmup": 0, "clip_norm": None}
    chosen |= {"passes": 100, "precision": "fp32", "batch_size": len(batch), "micro_batch_size": len(batch)}
    spec = recipe.Train(steps=steps, **chosen | settings)
    return Trainer(policy, [Term(objective)], SameBatch(batch), spec, steps, Accelerator(cpu=True), reference)


def solve(objective: Objective, batch: Batch, reference: Tensor, start: Tensor | None = None) -> Tensor:
    """The policy that the trainer finds, [C, A].

    Args:
        objective: what is minimised.
        batch: all there is to learn from.
        reference: [C, A].
        start: [C, A], where the policy is at first; None is at the reference.
    """
    policy = tabular(reference if start is None else start)
    for _ in make_trainer(policy, objective, batch, tabular(reference).frozen()):
        pass
    return policy.probabilities
