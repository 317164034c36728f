"""Metrics of the policy's own completions while it learns from them: the early signs of reward hacking and of collapse."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prefopt.objectives.maths import kl_estimate
from prefopt.objectives.online.advantage import total_scores
from prefopt.sources.writing import turns_of
from prefopt.types import ORIGINS, Batch, Needs, Outputs

GRAM = 3
"""The n of the n-grams of tokens whose repetition is counted."""


class RolloutDiagnostics:
    """Numbers over the policy's own completions in a logical batch, before the update. A `Monitor`.

    Those of other writers do not count. Names and formulas are in docs/metrics.md.
    """

    needs = Needs(old=True, statistics=frozenset({"entropy"}))

    def __call__(self, batch: Batch, old: Outputs, reference: Outputs | None) -> Mapping[str, float]:
        """Metrics called `rollouts/…`; those that need a column or a reference that is not there are left out."""
        own = batch.present
        if "origin" in batch.columns:
            own = own & (batch.columns["origin"] == ORIGINS.index("policy"))
        tokens = batch.mask & own[..., None]
        assert old.logps is not None
        metrics = {
            "length": _mean(tokens.sum(-1), own),
            "repetition": _mean(repetition(batch.completion_ids, batch.mask), own),
            "entropy": _mean(old.statistics["entropy"], tokens),
        }
        if batch.scores is not None:
            rewards = total_scores(batch)
            metrics |= {"reward": _mean(rewards, own), "reward_std": _spread(rewards, own)}
        for name in ("gold", "cost"):
            if name in batch.columns:
                metrics[name] = _mean(batch.columns[name], own)
        if reference is not None and reference.logps is not None:
            metrics |= _divergence(old.logps, reference.logps, tokens, own)
        if "kl_policy_ref" in old.statistics:
            metrics["kl_exact"] = _mean(old.statistics["kl_policy_ref"].masked_fill(~tokens, 0).sum(-1), own)
        if "sampler_logps" in batch.columns and bool(tokens.any()):
            ratio = (old.logps - batch.columns["sampler_logps"])[tokens].double()
            if len(ratio := ratio[~ratio.isnan()]):  # not every sampler gives log-probs
                metrics |= {"sampler_kl": -ratio.mean().item(), "sampler_ratio_max": ratio.max().exp().item()}
        return {f"rollouts/{name}": value for name, value in metrics.items()}


def beyond(metrics: Mapping[str, float], limits: Mapping[str, tuple[float | None, float | None]]) -> dict[str, str]:
    """A sentence for each metric that is outside its bounds; NaN and what was not measured are within."""
    outside = {}
    for name, (low, high) in limits.items():
        value = metrics.get(name, math.nan)
        if low is not None and value < low:
            outside[name] = f"{name} is {value:.3g}, below {low:g} (train.limits)"
        if high is not None and value > high:
            outside[name] = f"{name} is {value:.3g}, above {high:g} (train.limits)"
    return outside


def _divergence(logps: Tensor, reference: Tensor, tokens: Tensor, own: Tensor) -> dict[str, float]:
    """KL(π ‖ π_ref) of a completion: k1 and k3 (Schulman, "Approximating KL divergence", 2020), summed over tokens."""
    ratio = (logps - reference).double().masked_fill(~tokens, 0)
    estimates = {"kl": kl_estimate(ratio, "k1"), "kl_k3": kl_estimate(ratio, "k3")}
    return {name: _mean(of_tokens.sum(-1), own) for name, of_tokens in estimates.items()}


def repetition(ids: Tensor, mask: Tensor) -> Tensor:
    """[B, K]: share of a completion's trigrams of tokens that it has had before; 0 for one that has none.

    A trigram does not reach over tokens that the policy did not write.

    Args:
        ids: [B, K, T] tokens.
        mask: [B, K, T].
    """
    rows = zip(ids.flatten(0, 1).tolist(), mask.flatten(0, 1).tolist(), strict=True)
    shares = [_repeated([row[turn.start : turn.stop] for turn in turns_of(written)]) for row, written in rows]
    return torch.tensor(shares, dtype=torch.float64, device=ids.device).view(ids.shape[:2])


def _repeated(turns: Sequence[Sequence[int]]) -> float:
    grams = [tuple(turn[i : i + GRAM]) for turn in turns for i in range(len(turn) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _mean(values: Tensor, where: Tensor) -> float:
    """Over these places, without those that are NaN."""
    return values[where].double().nanmean().item()


def _spread(scores: Tensor, own: Tensor) -> float:
    """Mean over prompts of the standard deviation of their completions' scores; NaN where each prompt has one."""
    spreads = [row[mine].double().std() for row, mine in zip(scores, own, strict=True) if int(mine.sum()) > 1]
    return torch.stack(spreads).mean().item() if spreads else math.nan
