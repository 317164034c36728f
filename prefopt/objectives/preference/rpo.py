"""Relative Preference Optimization: pairs, single labelled completions, and the form without embeddings."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import desirability, log_ratios, reference_sums
from prefopt.support.domains import Positive, Share
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class RPO:
    """Relative Preference Optimization: DPO across prompts, each pair of prompts weighted by how alike they are.

    L = 1/M² Σ_ij −log σ(β ω_ij (Δ_w,i − Δ_l,j)),  ω_ij = softmax_j(−(1 − cos(e_i, e_j))/τ),  Δ = log π(y|x) − log π_ref(y|x)

    Every chosen completion of the M prompts of a logical batch is compared with every rejected one. Log-probs are summed over
    tokens, [M, 2], chosen first; e_i is the embedding of prompt i, [M, D], in any scale; ω is [M, M], without gradient, each row
    with the sum 1. The total of row i is the mean over j. The metrics compare the two completions of one prompt, with βΔ as the
    reward; `weight/own` is ω_ii.

    ω stands *inside* the logarithm and is about 1/M, so that the effective β is about β/M: the same β pulls harder to the reference
    in a larger batch. To compare with DPO at equal strength, take M times its β, and keep the batch size. M = 1 is DPO; τ → ∞ gives
    the uniform ω = 1/M; as τ → 0 with distinct prompts, ω becomes the identity and the gradient DPO's over M.

    Source: Yin et al., arXiv 2402.10958, with weights on paired data, and the official code
    (yinyueqin/relative-preference-optimization, trainers.py). That builds the matrix from what one process has at once, so that its
    result depends on the number of GPUs; here it is always that of the logical batch. β = 0.1 and τ = 0.5 are the code's
    defaults; the paper sweeps τ over 0.25, 0.5, 0.75, with embeddings of prompts by all-MiniLM-L6-v2 or sentence-t5-large.

    Four other methods are called RPO: Reward-aware Preference Optimization (`RewardAwareRPO`), Iterative Reasoning and Regularised
    Preference Optimization (`DPONLL`), and Reward Partitioning Optimization (arXiv 2506.13702), which is not here.

    Attributes:
        beta: β, before ω shrinks it.
        tau: τ > 0, how fast the weight falls with the distance of two prompts; smaller compares only the most alike.
    """

    beta: Positive = 0.1
    tau: Positive = 0.5
    needs = Needs(completions=2, ordered=True, columns=("embeddings",), reference=True, whole_batch=True)

    def __post_init__(self) -> None:
        _check_tau(self.tau)

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """The reference's sums, [M, 2], and the directions of the embeddings, [M, D]."""
        return _with_directions(batch, reference)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [M, 2, T]; the total is [M]."""
        reward = self.beta * log_ratios(policy, targets)  # [M, 2]
        directions = targets.rows["directions"]
        weight = _likeness(directions, directions, self.tau)  # [M, M]
        logit = weight * (reward[:, :1] - reward[:, 1])
        return Loss(-logsigmoid(logit).mean(-1), {**pair_metrics(reward), "weight/own": weight.diagonal()})


@dataclass(frozen=True)
class RPOUnpaired:
    """RPO of single labelled completions: every desirable one against every undesirable one, weighted by their prompts.

    L = 1/(|D||U|) Σ_{i∈D} Σ_{j∈U} −log σ(β ω_ij (Δ_i − Δ_j)),  ω_ij = softmax_{j∈U}(−(1 − cos(e_i, e_j))/τ)

    Δ = log π(y|x) − log π_ref(y|x), summed over tokens, [B, K]. D and U are the desirable and the undesirable completions of a
    logical batch: of a single completion of a prompt the sign of its score decides, of several whether it is above or below their
    mean. e is the embedding of a completion's prompt. The sum over j belongs to the prompt of i. A batch without one of the two
    kinds has the loss 0. On pairs this is `RPO`. The effective β is about β/|U|: see there.

    Source: Yin et al., arXiv 2402.10958, the form for unpaired data, and the official code (UnpairdRPOTrainer), whose β = 0.1 and
    τ = 0.5 are the defaults; there D and U are those of one process.

    Attributes:
        beta: β, before ω shrinks it.
        tau: τ > 0, how fast the weight falls with the distance of two prompts.
    """

    beta: Positive = 0.1
    tau: Positive = 0.5
    needs = Needs(scores=True, columns=("embeddings",), reference=True, whole_batch=True, signs=True)

    def __post_init__(self) -> None:
        _check_tau(self.tau)

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """The reference's sums, [B, K], and the directions of the embeddings, [B, D]."""
        return _with_directions(batch, reference)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T], `batch.scores` [B, K]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, K]
        kind = desirability(batch)
        better, worse = kind > 0, kind < 0
        prompts, others = better.nonzero()[:, 0], worse.nonzero()[:, 0]
        directions = targets.rows["directions"]
        weight = _likeness(directions[prompts], directions[others], self.tau)  # [|D|, |U|]
        logit = weight * (reward[better][:, None] - reward[worse])
        share = -logsigmoid(logit).sum(-1) * len(batch) / max(logit.numel(), 1)
        total = (0 * reward).sum(-1).index_add(0, prompts, share)  # with a gradient even where there is nothing to add
        metrics = {"rewards/chosen": _mean_of(reward, better), "rewards/rejected": _mean_of(reward, worse)}
        return Loss(total, metrics)


