"""Dataset formats: a row of columns becomes an `Example`, whatever its format. docs/data.md has one example of each."""

import dataclasses
import itertools
import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self

import numpy as np
from torch import Tensor

from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.seeds import digested
from prefopt.types import Axis, Message, Prompt, axis_of

Completion = str | tuple[Message, ...]
"""Plain text, or the turns that follow the prompt; the last one is the assistant's."""

Matrix = tuple[tuple[float, ...], ...]
"""K × K: row i, column j is P(y_i beats y_j)."""

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
"""The columns that make a format what it is; those in brackets are optional."""


@dataclass(frozen=True)
class Example:
    """One prompt with its K completions, and what is known about them, before tokenisation.

    Attributes:
        prompt: text, or the conversation so far.
        completions: K of them; all text when the prompt is text, all tuples of messages when it is a conversation.
        scores: K numbers, larger is better; None for a completion that has none, which makes it absent.
        preference: K × K, P(y_i beats y_j).
        group: rows of one group never straddle a split.
        where: file and line, for messages.
        columns: every other column of the row. Those of completions or tokens are lists of K.
        axes: of the columns that are not of the prompt; `prefopt.types.AXES` has those that need not be named.
    """

    prompt: Prompt
    completions: tuple[Completion, ...] = ()
    scores: tuple[float | None, ...] | None = None
    preference: Matrix | None = None
    group: str = ""
    where: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """K."""
        return len(self.completions)

    def axis(self, column: str) -> Axis:
        """What the entries of a column belong to."""
        return axis_of(column, self.axes)

    def with_axes(self, axes: Mapping[str, Axis]) -> Self:
        """The same with the axes of its columns stated, by whoever is going to read them.

        Raises:
            PrefoptError: a column of completions or tokens that has not one entry for each completion.
        """
        if not axes or axes == self.axes:
            return self
        columns = {
            name: value if axis_of(name, axes) == "prompt" else _per_completion(value, name, self.size, self.where)
            for name, value in self.columns.items()
        }
        return dataclasses.replace(self, columns=columns, axes=axes)

    def select(self, order: Sequence[int]) -> Self:
        """These completions alone, in this order, together with everything that is said about them."""
        return dataclasses.replace(
            self,
            completions=tuple(self.completions[i] for i in order),
            scores=None if self.scores is None else tuple(self.scores[i] for i in order),
            preference=select_matrix(self.preference, order),
            columns={
                name: column if self.axis(name) == "prompt" else [column[i] for i in order]
                for name, column in self.columns.items()
            },
        )

    def scored(self, scores: tuple[float | None, ...]) -> Self:
        """The same completions with these scores, and no other judgement of them."""
        return dataclasses.replace(self, scores=scores, preference=None)


def select_matrix(matrix: Matrix | None, order: Sequence[int]) -> Matrix | None:
    """The rows and columns of `order`, in that order."""
    return None if matrix is None else tuple(tuple(matrix[i][j] for j in order) for i in order)


def prompts(examples: Sequence[Example]) -> Iterator[Example]:
    """The distinct prompts, in order of appearance, without their completions: what rollouts start from."""
    digests = digested((_key(example.prompt) for example in examples), len(examples))
    for number in np.sort(np.unique(digests, return_index=True)[1]):
        example = examples[number]
        yield dataclasses.replace(
            example,
            completions=(),
            scores=None,
            preference=None,
            columns={name: value for name, value in example.columns.items() if example.axis(name) == "prompt"},
        )


