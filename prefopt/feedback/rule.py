"""Feedback from a Python function."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.errors import PrefoptError
from prefopt.plugins import load_object
from prefopt.types import Feedback, Prompt, Verdict


@dataclass(frozen=True)
class Rule:
    """Any function of (prompts, completions, rows), named by path.

    It gets B prompts, B lists of K texts, and B mappings of the rows' other columns, and returns either a `Verdict` or
    B × K numbers; None and NaN mean that it has no opinion.

    Attributes:
        path: `package.module:function` or `file.py:function`.
        folder: where to look for a file first.
    """

    path: str
    folder: Path | None = None

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Scores [B, K].

        Raises:
            PrefoptError: the function is not there, raised something, or returned something else than B × K numbers.
        """
        return run_feedback(self.function, self.path, prompts, completions, rows)

    @cached_property
    def function(self) -> Any:
        """The function, loaded once: editing its file does not change a reward in the middle of a run."""
        return load_object(self.path, self.folder)


def run_feedback(
    feedback: Feedback | Any,
    name: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
) -> Verdict:
    """Call any feedback and check what it says.

    Raises:
        PrefoptError: it raised something, or returned something else than B × K numbers; says which feedback.
    """
    try:
        answer = feedback(prompts, completions, rows)
    except PrefoptError:
        raise
    except Exception as error:
        raise PrefoptError(f"the feedback {name} raised {type(error).__name__}: {error}") from error
    verdict = answer if isinstance(answer, Verdict) else Verdict(_scores(answer, name))
    if not isinstance(verdict.scores, Tensor):
        raise PrefoptError(
            f"the feedback {name} returned scores that are a {type(verdict.scores).__name__}, not a tensor"
        )
    expected = [len(prompts), max((len(row) for row in completions), default=0)]
    if list(verdict.scores.shape) != expected:
        raise PrefoptError(
            f"the feedback {name} returned scores of shape {list(verdict.scores.shape)} for "
            f"{expected[0]} prompts × {expected[1]} completions; expected one number for each completion"
        )
    if verdict.preference is not None and list(verdict.preference.shape) != [*expected, expected[1]]:
        raise PrefoptError(
            f"the feedback {name} returned preference of shape {list(verdict.preference.shape)}; expected "
            f"{[*expected, expected[1]]}, P(y_i beats y_j)"
        )
    return verdict


def _scores(answer: Any, name: str) -> Tensor:
    try:
        numbers = [[math.nan if score is None else float(score) for score in row] for row in answer]
        return torch.tensor(numbers)
    except (TypeError, ValueError) as error:
        raise PrefoptError(f"the feedback {name} must return a list of numbers for each prompt: {error}") from error
