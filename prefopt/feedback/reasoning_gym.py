"""Scores of reasoning-gym's tasks, whose scorers run in a child process, for they evaluate answers as Python."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from prefopt.environments.child import Child, Limits
from prefopt.environments.reasoning_gym import score
from prefopt.support.errors import PrefoptError
from prefopt.support.extras import extra
from prefopt.types import Completion, Prompt, Verdict


@dataclass(frozen=True)
class ReasoningGym:
    """What reasoning-gym's own scorer of a row's task gives, 0 to 1, for rows that `prefopt.environments.reasoning_gym:tasks` made.

        feedback: {name: "prefopt.feedback.reasoning_gym:ReasoningGym"}

    A scorer that raises something, takes too long or too much memory, or ends its process, gives 0: the answer was none. Which it
    was is in the prompt's note, `failed`.

    Attributes:
        tag: in which the answer is, `<answer>…</answer>`; null takes the whole completion.
        limits: of one score.
    """

    tag: str | None = "answer"
    limits: Limits = field(default_factory=lambda: Limits(seconds=5.0))

    def __post_init__(self) -> None:
        extra("reasoning_gym", "agents", "the feedback ReasoningGym")

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Scores [B, K].

        Raises:
            PrefoptError: a row without a task.
        """
        scores, notes = [], []
        for texts, row in zip(completions, rows, strict=True):
            if "task" not in row:
                raise PrefoptError(
                    "ReasoningGym scores rows with a column `task`, which prefopt.environments.reasoning_gym:tasks makes"
                )
            pairs = [self._score(row["task"], text) for text in texts]
            scores.append([value for value, _ in pairs])
            notes.append({"failed": [kind for _, kind in pairs]})
        return Verdict(torch.tensor(scores), notes=notes)

    def _score(self, task: str, text: Completion) -> tuple[float, str]:
        last = text if isinstance(text, str) else str(text[-1]["content"])
        reply = _scoring(self.limits).call(None, {"task": task, "text": last, "tag": self.tag}, None)
        good = not reply.kind and isinstance(reply.value, int | float) and math.isfinite(reply.value)
        return (float(reply.value), "") if good else (0.0, reply.kind or "died")


@cache
def _scoring(limits: Limits) -> Child:
    return Child(score, limits, confined=True)
