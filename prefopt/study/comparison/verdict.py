"""A table as sentences: the verdict, and notes on runs that failed or stopped."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prefopt.runs.records import RunRecord
from prefopt.study.comparison.verdict_of_many import MANY, against_a_baseline, of_pairs, of_the_best, sides
from prefopt.support.wording import interval, listed, number

if TYPE_CHECKING:
    from prefopt.study.comparison.comparison import Against, Better, Contrast, Row, Table


def sentences(table: "Table", better: "Better", confidence: float, against: "Against" = "baseline") -> tuple[str, ...]:
    """The answer to the question, from the simultaneous intervals of the primary metric: claims first, then what they are from."""
    baseline, arms = table.rows[0].arm, table.rows[1:]
    compared, title = table.pairs or arms, metric_title(table.metric)
    many = len(compared) > MANY
    if against == "all":
        claims = [*of_pairs(table, better, title)] if many else [f"Of all pairs, on {title}: {_of_pairs(table.pairs)}."]
    elif against == "best":
        claims = [*of_the_best(table, title)] if many else [f"On {title}: {_of_the_best(baseline, arms)}."]
    elif many:
        claims = [*against_a_baseline(table, better, title)]
    else:
        parts = [_better(table, better), _worse(table, better), _rest(arms)]
        claims = [f"Against {baseline}, on {title}: {'; '.join(part for part in parts if part)}."]
    if all(one.claim == "one seed" for one in compared):
        return tuple(claims)
    claims.append(_source(len(arms), len(table.pairs), confidence, against))
    return tuple(filter(None, [*claims, _with_other_prompts(compared)]))


def _source(arms: int, pairs: int, confidence: float, against: "Against") -> str:
    """What the claims are from."""
    if against == "best":
        how = "intervals to the best of the other arms that hold together"
        return f"(From {how}: {confidence:.0%}, one-sided Student's t over seeds{', Bonferroni' if arms > 1 else ''}.)"
    several = pairs > 1 or arms > 1
    family = f"all {pairs} pairs" if pairs > 1 else f"all {arms} arms"
    intervals = f"intervals that hold together for {family}" if several else "its interval"
    return f"(From {intervals}: {confidence:.0%}, Student's t over seeds{', Bonferroni' if several else ''}.)"


def _with_other_prompts(contrasts: "Sequence[Row | Contrast]") -> str:
    """Whether what is claimed of these prompts holds of others, too, as far as runs say how they did on each."""
    claims = [one for one in contrasts if one.claim in ("better", "worse") and one.crossed]
    if not claims:
        return ""
    lost = [one for one in claims if one.crossed and one.crossed.both[0] < 0 < one.crossed.both[1]]
    prompts = max(one.crossed.prompts for one in claims if one.crossed)
    few = len(contrasts) <= MANY
    shown = [_called(one) + (f" ({interval(*one.crossed.both)})" if few else "") for one in lost if one.crossed]
    if not lost:
        return f"With other prompts than these {prompts}, too: the same."
    return f"With other prompts than these {prompts}, too: not shown for {listed(shown)}."


def _called(one: "Row | Contrast") -> str:
    other = getattr(one, "other", "")
    return f"{one.arm} − {other}" if other else one.arm


def _of_pairs(pairs: "Sequence[Contrast]") -> str:
    """Who is higher than whom, and about whom nothing can be said."""
    higher: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.claim in ("better", "worse"):
            d = pair.difference
            one, other = sides(pair)
            low, high = (d.low, d.high) if one == pair.arm else (-d.high, -d.low)
            higher.setdefault(one, []).append(
                f"{other} ({number(abs(d.mean.value), signed=True)} {interval(low, high)})"
            )
    parts = [f"{arm} is higher than {listed(higher[arm])}" for arm in sorted(higher, key=lambda a: -len(higher[a]))]
    open_ = [f"{pair.arm} and {pair.other}" for pair in pairs if pair.claim not in ("better", "worse")]
    if open_:
        parts.append(f"no difference is shown between {'; '.join(open_)}")
    return "; ".join(parts)


def _of_the_best(best: str, rows: "Sequence[Row]") -> str:
    """Which arm has the best mean, which may be the best as well, and which are not."""
    worse = [row for row in rows if row.claim == "worse"]
    rivals = [row.arm for row in rows if row.claim != "worse"]
    parts = [f"{best} has the best mean" if rivals else f"{best} is the best"]
    if rivals:
        parts.append(f"{listed(rivals)} may be the best as well")
    if worse:
        parts.append(f"not the best: {listed([f'{row.arm} ({_of_seeds(row)})' for row in worse])}")
    return "; ".join(parts)


def notes(table: "Table", runs: Sequence[RunRecord]) -> Iterator[str]:
    """A sentence for each way in which runs failed, stopped early, or did not measure the metric."""
    troubled: dict[tuple[str, str], dict[str, list[int]]] = {}
    for run in runs:
        if run.state != "finished" or not math.isfinite(_value(table, run)):
            troubled.setdefault((run.state, run.trouble), {}).setdefault(run.arm, []).append(run.seed)
    for (state, trouble), seeds in troubled.items():
        who = listed(
            [
                f"{arm}, seed{'s' * (len(of_arm) > 1)} {listed([str(s) for s in of_arm])}"
                for arm, of_arm in seeds.items()
            ]
        )
        several = sum(map(len, seeds.values())) > 1
        were, they, have, arms = (
            ("were", "their numbers are those they had", "They have no numbers", "an arm that lost seeds") if several
            else ("was", "its numbers are those it had", "It has no number", "its arm")
        )  # fmt: skip
        if state == "stopped":
            yield f"{who} {were} stopped early ({trouble}); {they} then, and count"
        elif state == "finished":
            yield f"{who} finished without {metric_title(table.metric)}"
        else:
            yield f"{who} {state}: {trouble}. {have}, and {arms} can claim nothing good"


def metric_title(metric: str) -> str:
    """A metric's name for readers: `gold at matched KL` for gold_at_kl."""
    return f"{metric.removesuffix('_at_kl')} at matched KL" if metric.endswith("_at_kl") else metric


