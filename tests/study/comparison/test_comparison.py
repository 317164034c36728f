"""Comparisons of runs: what is claimed, what is refused, and that a lost seed never flatters."""

import json
import math

import pytest
from _folders import failed_run, finished_run, study
from scipy import stats

import prefopt
from prefopt import PrefoptError
from prefopt.runs.records import find_runs
from prefopt.study.comparison.compare import RunOfArm, compare
from prefopt.study.report.text_tables import markdown

BASE = [0.0, 0.1, 0.2, 0.1]


def test_a_clear_difference_is_said_with_its_simultaneous_interval(tmp_path):
    found = compare(
        [study(tmp_path, {"a": BASE, "b": [1.0, 1.12, 1.21, 1.09], "c": [0.3, -0.2, 0.4, 0.1]})], baseline="a"
    )
    b, c = found.primary.rows[1:]
    low, high = stats.ttest_rel([1.0, 1.12, 1.21, 1.09], BASE).confidence_interval(0.975)
    assert (b.difference.low, b.difference.high) == pytest.approx((low, high))
    assert (b.claim, c.claim) == ("better", "undecided")
    assert f"higher with b (+1.01 [{low:.3g}, {high:.3g}])" in found.verdict
    assert f"seeds too few to say for c (+0.0500 [−{-c.difference.low:.3g}, " in found.verdict
    few, many = c.difference.needed
    assert f"{few} to {many} seeds would be needed if the difference is as observed" in found.verdict


def test_better_may_be_lower(tmp_path):
    arms = {"a": BASE, "b": [1.0, 1.12, 1.21, 1.09]}
    found = compare([study(tmp_path, arms)], baseline="a", better="lower")
    assert found.primary.rows[1].claim == "worse"
    assert "higher with b" in found.verdict


@pytest.mark.parametrize(
    ("arms", "claim"),
    [
        ({"a": BASE, "b": [1.0, 1.12, 1.21, None]}, "failures"),  # good on those that are left: no claim
        ({"a": BASE, "b": [-1.0, -0.92, -0.79, None]}, "worse"),  # bad even so
        ({"a": [0.0, 0.1, 0.2, None], "b": [1.0, 1.12, 1.21, 1.1]}, "better"),  # the baseline's failures are its own
        ({"a": [0.0, 0.1, 0.2, None], "b": [-1.0, -0.92, -0.79, -0.9]}, "failures"),
        ({"a": [0.0, 0.1, 0.2, None], "b": [1.0, 1.12, 1.21, None]}, "better"),  # lost by both
        ({"a": [0.0, 0.1, 0.2, 0.0, None], "b": [1.0, 1.12, 1.21, None, 1.0]}, "failures"),
        ({"a": BASE, "b": [None, None, None, 1.0]}, "one seed"),
        ({"a": BASE, "b": [None] * 4}, "one seed"),
        ({"a": BASE, "b": BASE}, "same"),
        ({"a": BASE, "b": [x + 0.5 for x in BASE]}, "no spread"),
    ],
)
def test_what_may_be_claimed(tmp_path, arms, claim):
    found = compare([study(tmp_path, arms)], baseline="a")
    assert found.primary.rows[1].claim == claim
    lost = [(arm, str(seed)) for arm, golds in arms.items() for seed, gold in enumerate(golds) if gold is None]
    (note,) = [note for note in found.notes if "failed" in note] or [""]  # one for all that failed alike
    assert all(arm in note and seed in note for arm, seed in lost) and bool(lost) == bool(note)
    assert set(found.primary.rows[1].values) == set(range(len(arms["b"])))  # a failed seed keeps its place


def test_a_collapsed_seed_counts(tmp_path):
    """Stopped by its limits at −10: its number stands, and takes the claim away."""
    folder = study(tmp_path, {"a": [*BASE, 0.1], "b": [1.0, 1.12, 1.21, 1.09]})
    finished_run(folder / "arms/b/seed-4", 4, -10.0, stopped="step 3: rollouts/kl is 40, above 20")
    found = compare([folder], baseline="a")
    assert found.primary.rows[1].difference.seeds == (0, 1, 2, 3, 4)
    assert found.primary.rows[1].claim == "undecided"
    assert any("b, seed 4 was stopped early (step 3" in note for note in found.notes)


def test_an_arm_that_fails_does_not_narrow_the_family(tmp_path):
    arms = {"a": BASE, "b": [0.3, 0.5, 0.4, 0.45]}
    two = compare([study(tmp_path / "two", arms | {"c": [None] * 4})], baseline="a")
    one = compare([study(tmp_path / "one", arms)], baseline="a")
    assert two.primary.rows[1].difference.low < one.primary.rows[1].difference.low


