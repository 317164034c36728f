"""The result of a comparison: its rows, its tables, and all that a report shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prefopt.runs.records import RunRecord, rows_of
from prefopt.study.comparison.statistics import Difference, Mean
from prefopt.types import Estimate

AT_KL = "_at_kl"
"""Ending of the name of a metric that is read where two arms have the same KL."""

Claim = Literal["baseline", "better", "worse", "undecided", "same", "one seed", "no spread", "failures"]


@dataclass(frozen=True)
class Row:
    """One arm and one metric.

    Attributes:
        arm: its name.
        values: of each seed; NaN where the run has none.
        mean: over the seeds that have a value.
        difference: to the baseline; None for the baseline itself.
        claim: what the simultaneous interval allows to say. `failures`: it excludes 0, in favour of the side that lost seeds.
        kl: for a metric at matched KL, the KL at which the two were compared; NaN where they have none in common.
        interquartile: interquartile mean; descriptive, NaN below 8 seeds.
        bootstrap: bootstrap-t interval; descriptive, NaN below 8 seeds.
        over_prompts: of one seed, the difference between its two policies, paired by prompt; it says nothing of another seed.
    """

    arm: str
    values: Mapping[int, float]
    mean: Mean
    difference: Difference | None
    claim: Claim
    kl: float | None
    interquartile: float
    bootstrap: tuple[float, float]
    over_prompts: Estimate | None = None


@dataclass(frozen=True)
class Table:
    """All arms and one metric, the baseline first."""

    metric: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows.

    Attributes:
        question: that the study asks.
        verdict: the answer in a sentence or two, worded from the simultaneous intervals of the primary metric.
        metric: the primary one.
        better: whether higher or lower values of it are better.
        baseline: the arm that the others are compared with.
        confidence: of all intervals.
        paired: whether arms were compared seed by seed.
        primary: all arms and the primary metric: the family that is corrected for multiple comparisons.
        others: exploratory, each a family of its own; the other reading of the primary metric comes first.
        runs: every run, also those that failed.
        costs: for each arm, means over its runs that trained, by the fields of `Spent`; NaN where no run recorded them.
        wins: for arm and other, how often the arm's sample has the higher gold score, prompt by prompt; over seeds.
        confounds: differences between arms that were not declared.
        notes: failures, early stops, and what the seeds did not vary.
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
    runs: tuple[RunRecord, ...]
    costs: Mapping[str, Mapping[str, float]]
    wins: Mapping[tuple[str, str], Mean]
    confounds: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Their names, the baseline first."""
        return tuple(row.arm for row in self.primary.rows)

    def rows_of(self, metric: str) -> str:
        """The held-out rows that a metric's table is of, in words; what is at matched KL is read off curves."""
        return rows_of(self.runs, curves=metric.endswith(AT_KL))

    def of(self, arm: str) -> tuple[RunRecord, ...]:
        """The runs of an arm."""
        return tuple(run for run in self.runs if run.arm == arm)
