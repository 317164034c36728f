"""Proximal Policy Optimization, clipped and with a KL penalty."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from prefopt.objectives.maths import bounded_exp
from prefopt.objectives.online.advantage import episodes, with_critic
from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.kl import (
    KL,
    Estimator,
    Placement,
    check_kl,
    doubled_or_halved,
    kl_as_placed,
    proportional,
)
from prefopt.objectives.online.surrogate import (
    clipped_losses,
    log_ratio,
    needs_per,
    policy_loss,
    ratio_metrics,
    ratio_rows,
    row_mean,
    token_ratio,
    token_sums,
    value_loss,
)
from prefopt.support.domains import NonNegative, Positive, Share
from prefopt.types import Batch, Loss, Outputs, Targets


@dataclass(frozen=True)
class PPO:
    """Proximal Policy Optimization of a language model: a clipped ratio for each token, a critic, a KL to the reference.

    L = mean_t max(−A_t ρ_t, −A_t clip(ρ_t, 1 − ε, 1 + ε)) + c_v ½ max((V_t − R_t)², (clip(V_t, V_old,t ± ε_v) − R_t)²),
    ρ_t = π(y_t|x, y_<t) / π_old(y_t|x, y_<t),  A = GAE(r, V_old; γ, λ),  R = A + V_old,
    r_t = −β kl_t + 1[t is the last token] · score

    All of [B, K, T]; means are over the tokens of the logical minibatch. A is whitened over the logical batch, after R is made of
    it. kl_t = log π_old − log π_ref at the token, or another estimate, or in the loss (`online.kl.KL` says what that changes).
    Completions end with their last token: nothing is bootstrapped, also where `max_tokens` cut them. PPO-ptx (arXiv 2203.02155)
    is this and an `SFT` term with a source of its own.

    With a target, β is adapted after each logical batch of n completions whose mean KL is `kl/reference`:
    β ← β(1 + clip(KL / target − 1, ±0.2) · n / horizon).

    Source: Schulman et al., arXiv 1707.06347v2, eq. 7 and 9; Ziegler et al., arXiv 1909.08593v2, §2.2, and its code
    (openai/lm-human-preferences, train_policy.py), whose defaults these are, β being that of its sentiment task. There target
    is 6 in that task and None otherwise; and rewards are whitened (`whiten_rewards`), which is off here because their scale, and
    with it that of what the critic learns, then changes from batch to batch. An entropy bonus (eq. 9) is left out, as there.

    Attributes:
        beta: β ≥ 0, the weight of the KL; moved by `adapted` where there is a target.
        epsilon: ε, how far a ratio may move.
        gamma: γ.
        lam: λ, of GAE.
        c_v: c_v, the weight of the value loss.
        epsilon_v: ε_v, how far a value may move in an update; None does not clip.
        estimator: of the KL: "k1", "k2", "k3" or "exact".
        placement: of the KL: "reward" or "loss".
        target: of the adaptive β, nats per completion; None keeps β.
        horizon: of the adaptive β, in completions.
        whiten_advantages: to mean 0 and variance 1 over the tokens of the logical batch.
        whiten_rewards: to variance 1 over the same tokens, keeping their mean.
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
    """

    beta: NonNegative = 0.15
    epsilon: Positive = 0.2
    gamma: Share = 1.0
    lam: Share = 0.95
    c_v: NonNegative = 0.1
    epsilon_v: Positive | None = 0.2
    estimator: Estimator = "k1"
    placement: Placement = "reward"
    target: Positive | None = None
    horizon: Positive = 10_000.0
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    tis: Tis | None = None
    kl = property(kl_as_placed)
    needs = needs_per("token", values=True)

    def __post_init__(self) -> None:
        kl = KL(self.beta, self.estimator, self.placement)  # refuses what it does not know
        if self.target is not None and not (kl.used and self.target > 0 and self.horizon > 0):
            raise ValueError("an adaptive KL needs beta, target and horizon above 0; target: null keeps beta as it is")

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """Advantages and returns, old log-probs and values, [B, K, T] each."""
        assert old is not None
        penalty = self.kl.penalty(batch.mask, old, reference)
        rows, metrics = with_critic(
            batch, penalty, old, self.gamma, self.lam, self.whiten_rewards, self.whiten_advantages
        )
        rows |= ratio_rows(batch, old, self.tis) | self.kl.rows(reference)
        return Targets(rows, metrics | episodes(batch.mask) | self.kl.metrics(old, reference))

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` and `policy.values` are [B, K, T]; the total is [B]."""
        assert policy.values is not None
        rows, ratio = targets.rows, token_ratio(policy, targets)
        actor, metrics = clipped_losses(
            self.kl, policy, targets, ratio, self.epsilon, self.epsilon
        )  # 1707.06347, eq. 7
        critic = value_loss(policy.values, rows["old_values"], rows["returns"], self.epsilon_v)
        metrics |= {"values/loss": row_mean(critic, batch.mask)}
        return Loss(token_sums(actor + self.c_v * critic, batch.mask), metrics)

    def adapted(self, metrics: Mapping[str, float]) -> Self:
        """With β moved towards the target KL, if there is one."""
        if self.target is None:
            return self
        return replace(self, beta=proportional(self.beta, metrics, self.target, self.horizon))