def test_matched_kl_is_the_furthest_that_all_runs_of_both_have_been(tmp_path):
    """Gold is √KL · g / √KL_end. The least mover ends at 1 nat; the others are read there, at half way to √4."""
    for seed, gold in enumerate(BASE):
        finished_run(tmp_path / "arms/a" / f"seed-{seed}", seed, gold, kl=4.0)
        finished_run(tmp_path / "arms/b" / f"seed-{seed}", seed, 2 * gold + 1, kl=1.0 if seed == 2 else 4.0)
    found = compare([tmp_path], baseline="a", metric="gold_at_kl")
    row = found.primary.rows[1]
    assert row.kl == 1.0
    assert row.values == pytest.approx({0: 0.5, 1: 0.6, 2: 1.4, 3: 0.6})
    assert row.difference.values == pytest.approx((0.5, 0.55, 1.3, 0.55))
    assert found.others[0].metric == "gold"  # as trained, beside it
    assert "gold at matched KL" in found.verdict
    assert compare([tmp_path]).others[0].metric == "gold_at_kl"


def test_an_arm_that_never_moved_has_no_matched_kl(tmp_path):
    for seed, gold in enumerate(BASE):
        finished_run(tmp_path / "arms/a" / f"seed-{seed}", seed, gold)
        finished_run(tmp_path / "arms/b" / f"seed-{seed}", seed, gold, kl=0.0)
    row = compare([tmp_path], baseline="a", metric="gold_at_kl").primary.rows[1]
    assert math.isnan(row.kl)
    assert row.claim == "one seed"


def test_wins_are_counted_prompt_by_prompt(tmp_path):
    """b's scores are .05 above a's on every prompt, and c's .1: shifted by one place of three, which ties on two."""
    found = compare([study(tmp_path, {"a": [0.0, 0.0], "b": [0.05, 0.05], "c": [0.0, 0.3]})])
    assert found.wins["b", "a"].value == 1
    assert found.wins["a", "b"].value == 0
    assert found.wins["c", "a"].value == (0.5 + 1) / 2


def test_descriptions_from_eight_seeds_on(tmp_path):
    golds = [0.0, 0.3, 0.1, 0.5, 0.2, 0.9, 0.4, 0.6]
    row = compare([study(tmp_path, {"a": golds, "b": [1 + g * g for g in golds]})]).primary.rows[0]
    assert row.interquartile == pytest.approx((0.2 + 0.3 + 0.4 + 0.5) / 4)
    assert row.bootstrap[0] < row.mean.value < row.bootstrap[1]


def test_runs_of_one_name_and_seed_are_told_apart_by_what_differs(tmp_path):
    def dpo(number, seed, **fields):
        recipe = {"objective": [{"name": "DPO", **fields}], "train": {"lr": 1e-3, "threads": number}}
        return finished_run(tmp_path / f"dpo-seed{seed}-{number}", seed, 0.5 * number, recipe=recipe)

    one, other, of_another_seed = dpo(1, 3, beta=0.1), dpo(2, 3, beta=0.3), dpo(3, 4, beta=0.3)
    assert [run.arm for run in find_runs([one, of_another_seed])] == ["dpo", "dpo"]
    runs = find_runs([one, other, of_another_seed])
    assert [(run.arm, run.seed) for run in runs] == [("dpo beta=0.1", 3), ("dpo beta=0.3", 3), ("dpo beta=0.3", 4)]
    comparison = compare(runs)
    assert comparison.baseline == "dpo beta=0.1"
    assert [row.mean.value for row in comparison.primary.rows] == [0.5, 1.25]
    assert [run.arm for run in find_runs([one, other, dpo(4, 3)])] == [
        "dpo beta=0.1",
        "dpo beta=0.3",
        "dpo beta=default",
    ]


def test_one_seed_tells_what_its_policies_do_and_not_what_the_methods_do(tmp_path):
    found = compare([study(tmp_path, {"a": [0.0], "b": [0.05], "c": [None]})])
    a, b, c = found.primary.rows
    assert a.over_prompts is None and c.over_prompts is None
    # By prompt the scores of b are a's + 0.05, so that no resampling of prompts changes the difference.
    estimate = b.over_prompts
    assert estimate.value == pytest.approx(0.05) and math.isnan(estimate.low) and estimate.prompts == 3
    assert b.claim == "one seed" and math.isnan(b.difference.low)
    assert (
        "this one policy of b (seed 0) differs from the baseline's by +0.0500 on each of 3 prompts, which tells"
        in found.verdict
    )
    assert "not what the methods do with another seed" in found.verdict
    assert "one seed; its policies over prompts: +0.0500 on each" in markdown(found)


