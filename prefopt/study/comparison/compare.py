"""Comparing arms with a baseline over seeds: tables with intervals, and a verdict that follows from them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

from prefopt.runs.accounting import CALLED
from prefopt.runs.records import RunOfArm, RunRecord, find_runs, read_runs, usual_metric
from prefopt.study.comparison import verdict, wins
from prefopt.study.comparison.comparison import AT_KL, Claim, Comparison, Row, Table
from prefopt.study.comparison.prompts import over_prompts
from prefopt.study.comparison.statistics import (
    Difference,
    at_kl,
    bootstrap_t,
    differences,
    interquartile_mean,
    rigid,
    student,
)
from prefopt.support.errors import PrefoptError, nearest

__all__ = ["Claim", "Comparison", "Row", "RunOfArm", "Table", "compare"]


def compare(
    runs: Sequence[RunOfArm | str | Path],
    *,
    question: str = "",
    baseline: str | None = None,
    metric: str | None = None,
    better: Literal["higher", "lower"] = "higher",
    measure: Sequence[str] = (),
    confidence: float = 0.95,
    paired: bool = True,
    confounds: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Comparison:
    """Compare finished runs.

    Args:
        runs: run folders, studies or folders of run folders; or records that say which is of which arm and seed.
        question: heads the report.
        baseline: an arm; by default the first.
        metric: the primary one: a held-out metric as trained (`gold`), or where two runs have moved equally far (`gold_at_kl`). By
            default gold where a run has it, else accuracy.
        better: whether higher or lower values of it are better.
        measure: further metrics to report; by default all.
        confidence: of every interval; simultaneous ones hold together with it.
        paired: compare seed by seed.
        confounds: known differences between arms that were not intended, for the report.
        notes: sentences to put before the notes of the comparison.

    Raises:
        PrefoptError: fewer than two arms; an unknown baseline or metric.
    """
    results = [run for run in runs if isinstance(run, RunOfArm)]
    records = read_runs(results + find_runs([run for run in runs if not isinstance(run, RunOfArm)]))
    arms = _arms(records, baseline)
    metric, *others = _metrics(records, metric, measure)
    tables = [_table(records, arms, name, better, confidence, paired) for name in (metric, *others)]
    return Comparison(
        question,
        verdict.sentence(tables[0], records, better, confidence),
        metric,
        better,
        arms[0],
        confidence,
        paired,
        tables[0],
        tuple(tables[1:]),
        tuple(sorted(records, key=lambda run: (arms.index(run.arm), run.seed))),
        {arm: _mean_costs([run for run in records if run.arm == arm]) for arm in arms},
        wins.matrix(records, arms, confidence),
        tuple(confounds),
        (*notes, *verdict.notes(tables[0], records)),
    )


def _metrics(runs: Sequence[RunRecord], metric: str | None, measure: Sequence[str]) -> list[str]:
    """The primary metric, its other reading (as trained, or at matched KL) where runs have paths, and the further ones."""
    known = list(dict.fromkeys(name for run in runs for name in run.after))
    metric = metric or usual_metric([list(run.after) for run in runs if run.after], _own_metrics(runs))
    plain = metric.removesuffix(AT_KL)
    if plain not in known:
        raise PrefoptError(
            f"no run has measured {metric!r}.{nearest(metric, known)} They have: {', '.join(known) or 'nothing'}"
        )
    other_reading = plain if metric.endswith(AT_KL) else f"{metric}{AT_KL}"
    further = [name for name in measure or known if name != metric]
    return list(dict.fromkeys([metric, *([other_reading] if _has_paths(runs) else []), *further]))


def _own_metrics(runs: Sequence[RunRecord]) -> list[str]:
    """The metrics that recipes brought themselves."""
    evaluate = [run.recipe.get("evaluate") for run in runs]
    return [name for one in evaluate if isinstance(one, Mapping) for name in one.get("metrics") or ()]


def _arms(runs: Sequence[RunRecord], baseline: str | None) -> list[str]:
    """The arms in the order given, except that the baseline comes first."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    if len(arms) < 2:
        raise PrefoptError(f"a comparison needs two arms; these runs are all of {', '.join(arms) or 'none'}")
    first = baseline or arms[0]
    if first not in arms:
        raise PrefoptError(f"baseline {first!r} is not an arm.{nearest(first, arms)} Arms: {', '.join(arms)}")
    return [first, *(arm for arm in arms if arm != first)]


