"""The formats of data sets: a row of columns becomes an `Example`. docs/data.md has an example of each format."""

import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from prefopt.data.example import Completion, Example, Matrix, content_key, task_of
from prefopt.data.messages import template_columns, turns_of
from prefopt.data.steps import LABELS, joined_steps, labels_of
from prefopt.data.text_episodes import EOS, ends_with_eos, is_text_episode, text_episodes
from prefopt.data.values import (
    fail,
    list_of,
    number_of,
    numbers_of,
    one_per_completion,
    shown,
    texts_in,
    without_arrays,
)
from prefopt.support.errors import nearest
from prefopt.types import Message, Prompt, axis_of

FORMATS = {
    "paired": "chosen, rejected (prompt, score_chosen + score_rejected, votes, preference)",
    "rated": "prompt, completions, scores",
    "ranked": "prompt, completions, ranks",
    "compared": "prompt, completions, votes or preference",
    "unjudged": "prompt, completions",
    "unpaired": "prompt, completion, label",
    "demonstrations": "prompt, completion",
    "conversations": "messages",
    "text": "text",
    "prompts": "prompt",
}
"""The columns of each format; those in brackets are optional."""


def recognise(row: Mapping[str, Any], where: str = "row") -> str:
    """The name in `FORMATS` of a row's format; a column whose value is None counts as missing.

    Raises:
        PrefoptError: the columns fit no format; says which columns there are and what each format needs.
    """
    names = {name for name, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= names:
        return "paired"
    if "chosen" in names or "rejected" in names:
        one, other = ("chosen", "rejected") if "chosen" in names else ("rejected", "chosen")
        _unrecognised(row, where, f"there is {one!r} and no {other!r}")
    if "completions" in names and "prompt" in names:
        judgements = {"scores": "rated", "ranks": "ranked", "votes": "compared", "preference": "compared"}
        return next((name for column, name in judgements.items() if column in names), "unjudged")
    if "completion" in names and "prompt" in names:
        return "unpaired" if "label" in names else "demonstrations"
    if names & {"completion", "completions"}:
        _unrecognised(row, where, "there are completions but no 'prompt'")
    for column, name in {"messages": "conversations", "text": "text", "prompt": "prompts"}.items():
        if column in names:
            return name
    _unrecognised(row, where, "these columns fit no known format")


def optional_columns(row: Mapping[str, Any]) -> frozenset[str]:
    """Which columns a pair has of those whose absence gives it another meaning; `score_chosen` stands for both scores.

    Without a prompt it is cut where its texts differ, and without scores it has ±½, which is another scale than the data's.
    """
    return frozenset(name for name in ("prompt", "score_chosen") if row.get(name) is not None)


def parse(row: Mapping[str, Any], where: str = "row") -> Example:
    """One row as an `Example`.

    Args:
        row: column names to values; lists may be tuples, NumPy arrays or tensors.
        where: how messages name the row, usually file:line.

    Raises:
        PrefoptError: the columns fit no format, or a value does not fit its column.
    """
    kind = recognise(row, where)
    row = {name: value for name, value in row.items() if value is not None}
    _refuse_half_characters(row, where)
    _refuse_steps(row, kind, where)
    row, steps = joined_steps(row, kind, where)
    prompt, completions, content_columns = _CONTENTS[kind](row, where)
    scores, preference, judgement_columns = _judgements(row, kind, len(completions), where)
    columns = {
        name: value for name, value in row.items() if name not in content_columns | judgement_columns | {"group"}
    }
    if LABELS in columns:
        columns[LABELS] = labels_of(columns[LABELS], completions, steps, where)
    for name in columns:
        if axis_of(name, {}) != "prompt":
            _refuse_one_value(columns[name], name, len(completions), where)
            columns[name] = one_per_completion(columns[name], name, len(completions), where)
    if EOS in columns:
        columns[EOS] = ends_with_eos(columns[EOS], prompt, len(completions), where)
    if not isinstance(prompt, str):
        columns |= template_columns(columns, where)
    if kind == "unpaired":  # in addition to the score: False also says that the completion is not one to imitate
        columns["label"] = _label(row["label"], where)
    group = row["group"] if "group" in row else content_key(prompt or completions[0]) + task_of(columns)
    named = kind == "paired" and "score_chosen" in row
    return Example(prompt, completions, scores, preference, str(group), where, columns, {}, named, steps)


def shared_prefix(sequences: Sequence[Sequence[Any]]) -> int:
    """Length of the implicit prompt: the longest common prefix that leaves at least one item of each sequence.

    For text, a space before the cut goes to the completions, as `trl.extract_prompt` has it; where one text is the beginning of the
    other, its last character is its completion, while TRL then cuts elsewhere.
    """
    longest = max(min(len(sequence) for sequence in sequences) - 1, 0)
    first = sequences[0]
    length = next((i for i in range(longest) if any(s[i] != first[i] for s in sequences)), longest)
    return length - 1 if length and first[length - 1] == " " else length


# Prompt and completions of a row, and the names of the columns that held them.

Contents = tuple[Prompt, tuple[Completion, ...], set[str]]


def _paired(row: Mapping[str, Any], where: str) -> Contents:
    chosen = tuple(turns_of(row[name], name, where) for name in ("chosen", "rejected"))
    if "prompt" in row:
        return *_align(turns_of(row["prompt"], "prompt", where), chosen, where), {"prompt", "chosen", "rejected"}
    if isinstance(chosen[0], str) != isinstance(chosen[1], str):
        fail(where, "'chosen' is text and 'rejected' a conversation, or the reverse; give both in one form")
    cut = shared_prefix(chosen)
    prompt, completions = chosen[0][:cut], tuple(completion[cut:] for completion in chosen)
    if not isinstance(prompt, str) and not prompt:
        fail(where, "'chosen' and 'rejected' share no first turn to be the prompt; add a 'prompt' column")
    return prompt, _answers(completions, where), {"chosen", "rejected"}


def _listed(row: Mapping[str, Any], where: str) -> Contents:
    values = list_of(row["completions"], "completions", where)
    completions = tuple(turns_of(value, f"completions[{i}]", where) for i, value in enumerate(values))
    return *_align(turns_of(row["prompt"], "prompt", where), completions, where), {"prompt", "completions"}


def _single(row: Mapping[str, Any], where: str) -> Contents:
    completion = turns_of(row["completion"], "completion", where)
    return *_align(turns_of(row["prompt"], "prompt", where), (completion,), where), {"prompt", "completion", "label"}


def _messages(row: Mapping[str, Any], where: str) -> Contents:
    turns = turns_of(row["messages"], "messages", where)
    if isinstance(turns, str):
        fail(
            where,
            "'messages' must be a list of turns with 'role' and 'content'; for plain text, call the column 'text'",
        )
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers or answers[0] == 0:
        fail(where, "'messages' needs a turn of the assistant with another turn before it")
    # Turns after the assistant's last are dropped; those between its turns are masked by the tokenisation.
    return turns[: answers[0]], (turns[answers[0] : answers[-1] + 1],), {"messages"}


def _text(row: Mapping[str, Any], where: str) -> Contents:
    if not isinstance(row["text"], str):
        fail(where, f"'text' must be a string, not {shown(row['text'])}")
    return "", (row["text"],), {"text"}


def _prompt(row: Mapping[str, Any], where: str) -> Contents:
    return turns_of(row["prompt"], "prompt", where), (), {"prompt"}


_CONTENTS: dict[str, Callable[[Mapping[str, Any], str], Contents]] = {
    "paired": _paired,
    "rated": _listed,
    "ranked": _listed,
    "compared": _listed,
    "unjudged": _listed,
    "unpaired": _single,
    "demonstrations": _single,
    "conversations": _messages,
    "text": _text,
    "prompts": _prompt,
}


def _align(
    prompt: Completion, completions: tuple[Completion, ...], where: str
) -> tuple[Prompt, tuple[Completion, ...]]:
    """Prompt and completions in one form; completions lose the turns of the prompt where they repeat them."""
    conversations = [completion for completion in completions if not isinstance(completion, str)]
    if is_text_episode(prompt, completions):
        return prompt, text_episodes(completions, where)
    if isinstance(prompt, str):
        if not conversations:
            return prompt, completions
        if len(conversations) < len(completions):
            fail(where, "some completions are text and some are conversations; give all in one form")
        asked: tuple[Message, ...] = ({"role": "user", "content": prompt},)
        if any(conversation[0]["role"] != "assistant" for conversation in conversations):
            asked = conversations[0][: shared_prefix(conversations)]
            if not any(turn.get("content") == prompt for turn in asked):
                fail(
                    where, "the completions are whole conversations, but the prompt is not one of the turns they share"
                )
        prompt = asked
    answers: list[Completion] = []
    for completion in completions:
        if isinstance(completion, str):
            completion = ({"role": "assistant", "content": completion},)
        repeats = len(completion) > len(prompt) and completion[: len(prompt)] == prompt
        answers.append(completion[len(prompt) :] if repeats else completion)
    return prompt, _answers(tuple(answers), where)


def _answers(completions: tuple[Completion, ...], where: str) -> tuple[Completion, ...]:
    """The completions up to their last answer: results of tools that end an episode are followed by nothing."""
    completions = tuple(_without_last_results(completion) for completion in completions)
    for completion in completions:
        if not isinstance(completion, str) and completion[-1]["role"] != "assistant":
            fail(
                where, f"a completion ends with a turn of {completion[-1]['role']!r}; it must end with the assistant's"
            )
    return completions


def _without_last_results(completion: Completion) -> Completion:
    if isinstance(completion, str):
        return completion
    end = len(completion)
    while end > 1 and completion[end - 1]["role"] in ("tool", "environment"):
        end -= 1
    return completion[:end]


# Scores and preferences of the completions, and the names of the columns that held them.

Judgements = tuple[tuple[float | None, ...] | None, Matrix | None, set[str]]


def _judgements(row: Mapping[str, Any], kind: str, size: int, where: str) -> Judgements:
    if kind == "unpaired":
        return ((0.5 if _label(row["label"], where) else -0.5),), None, set()
    if kind not in ("paired", "rated", "ranked", "compared"):
        return None, None, set()
    preference, used = None, {"preference"} & row.keys()
    if "preference" in row:
        preference = _matrix(row["preference"], size, where)
    elif "votes" in row:
        preference = _from_votes(row["votes"], kind, size, where)
    # Each rater's votes stay a column, for measures of how raters agree; counts say no more than the preference does.
    raters = kind == "compared" and "preference" not in row
    used |= set() if raters else {"votes"} & row.keys()
    if kind == "paired":
        return *_pair_scores(row, where), preference, used | {"score_chosen", "score_rejected"}
    if "scores" in row:
        return numbers_of(row["scores"], "scores", size, where), preference, used | {"scores"}
    if "ranks" in row:
        ranks = numbers_of(row["ranks"], "ranks", size, where)
        if any(rank is not None and rank < 1 for rank in ranks):
            fail(where, f"ranks must be 1 (best) or more, got {row['ranks']}; if larger is better, call them 'scores'")
        return tuple(None if rank is None else -rank for rank in ranks), preference, used | {"ranks"}
    return None, preference, used


def _pair_scores(row: Mapping[str, Any], where: str) -> tuple[tuple[float | None, ...]]:
    given = {"score_chosen", "score_rejected"} & row.keys()
    if len(given) == 1:
        fail(where, f"there is {given.pop()!r} but not the other one; give both scores or neither")
    if not given:
        return ((0.5, -0.5),)
    return (tuple(number_of(row[name], name, where) for name in ("score_chosen", "score_rejected")),)


def _matrix(value: Any, size: int, where: str) -> Matrix:
    value = without_arrays(value)
    if isinstance(value, numbers.Real) and size == 2:
        value = [[0.5, value], [1 - value, 0.5]]
    lines = list_of(value, "preference", where, f"one number for a pair, or a {size}×{size} matrix", RENAME)
    if len(lines) != size:
        fail(where, f"'preference' has {len(lines)} rows for {size} completions")
    matrix = [[_probability(p, where) for p in numbers_of(line, "preference", size, where)] for line in lines]
    for i, j in itertools.product(range(size), repeat=2):
        if abs(matrix[i][j] + matrix[j][i] - 1) > 1e-3:
            fail(where, f"'preference'[{i}][{j}] = {matrix[i][j]} and [{j}][{i}] = {matrix[j][i]} must have the sum 1")
    # Halving the difference makes the two sum to 1 exactly where the file had rounded them.
    return tuple(tuple((1 + matrix[i][j] - matrix[j][i]) / 2 for j in range(size)) for i in range(size))


def _probability(p: float | None, where: str) -> float:
    if p is None or not 0 <= p <= 1:
        fail(where, f"'preference' must hold probabilities, not {p}; write 0.5 for a pair of which nothing is known")
    return p


def _from_votes(value: Any, kind: str, size: int, where: str) -> Matrix:
    """P(i beats j) = (wins + ½ ties) / raters who saw both; ½ where nobody did."""
    votes = list_of(value, "votes", where, "a list of raters, each a list of one number per completion", RENAME)
    if kind == "paired" and not any(isinstance(without_arrays(vote), list) for vote in votes):
        return _from_counts(votes, where)
    raters = [numbers_of(rater, f"votes[{i}]", size, where) for i, rater in enumerate(votes)]
    matrix = [[0.5] * size for _ in range(size)]
    compared = False
    for i, j in itertools.permutations(range(size), 2):
        both = [(a, b) for a, b in ((rater[i], rater[j]) for rater in raters) if a is not None and b is not None]
        if both:
            compared = True
            matrix[i][j] = math.fsum((a > b) + 0.5 * (a == b) for a, b in both) / len(both)
    if not compared:
        fail(where, "no rater saw two of these completions, so 'votes' compares nothing; remove the row")
    return tuple(map(tuple, matrix))


def _from_counts(votes: list[Any], where: str) -> Matrix:
    won, lost = numbers_of(votes, "votes", 2, where)
    if won is None or lost is None or min(won, lost) < 0 or won + lost == 0:
        fail(where, f"'votes' must be [votes for chosen, votes for rejected], at least one in all, not {votes}")
    p = won / (won + lost)
    return ((0.5, p), (1 - p, 0.5))


def _label(value: Any, where: str) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    label = known.get(str(value).strip().lower())
    if label is None:
        fail(where, f"'label' must be true or false (or 1 or 0), not {shown(value)}")
    return label


def _refuse_half_characters(row: Mapping[str, Any], where: str) -> None:
    for name, value in row.items():
        for text in texts_in(value):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                fail(
                    where,
                    f"{name!r} holds {text[error.start]!r}, half of a surrogate pair, which is no character and has no tokens; "
                    "mend the text or leave the row out",
                )


def _refuse_one_value(value: Any, name: str, size: int, where: str) -> None:
    """A column of the user's own may have a name that has a meaning here."""
    if size != 1 and not isinstance(without_arrays(value), list):
        fail(where, f"{name!r} must be a list of one value for each completion, not {shown(value)}. {RENAME}")


def _refuse_steps(row: Mapping[str, Any], kind: str, where: str) -> None:
    """TRL's stepwise rows have one answer in steps, each with a label."""
    labels = without_arrays(row.get("labels"))
    if kind == "unjudged" and isinstance(labels, list) and labels and all(str(label) in _TRUTHS for label in labels):
        fail(
            where,
            "'completions' with 'labels' are the steps of one answer (TRL's stepwise supervision), not rival completions. "
            "`source: {adapt: stepwise}` makes them one completion with a label for each step, `adapt: stepwise-whole` one that is "
            "labelled true where every step is",
        )


_TRUTHS = {"True", "False", "0", "1"}

RENAME = "If the column is something else, rename it, or leave it out, by a function that `source: {adapt: file.py:function}` names"

ADAPT_COLUMNS = (
    "Rows with other columns are turned into one of these by a function of yours: `source: {adapt: mine.py:pair}`, where mine.py "
    'has, e.g., `def pair(row): return {"prompt": row["question"], "chosen": row["good"], "rejected": row["bad"]}`'
)


def _unrecognised(row: Mapping[str, Any], where: str, reason: str) -> NoReturn:
    known = sorted({"prompt", "chosen", "rejected", "completion", "completions", "messages", "text"} - row.keys())
    hints = {hint for name in row if name not in _known_columns() and (hint := nearest(name, known))}
    formats = "\n".join(f"  {name + ':':16}{columns}" for name, columns in FORMATS.items())
    fail(
        where,
        f"{reason}. Columns found: {sorted(row)}.{''.join(sorted(hints))} The formats:\n{formats}\n{ADAPT_COLUMNS}",
    )


def _known_columns() -> set[str]:
    words = " ".join(FORMATS.values())
    for mark in "(),+":
        words = words.replace(mark, " ")
    return set(words.split()) - {"or"}
