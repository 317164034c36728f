"""What runs cost, by hand."""

from pathlib import Path

import pytest
from _tiny import tiny_recipe

from prefopt import load_recipe
from prefopt.runs.accounting import Work, flops, labels_per_prompt


def test_flops_of_full_training_are_six_for_each_weight_and_token() -> None:
    assert flops(Work(parameters=100, trainable=100, trained=7)) == 6 * 100 * 7


def test_flops_of_every_part() -> None:
    work = Work(
        parameters=1000,
        trainable=10,
        trained=60,
        passes=3,
        sampled=5,
        old=True,
        repeated=True,
        reference=400,
        scorers=30,
    )
    train = 60 * (4 * 1000 + 2 * 10)
    repeated = 60 * 2 * 1000
    before = (60 / 3) * 2 * (1000 + 400)
    sampled = 5 * 2 * (1000 + 30)
    assert flops(work) == train + repeated + before + sampled


@pytest.mark.parametrize(
    ("overrides", "labels"),
    [
        ([], 1),
        (["source.rollouts={completions: 3}", "feedback=rules.py:f"], 3),
        (["source.rollouts={completions: 3}", "feedback=rules.py:f", "source.writers=[reference, mismatched]"], 4),
        (["source.rollouts={completions: 3}"], 0),
    ],
    ids=["recorded", "rollouts", "writers", "unjudged"],
)
def test_labels_that_a_prompt_brings(tmp_path: Path, overrides: list[str], labels: int) -> None:
    assert labels_per_prompt(load_recipe(tiny_recipe(tmp_path, Path("lm"), Path("p")), overrides)) == labels
