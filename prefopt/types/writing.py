"""Where batches come from, and what draws completions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import Tensor

from prefopt.types.batch import Batch, Message, lengths_of

StopReason = Literal["eos", "stop", "length", "turns", "error"]
"""Why a completion ended: an end token of the model, a text of `sampling.stop` or of an environment's `stop`, its length, its
number of turns, or an environment that failed."""

STOP_REASONS: tuple[StopReason, ...] = get_args(StopReason)
"""In order; the column `stop_reason` holds places in this list."""


@dataclass(frozen=True)
class Sampled:
    """Completions a sampler drew.

    Attributes:
        completion_ids: [B, K, T] int64, right-padded.
        mask: [B, K, T] bool, EOS included.
        logps: [B, K, T] the sampler's own log-probs at its temperature, before top-p and top-k; None where it has none.
    """

    completion_ids: Tensor
    mask: Tensor
    logps: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """[B, K] int64, places of each completion up to its last token."""
        return lengths_of(self.mask)


@dataclass(frozen=True)
class Written:
    """One completion of T tokens as it was written: an answer, or an episode of several turns in an environment.

    Token ids are what the policy drew or what it was given to read, never text that was tokenised again. The mask may have
    holes, so the length is that of `ids`, and not the number of True in `mask`.

    Attributes:
        ids: T token ids, those of an environment's answers among them.
        mask: T; True on tokens that the policy wrote, the end token included.
        logps: T log-probs of the sampler; None where it has none, or where nobody drew the tokens.
        turns: the positions of each turn of the policy, in order.
        stop: why it ended.
        version: how many updates the policy had had; None where it had no part in it.
        prompt: tokens of the prompt where an environment added to it: its opening, its tools. None where it is the row's own.
        opening: what the environment said before the policy's first turn, behind the row's prompt; its tokens are in `prompt`.
        messages: of an episode, what the policy and the environment said, in order; the last answer of an environment is among
            them, though no policy reads it. Empty where there is no environment.
        rewards: of an episode, a reward for each of `turns`.
        info: of an episode, the sums over its turns of the numbers that the environment logs.
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    logps: tuple[float, ...] | None
    turns: tuple[range, ...]
    stop: StopReason
    version: int | None = None
    prompt: tuple[int, ...] | None = None
    opening: tuple[Message, ...] = ()
    messages: tuple[Message, ...] = ()
    rewards: tuple[float, ...] = ()
    info: Mapping[str, float] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether it came to an end by itself, by an end token or a text of `sampling.stop`."""
        return self.stop in ("eos", "stop")


class Sampler(Protocol):
    """Draws completions: transformers generation, or a server. `seeds` is [B] int64: the noise belongs to the row.

    A sampler may also have `sync`, `remote` and `refuses`: see `Synchronised`, `Remote` and `Refusing`.
    """

    def __call__(
        self, model: Any, prompt_ids: Sequence[Sequence[int]], completions: int, settings: Any, seeds: Tensor
    ) -> Sampled:
        """K completions of each of B prompts."""
        ...


@runtime_checkable
class Synchronised(Protocol):
    """A sampler that draws from a copy of the weights, which must be brought up to date."""

    def sync(self, policy: Any, version: int | None) -> None:
        """Take over the weights; called on every process, once per update, before anything is drawn.

        Args:
            policy: what will be sampled from next.
            version: how many updates it has had; None if that is not known.
        """
        ...


@runtime_checkable
class Remote(Protocol):
    """A sampler whose work is done elsewhere: threads may call it while its policy is trained, and it draws what it would have.

    It reads the policy's sizes, never its weights, and none of the process's random numbers.
    """

    remote: Literal[True]


@runtime_checkable
class Refusing(Protocol):
    """A class of samplers that cannot serve every recipe."""

    @classmethod
    def refuses(cls, recipe: Any) -> str | None:
        """Why it cannot serve this recipe, in a sentence for the user, or None; asked before anything is loaded."""
        ...


class Source(Protocol):
    """Logical batches, and a place among them that can be saved and restored. Every process sees the same ones."""

    def __iter__(self) -> Iterator[Batch]:
        """Logical batches from the place on; the place moves as they are taken."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a place."""
        ...
