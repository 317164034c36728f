"""Which completions of a row an objective is given, and in which order."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn, Protocol, Self, TypeVar

from prefopt.data.example import Matrix
from prefopt.data.formats import FORMATS
from prefopt.support.errors import PrefoptError
from prefopt.types import Axis, Needs

TIED = "completions dropped: tied with another one"
NEITHER = "completions dropped: neither better nor worse than their prompt's mean"
KEPT_TIED = "prompts kept: with tied completions"
TOO_FEW = "prompts dropped: too few completions"
UNDESIRABLE = "prompts dropped: their only completion is labelled false"

EMBED = (
    "write `source: {embeddings: {}}` to let the policy embed its prompts, "
    "or `source: {embeddings: {model: …}}` for a sentence encoder"
)


class Judged(Protocol):
    """What `select_completions` reads of an `Example` or a `Tokenised`, which are the same to it."""

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
    def select(self, order: Sequence[int]) -> Self: ...  # noqa: D102
    def scored(self, scores: tuple[float | None, ...]) -> Self: ...  # noqa: D102
    def with_axes(self, axes: Mapping[str, Axis]) -> Self: ...  # noqa: D102


Row = TypeVar("Row", bound=Judged)
Ties = Literal["drop", "keep"]


def select_completions(
    rows: Sequence[Row], needs: Needs, ties: Ties = "drop", counts: Counter[str] | None = None
) -> Iterator[Row]:
    """One ranked, rated or paired data set as what an objective needs, row by row.

    completions   from a prompt with more of them
    -----------   -------------------------------
    None          all
    1, ordered    the best one
    1             each as a row of its own, its score relative to the mean of its prompt
    K             the best, the worst, and those at even distances of rank between them

    With `ordered` they come best first: by score, or by mean preference where there are no scores. Then ties have no
    order: with `ties="drop"` only the first of them stays, with "keep" all stay, in the data's order. A choice
    of one is never a tie.

    Args:
        rows: examples, tokenised or not, so that this can refuse before any model is loaded.
        needs: the objective's.
        ties: what to do with completions of equal score.
        counts: where it is counted how often something was dropped.

    Raises:
        PrefoptError: the rows lack what is needed; says what they have and which formats would do.
    """
    if ties not in ("drop", "keep"):
        raise PrefoptError(f"ties must be 'drop' or 'keep', not {ties!r}")
    if needs.rollouts:
        _refuse(rows, needs, "it learns from the policy's own completions, which recorded data are not; use rollouts")
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


def select_checked(rows: Iterable[Row], needs: Needs, ties: Ties, counts: Counter[str]) -> Iterator[Row]:
    """`select_completions` of rows that are known to have what it takes; perhaps none is left."""
    change: Callable[[Row, Needs, Ties, Counter[str]], list[Row]] = _singles if needs.completions == 1 else _several
    if needs.completions == 1 and needs.ordered:
        change = _best
    return (new for row in rows for new in change(_present(row.with_axes(needs.axes)), needs, ties, counts))


def _check(row: Judged, rows: Sequence[Judged], needs: Needs) -> None:
    """Refuses a row that lacks what no choice among completions could supply."""
    # Single completions of a prompt that was compared get their scores from the comparison.
    scored = needs.scores and not (needs.completions == 1 and not needs.ordered)
    if row.scores is None and (scored or (needs.scores and row.preference is None)):
        _refuse(rows, needs, f"{row.where} has no scores")
    if needs.preference and row.preference is None:
        _refuse(rows, needs, f"{row.where} has no preference probabilities")
    missing = set(needs.columns) - set(row.columns) - {"row"}
    if missing:
        hint = f" ({EMBED})" if "embeddings" in missing else ""
        _refuse(rows, needs, f"{row.where} has no column {', '.join(map(repr, sorted(missing)))}{hint}")
    if _must_order(needs, row) and row.scores is None and row.preference is None:
        _refuse(rows, needs, f"{row.where} has {row.size} completions and nothing that orders them")


def _must_order(needs: Needs, row: Judged) -> bool:
    if row.size < 2:
        return False
    return needs.ordered or (needs.completions is not None and 1 < needs.completions < row.size)


def _present(row: Row) -> Row:
    """Without the completions that have no score though the row has scores."""
    if row.scores is None or None not in row.scores:
        return row
    return row.select([i for i, score in enumerate(row.scores) if score is not None])


def _several(row: Row, needs: Needs, ties: Ties, counts: Counter[str]) -> list[Row]:
    """K of them, or all: in order, or as the data has them."""
    fewest = needs.completions or (2 if needs.ordered or needs.preference else 1)
    chosen = list(range(row.size))
    if row.size >= fewest and _must_order(needs, row):
        merits = _merits(row)
        ranked = sorted(chosen, key=lambda i: -merits[i])
        if needs.ordered:
            ranked = _untied(ranked, merits, ties, counts)
        chosen = _spread(ranked, needs.completions)
        if not needs.ordered:
            chosen = sorted(chosen)
    if len(chosen) < fewest:
        counts[TOO_FEW] += 1
        return []
    return [row if chosen == list(range(row.size)) else row.select(chosen)]


def _best(row: Row, needs: Needs, ties: Ties, counts: Counter[str]) -> list[Row]:
    """The best of them, as something to imitate."""
    if not row.size:
        counts[TOO_FEW] += 1
        return []
    if row.columns.get("label") is False:
        counts[UNDESIRABLE] += 1
        return []
    if row.size == 1:
        return [row]
    merits = _merits(row)
    return [row.select([merits.index(max(merits))])]


def _singles(row: Row, needs: Needs, ties: Ties, counts: Counter[str]) -> list[Row]:
    """Each by itself; the sign of its score says whether it is better or worse than the mean of its prompt's."""
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


