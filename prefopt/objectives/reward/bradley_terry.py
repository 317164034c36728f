"""The Bradley–Terry reward model: of choices, of choices with a margin, of segments of several steps, of shares of raters."""

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import masked_sum, pair_metrics
from prefopt.objectives.parts import nothing
from prefopt.objectives.preference.softdpo import metrics_by_preference
from prefopt.support.domains import NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class BradleyTerry:
    """Bradley–Terry maximum likelihood: P(y_w beats y_l) = σ(r_w − r_l).

    L = −log σ(r_w − r_l) + c (r_w + r_l)²

    r are a scorer's rewards, [B, 2], chosen first. Preferences fix a reward only up to a constant for each prompt; c > 0
    picks the centred one.

    Source: Ouyang et al., arXiv 2203.02155v1, eq. 1 at K = 2; centring: Eisenstein et al., arXiv 2312.09244v3, who use
    c = 0.01. It is off by default, as in the former.

    Attributes:
        centering: c.
    """

    centering: NonNegative = 0.0
    needs = Needs(completions=2, ordered=True, rewards=True)

    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.rewards` is [B, 2]; the total is [B]."""
        assert policy.rewards is not None
        chosen, rejected = policy.rewards.unbind(-1)
        total = -logsigmoid(chosen - rejected) + self.centering * (chosen + rejected) ** 2
        return Loss(total, pair_metrics(policy.rewards))


@dataclass(frozen=True)
class MarginBradleyTerry:
    """Bradley–Terry with a margin: what was rated much better must be ahead by more.

    L = −log σ(r_w − r_l − m) + c (r_w + r_l)²,  m = scale · (s_w − s_l)

    r are a scorer's rewards, [B, 2], chosen first, and s the scores of the data. The margin is the difference of the scores, so
    grades of a choice ("significantly better", "slightly better") are given as `score_chosen` and `score_rejected` with the
    margin between them. A bare preference has scores ±½, and so one margin for all, which teaches nothing but to be surer. The
    metrics are those of r, without m.

    Source: Touvron et al. (Llama 2), arXiv 2307.09288v2, eq. 2; there m is 0 to 1 or 0 to 3, by four grades, and there is no
    centring, which is `BradleyTerry`'s.

    Attributes:
        scale: how much margin a difference of 1 between scores asks for.
        centering: c.
    """

    scale: NonNegative = 1.0
    centering: NonNegative = 0.0
    needs = Needs(completions=2, ordered=True, scores=True, rewards=True)

    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.rewards` and `batch.scores` are [B, 2]; the total is [B]."""
        assert policy.rewards is not None and batch.scores is not None
        chosen, rejected = policy.rewards.unbind(-1)
        margin = self.scale * (batch.scores[:, 0] - batch.scores[:, 1]).to(policy.rewards)
        total = -logsigmoid(chosen - rejected - margin) + self.centering * (chosen + rejected) ** 2
        return Loss(total, pair_metrics(policy.rewards))


@dataclass(frozen=True)
class SegmentBradleyTerry:
    """Bradley–Terry on segments of trajectories: what is compared are sums of step rewards, and each step's own is learnt.

    L = −log σ(R_w − R_l) + c (R_w + R_l)²,  R = Σ_i r_i over the steps of a segment

    r_i is what the scorer gives the last token of step i, having read all up to it. Steps are the turns of an episode, or those of
    data with lists of steps; R is [B, 2], chosen first. A comparison says only which sum is larger; the reward of a step is found
    because the step comes back in other segments. With one step each this is `BradleyTerry`. Centring is of R, off by default.

    Source: Christiano et al., arXiv 1706.03741, eq. 1 and the cross-entropy below it, without their 10% of random answers.

    Attributes:
        centering: c.
    """

    centering: NonNegative = 0.0
    needs = Needs(completions=2, ordered=True, rewards=True, step_rewards="reward")

    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.step_rewards` is [B, 2, T]; the total is [B]."""
        assert policy.step_rewards is not None
        segments = masked_sum(policy.step_rewards, batch.step_ends)  # [B, 2]
        chosen, rejected = segments.unbind(-1)
        total = -logsigmoid(chosen - rejected) + self.centering * (chosen + rejected) ** 2  # eq. 1
        return Loss(total, pair_metrics(segments))


@dataclass(frozen=True)
class SoftBradleyTerry:
    """Bradley–Terry on soft labels: cross-entropy to the probability that one completion beats the other.

    L = −p log σ(r_0 − r_1) − (1 − p) log σ(r_1 − r_0) + c (r_0 + r_1)²,  p = P(y_0 beats y_1)

    r are a scorer's rewards, [B, 2]; the pair has no order. p is `batch.preference[:, 0, 1]`, the share of several raters or a
    judge's probability. The loss is least at r_0 − r_1 = logit p. p = 1 is `BradleyTerry`. The metrics call the completion with
    p > ½ chosen, and do not apply to ties.

    Source: Lee et al. (RLAIF), arXiv 2309.00267v3, whose reward model learns from a judge's probabilities so; centring as in
    `BradleyTerry`.

    Attributes:
        centering: c.
    """

    centering: NonNegative = 0.0
    needs = Needs(completions=2, preference=True, rewards=True)
    contract_exceptions: ClassVar = {
        "prefers chosen": "a difference beyond logit p is surer than the raters were, and as wrong as one below it",
    }

    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.rewards` is [B, 2], `batch.preference` [B, 2, 2]; the total is [B]."""
        assert policy.rewards is not None and batch.preference is not None
        p = batch.preference[:, 0, 1].to(policy.rewards)
        first, second = policy.rewards.unbind(-1)
        likelihood = p * logsigmoid(first - second) + (1 - p) * logsigmoid(second - first)
        total = -likelihood + self.centering * (first + second) ** 2
        return Loss(total, metrics_by_preference(policy.rewards, p))
