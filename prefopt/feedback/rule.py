"""Feedback from a Python function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefopt.feedback.calling import run_feedback
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import load_object
from prefopt.types import Completion, Prompt, Verdict


@dataclass(frozen=True)
class Rule:
    """Any function of (prompts, completions, rows), named by path.

    It gets B prompts, B lists of K completions (texts, or messages where one has several turns), and B mappings of the rows' other
    columns, and returns either a `Verdict` or B × K numbers; None and NaN mean no verdict.

    Attributes:
        path: `package.module:function` or `file.py:function`.
        folder: where to look for a file first.
    """

    path: str
    folder: Path | None = None

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
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

    def check(self) -> None:
        """Load it, which is cheap.

        Raises:
            PrefoptError: there is none, or it cannot be called.
        """
        if not callable(self.function):
            raise PrefoptError(f"{self.path} is no function")

    def load(self) -> None:
        """The same."""
        self.check()
