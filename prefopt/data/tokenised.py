"""A `Tokenised`: one prompt with its completions as tokens; and what a report says of all of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from prefopt.data.example import Example, Matrix, select_matrix
from prefopt.types import Axis

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Tokenised:
    """One prompt with its K completions, as tokens.

    Attributes:
        prompt_ids: what the first completion token is predicted from; never empty.
        completion_ids: K sequences, none empty; each ends in EOS unless it was cut.
        scores: K numbers, larger is better.
        preference: K × K, P(y_i beats y_j).
        example: the text; the same K completions in the same order.
        row: the number of the example in the sequence that was tokenised.
        masks: for each completion, which of its tokens the policy wrote; None when it wrote all of them.
        prompt_cut: whether the prompt was cut at the beginning.
        completions_cut: for each completion, whether it was cut at the end.
        step_ends: for each completion, the places of the last tokens of its steps; None where the data give no steps.
    """

    prompt_ids: Ids
    completion_ids: tuple[Ids, ...]
    scores: tuple[float | None, ...] | None
    preference: Matrix | None
    example: Example
    row: int = 0
    masks: tuple[tuple[bool, ...], ...] | None = None
    prompt_cut: bool = False
    completions_cut: tuple[bool, ...] = ()
    step_ends: tuple[Ids, ...] | None = None

    @property
    def size(self) -> int:
        """K."""
        return len(self.completion_ids)

    @property
    def contents(self) -> tuple[Ids, ...]:
        """The completions, to tell whether two are the same."""
        return self.completion_ids

    @property
    def chosen_first(self) -> bool:
        """The example's."""
        return self.example.chosen_first

    @property
    def group(self) -> str:
        """The example's."""
        return self.example.group

    @property
    def where(self) -> str:
        """The example's."""
        return self.example.where

    @property
    def columns(self) -> Mapping[str, Any]:
        """The example's."""
        return self.example.columns

    @property
    def axes(self) -> Mapping[str, Axis]:
        """The example's."""
        return self.example.axes

    def with_axes(self, axes: Mapping[str, Axis]) -> Self:
        """The same with the axes of its columns stated; see `Example.with_axes`."""
        example = self.example.with_axes(axes)
        return self if example is self.example else dataclasses.replace(self, example=example)

    def select(self, order: Sequence[int]) -> Self:
        """Only these completions, in this order, with their scores, preferences, masks and columns."""
        return dataclasses.replace(
            self,
            completion_ids=tuple(self.completion_ids[i] for i in order),
            scores=None if self.scores is None else tuple(self.scores[i] for i in order),
            preference=select_matrix(self.preference, order),
            example=self.example.select(order),
            masks=None if self.masks is None else tuple(self.masks[i] for i in order),
            completions_cut=tuple(self.completions_cut[i] for i in order) if self.completions_cut else (),
            step_ends=None if self.step_ends is None else tuple(self.step_ends[i] for i in order),
        )

    def scored(self, scores: tuple[float | None, ...]) -> Self:
        """The same completions with these scores, and without preferences."""
        return dataclasses.replace(self, scores=scores, preference=None, example=self.example.scored(scores))


@dataclass(frozen=True)
class Report:
    """What tokenisation dropped and cut.

    Attributes:
        examples: number of examples given.
        kept: number of rows returned.
        counts: number of prompts or completions by what was done to them.
        prompt_tokens: median and largest number, after cutting.
        completion_tokens: median and largest number, after cutting.
        refusal: why these rows should not be learnt from, where the chat template left out what all of them have; else empty.
    """

    examples: int
    kept: int
    counts: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: tuple[int, int] = (0, 0)
    completion_tokens: tuple[int, int] = (0, 0)
    refusal: str = ""

    def __str__(self) -> str:
        lines = [
            f"{self.kept} of {self.examples} examples kept",
            f"tokens, median and most: prompts {self.prompt_tokens[0]}, {self.prompt_tokens[1]}; "
            f"completions {self.completion_tokens[0]}, {self.completion_tokens[1]}",
        ]
        return "\n".join(lines + [f"{count} {what}" for what, count in sorted(self.counts.items())])
