"""Texts that end a turn, of any number of tokens."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from prefopt.data.texts import decode_everything

SLACK = 4
"""Tokens that are decoded beside as many as a text has bytes: the first may begin in the middle of a character."""


class StopTexts:
    """Tells after which token a text of a list is there, however the tokenizer cuts it.

    transformers 5.14's `StopStringCriteria` does the same for byte-level and SentencePiece vocabularies, and raises an error for
    others, such as those of whole words.

    Args:
        tokenizer: of the policy.
        texts: any of which ends a turn; none of them empty.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]):
        self.tokenizer = tokenizer
        self.texts = tuple(texts)
        self.window = max((len(text.encode()) for text in texts), default=0) + SLACK

    @cached_property
    def last_tokens(self) -> Tensor | None:
        """The tokens that can complete one of the texts; None if that can be any, because a vocabulary writes its end otherwise."""
        ends = {text[-1] for text in self.texts}
        if any(not end.isascii() or end.isspace() for end in ends):
            return None
        pieces = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        found = [number for number, piece in enumerate(pieces) if piece is None or ends.intersection(piece)]
        return torch.tensor(found, dtype=torch.long)

    def completed(self, tokens: Tensor) -> Tensor:
        """[N] bool, whether the last token of each turn so far, [N, t], completes a text."""
        over = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        if not self.texts:
            return over
        last = tokens[:, -1]
        may = ~over if self.last_tokens is None else torch.isin(last, self.last_tokens.to(last.device))
        for row in may.nonzero()[:, 0].tolist():
            over[row] = self._there(tokens[row, -self.window :].tolist())
        return over

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether one of the texts is at the end of what was written, as it is where the last token completed it."""
        return bool(self.texts) and self._there(ids[-self.window :])

    def end(self, ids: Sequence[int]) -> int | None:
        """After how many of these tokens a text is there for the first time; None if it never is."""
        if not self.texts:
            return None
        return next((n for n in range(1, len(ids) + 1) if self._there(ids[max(0, n - self.window) : n])), None)

    def _there(self, ids: Sequence[int]) -> bool:
        written = decode_everything(self.tokenizer, ids)
        return any(text in written for text in self.texts)


@lru_cache(maxsize=8)
def stop_texts_of(tokenizer: Any, texts: tuple[str, ...]) -> StopTexts:
    """`StopTexts`, made once for a tokenizer and its texts: it looks through a whole vocabulary."""
    return StopTexts(tokenizer, texts)
