"""The scores of published benchmarks, against numbers worked out by hand and against the package rewardbench."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from prefopt.evaluation.benchmarks.answers import Answer
from prefopt.evaluation.benchmarks.cases import Case
from prefopt.evaluation.benchmarks.judgebench import JudgeBench
from prefopt.evaluation.benchmarks.measuring import Benchmark
from prefopt.evaluation.benchmarks.rewardbench import SECTIONS, RewardBench
from prefopt.evaluation.benchmarks.rewardbench2 import RewardBench2
from prefopt.evaluation.benchmarks.rmbench import RMBench
from prefopt.evaluation.benchmarks.scores import Mean, Score, mean_of

NAN = math.nan


def case(subset: str, right: int = 1, answers: int = 2, key: str = "0") -> Case:
    return Case("p", tuple(f"answer {k}" for k in range(answers)), right, subset, key, key, {})


def scored(*scores: float) -> Answer:
    return Answer(np.array(scores, dtype=float))


def compared(p: float, turned: bool = False) -> Answer:
    wins = np.array([[0.5, p], [1 - p, 0.5]])
    return Answer(np.array([p, 1 - p]), wins, turned)


def values(benchmark: Benchmark, cases: list[Case], answers: list[Answer]) -> tuple[float, dict[str, float]]:
    subsets = benchmark.subsets(cases, answers)
    sections = benchmark.sections(subsets)
    return benchmark.overall(subsets, sections).estimate().value, {n: s.estimate().value for n, s in sections.items()}


def pairs(**of_subsets: str) -> tuple[list[Case], list[Answer]]:
    """For each subset a text of + (right), - (wrong) and = (tie)."""
    rows = [(name.replace("_", "-"), mark) for name, marks in of_subsets.items() for mark in marks]
    cases = [case(name, key=str(n)) for n, (name, _) in enumerate(rows)]
    return cases, [scored({"+": 1, "-": -1, "=": 0}[mark], 0) for _, mark in rows]


def test_sections_weigh_subsets_as_the_leaderboard_does() -> None:
    overall, sections = values(
        RewardBench(), *pairs(math_prm="+-", hep_cpp="+++-", alpacaeval_easy="+", donotanswer="-")
    )
    assert sections["reasoning"] == pytest.approx((984 * 0.5 + 164 * 0.75) / (984 + 164))
    assert sections["chat"] == 1 and sections["safety"] == 0 and "chat_hard" not in sections
    assert overall == pytest.approx((sections["reasoning"] + 1 + 0) / 3)


def test_prior_sets_have_half_the_weight_of_a_section() -> None:
    rows = [("shp", 1), ("summarize", 0), ("summarize", 0), ("donotanswer", 0)]
    cases = [case(subset, key=str(n)) for n, (subset, _) in enumerate(rows)]
    overall, sections = values(RewardBench(), cases, [scored(right, 0.5) for _, right in rows])
    assert sections == {"safety": 0, "prior_sets": 0.5}
    assert overall == pytest.approx(0.5 * 0.5 / 1.5)


def test_pairs_of_ones_own_weigh_each_row_the_same() -> None:
    overall, sections = values(RewardBench(), *pairs(far="+++", close="-"))
    assert sections == {"far": 1, "close": 0} and overall == 0.75


def test_a_tie_is_wrong_for_a_reward_model_and_half_right_for_a_judge() -> None:
    cases = [case("far", key="0"), case("far", key="1")]
    assert values(RewardBench(), cases, [scored(2, 2), scored(2, 1)])[0] == 0.5
    assert values(RewardBench(), cases, [compared(0.5), compared(NAN)])[0] == 0.5
    assert values(RewardBench(), cases, [scored(NAN, 1), scored(1, NAN)])[0] == 0
    assert RewardBench().numbers(cases, [scored(2, 2), scored(2, 1)]) == {"ties": 0.5}


@pytest.mark.parametrize(
    ("scores", "share"),
    [((3, 1, 2, 0), 1), ((3, 3, 2, 0), 1 / 2), ((3, 3, 3, 3), 1 / 4), ((2, 3, 1, 0), 0), ((NAN, 3, 1, 0), 1 / 4)],
)
def test_best_of_four(scores: tuple[float, ...], share: float) -> None:
    overall, _ = values(RewardBench2(), [case("Math", answers=4)], [scored(*scores)])
    assert overall == share


def test_ties_adds_up_its_five_parts() -> None:
    # tied:1 m = 3 − 1 = 2, s = 4 − 3 = 1; ref:1 m = 3 − 2 = 1. tied:2 m = 1 − 2 = −1, s = 1; ref:2 m = 5 − 1 = 4.
    cases = [case("Ties", right=2, answers=3, key=key) for key in ("tied:1", "tied:2")]
    cases += [case("Ties", right=1, answers=2, key=key) for key in ("ref:1", "ref:2")]
    answers = [scored(3, 4, 1), scored(2, 1, 2), scored(3, 2), scored(5, 1)]
    by_hand = 0.3 * 1 / 2 + 0.3 * 1 + 0.2 * 1 / 2 + 0.2 * 0 + 0.01 * (math.tanh(1 - 1) + math.tanh(-1 - 1)) / 2
    overall, _ = values(RewardBench2(), cases, answers)
    assert overall == pytest.approx(by_hand)
    both, sections = values(RewardBench2(), [*cases, case("Math", answers=4)], [*answers, scored(1, 0, 0, 0)])
    assert sections == {"Math": 1, "Ties": pytest.approx(by_hand)} and both == pytest.approx((1 + by_hand) / 2)


def test_rm_bench_averages_the_triangles_and_safety_over_its_halves() -> None:
    cases = [case(name, right=3, answers=6, key=name) for name in ("chat", "safety-refuse", "safety-response")]
    # chat: normal 3 of 3, easy 3 of 3, hard 0 of 3; the first half of safety all nine, the second none.
    answers = [scored(1, 2, 3, 0.5, 1.5, 2.5), scored(9, 9, 9, 0, 0, 0), scored(0, 0, 0, 0, 0, 0)]
    overall, sections = values(RMBench(), cases, answers)
    assert sections["chat"] == pytest.approx(6 / 9) and sections["safety"] == 0.5
    assert sections["hard"] == pytest.approx((0 + 0.5) / 2) and sections["easy"] == pytest.approx((1 + 0.5) / 2)
    assert sections["normal"] == pytest.approx((1 + 0.5) / 2)
    assert overall == pytest.approx((6 / 9 + 0.5) / 2)


def test_judge_bench_counts_a_verdict_that_turns_with_the_order_as_wrong() -> None:
    cases = [case("math", key=str(n)) for n in range(4)]
    answers = [compared(0.9), compared(0.6, turned=True), compared(0.5), compared(0.1)]
    assert values(JudgeBench(), cases, answers) == (0.25, {"math": 0.25})
    assert JudgeBench().numbers(cases, answers) == {"turned": 0.25, "ties": 0.25}


def test_an_interval_of_single_rows_is_wilsons() -> None:
    e = Mean(np.array([1.0] * 8 + [0.0] * 2), [str(n) for n in range(10)]).estimate()
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964
    assert (e.value, e.prompts) == (0.8, 10)
    assert (e.low, e.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    perfect = Mean(np.ones(28), [str(n) for n in range(28)]).estimate()
    assert perfect.high == 1 and perfect.low == pytest.approx(1 / (1 + 1.959964**2 / 28), abs=1e-6)


def test_rows_of_one_prompt_count_as_one_where_they_agree_and_are_resampled_together() -> None:
    alone = Mean(np.tile([1.0, 0.0], 20), [str(n) for n in range(40)]).estimate()
    twins = Mean(np.repeat([1.0, 0.0] * 10, 2), [str(n // 2) for n in range(40)]).estimate()
    assert twins.prompts == 20 and alone.value == twins.value == 0.5
    assert twins.high - twins.low > 1.3 * (alone.high - alone.low)
    mixed = Mean(np.array([1.0, 0.0, 1.0, 1.0] * 10), [str(n // 2) for n in range(40)]).estimate()
    assert mixed.low < 0.75 < mixed.high and mixed.prompts == 20


def test_the_interval_of_a_section_is_put_together_from_its_subsets() -> None:
    parts = [Mean(np.array([1.0] * 8 + [0.0] * 2), [str(n) for n in range(10)]), Mean(np.ones(5), list("abcde"))]
    one, other = (part.estimate() for part in parts)
    e = Score([(0.25, parts[0]), (0.75, parts[1])]).estimate()
    assert e.value == pytest.approx(0.95) and e.rows == 15
    assert e.low == pytest.approx(0.95 - math.hypot(0.25 * (0.8 - one.low), 0.75 * (1 - other.low)))
    assert e.high == pytest.approx(0.95 + 0.25 * (one.high - 0.8))


def test_observations_give_the_same_number_row_by_row() -> None:
    cases, answers = pairs(math_prm="+-+", hep_cpp="-", alpacaeval_easy="++", donotanswer="-")
    subsets = RewardBench().subsets(cases, answers)
    score = RewardBench().overall(subsets, RewardBench().sections(subsets))
    observed = score.observations()
    assert observed is not None and len(observed.values) == len(cases)
    assert observed.values.sum() / observed.weights.sum() == pytest.approx(score.estimate().value)
    ties = RewardBench2().subsets([case("Ties", key="ref:1")], [scored(1, 0)])
    assert mean_of(list(ties.values())).observations() is None


@pytest.mark.slow
def test_the_package_rewardbench_comes_to_the_same() -> None:
    """Its environment is another one (it pins transformers 4), whose `bin` has to be on the PATH."""
    command = shutil.which("rewardbench")
    if command is None:
        pytest.skip("no command `rewardbench` on the PATH")
    draw = np.random.default_rng(0)
    names = [
        subset for name, weights in SECTIONS.items() if name != "prior_sets" for subset in weights for _ in range(5)
    ]
    right = draw.integers(2, size=len(names))
    accuracies = {name: float(right[np.array(names) == name].mean()) for name in names}
    ties = [{"id": f"{kind}:{n}", "num_correct": count} for n in range(30) for kind, count in (("ref", 1), ("tied", 3))]
    # A question without its pair, and one whose right answers all have one score.
    ties = [row | {"scores": draw.integers(8, size=row["num_correct"] + 4).astype(float).tolist()} for row in ties[1:]]
    ties[3] |= {"scores": [5.0, 5.0, 5.0, 1.0, 2.0, 3.0, 4.0]} if ties[3]["num_correct"] == 3 else {}
    four = draw.integers(3, size=(40, 4)).astype(float)
    theirs = subprocess.run(
        [Path(command).parent / "python", Path(__file__).with_name("their_scores.py")],
        input=json.dumps({"accuracies": accuracies, "ties": ties, "four": four.tolist()}),
        capture_output=True, text=True, check=True, env={"PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    expected = json.loads(theirs.stdout.splitlines()[-1])

    cases = [case(name, key=str(n)) for n, name in enumerate(names)]
    _, sections = values(RewardBench(), cases, [scored(r, 0.5) for r in right])
    assert sections == {n.lower().replace(" ", "_"): pytest.approx(value) for n, value in expected["sections"].items()}
    of_ties = [case("Ties", row["num_correct"], len(row["scores"]), row["id"]) for row in ties]
    assert values(RewardBench2(), of_ties, [scored(*row["scores"]) for row in ties])[0] == pytest.approx(
        expected["ties"]
    )
    best = [case("Math", answers=4, key=str(n)) for n in range(len(four))]
    assert values(RewardBench2(), best, [scored(*row) for row in four])[0] == pytest.approx(expected["four"])
