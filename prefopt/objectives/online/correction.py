"""Corrections for a sampler that is not the policy before the update: other arithmetic, or older weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from pydantic import ConfigDict, Discriminator, Tag
from torch import Tensor

from prefopt.objectives.maths import EXPONENT_LIMIT, masked_mean, masked_sum
from prefopt.support.domains import NonNegative, Positive

Level = Literal["token", "sequence", "geometric"]
Outside = Literal["truncate", "mask", "drop"]


@dataclass(frozen=True)
class Correction:
    """Importance sampling between who drew the tokens and the policy before the update: what a token's loss is multiplied by.

    ρ_t = π_old(y_t) / π_sampler(y_t);  k_t = ρ_t, Π_s ρ_s, or (Π_s ρ_s)^(1/|y|)

    within [low, high] the weight is k_t, and outside it is
    truncate: the bound; mask: 0; drop: 0 for all tokens of the completion.

    All of [B, K, T], products and |y| over the tokens that the policy wrote; without gradient. This is not the ratio π / π_old of
    an update: the product of the two is π / π_sampler. Only the product over a completion, without bounds, makes the expectation
    that of the policy, and its variance grows with the length; tokens' ratios leave the states to the sampler. A token of weight 0
    still counts in the denominators, as in TRL and IcePop; verl takes it out of them.

    Sources: truncated by token: Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025).
    Masked by token on both sides: IcePop (Ring-1T, arXiv 2510.18855), M(k) = k within [α, β], else 0. By completion: Liu et al.,
    "When speed kills stability" (2025); the geometric mean is GSPO's ratio (arXiv 2507.18071). Dropped: Trust Region Masking
    (arXiv 2512.23075), which bounds each position's KL over the vocabulary; here the ratios of the drawn tokens are bounded.

    Attributes:
        per: what k_t is of: the "token", the "sequence", or the sequence's "geometric" mean.
        outside: what becomes of a token beyond a bound: "truncate", "mask" or "drop".
        low: the lower bound; None is none.
        high: the upper bound; None is none.
    """

    per: Level = "token"
    outside: Outside = "truncate"
    low: NonNegative | None = None
    high: Positive | None = None
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name, choices in (("per", Level), ("outside", Outside)):
            if (value := getattr(self, name)) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.outside != "truncate" and self.low is None and self.high is None:
            raise ValueError(f"outside: {self.outside} needs a bound: low, high, or both")

    def ratio(
        self, old: Float[Tensor, "B K T"], sampler: Float[Tensor, "B K T"], mask: Bool[Tensor, "B K T"]
    ) -> Float[Tensor, "B K T"]:
        """k_t, 1 outside the mask, at most e²⁰. A token whose log-prob the sampler did not give (NaN) has ρ_t = 1."""
        logs = torch.nan_to_num(old - sampler, nan=0.0).masked_fill(~mask, 0).detach()
        if self.per != "token":
            reduce = masked_sum if self.per == "sequence" else masked_mean
            logs = reduce(logs, mask)[..., None].expand_as(logs).masked_fill(~mask, 0)
        return logs.clamp(max=EXPONENT_LIMIT).exp()

    def weight(self, ratio: Float[Tensor, "B K T"], mask: Bool[Tensor, "B K T"]) -> Float[Tensor, "B K T"]:
        """What becomes of these k_t within the bounds and beyond, 1 outside the mask."""
        bounded = ratio if self.low is None and self.high is None else ratio.clamp(self.low, self.high)
        if self.outside == "truncate":
            return torch.where(mask, bounded, 1.0)
        beyond = (bounded != ratio) & mask
        if self.outside == "drop":
            beyond = beyond.any(-1, keepdim=True) & mask
        return ratio.masked_fill(beyond, 0)


def _kind(value: Any) -> str:
    return "correction" if isinstance(value, Mapping | Correction) else "cap"


Tis = Annotated[Annotated[Positive, Tag("cap")] | Annotated[Correction, Tag("correction")], Discriminator(_kind)]
"""What an objective's `tis` can be: the largest weight of a token, or a `Correction`, in a recipe a section of its fields."""


def correction_of(tis: Tis) -> Correction:
    """A number is the cap of a token's weight."""
    return tis if isinstance(tis, Correction) else Correction(high=tis)
