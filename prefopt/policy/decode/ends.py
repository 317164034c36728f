"""Which tokens end a completion, and how."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from typing import Self

from transformers import PreTrainedTokenizerBase

from prefopt.data.example import Example
from prefopt.data.rendering import Renderer
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
        turn: with which the chat template ends an answer before EOS, from its special token on; empty where it writes none.
    """

    eos: frozenset[int]
    stop: frozenset[int] = frozenset()
    turn: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: Policy, stop: Sequence[str] = ()) -> Self:
        """Of a policy, and these texts.

        Raises:
            PrefoptError: a text of `stop` is not one token.
        """
        eos = frozenset(end_tokens(model))
        return cls(eos, frozenset(end_tokens(model, stop)) - eos, _turn_end(model.tokenizer, eos))

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
    further = []
    for text in stop:
        assert model.tokenizer is not None
        further.append(one_token(model.tokenizer, text))
    return list(dict.fromkeys([*end_ids(model.causal, model.tokenizer), *further]))


def _turn_end(tokenizer: PreTrainedTokenizerBase | None, eos: Collection[int]) -> tuple[int, ...]:
    """What a chat template writes after an answer and before an end token, if a special token is in it."""
    if tokenizer is None or not tokenizer.chat_template:
        return ()
    renderer, example = Renderer.of(tokenizer), Example("", where="a conversation of two turns")
    turns = ({"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"})
    try:
        text = renderer(example, turns, ask=False)
    except PrefoptError:  # it takes conversations of its own kind alone
        return ()
    _, end = renderer.places(example, turns, text).found.get(1, (0, len(text)))
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    after = tokenizer(text[end:], add_special_tokens=False)["input_ids"]
    return tuple(takewhile(lambda token: token not in eos, dropwhile(lambda token: token not in special, after)))


def one_token(tokenizer: PreTrainedTokenizerBase, text: str, where: str = "sampling") -> int:
    """The id of a text that ends a completion.

    Args:
        tokenizer: of the policy.
        text: of `stop`.
        where: the key of the section that names it, for messages.

    Raises:
        PrefoptError: it is not one token.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise PrefoptError(
            f"{where}.stop: {text!r} is {len(ids)} tokens to this tokenizer; name texts that are a single token each"
        )
    return int(ids[0])
