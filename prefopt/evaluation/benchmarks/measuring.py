"""Measuring a feedback on a benchmark: rows from files, the benchmark that they are of, and what it comes to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator

from prefopt.data import load_rows
from prefopt.evaluation.benchmarks.answers import Answer, asked
from prefopt.evaluation.benchmarks.cases import Case
from prefopt.evaluation.benchmarks.judgebench import JudgeBench
from prefopt.evaluation.benchmarks.rewardbench import RewardBench
from prefopt.evaluation.benchmarks.rewardbench2 import RewardBench2
from prefopt.evaluation.benchmarks.rmbench import RMBench
from prefopt.evaluation.benchmarks.scores import Score, ScoreEstimate
from prefopt.evaluation.evaluator import Evaluation
from prefopt.support.errors import PrefoptError, nearest
from prefopt.types import Feedback


class Benchmark(Protocol):
    """A benchmark: how its rows look, and how they are scored.

    Attributes:
        name: by which it is asked for.
        columns: of its rows, for messages.
    """

    name: str
    columns: str

    def recognises(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of this benchmark."""
        ...

    def case(self, row: Mapping[str, Any], where: str) -> Case:
        """A row of the data."""
        ...

    def subsets(self, cases: Sequence[Case], answers: Sequence[Answer]) -> dict[str, Score]:
        """The score of each subset."""
        ...

    def sections(self, subsets: Mapping[str, Score]) -> dict[str, Score]:
        """The scores that are reported beside the overall one."""
        ...

    def overall(self, subsets: Mapping[str, Score], sections: Mapping[str, Score]) -> Score:
        """The one number."""
        ...

    def numbers(self, cases: Sequence[Case], answers: Sequence[Answer]) -> dict[str, float]:
        """What there is to say beside it."""
        ...


BENCHMARKS: Mapping[str, Benchmark] = {
    one.name: one for one in (JudgeBench(), RMBench(), RewardBench2(), RewardBench())
}
"""In the order in which they are asked whether a row is theirs."""


@dataclass(frozen=True)
class Measured:
    """What a model comes to on a benchmark.

    Attributes:
        benchmark: its name.
        overall: the one number.
        sections: those that are reported beside it.
        subsets: the parts of sections.
        numbers: further ones, which have no interval.
        rows: each row's id, subset, and the scores of its answers, the right ones first.
        evaluation: overall and sections as a run folder keeps them, under the name of the data.
    """

    benchmark: str
    overall: ScoreEstimate
    sections: Mapping[str, ScoreEstimate]
    subsets: Mapping[str, ScoreEstimate]
    numbers: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]]
    evaluation: Evaluation


def load_cases(data: str, name: str | None = None, limit: int | None = None) -> tuple[Benchmark, list[Case]]:
    """The rows of a benchmark, and which one it is.

    Args:
        data: a file, a glob, a folder that `datasets` saved, a function or a hub id.
        name: of the benchmark; None recognises it by the columns of the first row.
        limit: number of rows to use, from the first on; None is all.

    Raises:
        PrefoptError: nothing found, rows of no known benchmark, or a row that cannot be read.
    """
    if name is not None and name not in BENCHMARKS:
        raise PrefoptError(
            f"there is no benchmark {name!r}.{nearest(name, BENCHMARKS)} There are: {', '.join(BENCHMARKS)}"
        )
    benchmark = BENCHMARKS[name] if name is not None else None
    cases: list[Case] = []
    for where, row in load_rows(data):
        if limit is not None and len(cases) == limit:
            break
        row = {column: value for column, value in row.items() if value is not None}
        found = next((one for one in BENCHMARKS.values() if one.recognises(row)), None)
        if benchmark is None and found is None:
            shapes = "\n".join(f"  {one.name}: {one.columns}" for one in BENCHMARKS.values())
            raise PrefoptError(f"{where}: the columns {sorted(row)} are those of no benchmark. There are\n{shapes}")
        benchmark = benchmark or found
        assert benchmark is not None
        if not benchmark.recognises(row):
            like = f", but of {found.name}" if found is not None else ""
            raise PrefoptError(
                f"{where}: no row of {benchmark.name}{like}: it has {benchmark.columns}; here are {sorted(row)}"
            )
        cases.append(benchmark.case(row, where))
    if benchmark is None:
        raise PrefoptError(f"{data}: no rows")
    return benchmark, cases


def in_turns(cases: Sequence[Case]) -> list[Case]:
    """The cases with prompts that are conversations, for models whose chat template writes what they read."""
    return [
        replace(case, prompt=({"role": "user", "content": case.prompt},)) if isinstance(case.prompt, str) else case
        for case in cases
    ]


def without_prompts(cases: Sequence[Case]) -> list[Case]:
    """The cases with answers alone, for models of single texts."""
    return [replace(case, prompt="") for case in cases]


def measure(
    benchmark: Benchmark,
    cases: Sequence[Case],
    feedback: Feedback,
    accelerator: Accelerator,
    *,
    name: str,
    batch_size: int = 16,
    confidence: float = 0.95,
    seed: int = 0,
) -> Measured:
    """Ask a feedback about every case, and score its answers.

    Args:
        benchmark: says how.
        cases: its rows.
        feedback: what is measured.
        accelerator: knows the processes.
        name: under which a run folder keeps the result: NAME, NAME/SECTION.
        batch_size: cases in one call of the feedback.
        confidence: of the intervals.
        seed: of the resampling, where an interval needs it.

    Raises:
        PrefoptError: the feedback failed, or gave no verdict on any case.
    """
    answers = list(asked(feedback, cases, batch_size, accelerator))
    if all(answer.missing for answer in answers):
        raise PrefoptError(
            f"none of the {len(cases)} rows got a verdict on all its answers, so there is nothing to measure"
        )
    subsets = benchmark.subsets(cases, answers)
    sections = benchmark.sections(subsets)
    scores = {name: benchmark.overall(subsets, sections)} | {f"{name}/{s}": score for s, score in sections.items()}
    numbers = {"missing": float(np.mean([a.missing for a in answers])), **benchmark.numbers(cases, answers)}
    numbers |= {"cut": float(np.mean([a.cut > 0 for a in answers]))}

    def estimated(score: Score) -> ScoreEstimate:
        return score.estimate(confidence, seed)

    return Measured(
        benchmark.name,
        estimated(scores[name]),
        {section: estimated(score) for section, score in sections.items()},
        {subset: estimated(score) for subset, score in subsets.items()},
        numbers,
        [_row(case, answer) for case, answer in zip(cases, answers, strict=True)],
        _kept(scores, confidence, seed),
    )


def _kept(scores: Mapping[str, Score], confidence: float, seed: int) -> Evaluation:
    """Row by row where a score is a mean over rows, else as a number."""
    observed = {name: score.observations() for name, score in scores.items()}
    rows = {name: observations for name, observations in observed.items() if observations is not None}
    numbers = {name: score.estimate(confidence, seed).value for name, score in scores.items() if name not in rows}
    return Evaluation(rows, numbers, confidence=confidence, seed=seed)


def _row(case: Case, answer: Answer) -> dict[str, Any]:
    scores = [None if math.isnan(score) else score for score in answer.scores.tolist()]
    return {"id": case.key, "subset": case.subset, "right": case.right, "scores": scores}
