"""How often the samples of one arm score higher than those of another, prompt by prompt."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from prefopt.runs.records import RunRecord
from prefopt.study.comparison.statistics import Mean, student


def matrix(runs: Sequence[RunRecord], arms: Sequence[str], confidence: float = 0.95) -> dict[tuple[str, str], Mean]:
    """For each arm and other, P(the arm's sample scores higher by gold) over prompts, a tie ½; with Student's interval over seeds.

    Only prompts that both were measured on count, and only seeds that both finished.
    """
    scores = {(run.arm, run.seed): by_prompt for run in runs if (by_prompt := _gold(run))}
    seeds = sorted({seed for _, seed in scores})
    return {
        (one, other): student(
            [
                _share(scores[one, seed], scores[other, seed])
                for seed in seeds
                if (one, seed) in scores
                and (other, seed) in scores
                and scores[one, seed].keys() & scores[other, seed].keys()
            ],
            confidence,
        )
        for one, other in product(arms, arms)
        if one != other
    }


def _gold(run: RunRecord) -> dict[str, float]:
    """Prompt → mean gold score of its samples; empty where the run has none."""
    if run.evaluation is None or "gold" not in run.evaluation.observations:
        return {}
    names, sums, weights = run.evaluation.observations["gold"].by_group()
    return dict(zip(names, sums / weights, strict=True))


def _share(one: dict[str, float], other: dict[str, float]) -> float:
    shared = one.keys() & other.keys()
    return float(np.mean([(np.sign(one[name] - other[name]) + 1) / 2 for name in shared]))
