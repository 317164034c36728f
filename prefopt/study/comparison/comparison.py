"""The result of a comparison: its rows, its tables, and all that a report shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prefopt.runs.records import RunRecord, rows_of, rows_of_others
from prefopt.study.comparison.contrasts import AT_KL, Better, Claim, Contrast
from prefopt.study.comparison.crossed import Crossed
from prefopt.study.comparison.statistics import Difference, Mean
from prefopt.types import Estimate

__all__ = ["AT_KL", "Against", "Better", "Claim", "Comparison", "Contrast", "PaperTable", "Row", "Spread", "Table"]

Against = Literal["baseline", "best", "all"]
"""What arms are compared with: the baseline; the best arm, or all others, which both correct over all pairs."""


Spread = Literal["interval", "sd", "sem"]
"""What stands behind ±: half of Student's interval, the standard deviation between seeds, or the standard error s/√n."""


@dataclass(frozen=True)
class PaperTable:
    """What table.tex prints.

    Attributes:
        spread: behind ±.
        metrics: its columns; none are the primary metric and the usual few.
    """

    spread: Spread = "interval"
    metrics: tuple[str, ...] = ()


USUAL_TABLE = PaperTable()


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
        crossed: the difference over seeds and prompts, both as samples: what it would be on other prompts, too. None where runs
            keep no observations by prompt. No claim rests on it.
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
    crossed: Crossed | None = None


@dataclass(frozen=True)
class Table:
    """All arms and one metric, the baseline first.

    Attributes:
        metric: its name.
        rows: of each arm.
        pairs: every arm against every other, where the comparison is against the best or all; else none.
    """

    metric: str
    rows: tuple[Row, ...]
    pairs: tuple[Contrast, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows.

    Attributes:
        question: that the study asks.
        sentences: the answer, from the simultaneous intervals of the primary metric: claims first, then what they are from.
        metric: the primary one.
        better: whether higher or lower values of it are better.
        baseline: the arm that the others are compared with; the best one, where the comparison is against it.
        confidence: of all intervals.
        paired: whether arms were compared seed by seed.
        primary: all arms and the primary metric: the family that is corrected for multiple comparisons.
        others: exploratory, each a family of its own; the other reading of the primary metric comes first.
        runs: every run, also those that failed.
        costs: for each arm, means over its runs that trained, by the fields of `Spent`; NaN where no run recorded them.
        wins: for arm and other, how often the arm's sample has the higher gold score, prompt by prompt; over seeds.
        confounds: differences between arms that were not declared.
        notes: failures, early stops, and what the seeds did not vary.
        against: the baseline, the best arm or all pairs: the family over which simultaneous intervals and p-values are corrected.
        paper: how table.tex is printed.
    """

    question: str
    sentences: tuple[str, ...]
    metric: str
    better: Better
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
    against: Against = "baseline"
    paper: PaperTable = USUAL_TABLE

    @property
    def verdict(self) -> str:
        """The answer in one paragraph."""
        return " ".join(self.sentences)

    @property
    def arms(self) -> tuple[str, ...]:
        """Their names, the baseline first."""
        return tuple(row.arm for row in self.primary.rows)

    def rows_of(self, metric: str) -> str:
        """The held-out rows that a metric's table is of, in words; what is at matched KL is read off curves."""
        others = rows_of_others(self.runs, metric)
        return others or rows_of(self.runs, curves=metric.endswith(AT_KL))

    def of(self, arm: str) -> tuple[RunRecord, ...]:
        """The runs of an arm."""
        return tuple(run for run in self.runs if run.arm == arm)