@dataclass(frozen=True)
class RPODiagonal:
    """RPO without embeddings: one weight for the two completions of a prompt, the rest shared by all other prompts.

    L = 1/M Σ_i [w ℓ_ii + (1 − w) 1/(M − 1) Σ_{j≠i} ℓ_ij],  ℓ_ij = −log σ(β(Δ_w,i − Δ_l,j)),  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over tokens, [M, 2], chosen first. Unlike in `RPO` the weights stand *outside* the logarithm: β is DPO's,
    whatever the batch. w = 1 is DPO, and so is a batch of one prompt, which has no others. w = 1/M weighs all comparisons alike,
    which is what the official code of RPO does when it has no embeddings (ω = 1). The metrics compare the two completions of one
    prompt.

    Source: Yin et al., arXiv 2402.10958, diagonal weighting, and the official code (RPODiagonalTrainer), whose w = 0.8 and
    β = 0.1 are the defaults. In the paper both diagonal and uniform weights score below DPO: it is the embeddings that help.

    Attributes:
        beta: β, the strength of the implied KL constraint.
        diagonal: w, from 0 to 1.
    """

    beta: Positive = 0.1
    diagonal: Share = 0.8
    needs = Needs(completions=2, ordered=True, reference=True, whole_batch=True)

    targets = reference_sums

    def __post_init__(self) -> None:
        if not 0 <= self.diagonal <= 1:
            raise ValueError(f"diagonal is a share and must be between 0 and 1, got {self.diagonal}")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [M, 2, T]; the total is [M]."""
        reward = self.beta * log_ratios(policy, targets)  # [M, 2]
        each = -logsigmoid(reward[:, :1] - reward[:, 1])  # [M, M]
        own, others = each.diagonal(), len(batch) - 1
        if not others:
            return Loss(own, pair_metrics(reward))
        rest = (each - torch.diag_embed(own)).sum(-1) / others
        return Loss(self.diagonal * own + (1 - self.diagonal) * rest, pair_metrics(reward))


def _check_tau(tau: float) -> None:
    if tau <= 0:
        raise ValueError(f"tau must be above 0, got {tau}: distances are divided by it")


def _with_directions(batch: Batch, reference: Outputs | None) -> Targets:
    assert reference is not None
    sums = reference.sum()
    return Targets({"reference": sums, "directions": normalize(batch.columns["embeddings"].to(sums.dtype), dim=-1)})


def _likeness(some: Tensor, others: Tensor, tau: float) -> Tensor:
    """[m, n]: ω of m directions for n others, each row with the sum 1."""
    return ((some @ others.T - 1) / tau).softmax(-1)


def _mean_of(reward: Tensor, which: Tensor) -> Tensor:
    """[B]: the mean reward of these completions of each prompt, without gradient; NaN where there is none."""
    return (reward.detach() * which).sum(-1) / which.sum(-1)
