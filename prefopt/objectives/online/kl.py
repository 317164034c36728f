"""The part that keeps a policy near its reference: which estimate of the KL, where it is placed, how its weight moves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prefopt.objectives.maths import kl_estimate, masked_sum
from prefopt.types import Outputs, Targets

Estimator = Literal["k1", "k2", "k3", "exact"]
"""How the KL of a token is had: from the token itself (`maths.kl_estimate`), or exactly, over the whole vocabulary."""

Placement = Literal["reward", "loss"]
"""Where it goes: subtracted from the reward of each token, or added to the loss of each token."""


@dataclass(frozen=True)
class KL:
    """β · KL(π‖π_ref), token by token.

    In the reward, the estimate is a number that a token and those before it are credited with: k1 there has the gradient of the
    KL of whole completions, at every length; k2 and k3 have not. In the loss it is differentiated where it stands, and that
    is a different thing for each estimator: on the policy's own samples E∇k1 = 0 (it does nothing), E∇k2 = ∇KL(π‖π_ref),
    E∇k3 = ∇KL(π_ref‖π). That holds for completions of one token and for ratios of whole completions. Token by token, k2, k3
    and `exact` in the loss leave out what a token does to the KL of the tokens after it. `exact` in the reward is refused: it does
    not depend on the token that is rewarded, and would leave out what the token does to its own KL.

    Attributes:
        beta: β ≥ 0; at 0 no reference is asked for.
        estimator: "k1", "k2", "k3" or "exact".
        placement: "reward" or "loss".

    Raises:
        ValueError: any of them is something else, or `exact` in the reward.
    """

    beta: float
    estimator: Estimator
    placement: Placement

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}")
        for name, value, known in (
            ("estimator", self.estimator, get_args(Estimator)),
            ("placement", self.placement, get_args(Placement)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.estimator == "exact" and self.placement == "reward":
            raise ValueError("the exact KL of a token does not depend on the token: write placement: loss")

    @property
    def used(self) -> bool:
        """Whether there is any."""
        return self.beta > 0

    @property
    def statistics(self) -> frozenset[str]:
        """What the models must be asked for."""
        return frozenset({"kl_policy_ref"} if self.used and self.estimator == "exact" else ())

    def penalty(self, mask: Tensor, old: Outputs | None, reference: Outputs | None) -> Tensor:
        """β · kl_t to subtract from the rewards, [B, K, T]; 0 where it is placed in the loss."""
        if not self.used or self.placement == "loss":
            return torch.zeros(mask.shape, device=mask.device)
        assert old is not None and reference is not None and reference.logps is not None
        return self.beta * self._of(old, reference.logps)

    def loss(self, policy: Outputs, targets: Targets) -> Tensor:
        """β · kl_t to add to the losses, [B, K, T], with gradient; 0 where it is placed in the reward."""
        assert policy.logps is not None
        if not self.used or self.placement == "reward":
            return torch.zeros_like(policy.logps)
        return self.beta * self._of(policy, targets.rows["reference"])

    def rows(self, reference: Outputs | None) -> dict[str, Tensor]:
        """What `loss` reads of the reference: its log-probs, [B, K, T]."""
        if not self.used or self.placement == "reward":
            return {}
        assert reference is not None and reference.logps is not None
        return {"reference": reference.logps}

    def metrics(self, old: Outputs | None, reference: Outputs | None) -> dict[str, float]:
        """Over the logical batch: k1 of a whole completion, nats, and the β in force."""
        if not self.used or old is None or reference is None:
            return {}
        assert old.logps is not None and reference.logps is not None
        of_completion = masked_sum(old.logps - reference.logps, old.mask)
        count = old.mask.any(-1).sum().clamp(min=1)
        return {"kl/reference": (of_completion.sum() / count).item(), "kl/beta": self.beta}

    def _of(self, outputs: Outputs, reference: Tensor) -> Tensor:
        if self.estimator == "exact":
            divergence = outputs.statistics["kl_policy_ref"]
        else:
            assert outputs.logps is not None
            divergence = kl_estimate(outputs.logps - reference, self.estimator)
        return divergence.masked_fill(~outputs.mask, 0)


def kl_as_placed(objective: Any) -> KL:
    """The `kl` of an objective with the fields beta, estimator and placement."""
    return KL(objective.beta, objective.estimator, objective.placement)


def kl_in_loss(objective: Any) -> KL:
    """The `kl` of an objective with the fields beta and estimator, which adds it to the loss."""
    return KL(objective.beta, objective.estimator, "loss")


def check_kl(objective: Any) -> None:
    """A `__post_init__`: refuses what `KL` does not know."""
    _ = objective.kl


def proportional(beta: float, metrics: Mapping[str, float], target: float, horizon: float) -> float:
    """The adaptive β of arXiv 1909.08593v2, §2.2: β(1 + clip(KL/target − 1, ±0.2) · n/horizon), n completions seen.

    The error is that of `kl/reference`. The paper has K_β = 0.1 for 0.2 · n/horizon: its code, lm-human-preferences, is this.
    """
    error = min(max(metrics["kl/reference"] / target - 1, -0.2), 0.2)
    return beta * (1 + error * metrics["episodes"] / horizon)


def doubled_or_halved(beta: float, kl: float, target: float) -> float:
    """The adaptive β of arXiv 1707.06347v2, §4: doubled above 1.5 × target, halved below target / 1.5."""
    return beta * 2 if kl > 1.5 * target else beta / 2 if kl < target / 1.5 else beta
