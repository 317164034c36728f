"""A process reward model's probabilities as a reward for progress."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.feedback import RewardModel
from prefopt.types import Completion, Prompt, Verdict


@dataclass
class Progress:
    """Pays each turn by what it adds to the probability that all ends well: p_t − p_{t−1}, and p_1 for the first.

    An episode so earns the probability at its end, however long it waits where that is high; paid p_t itself at every turn, it
    would earn most by never arriving.

    Source: Setlur et al., arXiv 2410.08146, who pay a prover's advantage; here the prover is whoever wrote the labelled episodes.

    Args:
        model: run folder of a `StepReward`.
        batch_size: completions that are read together.
    """

    model: str
    batch_size: int = 32

    def __post_init__(self) -> None:
        self._probabilities = RewardModel(self.model, batch_size=self.batch_size)

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """`steps` has the progress of each turn; scores [B, K] are 0, or NaN without a verdict."""
        verdict = self._probabilities(prompts, completions, rows)
        assert verdict.steps is not None
        steps = [
            [[now - before for before, now in zip([0.0, *one], one, strict=False)] for one in group]
            for group in verdict.steps
        ]
        return Verdict(verdict.scores, notes=verdict.notes, steps=steps)
