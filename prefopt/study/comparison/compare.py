"""Comparing arms with a baseline over seeds: tables with intervals, and a verdict that follows from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import cast

from prefopt.runs.accounting import CALLED
from prefopt.runs.records import RunOfArm, RunRecord, find_runs, read_runs, usual_metric
from prefopt.study.comparison import verdict, wins
from prefopt.study.comparison.best import best_arm, pairs_for_best, to_the_best, unbeaten
from prefopt.study.comparison.comparison import USUAL_TABLE, Against, Comparison, PaperTable, Row, Table
from prefopt.study.comparison.contrasts import (
    AT_KL,
    Better,
    Claim,
    Contrast,
    Runs,
    all_pairs,
    by_seed,
    contrasts,
    known,
    matched_kl,
)
from prefopt.study.comparison.statistics import bootstrap_t, interquartile_mean, student
from prefopt.support.errors import PrefoptError, nearest

__all__ = ["Claim", "Comparison", "PaperTable", "Row", "RunOfArm", "Table", "compare"]


def compare(
    runs: Sequence[RunOfArm | str | Path],
    *,
    question: str = "",
    baseline: str | None = None,
    against: str = "baseline",
    metric: str | None = None,
    better: Better = "higher",
    measure: Sequence[str] = (),
    confidence: float = 0.95,
    paired: bool = True,
    confounds: Sequence[str] = (),
    notes: Sequence[str] = (),
    paper: PaperTable = USUAL_TABLE,
) -> Comparison:
    """Compare finished runs.

    Args:
        runs: run folders, studies or folders of run folders; or records that say which is of which arm and seed.
        question: heads the report.
        baseline: an arm; by default the first.
        against: what arms are compared with: `baseline`; `best`, the arm with the best mean; `all`, each with each; or an arm,
            which is then the baseline. The best is known only after the runs; intervals against it allow for that.
        metric: the primary one: a held-out metric as trained (`gold`), or where two runs have moved equally far (`gold_at_kl`). By
            default gold where a run has it, else accuracy.
        better: whether higher or lower values of it are better.
        measure: further metrics to report; by default all.
        confidence: of every interval; simultaneous ones hold together with it.
        paired: compare seed by seed.
        confounds: known differences between arms that were not intended, for the report.
        notes: sentences to put before the notes of the comparison.
        paper: how table.tex is printed.

    Raises:
        PrefoptError: fewer than two arms; an unknown baseline or metric.
    """
    results = [run for run in runs if isinstance(run, RunOfArm)]
    records = read_runs(results + find_runs([run for run in runs if not isinstance(run, RunOfArm)]))
    metric, *others = _metrics(records, metric, measure)
    family, by_arm = _family(records, against, baseline, metric, better)
    arms = list(by_arm)
    tables = [_table(by_arm, name, better, confidence, paired, family) for name in (metric, *others)]
    return Comparison(
        question,
        verdict.sentences(tables[0], better, confidence, family),
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
        family,
        paper,
    )


def _family(
    runs: Sequence[RunRecord], against: str, baseline: str | None, metric: str, better: Better
) -> tuple[Against, Runs]:
    """What is corrected over, and the runs by arm, the baseline's first; `against` may name it."""
    if against not in ("baseline", "best", "all"):
        arms = {run.arm for run in runs}
        if against not in arms:
            hint = nearest(against, [*arms, "best", "all"])
            raise PrefoptError(f"{against!r} is not an arm, best or all.{hint} Arms: {', '.join(sorted(arms))}")
        if baseline not in (None, against):
            raise PrefoptError(
                f"against {against!r} and baseline {baseline!r}: both name an arm to compare with. Give one"
            )
        against, baseline = "baseline", against
    by_arm = _by_arm(runs, _arms(runs, baseline))
    if against == "best":
        by_arm = _by_arm(runs, _arms(runs, best_arm(by_arm, metric, better)))
    return cast(Against, against), by_arm


