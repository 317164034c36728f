"""One arm against another on one metric, and families of such contrasts, whose intervals hold together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from prefopt.runs.records import AT_KL, RunRecord
from prefopt.study.comparison.crossed import Crossed, crossed
from prefopt.study.comparison.prompts import over_prompts
from prefopt.study.comparison.statistics import Difference, at_kl, bonferroni, differences, rigid
from prefopt.types import Estimate

Better = Literal["higher", "lower"]
Claim = Literal["baseline", "better", "worse", "undecided", "same", "one seed", "no spread", "failures"]
Runs = Mapping[str, Mapping[int, RunRecord]]
"""Arm → seed → run."""


@dataclass(frozen=True)
class Contrast:
    """One arm against another.

    Attributes:
        arm: the one.
        other: the one that it is compared with.
        values: the arm's, of each seed of the comparison; NaN where it has none.
        others: the other's.
        difference: arm − other, over seeds.
        claim: what the simultaneous interval allows to say of the arm. `failures`: it excludes 0, in favour of the side that lost
            seeds.
        kl: for a metric at matched KL, the KL at which the two were compared; NaN where they have none in common.
        crossed: the difference over seeds and prompts; None where runs keep no observations by prompt.
        over_prompts: of one seed, the difference between its two policies, paired by prompt; it says nothing of another seed.
    """

    arm: str
    other: str
    values: Mapping[int, float]
    others: Mapping[int, float]
    difference: Difference
    claim: Claim
    kl: float | None = None
    crossed: Crossed | None = None
    over_prompts: Estimate | None = None


def contrasts(
    runs: Runs,
    pairs: Sequence[tuple[str, str]],
    metric: str,
    better: Better,
    confidence: float,
    paired: bool,
    level: float | None = None,
) -> list[Contrast]:
    """Each (arm, other) as one family: simultaneous intervals hold together with `confidence`, p-values are adjusted over all.

    Another `level` of each simultaneous interval stands for another way of correcting.
    """
    level = bonferroni(confidence, len(pairs)) if level is None else level
    name = metric.removesuffix(AT_KL)
    kls = [matched_kl([runs[arm], runs[other]]) if metric.endswith(AT_KL) else None for arm, other in pairs]
    sides = [[by_seed(runs, side, name, kl) for side in pair] for pair, kl in zip(pairs, kls, strict=True)]
    family = differences([(known(arm), known(other)) for arm, other in sides], confidence, paired, level)
    results = []
    for (arm, other), (values, others), difference, kl in zip(pairs, sides, family, kls, strict=True):
        claim, as_trained = claimed(difference, values, others, better), kl is None
        wide = crossed(runs[arm], runs[other], name, difference, confidence, level) if as_trained else None
        alone = claim == "one seed" and as_trained
        of_policies = over_prompts(runs[arm], runs[other], name, confidence) if alone else None
        results.append(Contrast(arm, other, values, others, difference, claim, kl, wide, of_policies))
    return results


def all_pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Every arm against every one before it."""
    return [(arm, other) for other, arm in combinations(arms, 2)]


def by_seed(runs: Runs, arm: str, name: str, kl: float | None = None) -> dict[int, float]:
    """A number for each seed of the comparison, at the end of its run or at a KL; NaN where there is none."""
    seeds = sorted({seed for of_arm in runs.values() for seed in of_arm})
    return {seed: _value(runs[arm].get(seed), name, kl) for seed in seeds}


def _value(run: RunRecord | None, name: str, kl: float | None) -> float:
    """A metric at the end of a run, or where the run first reaches a KL; NaN where there is none, and for a run that failed."""
    if run is None or not run.after:
        return math.nan
    return run.after.get(name, math.nan) if kl is None else at_kl(run.path(name), kl)


def matched_kl(arms: Sequence[Mapping[int, RunRecord]]) -> float:
    """The largest KL that every run of these arms has reached, whatever they scored there; NaN where a run never moved."""
    paths = [run.measured("kl")[1] for of_arm in arms for run in of_arm.values() if run.after]
    reached = min((max(kl, default=math.nan) for kl in paths), default=math.nan)
    return reached if reached > 0 else math.nan


def known(values: Mapping[int, float]) -> dict[int, float]:
    """Those seeds that have a number."""
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def claimed(difference: Difference, arm: Mapping[int, float], other: Mapping[int, float], better: str) -> Claim:
    """What the simultaneous interval allows to say. Lost seeds count against the arm that lost them, and for nobody.

    On the seeds that both finished, an arm may look good because its bad seeds are missing. So a difference in favour of an arm
    that lost a seed is never claimed; a difference against it is. A seed that both lost counts against neither.
    """
    value, lost = difference.mean.value, known(other).keys() - known(arm).keys()
    others_lost = known(arm).keys() - known(other).keys()
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
