"""The part that says how much better than expected a completion, or a token of it, was."""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prefopt.objectives.maths import discounted_returns, gae, masked_sum, whiten
from prefopt.types import ORIGINS, Batch, Outputs

Credit = Literal["outcome", "reward_to_go"]
"""What a token is credited with: all that its completion earns, or what is earned at and after it.

They differ where turns or steps have rewards of their own, and where a KL is in the rewards.
"""


def check_credit(objective: Any) -> None:
    """For `__post_init__`: refuses a `credit` that is none."""
    if objective.credit not in get_args(Credit):
        raise ValueError(f"credit must be one of {', '.join(get_args(Credit))}, got {objective.credit!r}")


def scores_of(batch: Batch) -> Float[Tensor, "B K"]:
    """The batch's scores; 0 for absent completions, whatever stands there."""
    assert batch.scores is not None
    return batch.scores.to(torch.promote_types(batch.scores.dtype, torch.float32)).masked_fill(~batch.present, 0)


def total_scores(batch: Batch) -> Float[Tensor, "B K"]:
    """Score + Σ_t reward_t of each completion, where turns or steps have rewards of their own; 0 for absent completions."""
    scores = scores_of(batch)
    return scores if batch.rewards is None else scores + masked_sum(batch.rewards, batch.mask)


def completion_rewards(batch: Batch, penalty: Float[Tensor, "B K T"]) -> Float[Tensor, "B K"]:
    """Score + Σ_t (reward_t − penalty_t): what a whole completion earns."""
    return total_scores(batch) - masked_sum(penalty, batch.mask)


def came_from(batch: Batch, *origins: str) -> Bool[Tensor, "B K"]:
    """Which completions are present and have one of these `ORIGINS`; reads the column `origin`."""
    places = torch.tensor([ORIGINS.index(origin) for origin in origins], device=batch.mask.device)
    return torch.isin(batch.columns["origin"], places) & batch.present


def episodes(mask: Bool[Tensor, "B K T"]) -> dict[str, float]:
    """A metric: how many completions a batch has, which controllers count by."""
    return {"episodes": float(mask.any(-1).sum())}


def last_token(mask: Bool[Tensor, "*L T"]) -> Bool[Tensor, "*L T"]:
    """True at the last token of the mask; nowhere if it is empty."""
    later = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (later == 1)


def token_rewards(batch: Batch, penalty: Float[Tensor, "B K T"]) -> Float[Tensor, "B K T"]:
    """r_t = reward_t − penalty_t + 1[t is the last token] · score, [B, K, T]; 0 outside the mask.

    `batch.rewards` has reward_t, of turns or steps at their last tokens; it is 0 where the batch has none.
    """
    rewards = torch.where(last_token(batch.mask), scores_of(batch)[..., None], 0) - penalty.masked_fill(~batch.mask, 0)
    return rewards if batch.rewards is None else rewards + batch.rewards.masked_fill(~batch.mask, 0)


def credited(batch: Batch, penalty: Float[Tensor, "B K T"], credit: Credit) -> Float[Tensor, "B K T"]:
    """What each token is credited with; 0 outside the mask."""
    if credit == "outcome":
        return over_tokens(completion_rewards(batch, penalty), batch.mask)
    return discounted_returns(token_rewards(batch, penalty), batch.mask, 1.0)


def group_mean(scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]) -> Float[Tensor, "B 1"]:
    """The mean score of each prompt's completions."""
    return scores.masked_fill(~present, 0).sum(-1, keepdim=True) / present.sum(-1, keepdim=True).clamp(min=1)


def centred(scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """r_i − mean_j r_j, 0 for absent ones; exactly 0 in a group whose scores are equal, where rounding might leave something."""
    low = scores.masked_fill(~present, torch.inf).amin(-1, keepdim=True)
    high = scores.masked_fill(~present, -torch.inf).amax(-1, keepdim=True)
    return torch.where(present & (low < high), scores - group_mean(scores, present), 0)


def group_std(scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]) -> Float[Tensor, "B 1"]:
    """The unbiased standard deviation of the scores of each prompt's completions; exactly 0 where they are equal."""
    squares = centred(scores, present).square().sum(-1, keepdim=True)
    return (squares / (present.sum(-1, keepdim=True) - 1).clamp(min=1)).sqrt()


def standardised(scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"], e: float) -> Float[Tensor, "B K"]:
    """(r_i − mean) / (std + e) within each group; 0 where all scores are equal. std is the unbiased one."""
    std = group_std(scores, present)
    return torch.where(std > 0, centred(scores, present) / (torch.where(std > 0, std, 1) + e), 0)


def leave_one_out(scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """r_i − mean_{j≠i} r_j = K/(K−1) · (r_i − mean_j r_j) within each group of K; 0 for one alone."""
    count = present.sum(-1, keepdim=True)
    return centred(scores, present) * count / (count - 1).clamp(min=1)


def greedy_baseline(batch: Batch) -> Float[Tensor, "B 1"]:
    """What each prompt's greedy completion scored, `total_scores`; 0 where it has none."""
    return group_mean(total_scores(batch), came_from(batch, "greedy"))


def advantage_metrics(advantages: Float[Tensor, "*L"], mask: Bool[Tensor, "*L"]) -> dict[str, float]:
    """Mean and standard deviation over the logical batch, over completions [B, K] or tokens [B, K, T]."""
    values = advantages[mask].double()
    spread = values.std(correction=0).item() if len(values) else 0.0
    return {"advantages/mean": values.mean().item() if len(values) else 0.0, "advantages/std": spread}


def with_critic(
    batch: Batch,
    penalty: Float[Tensor, "B K T"],
    old: Outputs,
    gamma: float,
    lam: float,
    whiten_rewards: bool = False,
    whiten_advantages: bool = False,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """GAE, and the returns that a critic should have said.

    Args:
        batch: with scores of completions, and perhaps rewards of turns or steps.
        penalty: of tokens, subtracted from their rewards.
        old: the policy's outputs before the update, with values.
        gamma: γ.
        lam: λ.
        whiten_rewards: scale the rewards of the batch to unit variance, keeping their mean.
        whiten_advantages: to mean 0 and unit variance; returns are made of them as they were.

    Returns:
        The rows `advantages`, `returns` and `old_values`, [B, K, T]; metrics over the logical batch, of the advantages before
        they are whitened.
    """
    assert old.values is not None
    mask = old.mask
    rewards = token_rewards(batch, penalty)
    if whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    values = old.values.masked_fill(~mask, 0)
    advantages = gae(rewards, values, mask, gamma, lam)
    returns = advantages + values
    metrics = advantage_metrics(advantages, mask) | {
        "values/mean": values[mask].mean().item() if mask.any() else 0.0,
        "values/explained_variance": explained_variance(values[mask], returns[mask]),
    }
    if whiten_advantages:
        advantages = whiten(advantages, mask)
    return {"advantages": advantages, "returns": returns, "old_values": values}, metrics


def explained_variance(predicted: Float[Tensor, " N"], actual: Float[Tensor, " N"]) -> float:
    """1 − Var(actual − predicted) / Var(actual); NaN where all are equal."""
    if len(actual) == 0 or (actual == actual[0]).all():
        return float("nan")
    return (1 - (actual - predicted).var(correction=0) / actual.var(correction=0)).item()


def over_tokens(advantages: Float[Tensor, "B K"], mask: Bool[Tensor, "B K T"]) -> Float[Tensor, "B K T"]:
    """The completion's advantage at each of its tokens; 0 outside the mask."""
    return torch.where(mask, advantages[..., None], 0)