def _by_arm(runs: Sequence[RunRecord], arms: Sequence[str]) -> Runs:
    return {arm: {run.seed: run for run in runs if run.arm == arm} for arm in arms}


def _metrics(runs: Sequence[RunRecord], metric: str | None, measure: Sequence[str]) -> list[str]:
    """The primary metric, its other reading (as trained, or at matched KL) where runs have paths, and the further ones."""
    measured = list(dict.fromkeys(name for run in runs for name in run.after))
    metric = metric or usual_metric([list(run.after) for run in runs if run.after], _own_metrics(runs))
    plain = metric.removesuffix(AT_KL)
    if plain not in measured:
        raise PrefoptError(
            f"no run has measured {metric!r}.{nearest(metric, measured)} They have: {', '.join(measured) or 'nothing'}"
        )
    if plain != metric and "/" in plain:
        raise PrefoptError(f"{metric}: sets are measured at start and end alone, and matching by KL takes a path")
    other_reading = plain if metric.endswith(AT_KL) else f"{metric}{AT_KL}"
    further = [name for name in measure or measured if name != metric]
    return list(dict.fromkeys([metric, *([other_reading] if _has_paths(runs, plain) else []), *further]))


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


def _has_paths(runs: Sequence[RunRecord], metric: str) -> bool:
    """Whether some run measured it during training: a path of KL needs more than its two ends."""
    return any(len(run.path(metric)) > 2 for run in runs)


def _table(runs: Runs, metric: str, better: Better, confidence: float, paired: bool, against: Against) -> Table:
    """The baseline is the first arm."""
    arms = list(runs)
    if against == "best":
        family = pairs_for_best(runs, metric, better, confidence, paired)
        to_baseline = _to_the_best(arms, family, better)
    else:
        pairs = all_pairs(arms) if against == "all" else [(arm, arms[0]) for arm in arms[1:]]
        family = contrasts(runs, pairs, metric, better, confidence, paired)
        to_baseline = [one for one in family if one.other == arms[0]]
    own_kl = matched_kl([runs[arms[0]]]) if metric.endswith(AT_KL) else None
    rows = [_row(arms[0], by_seed(runs, arms[0], metric.removesuffix(AT_KL), own_kl), own_kl, confidence, None)]
    rows += [_row(one.arm, one.values, one.kl, confidence, one) for one in to_baseline]
    return Table(metric, tuple(rows), tuple(family) if against == "all" else ())


def _to_the_best(arms: Sequence[str], pairs: Sequence[Contrast], better: Better) -> list[Contrast]:
    """Each arm against the first, which has the best mean; its simultaneous interval is to the best of the others."""
    intervals, wide = (to_the_best(arms, pairs, better, other_prompts) for other_prompts in (False, True))
    beaten = set(arms) - set(unbeaten(arms, pairs))
    results = []
    for one in (pair for pair in pairs if pair.other == arms[0]):
        low, high = intervals[one.arm]
        difference = replace(one.difference, low=low, high=high, holm=math.nan)
        crossed = None if one.crossed is None else replace(one.crossed, both=wide[one.arm])
        said: Claim = "worse" if one.arm in beaten and known(one.values) else one.claim
        results.append(replace(one, difference=difference, crossed=crossed, claim=said))
    return results


def _row(
    arm: str, values: Mapping[int, float], kl: float | None, confidence: float, to_baseline: Contrast | None
) -> Row:
    numbers = list(known(values).values())
    described = student(numbers, confidence), interquartile_mean(numbers), bootstrap_t(numbers, confidence)
    mean, interquartile, bootstrap = described
    if to_baseline is None:
        return Row(arm, values, mean, None, "baseline", kl, interquartile, bootstrap)
    c = to_baseline
    return Row(arm, values, mean, c.difference, c.claim, kl, interquartile, bootstrap, c.over_prompts, c.crossed)