def recognise(row: Mapping[str, Any], where: str = "row") -> str:
    """The name in `FORMATS` of a row's format; a column whose value is None counts as missing.

    Raises:
        PrefoptError: the columns make up no format; says which columns there are and what each format needs.
    """
    names = {name for name, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= names:
        return "paired"
    if "chosen" in names or "rejected" in names:
        _unrecognised(row, where, f"there is {'chosen' if 'chosen' in names else 'rejected'!r} but not the other one")
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
    _unrecognised(row, where, "these columns make up no known format")


def parse(row: Mapping[str, Any], where: str = "row") -> Example:
    """One row as an `Example`.

    Args:
        row: column names to values; lists may be tuples, NumPy arrays or tensors.
        where: what messages call the row, usually file:line.

    Raises:
        PrefoptError: the columns make up no format, or a value cannot be what its column should hold.
    """
    kind = recognise(row, where)
    row = {name: value for name, value in row.items() if value is not None}
    prompt, completions, used = _CONTENTS[kind](row, where)
    scores, preference, judged = _judgement(row, kind, len(completions), where)
    columns = {name: value for name, value in row.items() if name not in used | judged | {"group"}}
    for name in columns:
        if axis_of(name, {}) != "prompt":
            columns[name] = _per_completion(columns[name], name, len(completions), where)
    if kind == "unpaired":  # kept: a label says more than its score, e.g. that a completion is not one to imitate
        columns["label"] = _label(row["label"], where)
    group = row["group"] if "group" in row else _key(prompt) if prompt else _key(completions[0])
    return Example(prompt, completions, scores, preference, str(group), where, columns)


def shared_prefix(sequences: Sequence[Sequence[Any]]) -> int:
    """Length of the implicit prompt: the longest common prefix that leaves something of each sequence.

    The same cut as `trl.extract_prompt`: for text, a space before it goes to the completions.
    """
    longest = max(min(len(sequence) for sequence in sequences) - 1, 0)
    first = sequences[0]
    length = next((i for i in range(longest) if any(s[i] != first[i] for s in sequences)), longest)
    return length - 1 if length and first[length - 1] == " " else length


# What a row says: prompt, completions, and the names of the columns that held them.

Contents = tuple[Prompt, tuple[Completion, ...], set[str]]


def _paired(row: Mapping[str, Any], where: str) -> Contents:
    chosen = tuple(_turns(row[name], name, where) for name in ("chosen", "rejected"))
    if "prompt" in row:
        return *_align(_turns(row["prompt"], "prompt", where), chosen, where), {"prompt", "chosen", "rejected"}
    if isinstance(chosen[0], str) != isinstance(chosen[1], str):
        _fail(where, "'chosen' is text and 'rejected' a conversation, or the reverse; give both in one form")
    cut = shared_prefix(chosen)
    prompt, completions = chosen[0][:cut], tuple(completion[cut:] for completion in chosen)
    if not isinstance(prompt, str) and not prompt:
        _fail(where, "'chosen' and 'rejected' share no first turn to be the prompt; add a 'prompt' column")
    return prompt, _answers(completions, where), {"chosen", "rejected"}


def _listed(row: Mapping[str, Any], where: str) -> Contents:
    values = _list(row["completions"], "completions", where)
    completions = tuple(_turns(value, f"completions[{i}]", where) for i, value in enumerate(values))
    return *_align(_turns(row["prompt"], "prompt", where), completions, where), {"prompt", "completions"}


def _single(row: Mapping[str, Any], where: str) -> Contents:
    completion = _turns(row["completion"], "completion", where)
    return *_align(_turns(row["prompt"], "prompt", where), (completion,), where), {"prompt", "completion", "label"}


def _messages(row: Mapping[str, Any], where: str) -> Contents:
    turns = _turns(row["messages"], "messages", where)
    if isinstance(turns, str):
        _fail(
            where,
            "'messages' must be a list of turns with 'role' and 'content'; for plain text, call the column 'text'",
        )
    spoken = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not spoken or spoken[0] == 0:
        _fail(where, "'messages' needs a turn of the assistant with another turn before it")
    # Turns after the assistant's last are of no use; those between its turns are masked by the tokenisation.
    return turns[: spoken[0]], (turns[spoken[0] : spoken[-1] + 1],), {"messages"}


def _text(row: Mapping[str, Any], where: str) -> Contents:
    if not isinstance(row["text"], str):
        _fail(where, f"'text' must be a string, not {_brief(row['text'])}")
    return "", (row["text"],), {"text"}


def _prompt(row: Mapping[str, Any], where: str) -> Contents:
    return _turns(row["prompt"], "prompt", where), (), {"prompt"}


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


def _turns(value: Any, name: str, where: str) -> Completion:
    """Text as it is; a list of messages as a tuple, without the None fields that Arrow adds."""
    if isinstance(value, str):
        return value
    turns = []
    for turn in _list(value, name, where, "text or a list of messages"):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            found = f" Its keys are {sorted(turn)}." if isinstance(turn, Mapping) else ""
            _fail(where, f"{name!r} must hold messages with 'role' and 'content', not {_brief(turn)}.{found}")
        if turn.get("content") is None and not turn.get("tool_calls"):
            _fail(where, f"{name!r} has a message without 'content'")
        turns.append({key: item for key, item in turn.items() if item is not None or key == "content"})
    if not turns:
        _fail(where, f"{name!r} is an empty list; it needs at least one message")
    return tuple(turns)


def _align(
    prompt: Completion, completions: tuple[Completion, ...], where: str
) -> tuple[Prompt, tuple[Completion, ...]]:
    """Prompt and completions in one form, the completions without the prompt when they repeat its turns."""
    talks = [completion for completion in completions if not isinstance(completion, str)]
    if isinstance(prompt, str):
        if not talks:
            return prompt, completions
        if len(talks) < len(completions):
            _fail(where, "some completions are text and some are conversations; give all in one form")
        asked: tuple[Message, ...] = ({"role": "user", "content": prompt},)
        if any(talk[0]["role"] != "assistant" for talk in talks):
            asked = talks[0][: shared_prefix(talks)]
            if not any(turn.get("content") == prompt for turn in asked):
                _fail(
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
    for completion in completions:
        if not isinstance(completion, str) and completion[-1]["role"] != "assistant":
            _fail(
                where, f"a completion ends with a turn of {completion[-1]['role']!r}; it must end with the assistant's"
            )
    return completions


# What is said about the completions: scores, preference, and the names of the columns that said it.

Judgement = tuple[tuple[float | None, ...] | None, Matrix | None, set[str]]


def _judgement(row: Mapping[str, Any], kind: str, size: int, where: str) -> Judgement:
    if kind == "unpaired":
        return ((0.5 if _label(row["label"], where) else -0.5),), None, set()
    if kind not in ("paired", "rated", "ranked", "compared"):
        return None, None, set()
    preference, used = None, {"votes", "preference"} & row.keys()
    if "preference" in row:
        preference = _matrix(row["preference"], size, where)
    elif "votes" in row:
        preference = _vote(row["votes"], kind, size, where)
    if kind == "paired":
        return *_pair_scores(row, where), preference, used | {"score_chosen", "score_rejected"}
    if "scores" in row:
        return _numbers(row["scores"], "scores", size, where), preference, used | {"scores"}
    if "ranks" in row:
        ranks = _numbers(row["ranks"], "ranks", size, where)
        if any(rank is not None and rank < 1 for rank in ranks):
            _fail(where, f"ranks must be 1 (best) or more, got {row['ranks']}; if larger is better, call them 'scores'")
        return tuple(None if rank is None else -rank for rank in ranks), preference, used | {"ranks"}
    return None, preference, used


def _pair_scores(row: Mapping[str, Any], where: str) -> tuple[tuple[float | None, ...]]:
    given = {"score_chosen", "score_rejected"} & row.keys()
    if len(given) == 1:
        _fail(where, f"there is {given.pop()!r} but not the other one; give both scores or neither")
    if not given:
        return ((0.5, -0.5),)
    return (tuple(_number(row[name], name, where) for name in ("score_chosen", "score_rejected")),)


def _matrix(value: Any, size: int, where: str) -> Matrix:
    value = _plain(value)
    if isinstance(value, numbers.Real) and size == 2:
        value = [[0.5, value], [1 - value, 0.5]]
    lines = _list(value, "preference", where, f"one number for a pair, or a {size}×{size} matrix")
    if len(lines) != size:
        _fail(where, f"'preference' has {len(lines)} rows for {size} completions")
    matrix = [[_probability(p, where) for p in _numbers(line, "preference", size, where)] for line in lines]
    for i, j in itertools.product(range(size), repeat=2):
        if abs(matrix[i][j] + matrix[j][i] - 1) > 1e-3:
            _fail(where, f"'preference'[{i}][{j}] = {matrix[i][j]} and [{j}][{i}] = {matrix[j][i]} must have the sum 1")
    # Halving the difference makes the two sum to 1 exactly where the file had rounded them.
    return tuple(tuple((1 + matrix[i][j] - matrix[j][i]) / 2 for j in range(size)) for i in range(size))


def _probability(p: float | None, where: str) -> float:
    if p is None or not 0 <= p <= 1:
        _fail(where, f"'preference' must hold probabilities, not {p}; .5 says that nothing is known of a pair")
    return p


def _vote(value: Any, kind: str, size: int, where: str) -> Matrix:
    """P(i beats j) = (wins + ½ ties) / raters who saw both; ½ where nobody did."""
    votes = _list(value, "votes", where, "a list of raters, each a list of one number per completion")
    if kind == "paired" and not any(isinstance(_plain(vote), list) for vote in votes):
        return _tally(votes, where)
    raters = [_numbers(rater, f"votes[{i}]", size, where) for i, rater in enumerate(votes)]
    matrix = [[0.5] * size for _ in range(size)]
    compared = False
    for i, j in itertools.permutations(range(size), 2):
        both = [(a, b) for a, b in ((rater[i], rater[j]) for rater in raters) if a is not None and b is not None]
        if both:
            compared = True
            matrix[i][j] = math.fsum((a > b) + 0.5 * (a == b) for a, b in both) / len(both)
    if not compared:
        _fail(where, "no rater saw two of these completions, so 'votes' says nothing; remove the row")
    return tuple(map(tuple, matrix))


def _tally(votes: list[Any], where: str) -> Matrix:
    won, lost = _numbers(votes, "votes", 2, where)
    if won is None or lost is None or min(won, lost) < 0 or won + lost == 0:
        _fail(where, f"'votes' must be [votes for chosen, votes for rejected], at least one in all, not {votes}")
    p = won / (won + lost)
    return ((0.5, p), (1 - p, 0.5))


def _label(value: Any, where: str) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    label = known.get(str(value).strip().lower())
    if label is None:
        _fail(where, f"'label' must be true or false (or 1 or 0), not {_brief(value)}")
    return label


def _per_completion(value: Any, name: str, size: int, where: str) -> list[Any]:
    value = _plain(value)
    if size == 1 and not isinstance(value, list):
        value = [value]
    values = _list(value, name, where)
    if len(values) != size:
        _fail(where, f"{name!r} has {len(values)} values for {size} completions; it needs one for each")
    return values


def _numbers(value: Any, name: str, size: int, where: str) -> tuple[float | None, ...]:
    values = _list(value, name, where)
    if len(values) != size:
        _fail(where, f"{name!r} has {len(values)} numbers for {size} completions")
    return tuple(_number(item, name, where) for item in values)


def _number(value: Any, name: str, where: str) -> float | None:
    """A finite float; None for None and NaN."""
    if value is None:
        return None
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        _fail(where, f"{name!r} must hold numbers, not {_brief(value)}")
    if math.isinf(value):
        _fail(where, f"{name!r} is infinite")
    return None if math.isnan(value) else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _list(value: Any, name: str, where: str, what: str = "a list") -> list[Any]:
    value = _plain(value)
    if not isinstance(value, list):
        _fail(where, f"{name!r} must be {what}, not {_brief(value)}")
    return value


def _key(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=str)


def _brief(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _unrecognised(row: Mapping[str, Any], where: str, reason: str) -> NoReturn:
    known = sorted({"prompt", "chosen", "rejected", "completion", "completions", "messages", "text"} - row.keys())
    hints = {hint for name in row if name not in _known_columns() and (hint := nearest(name, known))}
    formats = "\n".join(f"  {name + ':':16}{columns}" for name, columns in FORMATS.items())
    _fail(where, f"{reason}. Columns found: {sorted(row)}.{''.join(sorted(hints))} The formats:\n{formats}")


def _known_columns() -> set[str]:
    words = " ".join(FORMATS.values())
    for mark in "(),+":
        words = words.replace(mark, " ")
    return set(words.split()) - {"or"}


def _fail(where: str, message: str) -> NoReturn:
    raise PrefoptError(f"{where}: {message}")
