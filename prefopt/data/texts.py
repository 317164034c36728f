"""Completions as text: of examples, and decoded from token ids."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

from prefopt.data.example import Example
from prefopt.support.errors import PrefoptError
from prefopt.types import Completion

BLANK = "▁"
"""A blank in the tokens of SentencePiece vocabularies."""


def texts(example: Example) -> list[str]:
    """The completions as a feedback sees them.

    Raises:
        PrefoptError: a completion has several turns, or no text.
    """
    return [_text(completion, example.where) for completion in example.completions]


def _text(completion: Completion, where: str) -> str:
    if isinstance(completion, str):
        return completion
    if len(completion) > 1 or not isinstance(completion[0].get("content"), str):
        raise PrefoptError(f"{where}: a completion of several turns; a feedback reads single answers")
    return str(completion[0]["content"])


def written_text(completion: Completion) -> str:
    """A text as it is; of several turns what the assistant wrote, one turn after another, without tool calls."""
    if isinstance(completion, str):
        return completion
    contents = [turn.get("content") for turn in completion if turn.get("role") == "assistant"]
    return "\n".join(content for content in contents if isinstance(content, str))


def decode_completion(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as text without special tokens; spaces are left as they were generated."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def decode_everything(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as text, special tokens included; spaces are left as they were generated."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def decode_continuation(tokenizer: Any, ids: Sequence[int], prompt: str) -> str:
    """Token ids as `decode_everything` shows them behind a prompt: the text that, joined to the prompt, is of these tokens.

    Decoders of SentencePiece vocabularies (Llama 2's) and of words drop the blank before the first word of what they are given. It
    is put back, unless the joint text has the same tokens without it.

    Args:
        tokenizer: of the policy.
        ids: of the continuation alone.
        prompt: the text before it.
    """
    alone, behind = _decoded(tokenizer, ids)
    if alone == behind:
        return alone
    joint = tokenizer([prompt + alone, prompt + behind], add_special_tokens=False, verbose=False)["input_ids"]
    return alone if joint[0] == joint[1] else behind


def decode_following(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as `decode_everything` shows them behind others: the text of which `encode_following` makes these tokens.

    The blank that a decoder drops is put back, unless the text has the same tokens without it.
    """
    alone, behind = _decoded(tokenizer, ids)
    if alone == behind:
        return alone
    one, other = encode_following(tokenizer, [alone, behind])
    return alone if one == other else behind


def encode_following(tokenizer: Any, texts: Sequence[str], before: str = "\n") -> list[list[int]]:
    """Token ids of texts behind others: without the blank that SentencePiece vocabularies (Llama 2's) put before a text.

    Args:
        tokenizer: any.
        texts: each tokenised by itself.
        before: the end of what they stand behind.
    """
    if not texts:
        return []
    found = [list(ids) for ids in _encoded(tokenizer, texts)]
    firsts = tokenizer.convert_ids_to_tokens([ids[0] if ids else 0 for ids in found])
    places = [i for i, ids in enumerate(found) if ids and str(firsts[i]).startswith(BLANK)]
    if places:
        start, *behind = _encoded(tokenizer, [before, *(before + texts[i] for i in places)])
        for i, ids in zip(places, behind, strict=True):
            if ids[: len(start)] == start:
                found[i] = list(ids[len(start) :])
    return found


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _decoded(tokenizer: Any, ids: Sequence[int]) -> tuple[str, str]:
    """Token ids as text alone, and behind a word: with the blank that a decoder drops at a beginning."""
    alone = decode_everything(tokenizer, ids)
    before, said = _word(tokenizer)
    behind = decode_everything(tokenizer, [*before, *ids]).removeprefix(said)
    return alone, behind if behind.endswith(alone) else alone


@lru_cache(maxsize=8)
def _word(tokenizer: Any) -> tuple[list[int], str]:
    """The tokens of a word for others to stand behind, and what they are decoded as."""
    ids = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    return ids, decode_everything(tokenizer, ids)


def decode_pieces(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, bool]]:
    """Token ids as `decode_everything` shows them, in pieces: (text, whether it is a special token), in order.

    A text can spell out what a special token looks like; only the ids tell them apart.
    """
    added = {number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    special = added | set(tokenizer.all_special_ids)
    pieces: list[tuple[str, bool]] = []
    for is_special, group in groupby(ids, special.__contains__):
        run = list(group)
        parts = [[token] for token in run] if is_special else [run]
        pieces += [(decode_everything(tokenizer, part), is_special) for part in parts]
    return pieces
