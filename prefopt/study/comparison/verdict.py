"""A table as sentences: the verdict, and notes on runs that failed or stopped."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prefopt.runs.records import RunRecord

if TYPE_CHECKING:
    from prefopt.study.comparison.comparison import Row, Table


def sentence(table: "Table", runs: Sequence[RunRecord], better: str, confidence: float) -> str:
    """The answer to the question, from the simultaneous intervals of the primary metric."""
    baseline, arms = table.rows[0].arm, table.rows[1:]
    parts = [_better(table, better), _worse(table, better), _rest(arms)]
    claims = "; ".join(part for part in parts if part)
    several = f"intervals that hold together for all {len(arms)} arms" if len(arms) > 1 else "its interval"
    level = f"{confidence:.0%}, Student's t over seeds" + (", Bonferroni" if len(arms) > 1 else "")
    source = "" if all(row.claim == "one seed" for row in arms) else f" (From {several}: {level}.)"
    return f"Against {baseline}, on {metric_title(table.metric)}: {claims}.{source}"


def notes(table: "Table", runs: Sequence[RunRecord]) -> Iterator[str]:
    """A sentence for each run that failed, stopped early, or did not measure the metric."""
    for run in runs:
        if run.state == "stopped":
            yield f"{run.arm}, seed {run.seed} was stopped early ({run.trouble}); its numbers are those it had then, and count"
        elif run.state != "finished":
            yield f"{run.arm}, seed {run.seed} {run.state}: {run.trouble}. It has no number, and its arm can claim nothing good"
        elif not math.isfinite(_value(table, run)):
            yield f"{run.arm}, seed {run.seed} finished without {metric_title(table.metric)}"


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
    return f"{how} {_and([f'{row.arm} ({_interval(row)}{_flag(row)})' for row in rows])}" if rows else ""


def _flag(row: "Row") -> str:
    lost = sum(not math.isfinite(value) for value in row.values.values())
    return f"; {lost} of {len(row.values)} seeds have no number" if lost else ""


def _interval(row: "Row") -> str:
    assert row.difference is not None
    text = f"{row.difference.mean.value:+.3g} [{row.difference.low:.3g}, {row.difference.high:.3g}]"
    return text.replace("-", "−")


def _rest(rows: "Sequence[Row]") -> str:
    """Arms about which nothing can be claimed, by the reason."""
    by_claim = {
        claim: [row for row in rows if row.claim == claim]
        for claim in ("undecided", "one seed", "same", "no spread", "failures")
    }
    parts = []
    if undecided := by_claim["undecided"]:
        parts.append(
            f"seeds too few to say for {_and([f'{row.arm} ({_interval(row)}; {_needed(row)})' for row in undecided])}"
        )
    if single := by_claim["one seed"]:
        parts.append(f"seeds too few to say for {_and([row.arm for row in single])}: fewer than two in common")
        parts += [_of_policies(row) for row in single if row.over_prompts is not None]
    if same := by_claim["same"]:
        parts.append(f"exactly the same numbers with {_and([row.arm for row in same])}")
    if rigid := by_claim["no spread"]:
        parts.append(
            f"no verdict on {_and([row.arm for row in rigid])}: the difference is equal on every seed, so they did not vary"
        )
    if failed := by_claim["failures"]:
        shown = _and(
            [f"{row.arm} ({_interval(row)} on {row.difference.mean.seeds} seeds)" for row in failed if row.difference]
        )
        parts.append(f"no claim for {shown}: it favours the side that lost seeds")
    return "; ".join(parts)


def _of_policies(row: "Row") -> str:
    """What one seed does tell."""
    assert row.over_prompts is not None and row.difference is not None
    e, seed = row.over_prompts, row.difference.seeds[0]
    interval = f"{e.value:+.3g} [{e.low:.3g}, {e.high:.3g}]".replace("-", "−")
    return (
        f"this one policy of {row.arm} (seed {seed}) differs from the baseline's by {interval} over {e.prompts} prompts, which "
        "tells what these two policies do, and not what the methods do with another seed"
    )


def _needed(row: "Row") -> str:
    assert row.difference is not None
    if row.difference.needed is None:
        return "no number of seeds would show a difference of 0"
    return f"about {row.difference.needed} seeds would be needed if the difference is as observed"


def _value(table: "Table", run: RunRecord) -> float:
    return next(row.values[run.seed] for row in table.rows if row.arm == run.arm)


def _and(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)