def _mean_costs(runs: Sequence[RunRecord]) -> dict[str, float]:
    known = [run.costs for run in runs if run.costs and run.history]
    return {name: fmean(costs[name] for costs in known) if known else math.nan for name in CALLED}


def _has_paths(runs: Sequence[RunRecord]) -> bool:
    """Whether some run was evaluated during training: a path of KL needs more than its two ends."""
    return any(len(run.measured("kl")[0]) > 2 for run in runs)


def _table(
    runs: Sequence[RunRecord], arms: Sequence[str], metric: str, better: str, confidence: float, paired: bool
) -> Table:
    seeds = sorted({run.seed for run in runs})
    by_arm = {arm: {run.seed: run for run in runs if run.arm == arm} for arm in arms}
    matched = [_matched(by_arm[arm], by_arm[arms[0]]) if metric.endswith(AT_KL) else None for arm in arms]
    name = metric.removesuffix(AT_KL)

    def numbers(arm: str, kl: float | None) -> dict[int, float]:
        return {seed: _value(by_arm[arm].get(seed), name, kl) for seed in seeds}

    values = [numbers(arm, kl) for arm, kl in zip(arms, matched, strict=True)]
    bases = [numbers(arms[0], kl) for kl in matched]
    pairs = [(_known(arm), _known(base)) for arm, base in zip(values[1:], bases[1:], strict=True)]
    against_baseline = [None, *differences(pairs, confidence, paired)]
    rows = []
    for arm, of_arm, base, difference, kl in zip(arms, values, bases, against_baseline, matched, strict=True):
        numbers_of = list(_known(of_arm).values())
        mean, descriptions = (
            student(numbers_of, confidence),
            (interquartile_mean(numbers_of), bootstrap_t(numbers_of, confidence)),
        )
        claim = "baseline" if difference is None else claimed(difference, of_arm, base, better)
        alone = claim == "one seed" and kl is None
        prompts = over_prompts(by_arm[arm], by_arm[arms[0]], name, confidence) if alone else None
        rows.append(Row(arm, of_arm, mean, difference, claim, kl, *descriptions, prompts))
    return Table(metric, tuple(rows))


def _value(run: RunRecord | None, name: str, kl: float | None) -> float:
    """A metric at the end of a run, or where the run first reaches a KL; NaN where there is none, and for a run that failed."""
    if run is None or not run.after:
        return math.nan
    return run.after.get(name, math.nan) if kl is None else at_kl(run.path(name), kl)


def _matched(one: Mapping[int, RunRecord], other: Mapping[int, RunRecord]) -> float:
    """The largest KL that every run of both arms has reached, whatever they scored there; NaN where a run never moved."""
    paths = [run.measured("kl")[1] for run in (*one.values(), *other.values()) if run.after]
    reached = min((max(kl, default=math.nan) for kl in paths), default=math.nan)
    return reached if reached > 0 else math.nan


def _known(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def claimed(difference: Difference, arm: Mapping[int, float], baseline: Mapping[int, float], better: str) -> Claim:
    """What the simultaneous interval allows to say. Lost seeds count against the arm that lost them, and for nobody.

    On the seeds that both finished, an arm may look good because its bad seeds are missing. So a difference in favour of an arm
    that lost a seed is never claimed; a difference against it is. A seed that both lost counts against neither.
    """
    value, lost = difference.mean.value, _known(baseline).keys() - _known(arm).keys()
    others_lost = _known(arm).keys() - _known(baseline).keys()
    if difference.mean.seeds < 2:
        return "one seed"
    if rigid(difference.mean):
        return "same" if value == 0 else "no spread"
    if not (difference.low > 0 or difference.high < 0):
        return "undecided"
    ahead = (value > 0) == (better == "higher")
    if (ahead and lost) or (not ahead and others_lost):
        return "failures"
    return "better" if ahead else "worse"
