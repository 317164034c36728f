"""Intervals over seeds and prompts: against mean squares by hand, by how often they are right, and on run folders."""

import json
import math

import numpy as np
import pytest
from _folders import finished_run, study
from scipy import stats

from prefopt.evaluation.evaluator import Evaluation
from prefopt.evaluation.intervals import Observations
from prefopt.study.comparison.compare import compare
from prefopt.study.comparison.crossed import by_prompt, common_covariance, common_variance, widened
from prefopt.study.comparison.statistics import half_widths


def mean_squares(d: np.ndarray) -> tuple[float, float]:
    """Of prompts and of the rest, of a two-way layout [seeds, prompts]."""
    seeds, prompts = d.shape
    of_seeds, of_prompts = d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    rest = d - of_seeds - of_prompts + d.mean()
    ms_p = seeds * ((of_prompts - d.mean()) ** 2).sum() / (prompts - 1)
    return ms_p, (rest**2).sum() / ((seeds - 1) * (prompts - 1))


def test_what_seeds_share_is_the_variance_component_of_prompts():
    """Of a full table (MS_P − MS_E) / (S P), the moment estimate of var(b) / P (Searle 1992, ch. 4)."""
    d = np.random.default_rng(0).normal(size=(4, 30)) + np.random.default_rng(1).normal(size=30)
    ms_p, ms_e = mean_squares(d)
    assert common_variance(d) == pytest.approx((ms_p - ms_e) / d.size)


def test_prompts_of_their_own_share_nothing():
    """Each seed on its own half: what prompts do is in the spread between seeds already."""
    d = np.full((2, 20), np.nan)
    d[0, :10], d[1, 10:] = np.random.default_rng(0).normal(size=(2, 10))
    assert common_variance(d) == 0


def test_prompts_that_seeds_share_in_part_count_in_part():
    """Of pairs of seeds that share half of their 2n prompts, half of what sharing all would be, on average."""
    draw = np.random.default_rng(0)
    b = draw.normal(size=(4000, 1, 60)) + 0.1 * draw.normal(size=(4000, 2, 60))
    half = b.copy()
    half[:, 0, 40:], half[:, 1, :20] = np.nan, np.nan  # 40 prompts each, 20 in common
    assert common_variance(half).mean() == pytest.approx(1 / 40 / 2, rel=0.05)
    assert common_variance(b).mean() == pytest.approx(1 / 60, rel=0.05)


def test_runs_that_are_not_paired_share_what_their_prompts_do_to_both():
    """Two arms whose prompts are equally hard for both: of the difference nothing is left."""
    draw = np.random.default_rng(0)
    hard = draw.normal(size=200)
    one, other = hard + 0.01 * draw.normal(size=(3, 200)), hard + 0.01 * draw.normal(size=(5, 200))
    both = common_variance(one) + common_variance(other) - 2 * common_covariance(one, other)
    assert common_variance(one) == pytest.approx(hard.var(ddof=1) / 200, rel=0.01)
    assert abs(both) < 1e-5


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("shares", [(0.9, 0.05, 0.05), (0.4, 0.4, 0.2), (0.05, 0.9, 0.05), (0.05, 0.05, 0.9)])
def test_the_interval_holds_the_truth_over_new_seeds_and_new_prompts(seeds, shares):
    """Where prompts matter an interval over seeds does not."""
    draw, prompts, repeats = np.random.default_rng(seeds), 50, 3000
    a, b, e = np.sqrt(np.array(shares) * [seeds, prompts, seeds * prompts])
    d = a * draw.normal(size=(repeats, seeds, 1)) + b * draw.normal(size=(repeats, 1, prompts))
    d += e * draw.normal(size=(repeats, seeds, prompts))
    over_seeds = half_widths(d.mean(2), 0.95)
    over_both = widened(over_seeds, common_variance(d), prompts, 0.95)
    error = abs(d.mean((1, 2)))
    assert (error <= over_both).mean() > 0.94
    assert (over_both >= over_seeds).all()
    if shares[1] > 0.5:
        assert (error <= over_seeds).mean() < 0.9