def _better(table: "Table", better: str) -> str:
    return _listed([row for row in table.rows if row.claim == "better"], f"{better} with")


def _worse(table: "Table", better: str) -> str:
    return _listed(
        [row for row in table.rows if row.claim == "worse"], f"{'lower' if better == 'higher' else 'higher'} with"
    )


def _listed(rows: "Sequence[Row]", how: str) -> str:
    return f"{how} {listed([f'{row.arm} ({_of_seeds(row)}{_flag(row)})' for row in rows])}" if rows else ""


def _flag(row: "Row") -> str:
    lost = sum(not math.isfinite(value) for value in row.values.values())
    return f"; {lost} of {len(row.values)} seeds have no number" if lost else ""


def _of_seeds(row: "Row") -> str:
    assert row.difference is not None
    return f"{number(row.difference.mean.value, signed=True)} {interval(row.difference.low, row.difference.high)}"


def _rest(rows: "Sequence[Row]") -> str:
    """Arms about which nothing can be claimed, by the reason."""
    by_claim = {
        claim: [row for row in rows if row.claim == claim]
        for claim in ("undecided", "one seed", "same", "no spread", "failures")
    }
    parts = []
    if undecided := by_claim["undecided"]:
        parts.append(
            f"seeds too few to say for {listed([f'{row.arm} ({_of_seeds(row)}; {_needed(row)})' for row in undecided])}"
        )
    if single := by_claim["one seed"]:
        parts.append(f"seeds too few to say for {listed([row.arm for row in single])}: fewer than two in common")
        parts += [_of_policies(row) for row in single if row.over_prompts is not None]
    if same := by_claim["same"]:
        parts.append(f"exactly the same numbers with {listed([row.arm for row in same])}")
    if rigid := by_claim["no spread"]:
        parts.append(
            f"no verdict on {listed([row.arm for row in rigid])}: the difference is equal on every seed, so they did not vary"
        )
    if failed := by_claim["failures"]:
        shown = listed(
            [f"{row.arm} ({_of_seeds(row)} on {row.difference.mean.seeds} seeds)" for row in failed if row.difference]
        )
        parts.append(f"no claim for {shown}: it favours the side that lost seeds")
    return "; ".join(parts)


def _of_policies(row: "Row") -> str:
    """What one seed does tell."""
    assert row.over_prompts is not None and row.difference is not None
    e, seed = row.over_prompts, row.difference.seeds[0]
    over = (
        f"{interval(e.low, e.high)} over {e.prompts} prompts" if e.low == e.low else f"on each of {e.prompts} prompts"
    )
    return (
        f"this one policy of {row.arm} (seed {seed}) differs from the baseline's by {number(e.value, signed=True)} {over}, which "
        "tells what these two policies do, and not what the methods do with another seed"
    )


def _needed(row: "Row") -> str:
    assert row.difference is not None
    mean, needed = row.difference.mean, row.difference.needed
    if mean.value == 0:
        return "no number of seeds would show a difference of 0"
    if mean.seeds < 3:
        return "two seeds do not tell how many would be needed"
    if needed is None:
        return "more than a million seeds would be needed if the difference is as observed"
    return f"{seeds_in_words(needed)} seeds would be needed if the difference is as observed"


def seeds_in_words(needed: tuple[int, int]) -> str:
    """How many seeds, as far as a few seeds can tell."""
    few, many = needed
    return f"{few} to {many}" if few < many else f"{few}"


def _value(table: "Table", run: RunRecord) -> float:
    return next(row.values[run.seed] for row in table.rows if row.arm == run.arm)
