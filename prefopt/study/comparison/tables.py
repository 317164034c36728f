"""What a comparison finds: rows, tables, and everything that a report draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prefopt.runs.records import Finished
from prefopt.study.comparison.statistics import Difference, Mean

AT_KL = "_at_kl"
"""Ending of the name of a metric that is read where two runs have the same KL."""

Claim = Literal["baseline", "better", "worse", "undecided", "same", "one seed", "no spread", "failures"]


@dataclass(frozen=True)
class Row:
    """One arm and one metric.

    Attributes:
        arm: its name.
        values: of each seed; NaN where the run has no number.
        mean: over the seeds that have one.
        difference: to the baseline; None for the baseline itself.
        claim: what may be said of the difference. `failures`: the interval excludes 0 in favour of the side that lost seeds.
        kl: at which the two were compared, of a metric at matched KL; NaN where no run's path crosses one.
        interquartile: descriptive, NaN below 8 seeds.
        bootstrap: bootstrap-t interval, descriptive, NaN below 8 seeds.
    """

    arm: str
    values: Mapping[int, float]
    mean: Mean
    difference: Difference | None
    claim: Claim
    kl: float | None
    interquartile: float
    bootstrap: tuple[float, float]


@dataclass(frozen=True)
class Table:
    """All arms and one metric, the baseline first."""

    metric: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that a report draws.

    Attributes:
        question: what was asked.
        verdict: the answer in a sentence or two, worded from the simultaneous intervals of the primary metric.
        metric: the primary one.
        better: which end of it is the good one.
        baseline: the arm that the others are compared with.
        confidence: of all intervals.
        paired: compared seed by seed.
        primary: the family: all arms × the primary metric.
        others: exploratory, each its own family; the primary metric's other reading comes first.
        runs: every run, also those that failed.
        costs: of an arm, means over its runs that trained at all, by the fields of `Spent`; NaN where none says.
        wins: for arm and other, how often the arm's sample has the higher gold score, prompt by prompt; over seeds.
        confounds: what differs between arms beside what was meant to.
        notes: what a reader has to know: failures, stops, seeds that did not vary.
    """

    question: str
    verdict: str
    metric: str
    better: Literal["higher", "lower"]
    baseline: str
    confidence: float
    paired: bool
    primary: Table
    others: tuple[Table, ...]
    runs: tuple[Finished, ...]
    costs: Mapping[str, Mapping[str, float]]
    wins: Mapping[tuple[str, str], Mean]
    confounds: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Their names, the baseline first."""
        return tuple(row.arm for row in self.primary.rows)

    def of(self, arm: str) -> tuple[Finished, ...]:
        """The runs of an arm."""
        return tuple(run for run in self.runs if run.arm == arm)
