"""Episodes of one turn: the policy's completion is the turn, and the environment's reward is its score."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefopt.environments.checking import begin, step
from prefopt.support.errors import PrefoptError
from prefopt.support.seeds import seed_for
from prefopt.types import Closing, Completion, Environment, Prompt, Verdict


@dataclass(frozen=True)
class SingleTurn:
    """A feedback whose scores are the rewards of an environment; each completion has an environment of its own.

    The K completions of a prompt face the same task: they share the row and the seed.

    Attributes:
        factory: makes an environment.
        seed: of the run's sampling; that of a task follows from it and the prompt.
        name: what messages call the environment.
    """

    factory: Callable[[], Environment]
    seed: int = 0
    name: str = "the environment"

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Scores [B, K]: the reward of each completion; `notes` have what the environment logged.

        Raises:
            PrefoptError: an environment of another shape, or an episode that is not over after one turn.
        """
        rewards, notes = [], []
        for prompt, texts, row in zip(prompts, completions, rows, strict=True):
            turns = [
                self._episode(prompt, text, {**row, "prompt": prompt}, bool(ended))
                for text, ended in zip(texts, row["ended"], strict=True)
            ]
            rewards.append([float(turn.reward) for turn in turns])
            notes.append({"info": [dict(turn.info) for turn in turns]})
        return Verdict(torch.tensor(rewards), notes=notes)

    def _episode(self, prompt: Prompt, text: Completion, row: Mapping[str, Any], ended: bool) -> Any:
        if not isinstance(text, str):
            raise PrefoptError(
                f"{self.name}: a completion has several turns, and the environment is asked for one alone"
            )
        environment = self.factory()
        try:
            opening = begin(environment, row, seed_for(self.seed, "environment", repr(prompt)), self.name)
            if opening not in (None, "", prompt):
                raise PrefoptError(
                    f"{self.name}: reset returned a text of its own, and completions follow the prompt of the data so far: put the "
                    "text into the column `prompt`, and return None"
                )
            turn = step(environment, text, not ended, self.name)
        finally:
            if isinstance(environment, Closing):
                environment.close()
        if not turn.done:
            raise PrefoptError(
                f"{self.name}: the episode was not done after one turn, and episodes of several turns cannot be trained on yet: "
                "return Turn(reward=…, done=True)"
            )
        return turn
