"""An `Example`: one prompt with its completions and what is known about them, before tokenisation."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from prefopt.data.values import one_per_completion
from prefopt.support.json_values import json_values
from prefopt.support.seeds import digested
from prefopt.types import Axis, Message, Prompt, axis_of

Completion = str | tuple[Message, ...]
"""Plain text, or the turns that follow the prompt, a text as well as a conversation; the last one is the assistant's."""

Matrix = tuple[tuple[float, ...], ...]
"""K × K: row i, column j is P(y_i beats y_j)."""


@dataclass(frozen=True)
class Example:
    """One prompt with its K completions and what is known about them, before tokenisation.

    Attributes:
        prompt: text, or the conversation so far.
        completions: K of them; all tuples of messages when the prompt is a conversation. When it is text, all text, or all
            tuples of messages of assistant and environment (`text_episodes`).
        scores: K numbers, larger is better; None for a completion that has none, which makes it absent.
        preference: K × K, P(y_i beats y_j).
        group: rows of one group always go to the same split.
        where: file and line, for error messages.
        columns: every other column of the row. Those of completions or tokens are lists of K.
        axes: of the columns that are not of the prompt; `prefopt.types.AXES` has those that need not be named.
        chosen_first: the data call the first completion chosen, beside giving scores.
        steps: for each completion, the texts of its steps, which joined are the completion; None where the data give none.
    """

    prompt: Prompt
    completions: tuple[Completion, ...] = ()
    scores: tuple[float | None, ...] | None = None
    preference: Matrix | None = None
    group: str = ""
    where: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)
    chosen_first: bool = False
    steps: tuple[tuple[str, ...], ...] | None = None

    @property
    def contents(self) -> tuple[Completion, ...]:
        """The completions, to tell whether two are the same."""
        return self.completions

    @property
    def size(self) -> int:
        """K."""
        return len(self.completions)

    def axis(self, column: str) -> Axis:
        """What the entries of a column belong to."""
        return axis_of(column, self.axes)

    def with_axes(self, axes: Mapping[str, Axis]) -> Self:
        """The same example with the axes of its columns declared, as the objectives that read them declare them.

        Raises:
            PrefoptError: a column of completions or tokens does not have one entry for each completion.
        """
        axes = {**self.axes, **axes}
        if axes == self.axes:
            return self
        columns = {
            name: value if axis_of(name, axes) == "prompt" else one_per_completion(value, name, self.size, self.where)
            for name, value in self.columns.items()
        }
        return dataclasses.replace(self, columns=columns, axes=axes)

    @property
    def asks(self) -> str:
        """Equal for examples that ask for the same: of equal prompts, and of equal columns `task` where they have them."""
        return content_key(self.prompt) + self.task

    @property
    def task(self) -> str:
        """What tells it from others of its prompt: its column of this name on a line; empty where it has none."""
        return task_of(self.columns)

    def select(self, order: Sequence[int]) -> Self:
        """Only these completions, in this order, with their scores, preferences and columns."""
        return dataclasses.replace(
            self,
            completions=tuple(self.completions[i] for i in order),
            scores=None if self.scores is None else tuple(self.scores[i] for i in order),
            preference=select_matrix(self.preference, order),
            chosen_first=False,
            steps=None if self.steps is None else tuple(self.steps[i] for i in order),
            columns={
                name: column if self.axis(name) == "prompt" else [column[i] for i in order]
                for name, column in self.columns.items()
            },
        )

    def scored(self, scores: tuple[float | None, ...]) -> Self:
        """The same completions with these scores, and without preferences."""
        return dataclasses.replace(self, scores=scores, preference=None)


def task_column(example: Example) -> dict[str, Any]:
    """The column `task`, for files beside the prompt that it is of; {} where a row has none."""
    return {"task": json_values(example.columns["task"])} if "task" in example.columns else {}


def task_of(columns: Mapping[str, Any]) -> str:
    """What tells a row from others of its prompt; see `Example.task`."""
    return f"\n{columns['task']}" if "task" in columns else ""


def select_matrix(matrix: Matrix | None, order: Sequence[int]) -> Matrix | None:
    """The rows and columns with these numbers, in this order."""
    return None if matrix is None else tuple(tuple(matrix[i][j] for j in order) for i in order)


def prompts(examples: Sequence[Example]) -> Iterator[Example]:
    """The distinct tasks, in order of first appearance, without completions: the input of rollouts."""
    digests = digested((example.asks for example in examples), len(examples))
    for number in np.sort(np.unique(digests, return_index=True)[1]):
        example = examples[number]
        yield dataclasses.replace(
            example,
            completions=(),
            scores=None,
            preference=None,
            steps=None,
            columns={name: value for name, value in example.columns.items() if example.axis(name) == "prompt"},
        )


def content_key(prompt: Prompt) -> str:
    """A string that is equal for equal prompts."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=str)