def test_runs_are_found_however_they_lie(tmp_path):
    loose = finished_run(tmp_path / "loose" / "hinge-seed3", 3, 0.5)
    assert find_runs([loose]) == [RunOfArm("hinge", 3, loose)]
    assert find_runs([tmp_path / "loose"]) == [RunOfArm("hinge", 3, loose)]
    named = finished_run(tmp_path / "somewhere", 1, 0.5)
    assert find_runs([named]) == [RunOfArm("tiny", 1, named)]
    with pytest.raises(PrefoptError, match="are both seed 3 of hinge"):
        find_runs([loose, finished_run(tmp_path / "more" / "hinge-seed3", 3, 0.5)])
    with pytest.raises(PrefoptError, match="there is no run in"):
        find_runs([failed_run(tmp_path / "x" / "y").parent.parent / "more" / "hinge-seed3" / "evaluations"])
    with pytest.raises(PrefoptError, match="no folder"):
        find_runs([tmp_path / "nowhere"])


def test_what_cannot_be_compared_is_refused(tmp_path):
    folder = study(tmp_path, {"a": [0.0], "bee": [1.0]})
    with pytest.raises(PrefoptError, match="needs two arms"):
        compare([folder / "arms/a/seed-0"])
    with pytest.raises(PrefoptError, match=r"'be' is not an arm\. Did you mean 'bee'"):
        compare([folder], baseline="be")
    with pytest.raises(PrefoptError, match="no run has measured 'golt'"):
        compare([folder], metric="golt")
    assert "fewer than two in common" in compare([folder]).verdict


def test_the_public_name_is_the_function(tmp_path):
    folder = study(tmp_path, {"a": BASE, "b": BASE})
    assert prefopt.compare([folder]).arms == ("a", "b")


def test_costs_are_means_over_runs_that_say_them(tmp_path):
    folder = study(tmp_path, {"a": BASE, "b": BASE})
    for seed, labels in enumerate([10, 30]):
        file = folder / f"arms/b/seed-{seed}/summary.json"
        costs = {"labels": labels, "trained_tokens": 4, "sampled_tokens": 0, "flops": 1e9, "seconds": 2.5}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"costs": costs}))
    found = compare([folder]).costs
    assert (found["b"]["labels"], found["b"]["seconds"]) == (20, 2.5)
    assert all(math.isnan(value) for value in found["a"].values())


def test_an_unfinished_run_is_shown_as_such(tmp_path):
    folder = study(tmp_path, {"a": BASE, "b": [1.0, 1.12, 1.21, 1.09]})
    (folder / "arms/b/seed-1/summary.json").unlink()
    found = compare([folder])
    assert found.of("b")[1].state == "unfinished"
    assert found.primary.rows[1].claim == "failures"


@pytest.mark.parametrize(
    ("text", "message"), [("seed:", ": its seed is None"), ("- a\n", r" \(it must hold keys and values\)")]
)
def test_a_damaged_recipe_is_named(tmp_path, text, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(text)
    with pytest.raises(PrefoptError, match=f"run/recipe.yaml is damaged{message}"):
        find_runs([tmp_path / "run"])


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b"5", b'{"loss": 0.5}'])
def test_the_last_line_of_metrics_is_damaged_only_where_it_is_whole(tmp_path, line):
    """A kill cuts the last line, which then has no end."""
    folder = study(tmp_path, {"a": BASE, "b": [1.0, 1.12, 1.21, 1.09]})
    metrics = folder / "arms/b/seed-1/metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + line)
    assert len(compare([folder]).of("b")[1].history) == whole.count(b"\n")
    metrics.write_bytes(whole + line + b"\n")
    with pytest.raises(
        PrefoptError, match=rf"metrics\.jsonl, line {whole.count(10) + 1}, is damaged: restore the file"
    ):
        compare([folder])


def test_a_run_that_is_over_without_numbers_is_no_unfinished_run(tmp_path):
    folder = study(tmp_path, {"a": BASE, "b": [1.0, 1.12, 1.21, 1.09]})
    (folder / "arms/b/seed-1/summary.json").write_text("{}")
    found = compare([folder])
    assert found.of("b")[1].state == "finished"
    assert any("b, seed 1 finished without gold" in note for note in found.notes)
