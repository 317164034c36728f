"""Self-play of Kuhn poker by a policy that is a table: real objectives, rollouts and trainer, and no language model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefopt.testbeds.bandit import Bandit, Frozen, tabular
from prefopt.testbeds.bandit_online import Payoff, make_rollouts, make_writers, online_trainer
from prefopt.types import Completion, Objective, Prompt, Verdict

from .kuhn import SETS, InformationSet, action_values, exploitability


@dataclass(frozen=True)
class Magnet(Frozen):
    """A reference that follows the policy: its logits move by `mix` of the way every so many steps.

    Attributes:
        policy: its table.
        every: steps.
        mix: share of the policy.
    """

    every: int
    mix: float

    @torch.no_grad()
    def follow(self, model: Bandit, step: int) -> None:
        """Move, if the step is a multiple of `every`."""
        if step % self.every == 0:
            for own, theirs in zip(self.policy.parameters(), model.parameters(), strict=True):
                own.lerp_(theirs, self.mix)

    def state_dict(self) -> dict[str, Any]:
        """Its table."""
        return self.policy.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to this table."""
        self.policy.load_state_dict(state)


@dataclass(frozen=True)
class AgainstItself:
    """A feedback: what an action is worth in an information set, where both players go on as the policy does now.

    Attributes:
        policy: with a context for each information set and the actions pass and bet.
    """

    policy: Bandit

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """[B, K]."""
        values = torch.tensor(list(action_values(play_of_table(self.policy)).values()))
        return Payoff(values)(prompts, [[str(text) for text in group] for group in completions], rows)


def play_of_table(policy: Bandit) -> dict[InformationSet, float]:
    """The probabilities of a bet."""
    return dict(zip(SETS, policy.probabilities[:, 1].tolist(), strict=True))


def self_play(
    objective: Objective, steps: int, every: int = 10, mix: float = 0.1, seed: int = 0, **settings: Any
) -> Iterator[float]:
    """The exploitability after each step, from play at random on.

    Each step draws actions in all twelve information sets, 16 in each.

    Args:
        objective: with a KL to the reference, or without.
        steps: of training.
        every: steps between moves of the reference.
        mix: how far it moves.
        seed: of the noise.
        settings: of the recipe's `train`, where they are to differ.
    """
    policy = tabular(torch.full((len(SETS), 2), 0.5))
    reference = Magnet(policy.frozen().policy, every, mix)
    writers = make_writers(policy, reference, 16, {})
    source = make_rollouts(writers, AgainstItself(policy), objective.needs, range(len(SETS)), seed=seed, ties="keep")
    for _ in online_trainer(policy, objective, source, reference, steps, seed, **settings):
        yield exploitability(play_of_table(policy))
