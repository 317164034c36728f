"""The verdict on many arms: how many came out which way, the best by name, then who they are. Their intervals are in the table."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prefopt.study.comparison.best import unbeaten
from prefopt.support.wording import interval, listed, number

if TYPE_CHECKING:
    from prefopt.study.comparison.comparison import Row, Table
    from prefopt.study.comparison.contrasts import Better, Claim, Contrast

MANY = 6
"""The most comparisons whose intervals a verdict gives; a paragraph with more of them is read by nobody."""

OUTCOMES: "dict[Claim, tuple[str, str]]" = {
    "undecided": ("undecided", "Undecided, with too few seeds to say"),
    "one seed": ("with fewer than two seeds in common", "Fewer than two seeds in common"),
    "same": ("with the same numbers", "Exactly the same numbers"),
    "no spread": ("without spread", "No verdict, for the difference is equal on every seed, so they did not vary"),
    "failures": ("with failures", "No claim, for the difference favours the side that lost seeds"),
}
"""What nothing can be claimed about, by the reason: counted, and as the title of a list."""


def against_a_baseline(table: "Table", better: "Better", title: str) -> Iterator[str]:
    """Sentences: counts and the best arm; then the arms of each outcome."""
    worse = "lower" if better == "higher" else "higher"
    outcomes = {"better": (better, better.capitalize()), "worse": (worse, worse.capitalize())} | OUTCOMES
    baseline, arms = table.rows[0].arm, table.rows[1:]
    of = {claim: [row for row in arms if row.claim == claim] for claim in outcomes}
    counts = [f"{len(of[claim])} {word}" for claim, (word, _) in outcomes.items() if of[claim] and claim != "better"]
    first = f"{len(of['better'])} {better}" if of["better"] else f"none {better}"
    best = f"; {better} by most: {_with_interval(_best(of['better']))}" if of["better"] else ""
    yield f"Against {baseline}, on {title}: of {len(arms)} arms, {', '.join([first, *counts])}{best}."
    for claim, (_, heading) in outcomes.items():
        if of[claim]:
            yield f"{heading}: {listed([_with_losses(row) for row in of[claim]])}."
    if any(row.over_prompts for row in of["one seed"]):
        yield "The table says how the policies of the one seed differ over prompts, which tells nothing of another seed."


def of_the_best(table: "Table", title: str) -> Iterator[str]:
    """Sentences: the best mean, and how many may be the best as well; then who."""
    best, others = table.rows[0].arm, table.rows[1:]
    worse, rivals = ([row.arm for row in others if (row.claim == "worse") is beaten] for beaten in (True, False))
    if not rivals:
        yield f"On {title}: {best} is the best, and the other {len(worse)} arms are not."
        return
    counts = f"{len(rivals)} may be the best as well, {len(worse) or 'none'} {'are' if len(worse) != 1 else 'is'} not"
    yield f"On {title}: {best} has the best mean; of the other {len(others)} arms, {counts}."
    yield f"May be the best as well: {listed(rivals)}."
    if worse:
        yield f"Not the best: {listed(worse)}."


def of_pairs(table: "Table", better: "Better", title: str) -> Iterator[str]:
    """Sentences: in how many pairs a difference is shown, and whom no arm beats; then each arm with those that it beats."""
    higher: dict[str, list[str]] = {}
    for pair in table.pairs:
        if pair.claim in ("better", "worse"):
            one, other = sides(pair)
            higher.setdefault(one, []).append(other)
    shown, arms = sum(map(len, higher.values())), [row.arm for row in table.rows]
    top = f"; none is shown to be {better} than {listed(unbeaten(arms, table.pairs))}" if shown else ""
    yield f"Of all {len(table.pairs)} pairs, on {title}: a difference is shown in {shown or 'none'}{top}."
    for arm in sorted(higher, key=lambda arm: -len(higher[arm])):
        yield f"{arm} is higher than {listed(higher[arm])}."
    if shown < len(table.pairs):
        yield "Between the others no difference is shown; results.json has every interval."


def sides(pair: "Contrast") -> tuple[str, str]:
    """The arm with the higher mean, and the other."""
    return (pair.arm, pair.other) if pair.difference.mean.value > 0 else (pair.other, pair.arm)


def _best(rows: "Sequence[Row]") -> "Row":
    return max(rows, key=lambda row: abs(row.difference.mean.value) if row.difference else 0.0)


def _with_interval(row: "Row") -> str:
    assert row.difference is not None
    d = row.difference
    return f"{row.arm} ({number(d.mean.value, signed=True)} {interval(d.low, d.high)})"


def _with_losses(row: "Row") -> str:
    lost = sum(value != value for value in row.values.values())
    return row.arm + (f" ({lost} of {len(row.values)} seeds have no number)" if lost else "")
