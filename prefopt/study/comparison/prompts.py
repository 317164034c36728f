"""The difference of two policies over prompts, where there is but one seed: it says nothing of their methods."""

from collections.abc import Mapping

from prefopt.evaluation.evaluation import bounds_of
from prefopt.evaluation.intervals import change, common
from prefopt.runs.records import RunRecord
from prefopt.types import Estimate


def over_prompts(
    runs: Mapping[int, RunRecord], baselines: Mapping[int, RunRecord], metric: str, confidence: float
) -> Estimate | None:
    """Arm − baseline at the end of their one seed, paired by prompt, with a bootstrap interval over the prompts that both measured.

    None where they share no seed or several, where a run keeps no observations of the metric, or they share fewer than two prompts.
    """
    seeds = [seed for seed in runs.keys() & baselines.keys() if runs[seed].after and baselines[seed].after]
    if len(seeds) != 1:
        return None
    pair = baselines[seeds[0]], runs[seeds[0]]
    observed = [run.evaluation.observations.get(metric) if run.evaluation else None for run in pair]
    before, after = observed
    if before is None or after is None:
        return None
    both = common(before, after)
    return change(*both, confidence, bounds=bounds_of(metric)) if len(set(both[0].groups)) > 1 else None