def _merits(row: Judged) -> list[float]:
    """What completions are ordered by: the score, or else the mean probability to beat another one."""
    if row.scores is not None:
        return [score for score in row.scores if score is not None]
    assert row.preference is not None
    # Rounded, because sums of equal probabilities in another order must still be a tie.
    return [round((math.fsum(line) - line[i]) / max(row.size - 1, 1), 9) for i, line in enumerate(row.preference)]


def _untied(ranked: list[int], merits: list[float], ties: Ties, counts: Counter[str]) -> list[int]:
    """The first of each tie, or all."""
    first = [i for n, i in enumerate(ranked) if n == 0 or merits[i] != merits[ranked[n - 1]]]
    if ties == "keep":
        counts[KEPT_TIED] += len(first) < len(ranked)
        return ranked
    counts[TIED] += len(ranked) - len(first)
    return first


def _spread(ranked: list[int], count: int | None) -> list[int]:
    """The first, the last, and what lies at even distances between them."""
    if count is None or len(ranked) <= count:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / (count - 1))] for i in range(count)]


def _refuse(rows: Sequence[Judged], needs: Needs, reason: str) -> NoReturn:
    wants = [f"{needs.completions or 'any number of'} completions{' best first' if needs.ordered else ''}"]
    wants += ["scores"] * needs.scores + ["preference probabilities"] * needs.preference
    wants += [f"the column {name!r}" for name in needs.columns]
    raise PrefoptError(
        f"the data cannot serve this objective: {reason}. It needs {', '.join(wants)}; the data have {_found(rows)}. "
        f"Formats that would do (docs/data.md): {_suitable(needs)}"
    )


def _found(rows: Sequence[Judged]) -> str:
    if not rows:
        return "no rows"
    sizes = sorted({row.size for row in rows})
    parts = [f"{sizes[0]} to {sizes[-1]} completions" if len(sizes) > 1 else f"{sizes[0]} completions"]
    parts += ["scores"] if any(row.scores is not None for row in rows) else ["no scores"]
    parts += ["preference probabilities"] if any(row.preference is not None for row in rows) else []
    names = sorted({name for row in rows[:100] for name in row.columns})
    return f"{', '.join(parts)}, and the other columns {names}"


def _suitable(needs: Needs) -> str:
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
