"""The rewards of an environment as a feedback, to be learnt from alone or beside others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefopt.support.errors import PrefoptError
from prefopt.types import Completion, Prompt, Verdict

REWARDS, FAILED, MESSAGES = "turn_rewards", "failed", "messages"
"""Columns of the rows that feedback sees: of each completion, the reward of each turn, and whether its environment failed."""


@dataclass(frozen=True)
class EnvironmentReward:
    """What the environment gave to each turn of the policy; a completion whose environment failed has no verdict.

    It is the feedback of rollouts in an environment unless the recipe names another. A recipe names it as a member where an
    environment's rewards are one of several: its named score `environment` is the sum over turns.
    """

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """`steps` are the rewards of turns; scores [B, K] are 0, or NaN without a verdict.

        Raises:
            PrefoptError: the completions were not written in an environment.
        """
        if any(REWARDS not in row for row in rows):
            raise PrefoptError(
                "EnvironmentReward: these completions were not written in an environment; name one in source.rollouts.environment"
            )
        missing = [[math.nan if failed else 0.0 for failed in row[FAILED]] for row in rows]
        totals = [[math.fsum(rewards) for rewards in row[REWARDS]] for row in rows]
        scores = torch.tensor(missing)
        return Verdict(
            scores,
            steps=[[list(rewards) for rewards in row[REWARDS]] for row in rows],
            named={"environment": torch.tensor(totals) + scores},
        )
