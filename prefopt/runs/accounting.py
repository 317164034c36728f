"""What a run cost: labels, tokens, floating-point operations, seconds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefopt import recipe

if TYPE_CHECKING:
    from torch import nn

    from prefopt.runs.preparing import Prepared
    from prefopt.training.loop import Trainer


@dataclass(frozen=True)
class Spent:
    """What training cost; evaluation is not counted, for it is the same for all arms of a study.

    Attributes:
        labels: judgements that were learnt from. A recorded row counts once however often it is gone through: one pair
            compared, one list ranked, one completion approved. Of rollouts, each completion that the feedback scored counts.
        sampled_tokens: that models wrote to be learnt from.
        trained_tokens: of prompts and completions, in every pass; each prompt once for all its completions.
        flops: an estimate, by `flops`.
        seconds: from asking for a batch to the end of its updates, summed over steps.
    """

    labels: int
    sampled_tokens: int
    trained_tokens: int
    flops: float
    seconds: float


CALLED = {
    "labels": "labels used",
    "trained_tokens": "tokens trained on",
    "sampled_tokens": "tokens sampled",
    "flops": "FLOPs (estimate)",
    "seconds": "seconds of training",
}
"""Fields of `Spent` in words; the one that depends on the machine's speed is the last."""


@dataclass(frozen=True)
class Work:
    """What the models of a run had to compute.

    Attributes:
        parameters: of the trained model, N.
        trainable: those that have a gradient, M.
        trained: tokens that were trained on, T, over all passes.
        passes: over each batch.
        sampled: tokens that were drawn, S.
        old: whether the policy was also asked before its updates.
        repeated: whether each forward pass was made twice (gradient caching).
        reference: parameters of the reference, R; 0 without one.
        scorers: parameters of all reward models, Q, which read what was sampled.
    """

    parameters: int
    trainable: int
    trained: int
    passes: int = 1
    sampled: int = 0
    old: bool = False
    repeated: bool = False
    reference: int = 0
    scorers: int = 0


def flops(work: Work) -> float:
    """(4N + 2M)·T to train, + 2N·T where forwards are repeated, + 2(N·old + R)·T/passes, + 2(N + Q)·S to sample and to score.

    Two operations for each weight and token forward, two for the gradient of the states and two for that of each trainable
    weight: 6·N·T where all weights are trained (Kaplan et al., arXiv 2001.08361v1, section 2.1, without attention's part).
    """
    w = work
    train = (4 * w.parameters + 2 * w.trainable) * w.trained
    again = 2 * w.parameters * w.trained * w.repeated
    before = 2 * (w.parameters * w.old + w.reference) * w.trained / w.passes
    return float(train + again + before + 2 * (w.parameters + w.scorers) * w.sampled)


def labels_per_prompt(settings: recipe.Recipe) -> int:
    """Judgements that a new prompt of a batch brings: see `Spent.labels`."""
    rollouts = settings.source.rollouts
    if rollouts is None:
        return 1
    if settings.feedback is None and rollouts.environment is None:
        return 0
    return rollouts.completions + len(set(settings.source.writers) - {"mismatched"})


def spent(prepared: "Prepared", trainer: "Trainer") -> Spent:
    """What a run has cost so far."""
    settings, rollouts = prepared.recipe, prepared.rollouts
    model = trainer.accelerator.unwrap_model(trainer.model)
    reference, train = prepared.models.reference, settings.train
    work = Work(
        parameters=_parameters(model),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        trained=trainer.tokens,
        passes=train.passes,
        sampled=rollouts.tokens if rollouts else 0,
        old=trainer.asked_before,
        repeated=prepared.plan.needs.whole_batch and train.batch_size > train.micro_batch_size,
        reference=_parameters(reference.policy)
        if reference is not None and (prepared.plan.needs.reference or rollouts is not None)
        else 0,
        scorers=sum(_parameters(m) for name, m in prepared.others.items() if name != "reference"),
    )
    seen = min(trainer.done * train.batch_size, prepared.rows)
    labels = rollouts.judged if rollouts else seen * labels_per_prompt(settings)
    return Spent(labels, work.sampled, work.trained, flops(work), round(trainer.seconds, 3))


def _parameters(model: "nn.Module") -> int:
    return sum(p.numel() for p in model.parameters())
