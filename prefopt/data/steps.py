"""Steps of a completion: a list of texts that are one answer, with a label each where the data judge steps."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefopt.data.example import Completion, Example
from prefopt.data.tokenised import Tokenised
from prefopt.data.values import fail, list_of, number_of, without_arrays
from prefopt.support.errors import PrefoptError
from prefopt.types import Prompt

ENDS, LABELS, SEPARATOR = "step_ends", "step_labels", "step_separator"
"""Columns: of batches, where steps end; of rows, the probability that each step is right, and what follows each step."""

LINE_BREAK = "\n"
"""What follows a step unless a row says otherwise, as in TRL's stepwise supervision; it may be nothing."""

Steps = tuple[tuple[str, ...], ...]
"""For each completion, the texts of its steps; joined they are the completion."""


COMPLETIONS = {"paired": ("chosen", "rejected"), "unpaired": ("completion",), "demonstrations": ("completion",)}
"""The columns of formats that hold a completion each; other formats have `completions`, or none."""


def joined_steps(row: Mapping[str, Any], kind: str, where: str) -> tuple[Mapping[str, Any], Steps | None]:
    """A row whose completions are lists of texts with each as one text, every step followed by the row's `step_separator`.

    Returns:
        The row as it is, and None, where no completion is a list of texts.

    Raises:
        PrefoptError: some completions have steps and others not, a step is empty, or there is no prompt, without which the
            completions are cut elsewhere.
    """
    names = COMPLETIONS.get(kind, ())
    listed = not names and "completions" in row
    values = list_of(row["completions"], "completions", where) if listed else [row[name] for name in names]
    lists = [_texts(value) for value in values]
    if not any(lists):
        return row, None
    separator = row.get(SEPARATOR, LINE_BREAK)
    if not isinstance(separator, str):
        fail(where, f"{SEPARATOR!r} must be the text that follows each step, not {separator!r}")
    if not all(lists):
        fail(where, "some completions are lists of steps and others are not; give all in one form")
    if not isinstance(row.get("prompt"), str):
        fail(
            where,
            "completions are lists of steps, which need a 'prompt' that is text; in conversations, steps are the assistant's turns",
        )
    if any(not step.strip() for steps in lists for step in steps):
        fail(where, "a step is empty; leave it out, with its label")
    steps = tuple(tuple(step + separator for step in steps) for steps in lists)
    texts = ["".join(of_one) for of_one in steps]
    return {**row, **({"completions": texts} if listed else dict(zip(names, texts, strict=True)))}, steps


def _texts(value: Any) -> list[str]:
    """The texts of a list that holds nothing else; none of any other value."""
    value = without_arrays(value)
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []


def labels_of(value: Any, completions: Sequence[Completion], steps: Steps | None, where: str) -> list[list[float]]:
    """The column `step_labels`: for each completion, the probability that each of its steps is right.

    Of a single completion they need not be in a list of their own. Without lists of steps, the steps of a conversation are the
    assistant's turns, and a text is one step.

    Raises:
        PrefoptError: something that is no probability, or another number of them than of steps.
    """
    values = list_of(value, LABELS, where)
    if len(completions) == 1 and not any(isinstance(without_arrays(item), list) for item in values):
        values = [values]
    if len(values) != len(completions):
        fail(where, f"{LABELS!r} has {len(values)} lists for {len(completions)} completions; it needs one for each")
    labels = [[_probability(item, where) for item in list_of(one, LABELS, where)] for one in values]
    for k, (own, completion) in enumerate(zip(labels, completions, strict=True)):
        size = len(steps[k]) if steps else _turns(completion)
        if len(own) != size:
            fail(
                where,
                f"{LABELS!r} has {len(own)} labels for completion {k + 1}, which has {size} steps; it needs one for each",
            )
    return labels


def _turns(completion: Completion) -> int:
    return 1 if isinstance(completion, str) else sum(turn["role"] == "assistant" for turn in completion)


def _probability(value: Any, where: str) -> float:
    number = number_of(float(value) if isinstance(value, bool) else value, LABELS, where)
    if number is None or not 0 <= number <= 1:
        fail(
            where,
            f"{LABELS!r} must say of each step whether it is right (true or false), or how probably (0 to 1), not {value}",
        )
    return number


