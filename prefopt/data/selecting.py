"""Selecting the completions of a row that an objective needs, in the order that it needs."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn, Protocol, Self, TypeVar

from prefopt.data.example import Matrix
from prefopt.data.formats import ADAPT_COLUMNS, FORMATS
from prefopt.support.errors import PrefoptError
from prefopt.types import Axis, Needs

TIED = "completions dropped: tied with another one"
NEITHER = "completions dropped: neither better nor worse than their prompt's mean"
KEPT_TIED = "prompts kept: with tied completions"
TOO_FEW = "prompts dropped: too few completions"
UNDESIRABLE = "prompts dropped: their only completion is labelled false"
ALONE = "prompts dropped: a single rated completion, which no label calls good or bad"
IDENTICAL = "prompts kept: with completions that are the same"
AGAINST = "pairs turned round: by their scores the rejected one is better"

KEPT = (KEPT_TIED, IDENTICAL, AGAINST)
"""Of the counts, those of prompts that are trained on."""

EMBED = (
    "write `source: {embeddings: {}}` to let the policy embed its prompts, "
    "or `source: {embeddings: {model: …}}` for a sentence encoder"
)

LABEL_STEPS = (
    "a label for each step: TRL's stepwise rows have them, or give `completion` as a list of steps and `step_labels` with a "
    "truth value or a probability for each"
)


class Selectable(Protocol):
    """What the selection reads of a row: an `Example` or a `Tokenised`."""

    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def scores(self) -> tuple[float | None, ...] | None: ...  # noqa: D102
    @property
    def preference(self) -> Matrix | None: ...  # noqa: D102
    @property
    def columns(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def where(self) -> str: ...  # noqa: D102
    @property
    def contents(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def chosen_first(self) -> bool: ...  # noqa: D102
    def select(self, order: Sequence[int]) -> Self: ...  # noqa: D102
    def scored(self, scores: tuple[float | None, ...]) -> Self: ...  # noqa: D102
    def with_axes(self, axes: Mapping[str, Axis]) -> Self: ...  # noqa: D102


SelectableRow = TypeVar("SelectableRow", bound=Selectable)
Ties = Literal["drop", "keep"]


def select_completions(
    rows: Sequence[SelectableRow], needs: Needs, ties: Ties = "drop", counts: Counter[str] | None = None
) -> Iterator[SelectableRow]:
    """Rows of any format as an objective needs them, one after another.

    completions   from a prompt with more of them
    -----------   -------------------------------
    None          all
    1, ordered    the best one
    1             each as a row of its own, its score relative to the mean of its prompt
    K             the best, the worst, and those at evenly spaced ranks between them

    With `ordered` they come best first: by score, or by mean preference where there are no scores. Tied completions
    have no order: with `ties="drop"` only the first is kept, with "keep" all are, in the data's order. Selecting
    the best one is not affected by ties.

    Args:
        rows: examples, tokenised or not: data can be checked before any model is loaded.
        needs: the objective's.
        ties: what to do with completions of equal score.
        counts: numbers of dropped prompts and completions are added to it.

    Raises:
        PrefoptError: the rows lack something that is needed; says what they have and which formats have it.
    """
    if ties not in ("drop", "keep"):
        raise PrefoptError(f"ties must be 'drop' or 'keep', not {ties!r}")
    if needs.rollouts:
        _refuse(rows, needs, "it learns from the policy's own completions, and these are recorded; use rollouts")
    if needs.named_scores:
        _refuse(
            rows,
            needs,
            f"it reads the named scores {', '.join(needs.named_scores)}, which only feedback gives; use rollouts",
        )
    counts = Counter() if counts is None else counts
    kept = 0
    for row in rows:
        _check(row, rows, needs)
        for new in select_checked([row], needs, ties, counts):
            kept += 1
            yield new
    if not kept:
        dropped = "; ".join(f"{count} {what}" for what, count in (+counts).items()) or "there were none"
        first = f"; the first was {rows[0].where}" if rows else ""
        _refuse(rows, needs, f"no row is left ({dropped}{first})")


def select_checked(
    rows: Iterable[SelectableRow], needs: Needs, ties: Ties, counts: Counter[str]
) -> Iterator[SelectableRow]:
    """`select_completions` of rows that are known to have what the objective needs; may yield none."""
    change: Callable[[SelectableRow, Needs, Ties, Counter[str]], list[SelectableRow]] = (
        _singles if needs.completions == 1 else _several
    )
    if needs.completions == 1 and needs.ordered:
        change = _best
    if needs.signs:
        rows = _with_signs(rows, counts)
    return (new for row in rows for new in change(_present(row.with_axes(needs.axes)), needs, ties, counts))


def _with_signs(rows: Iterable[SelectableRow], counts: Counter[str]) -> Iterator[SelectableRow]:
    """Without single ratings: 1 of 10 and rank 1 are numbers, and only a label says what is good."""
    for row in rows:
        rated = row.size if row.scores is None else sum(score is not None for score in row.scores)
        if rated == 1 and "label" not in row.columns:
            counts[ALONE] += 1
        else:
            yield row


def _check(row: Selectable, rows: Sequence[Selectable], needs: Needs) -> None:
    """Refuse a row that lacks something that the objective needs."""
    # Single completions of a prompt that was compared get their scores from the comparison.
    scored = needs.scores and not (needs.completions == 1 and not needs.ordered)
    if row.scores is None and (scored or (needs.scores and row.preference is None)):
        _refuse(rows, needs, f"{row.where} has no scores")
    if needs.preference and row.preference is None:
        _refuse(rows, needs, f"{row.where} has no preference probabilities")
    missing = set(needs.columns) - set(row.columns) - {"row"}
    if missing:
        hint = f" ({EMBED})" if "embeddings" in missing else f" ({LABEL_STEPS})" if "step_labels" in missing else ""
        _refuse(rows, needs, f"{row.where} has no column {', '.join(map(repr, sorted(missing)))}{hint}")
    if _must_order(needs, row) and row.scores is None and row.preference is None:
        _refuse(rows, needs, f"{row.where} has {row.size} completions and nothing that orders them")


def _must_order(needs: Needs, row: Selectable) -> bool:
    if row.size < 2:
        return False
    return needs.ordered or (needs.completions is not None and 1 < needs.completions < row.size)


def _present(row: SelectableRow) -> SelectableRow:
    """Without completions that have no score, if the row has scores."""
    if row.scores is None or None not in row.scores:
        return row
    return row.select([i for i, score in enumerate(row.scores) if score is not None])


def _several(row: SelectableRow, needs: Needs, ties: Ties, counts: Counter[str]) -> list[SelectableRow]:
    """K completions, or all; best first, or in the order of the data."""
    fewest = needs.completions or (2 if needs.ordered or needs.preference else 1)
    chosen = list(range(row.size))
    turned = False
    if row.size >= fewest and _must_order(needs, row):
        merits = _merits(row)
        ranked = sorted(chosen, key=lambda i: -merits[i])
        if needs.ordered:
            ranked = _untied(ranked, merits, ties, counts)
            turned = row.chosen_first and ranked[0] != 0
        chosen = _spread(ranked, needs.completions)
        if not needs.ordered:
            chosen = sorted(chosen)
    if len(chosen) < fewest:
        counts[TOO_FEW] += 1
        return []
    counts[AGAINST] += turned
    counts[IDENTICAL] += _alike([row.contents[i] for i in chosen])
    return [row if chosen == list(range(row.size)) else row.select(chosen)]


def _alike(completions: Sequence[Any]) -> bool:
    """Whether two completions are the same, as written or as they were cut."""
    return any(one in completions[:number] for number, one in enumerate(completions))


def _best(row: SelectableRow, needs: Needs, ties: Ties, counts: Counter[str]) -> list[SelectableRow]:
    """The best completion."""
    if not row.size:
        counts[TOO_FEW] += 1
        return []
    if row.size == 1 and row.columns.get("label") is False:
        counts[UNDESIRABLE] += 1
        return []
    if row.size == 1:
        return [row]
    merits = _merits(row)
    return [row.select([merits.index(max(merits))])]


def _singles(row: SelectableRow, needs: Needs, ties: Ties, counts: Counter[str]) -> list[SelectableRow]:
    """Each completion as a row; its score is relative to the mean of its prompt, so positive means better than average."""
    if not row.size:
        counts[TOO_FEW] += 1
    if row.size < 2:
        return [row] if row.size else []
    singles = [row.select([i]) for i in range(row.size)]
    if row.scores is None and row.preference is None:
        return singles
    merits = _merits(row)
    mean = math.fsum(merits) / len(merits)
    rounding = 1e-9 * max(map(abs, merits))
    relative = [0.0 if abs(merit - mean) <= rounding else merit - mean for merit in merits]
    scored = [single.scored((score,)) for single, score in zip(singles, relative, strict=True)]
    if ties == "drop" and needs.scores:
        counts[NEITHER] += relative.count(0.0)
        scored = [single for single, score in zip(scored, relative, strict=True) if score]
    return scored


def _merits(row: Selectable) -> list[float]:
    """What completions are ordered by: scores, or mean probabilities to beat another completion."""
    if row.scores is not None:
        return [score for score in row.scores if score is not None]
    assert row.preference is not None
    # Rounded, because equal probabilities summed in another order must be a tie.
    return [round((math.fsum(line) - line[i]) / max(row.size - 1, 1), 9) for i, line in enumerate(row.preference)]


def _untied(ranked: list[int], merits: list[float], ties: Ties, counts: Counter[str]) -> list[int]:
    """Without all but the first of tied completions, unless ties are kept."""
    first = [i for n, i in enumerate(ranked) if n == 0 or merits[i] != merits[ranked[n - 1]]]
    if ties == "keep":
        counts[KEPT_TIED] += len(first) < len(ranked)
        return ranked
    counts[TIED] += len(ranked) - len(first)
    return first


def _spread(ranked: list[int], count: int | None) -> list[int]:
    """`count` of them: the first, the last, and evenly spaced ones between them."""
    if count is None or len(ranked) <= count:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / (count - 1))] for i in range(count)]


def _refuse(rows: Sequence[Selectable], needs: Needs, reason: str) -> NoReturn:
    number = needs.completions or "any number of"
    wants = [f"{number} completion{'s' * (number != 1)}{' best first' if needs.ordered else ''}"]
    wants += ["scores"] * needs.scores + ["preference probabilities"] * needs.preference
    wants += [f"the column {name!r}" for name in needs.columns]
    raise PrefoptError(
        f"the data cannot serve this objective: {reason}. It needs {', '.join(wants)}; the data have {_contents(rows)}. "
        f"Formats that have it (docs/data.md): {_suitable(needs)}"
        + (f". {ADAPT_COLUMNS}" if any(row.columns for row in rows[:100]) else "")
    )


def _contents(rows: Sequence[Selectable]) -> str:
    if not rows:
        return "no rows"
    sizes = sorted({row.size for row in rows})
    parts = [
        f"{sizes[0]} to {sizes[-1]} completions" if len(sizes) > 1 else f"{sizes[0]} completion{'s' * (sizes[0] != 1)}"
    ]
    parts += ["scores"] if any(row.scores is not None for row in rows) else ["no scores"]
    parts += ["preference probabilities"] if any(row.preference is not None for row in rows) else []
    names = sorted({name for row in rows[:100] for name in row.columns})
    return f"{', '.join(parts)}, and the other columns {names}"


def _suitable(needs: Needs) -> str:
    if "step_labels" in needs.columns:
        return "any of them, with `step_labels` (steps)"
    names = ["paired", "rated", "ranked"]
    if needs.preference:
        names = ["compared"]
    elif needs.completions == 1 and not needs.scores:
        names += ["compared", "demonstrations", "conversations", "text"]
    elif needs.completions == 1 and not needs.ordered:
        names += ["compared", "unpaired"]
    elif not needs.scores:
        names += ["compared"] if needs.ordered else ["compared", "unjudged"]
    if needs.completions is not None and needs.completions > 2:
        names = [name for name in names if name != "paired"]
    return "; ".join(f"{name} ({FORMATS[name]})" for name in names)
