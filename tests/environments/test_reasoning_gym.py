"""reasoning-gym's tasks as rows, scored by its own scorers: in a process where it harms nothing that they evaluate answers."""

import random
from pathlib import Path
from typing import Any

import pytest

from prefopt import PrefoptError
from prefopt.environments import Limits
from prefopt.environments.reasoning_gym import tasks
from prefopt.feedback.reasoning_gym import ReasoningGym

pytestmark = pytest.mark.filterwarnings("ignore")  # the package's own

GYM = pytest.importorskip("reasoning_gym")


def scored(rows: Any, *texts: str, **fields: Any) -> Any:
    return ReasoningGym(**fields)([row["prompt"] for row in rows], [texts] * len(rows), rows)


def test_rows_have_questions_and_scores_are_the_packages_own() -> None:
    rows = tasks("leg_counting", size=3, seed=5)
    data = GYM.create_dataset("leg_counting", size=3, seed=5)
    assert [row["answer"] for row in rows] == [entry["answer"] for entry in data]
    assert [row["prompt"][1]["content"] for row in rows] == [entry["question"] for entry in data]
    assert "<answer>" in rows[0]["prompt"][0]["content"]
    right = f"I count <answer>{data[1]['answer']}</answer>"
    assert scored(rows[1:2], right, "<answer>x</answer>", data[1]["answer"]).scores.tolist() == [[1.0, 0.0, 0.0]]
    plain = tasks("leg_counting", size=3, seed=5, system=None)
    assert plain[1]["prompt"] == data[1]["question"]
    assert scored(plain[1:2], data[1]["answer"], tag=None).scores.tolist() == [[1.0]]


def test_settings_of_a_dataset_are_its_own() -> None:
    rows = tasks("leg_counting", size=2, seed=5, max_animals=2, min_animals=2)
    assert scored(rows, f"<answer>{rows[0]['answer']}</answer>").scores[0].tolist() == [1.0]


def test_answers_are_no_code_of_this_process() -> None:
    """`spiral_matrix` evaluates them."""
    rows = tasks("spiral_matrix", size=1, seed=1)
    code = "[__import__('os')._exit(3)]"
    verdict = scored(rows, f"<answer>{code}</answer>", f"<answer>{rows[0]['answer']}</answer>")
    assert verdict.scores.tolist() == [[0.0, 1.0]] and verdict.notes == [{"failed": ["died", ""]}]
    seen = "[__import__('pathlib').Path('seen').write_text('')]"
    scored(rows, f"<answer>{seen}</answer>")
    assert not Path("seen").exists()


@pytest.mark.parametrize(
    ("dataset", "answer", "kind"),
    [("spiral_matrix", "9**9**9**9", "time"), ("prime_factorization", "two", "raised")],
)
def test_a_scorer_that_hangs_or_raises_gives_nothing(dataset: str, answer: str, kind: str) -> None:
    verdict = scored(tasks(dataset, size=1, seed=1), f"<answer>{answer}</answer>", limits=Limits(seconds=4))
    assert verdict.scores.tolist() == [[0.0]] and verdict.notes == [{"failed": [kind]}]


def test_the_random_state_is_left_alone() -> None:
    random.seed(3)
    before = random.getstate()
    scored(tasks("leg_counting", size=2), "2")
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "leg_countin"}, "no dataset 'leg_countin'. Did you mean 'leg_counting'"),
        ({"dataset": "leg_counting", "system": "defalt"}, "no system prompt 'defalt'; it has .*default"),
    ],
)
def test_what_the_package_has_not_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        tasks(**fields)


def test_rows_of_others_are_refused() -> None:
    with pytest.raises(PrefoptError, match="rows with a column `task`"):
        scored([{"prompt": "1 + 1"}], "2")
