"""Metrics of all samples together, which are no means over prompts: distinct n-grams, and a recipe's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefopt.feedback import run_statistic
from prefopt.types import Completion, Prompt


@dataclass(frozen=True)
class CorpusMetric:
    """A function of prompts, completions and rows that returns one number of all of them.

    Attributes:
        function: called like feedback.
        name: what messages call it.
        timeout: seconds that a call may take; None is any time.
    """

    function: Any
    name: str
    timeout: float | None = None

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> float:
        """The number; NaN where there is none.

        Raises:
            PrefoptError: the function raised something, took too long, or returned something else.
        """
        return run_statistic(self.function, self.name, prompts, completions, rows, self.timeout)

    @property
    def parts(self) -> Sequence[Any]:
        """The function."""
        return (self.function,)


class Distinct:
    """Distinct n-grams of words as a share of all, over all texts together; NaN for none.

    Source: Li et al., arXiv 1510.03055. It depends on how many texts there are, and on their length.

    Args:
        texts: of each prompt.
        n: words of an n-gram.
    """

    def __init__(self, texts: Sequence[Sequence[str]], n: int):
        grams = [
            (row, tuple(words[i : i + n]))
            for row, of_prompt in enumerate(texts)
            for text in of_prompt
            for words in [text.split()]
            for i in range(len(words) - n + 1)
        ]
        number = {gram: i for i, gram in enumerate(dict.fromkeys(gram for _, gram in grams))}
        self.rows = np.array([row for row, _ in grams], dtype=int)
        self.grams = np.array([number[gram] for _, gram in grams], dtype=int)
        self.prompts = len(texts)

    def __call__(self, prompts: Sequence[int] | np.ndarray) -> float:
        """Of the texts of these prompts."""
        chosen = np.zeros(self.prompts, dtype=bool)
        chosen[prompts] = True
        grams = self.grams[chosen[self.rows]]
        return np.count_nonzero(np.bincount(grams)) / len(grams) if len(grams) else float("nan")