def rewrite(run, values: np.ndarray, weights: np.ndarray | None = None, prompts: int = 0) -> None:
    """Give a run folder these observations of gold by prompt, and their mean at its end."""
    weights = np.ones_like(values) if weights is None else weights
    observed = Observations(values, weights, [f"p{prompts + i}" for i in range(len(values))])
    for file in (run / "evaluations").glob("test-*.json"):
        kept = Evaluation.from_json(file.read_text())
        file.write_text(Evaluation({"gold": observed}, samples=kept.samples).to_json())
    summary = json.loads((run / "summary.json").read_text())
    summary["after"]["gold"]["value"] = values.sum() / weights.sum()
    (run / "summary.json").write_text(json.dumps(summary))


def two_arms(folder, spread_of_prompts: float, seeds: int = 4, prompts: int = 60):
    """b is 0.5 better than a, more on some prompts than on others."""
    draw = np.random.default_rng(0)
    gain = 0.5 + spread_of_prompts * draw.normal(size=prompts)
    for seed in range(seeds):
        base = draw.normal(size=prompts)
        for arm, extra in (("a", 0.0), ("b", gain + 0.05 * draw.normal() + 0.1 * draw.normal(size=prompts))):
            rewrite(finished_run(folder / "arms" / arm / f"seed-{seed}", seed, 0.0), base + extra)
    return folder


def test_of_run_folders_it_is_the_formula(tmp_path):
    found = compare([two_arms(tmp_path, 1.0)])
    row = found.primary.rows[1]
    d = np.array([[by_prompt(found.of("b")[s], "gold")[p] - by_prompt(found.of("a")[s], "gold")[p]
                   for p in (f"p{i}" for i in range(60))] for s in range(4)])  # fmt: skip
    ms_p, ms_e = mean_squares(d)
    of_seeds = stats.t.ppf(0.975, 3) * d.mean(1).std(ddof=1) / 2
    half = math.hypot(of_seeds, stats.t.ppf(0.975, 59) * math.sqrt((ms_p - ms_e) / d.size))
    assert (row.crossed.low, row.crossed.high) == pytest.approx((d.mean() - half, d.mean() + half))
    assert row.crossed.both == pytest.approx((row.crossed.low, row.crossed.high))  # one comparison
    assert row.crossed.prompts == 60 and row.crossed.of_prompts > 0.9


def test_the_verdict_says_what_holds_of_these_prompts_alone(tmp_path):
    sure = compare([two_arms(tmp_path / "alike", 0.1)])
    assert sure.verdict.endswith("With other prompts than these 60, too: the same.")
    found = compare([two_arms(tmp_path / "unlike", 4.0)])
    row = found.primary.rows[1]
    assert row.claim in ("better", "worse") and row.crossed.both[0] < 0 < row.crossed.both[1]
    assert "With other prompts than these 60, too: not shown for b ([" in found.verdict


def test_unpaired_arms_have_one_too(tmp_path):
    found = compare([two_arms(tmp_path, 1.0)], paired=False)
    row = found.primary.rows[1]
    assert row.difference.values == ()
    assert row.crossed.low < row.difference.mean.low and row.crossed.prompts == 60


def test_a_ratio_of_sums_keeps_its_value_and_its_error(tmp_path):
    """Nats per token: the mean of what prompts say is Σv/Σw, and its error that of a bootstrap of prompts."""
    draw = np.random.default_rng(0)
    weights = draw.integers(1, 40, 400).astype(float)
    values = weights * (1 + 0.3 * draw.normal(size=400)) + 2 * draw.normal(size=400)
    rewrite(finished_run(tmp_path / "arms/a/seed-0", 0, 0.0), values, weights)
    rewrite(finished_run(tmp_path / "arms/b/seed-0", 0, 0.0), values, weights)
    said = np.array(list(by_prompt(compare([tmp_path]).of("a")[0], "gold").values()))
    assert said.mean() == pytest.approx(values.sum() / weights.sum())
    draws = draw.integers(0, 400, (4000, 400))
    bootstrap = (values[draws].sum(1) / weights[draws].sum(1)).std()
    assert said.std(ddof=1) / math.sqrt(400) == pytest.approx(bootstrap, rel=0.05)


def test_a_run_without_observations_has_none(tmp_path):
    made = study(tmp_path, {"a": [0.0, 0.1, 0.2], "b": [1.0, 1.12, 1.21]})
    assert compare([made], metric="length").primary.rows[1].crossed is None
    assert compare([made], metric="gold_at_kl").primary.rows[1].crossed is None
    assert compare([made]).primary.rows[1].crossed.prompts == 3
