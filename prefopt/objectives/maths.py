"""Pure tensor maths, seeds and hashes that several modules share."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prefopt.types import Batch


def pair_metrics(reward: Float[Tensor, "B 2"]) -> Mapping[str, Float[Tensor, " B"]]:
    """The four numbers by which every pairwise method is watched.

    Chosen and rejected rewards are apart because a margin can grow while both fall.

    Args:
        reward: [B, 2], (implicit) reward of the chosen and of the rejected completion.

    Returns:
        Each [B], without gradient. A tie counts half in the accuracy.
    """
    chosen, rejected = reward.detach().unbind(-1)
    margin = chosen - rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margin": margin,
        "rewards/accuracy": (margin.sign() + 1) / 2,
    }


def masked_log_softmax(values: Float[Tensor, "*L K"], present: Bool[Tensor, "*L K"]) -> Float[Tensor, "*L K"]:
    """[..., K] log-softmax over those that are present; 0 for the others."""
    lowest = torch.finfo(values.dtype).min
    return values.masked_fill(~present, lowest).log_softmax(-1).masked_fill(~present, 0)


def plackett_luce(values: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """[B] log-likelihood of the order 1 ≻ 2 ≻ … ≻ K under Plackett–Luce with these log-strengths.

    Args:
        values: [B, K], best first.
        present: [B, K]; the others take no part.
    """
    completions = values.shape[-1]
    left = torch.ones(
        completions, completions, dtype=torch.bool, device=values.device
    ).triu()  # [k, j]: j is not yet placed
    takes_part = left & present[:, None, :]
    placed = masked_log_softmax(values[:, None, :].expand(-1, completions, -1), takes_part)
    return placed.diagonal(dim1=1, dim2=2).masked_fill(~present, 0).sum(-1)


def better(batch: Batch) -> Bool[Tensor, "B K K"]:
    """[B, i, j] bool: completion i has a higher score than j, and both are present."""
    assert batch.scores is not None
    present = batch.present
    return (batch.scores[:, :, None] > batch.scores[:, None, :]) & present[:, :, None] & present[:, None, :]


def list_metrics(reward: Float[Tensor, "B K"], batch: Batch) -> Mapping[str, Float[Tensor, " B"]]:
    """The numbers by which every listwise method is watched: those of `pair_metrics` for the best and the worst of each list.

    Args:
        reward: [B, K].
        batch: with scores, or else in order, best first.

    Returns:
        Each [B], without gradient; NaN where a list has fewer than two completions.
    """
    present = batch.present
    place = torch.arange(present.shape[-1], device=reward.device).expand(present.shape)
    merit = -place.to(reward) if batch.scores is None else batch.scores.to(reward)
    best = merit.masked_fill(~present, -torch.inf).argmax(-1, keepdim=True)
    worst = merit.masked_fill(~present, torch.inf).argmin(-1, keepdim=True)
    metrics = pair_metrics(torch.cat([reward.gather(-1, best), reward.gather(-1, worst)], -1))
    alone = present.sum(-1) < 2
    return {name: value.masked_fill(alone, torch.nan) for name, value in metrics.items()}


EXPONENT_LIMIT = 20.0
"""Where `bounded_exp` leaves the exponential; e²⁰ ≈ 5·10⁸, further than any ratio that means something."""


def bounded_exp(exponent: Float[Tensor, "*L"]) -> Float[Tensor, "*L"]:
    """exp up to `EXPONENT_LIMIT`, and its tangent from there on.

    Finite in fp32 however far two policies are apart. The slope keeps its sign, where a clamp would leave none: k3 far below the
    reference would then push the policy further away.
    """
    inside = exponent.clamp(max=EXPONENT_LIMIT)
    return inside.exp() * (1 + (exponent - inside))


def masked_sum(values: Float[Tensor, "*L T"], mask: Bool[Tensor, "*L T"]) -> Float[Tensor, "*L"]:
    """Sum over the last dimension, of what the mask holds."""
    return values.masked_fill(~mask, 0).sum(-1)


def masked_mean(values: Float[Tensor, "*L T"], mask: Bool[Tensor, "*L T"]) -> Float[Tensor, "*L"]:
    """Mean over the last dimension, of what the mask holds; 0 where it holds nothing."""
    return masked_sum(values, mask) / mask.sum(-1).clamp(min=1)


def discounted_returns(
    rewards: Float[Tensor, "*L T"], mask: Bool[Tensor, "*L T"], gamma: float
) -> Float[Tensor, "*L T"]:
    """R_t = r_t + γ R_{t+1} along the tokens of the mask; 0 outside it.

    What lies between two tokens of the mask (a tool's answer) is skipped: it takes no time and earns nothing.
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)


def gae(
    rewards: Float[Tensor, "*L T"],
    values: Float[Tensor, "*L T"],
    mask: Bool[Tensor, "*L T"],
    gamma: float,
    lam: float,
) -> Float[Tensor, "*L T"]:
    """Generalised advantage estimation, arXiv 1506.02438v6, eq. 16; 0 outside the mask.

    A_t = δ_t + γλ A_{t+1},  δ_t = r_t + γ V_{t+1} − V_t

    t + 1 is the next token of the mask, over whatever lies between. After the last one, V and A are 0: an episode ends there.
    """
    advantage = value = torch.zeros_like(rewards[..., 0])  # of the next token of the mask
    backwards = []
    for t in reversed(range(rewards.shape[-1])):
        here = mask[..., t]
        delta = rewards[..., t] + gamma * value - values[..., t]
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        value = torch.where(here, values[..., t], value)
        backwards.append(advantage)
    return torch.stack(backwards[::-1], -1).masked_fill(~mask, 0)


def whiten(values: Float[Tensor, "*L"], mask: Bool[Tensor, "*L"], shift_mean: bool = True) -> Float[Tensor, "*L"]:
    """(x − mean) / √(var + 10⁻⁸) over all of the mask, all rows together; 0 outside it.

    Of equal values this is 0. The variance is the biased one, as in lm-human-preferences (`utils.core.whiten`).

    Args:
        values: any shape.
        mask: of the same shape.
        shift_mean: False scales only and puts the mean back, so that a reward keeps its sign.
    """
    count = mask.sum().clamp(min=1)
    mean = values.masked_fill(~mask, 0).sum() / count
    centred = (values - mean).masked_fill(~mask, 0)
    scaled = centred * (centred.square().sum() / count + 1e-8).rsqrt()
    return scaled if shift_mean else (scaled + mean).masked_fill(~mask, 0)


def kl_estimate(log_ratio: Float[Tensor, "*L"], estimator: str) -> Float[Tensor, "*L"]:
    """An estimate of KL(π‖ref) at each sample of π, from l = log π − log ref there.

    k1 = l · k2 = l²/2 · k3 = e^(−l) − 1 + l. E k1 and E k3 are the KL; k2 is biased and small near the reference
    (Schulman, joschu.net/blog/kl-approx.html). Their gradients, l being differentiated and the samples not, are another matter:
    E∇k1 = 0, E∇k2 = ∇KL(π‖ref), E∇k3 = ∇KL(ref‖π).

    Raises:
        ValueError: an unknown estimator.
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    if estimator == "k3":
        return bounded_exp(-log_ratio) - 1 + log_ratio
    raise ValueError(f"estimator must be k1, k2 or k3, got {estimator!r}")