@dataclass(frozen=True)
class PPOKL:
    """PPO with a KL penalty in place of the clip: the penalty is for moving away from the policy before the update.

    L = mean_t −A_t ρ_t + β_kl kl_old,t + c_v ½ (V_t − R_t)²,  kl_old,t = ρ_t − 1 − log ρ_t,
    β_kl ← 2β_kl if KL > 1.5 · target, β_kl/2 if KL < target/1.5

    A, R, ρ and r as in `PPO`, where β weighs the KL to the reference; that is another KL, and need not be there. On samples of
    π_old, kl_old,t has the expectation KL(π_old‖π) and its gradient. KL is `ratio/kl`, the mean
    over a prompt's tokens, prompts and all updates that a batch gave; the paper measures after the last of them. In the first
    update it is 0, so with one pass of one minibatch β_kl is halved for ever: this objective is for several.

    Source: Schulman et al., arXiv 1707.06347v2, §4, eq. 8: target 0.01 is the best of its table 1; β_kl = 1 soon forgets where it
    began. The rest has PPO's defaults here.

    Attributes:
        beta_kl: β_kl; moved by `adapted`.
        target: of KL(π_old‖π), nats per token.
        beta: β ≥ 0, the weight of the KL to the reference.
        gamma: γ.
        lam: λ, of GAE.
        c_v: c_v, the weight of the value loss.
        estimator: of the KL to the reference: "k1", "k2", "k3" or "exact".
        placement: of the KL to the reference: "reward" or "loss".
        whiten_advantages: to mean 0 and variance 1 over the tokens of the logical batch.
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
    """

    beta_kl: Positive = 1.0
    target: Positive = 0.01
    beta: NonNegative = 0.15
    gamma: Share = 1.0
    lam: Share = 0.95
    c_v: NonNegative = 0.1
    estimator: Estimator = "k1"
    placement: Placement = "reward"
    whiten_advantages: bool = True
    tis: Tis | None = None
    kl = property(kl_as_placed)
    needs = needs_per("token", values=True)

    def __post_init__(self) -> None:
        check_kl(self)
        if not (self.beta_kl > 0 and self.target > 0):
            raise ValueError(f"beta_kl and target must be above 0, got {self.beta_kl} and {self.target}")

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """Advantages and returns, old log-probs and values, [B, K, T] each."""
        assert old is not None
        penalty = self.kl.penalty(batch.mask, old, reference)
        rows, metrics = with_critic(batch, penalty, old, self.gamma, self.lam, whiten_advantages=self.whiten_advantages)
        rows |= ratio_rows(batch, old, self.tis) | self.kl.rows(reference)
        metrics |= episodes(batch.mask) | self.kl.metrics(old, reference)
        return Targets(rows, metrics | {"ratio/beta": self.beta_kl})

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` and `policy.values` are [B, K, T]; the total is [B]."""
        assert policy.values is not None
        rows, moved = targets.rows, log_ratio(policy, targets)
        ratio = bounded_exp(moved)
        surrogate = -rows["advantages"] * ratio + self.beta_kl * (ratio - 1 - moved)  # eq. 8
        actor, metrics = policy_loss(surrogate, self.kl, policy, targets)
        critic = value_loss(policy.values, rows["old_values"], rows["returns"], None)
        nowhere = batch.mask.new_zeros(batch.mask.shape)
        metrics |= ratio_metrics(ratio, nowhere, policy, targets) | {"values/loss": row_mean(critic, batch.mask)}
        return Loss(token_sums(actor + self.c_v * critic, batch.mask), metrics)

    def adapted(self, metrics: Mapping[str, float]) -> Self:
        """With β_kl doubled, halved or kept."""
        return replace(self, beta_kl=doubled_or_halved(self.beta_kl, metrics["ratio/kl"], self.target))
