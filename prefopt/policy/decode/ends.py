"""Which tokens end a completion, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from prefopt.policy.policy import Policy
from prefopt.policy.saving import end_ids
from prefopt.support.errors import PrefoptError
from prefopt.types import StopReason


@dataclass(frozen=True)
class EndTokens:
    """The ids that end a completion.

    Attributes:
        eos: of the model itself.
        stop: of the texts that a recipe names in `sampling.stop`.
    """

    eos: frozenset[int]
    stop: frozenset[int] = frozenset()

    @classmethod
    def of(cls, model: Policy, stop: Sequence[str] = ()) -> Self:
        """Of a policy, and these texts.

        Raises:
            PrefoptError: a text of `stop` is not one token.
        """
        eos = frozenset(end_tokens(model))
        return cls(eos, frozenset(end_tokens(model, stop)) - eos)

    def reason(self, last: int) -> StopReason:
        """Why a completion that one model wrote in one go ended with this token."""
        if last in self.eos:
            return "eos"
        return "stop" if last in self.stop else "length"


def end_tokens(model: Policy, stop: Sequence[str] = ()) -> list[int]:
    """The ids that end a completion: the tokenizer's EOS first, those of the model's generation settings, and `stop`.

    Raises:
        PrefoptError: a text of `stop` is not one token.
    """
    further = [_one_token(model, text) for text in stop]
    return list(dict.fromkeys([*end_ids(model.causal, model.tokenizer), *further]))


def _one_token(model: Policy, text: str) -> int:
    assert model.tokenizer is not None
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise PrefoptError(f"sampling.stop: {text!r} is {len(ids)} tokens to this tokenizer; name single tokens")
    return ids[0]
