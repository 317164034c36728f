"""What scores completions, and what a policy acts in."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from torch import Tensor

from prefopt.types.batch import Completion, Message, Prompt


@dataclass(frozen=True)
class Verdict:
    """What a feedback thinks of B prompts with K completions each.

    Attributes:
        scores: [B, K]; NaN = no verdict, and that completion becomes absent.
        preference: [B, K, K]; P(y_i beats y_j), from feedback that compares.
        notes: what is worth keeping beside each prompt: rationales, costs.
        steps: for each prompt and completion, a number for each of its turns or steps, as many as there are; they come on top
            of `scores`, and a source puts each on the last token of its turn (`Batch.rewards`).
        named: [B, K] each; several scores kept apart, which become `Batch.named_scores`. NaN where there is none.
    """

    scores: Tensor
    preference: Tensor | None = None
    notes: Sequence[Mapping[str, Any]] = ()
    steps: Sequence[Sequence[Sequence[float]]] | None = None
    named: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def totals(self) -> Tensor:
        """[B, K]: the score of each completion and what its turns or steps have on top of it; NaN without a verdict."""
        if self.steps is None:
            return self.scores
        return self.scores + self.scores.new_tensor([[math.fsum(turns) for turns in row] for row in self.steps])

    def whole(self) -> Self:
        """The same verdict with the numbers of turns or steps added to the scores, and none apart."""
        return self if self.steps is None else dataclasses.replace(self, scores=self.totals, steps=None)


@runtime_checkable
class Feedback(Protocol):
    """A rule, a reward model, a judge, an ensemble: prompts and completions to scores."""

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """B prompts, K completions of each, and the other columns of their rows."""
        ...


class Turn(NamedTuple):
    """What an environment answers to a turn of the policy.

    Attributes:
        text: what the policy reads next; one message of the environment, or several.
        reward: of the policy's turn, which goes to its last token.
        done: whether the episode is over.
        info: numbers to log, which are summed over the turns of an episode.
    """

    text: str | Sequence[Message] = ""
    reward: float = 0.0
    done: bool = False
    info: Mapping[str, float] = {}


class Environment(Protocol):
    """What a policy acts in: one object for each completion, made by a factory that a recipe names.

    An environment may also have `stop`, `tools`, `logs`, `end` and `close`: see `Stopping`, `Equipped`, `Logging`, `Ending` and
    `Closing`.
    """

    def reset(self, row: Mapping[str, Any], seed: int) -> str | Sequence[Message] | None:
        """Begin the task of a row; the K completions of a prompt share its seed. Returns what follows the prompt, if anything."""
        ...

    def step(self, text: str, *, truncated: bool) -> Turn:
        """Answer what the policy wrote; `truncated` says that the turn was cut by its length."""
        ...


@runtime_checkable
class Stopping(Protocol):
    """An environment in which certain texts end a turn of the policy."""

    stop: Sequence[str]


@runtime_checkable
class Equipped(Protocol):
    """An environment that offers tools: JSON schemas, as chat templates take them."""

    tools: Sequence[Mapping[str, Any]]


@runtime_checkable
class Logging(Protocol):
    """An environment that says which numbers its turns log, so that a study can ask about them; what no turn reports is 0."""

    logs: Sequence[str]


@runtime_checkable
class Ending(Protocol):
    """An environment that rewards an episode by where it stands at its end, whoever ended it."""

    def end(self) -> float:
        """The reward of an episode that is over by its number of turns or tokens, in the place of a turn that would be `done`.

        Not called after a turn that was `done` or cut, whose own reward is the last. It goes on top of the last turn's.
        """
        ...


@runtime_checkable
class Closing(Protocol):
    """An environment that holds something which must be released."""

    def close(self) -> None:
        """Release it; called once, when the episode is over or has failed."""
        ...
