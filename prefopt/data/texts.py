"""Completions as plain text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefopt.data.formats import Completion, Example
from prefopt.support.errors import PrefoptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def texts(example: Example) -> list[str]:
    """The completions as a feedback sees them.

    Raises:
        PrefoptError: one has several turns.
    """
    return [_text(completion, example.where) for completion in example.completions]


def _text(completion: Completion, where: str) -> str:
    if isinstance(completion, str):
        return completion
    if len(completion) > 1 or not isinstance(completion[0].get("content"), str):
        raise PrefoptError(f"{where}: a completion of several turns; a feedback reads single answers")
    return str(completion[0]["content"])


def plainly(tokenizer: Any, ids: Sequence[int]) -> str:
    """A completion as it was written, without special tokens and without prettier spaces."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