def separator_of(rows: Sequence[Example]) -> str | None:
    """What follows each step in rows that are lists of steps; None where the first row is none, or nothing follows."""
    if not len(rows) or not rows[0].steps:
        return None
    return str(rows[0].columns.get(SEPARATOR, LINE_BREAK)) or None


def in_steps(example: Example, separator: str) -> Example:
    """An example whose completions are texts with each as the steps that end in the separator; any other as it is."""
    if example.steps or not all(one and isinstance(one, str) for one in example.completions):
        return example
    steps = tuple(split_steps(str(completion), separator) for completion in example.completions)
    return dataclasses.replace(example, completions=tuple(map("".join, steps)), steps=steps)


def split_steps(text: str, separator: str) -> tuple[str, ...]:
    """A text as the steps that it is made of, the separator at the end of each; the last one gets it where it has none."""
    pieces = [piece + separator for piece in text.split(separator)]
    steps: list[str] = []
    for piece in pieces[:-1] if pieces[-1] == separator else pieces:
        if steps and not piece.removesuffix(separator).strip():  # an empty line belongs to the step before it
            steps[-1] += piece
        else:
            steps.append(piece)
    return tuple(steps)


def ends_of(
    prompt: Prompt,
    steps: Steps,
    joint: Sequence[Sequence[int]],
    shared: int,
    encode: Callable[[list[str]], list[list[int]]],
) -> tuple[tuple[int, ...], ...]:
    """The place of the last token of each step in its completion. A token that begins the next step as well is the end of this one.

    Args:
        prompt: that the completions follow.
        steps: of K completions.
        joint: token ids of the prompt with each completion.
        shared: how many of them are the prompt's.
        encode: token ids of texts.
    """

    def ends(own: tuple[str, ...], ids: Sequence[int]) -> tuple[int, ...]:
        prefixes = encode([str(prompt) + "".join(own[: n + 1]) for n in range(len(own))])
        places = [_last(prefix, ids) for prefix in prefixes]
        return tuple(min(max(place - shared, 0), len(ids) - shared - 1) for place in places)

    return tuple(ends(own, ids) for own, ids in zip(steps, joint, strict=True))


def _last(prefix: Sequence[int], ids: Sequence[int]) -> int:
    """The place of the token in `ids` that has the last character of a text whose own ids are `prefix`."""
    length = min(len(prefix), len(ids))
    return next((i for i in range(length) if prefix[i] != ids[i]), length - 1)


def step_ends(rows: Sequence[Tokenised], size: int, length: int) -> Tensor:
    """[B, K, T] bool, the last token of each step; where a row has no lists of steps, of each turn in its masks."""
    ends = torch.zeros(len(rows), size, length, dtype=torch.bool)
    for b, row in enumerate(rows):
        for k, places in enumerate(_places(row)):
            ends[b, k, list(places)] = True
    return ends


def step_labels(rows: Sequence[Tokenised], size: int, length: int) -> Tensor:
    """[B, K, T], the column `step_labels` of each row, each label at the last token of its step; 0 elsewhere.

    Steps that were cut off have none.

    Raises:
        PrefoptError: a row lacks the column, or a chat template writes its turns so that they cannot be told apart.
    """
    labels = torch.zeros(len(rows), size, length)
    for b, row in enumerate(rows):
        if LABELS not in row.columns:
            raise PrefoptError(
                f"{row.where}: no column {LABELS!r}, which the objective needs; there are {sorted(row.columns)}"
            )
        for k, (places, own) in enumerate(zip(_places(row), row.columns[LABELS], strict=True)):
            whole = not (row.completions_cut and row.completions_cut[k])
            if row.step_ends is None and whole and len(places) != len(own):
                raise PrefoptError(
                    f"{row.where}: {len(own)} labels of steps for a completion that the chat template writes as {len(places)} "
                    "turns; give it as a list of steps with a prompt that is text"
                )
            for place, label in zip(places, own, strict=False):
                labels[b, k, place] = label
    return labels


def _places(row: Tokenised) -> Sequence[Sequence[int]]:
    """For each completion, the places of the last tokens of its steps."""
    if row.step_ends is not None:
        return row.step_ends
    masks = row.masks or tuple((True,) * len(ids) for ids in row.completion_ids)
    return [[t for t, own in enumerate(mask) if own and not any(mask[t + 1 : t + 2])] for mask in masks]
