"""Schedules by transformers' names and by path: their factors, what is refused, and that a resume goes on with them."""

import math

import pytest
import torch
from torch import nn
from transformers import SchedulerType

from prefopt import PrefoptError, recipe
from prefopt.recipe.schema.train import OPTIMIZERS, SCHEDULES
from prefopt.training.optimisers import KNOWN
from prefopt.training.schedules import OTHER_NAMES, make_schedule

LINE = "def line(step, steps):\n    return 1 - step / steps\n"


def factors(schedule, updates=20, warmup=0.0, resume_at=None):
    """The learning rate of each update, where train.lr is 1."""
    settings = recipe.Train(steps=updates, lr=1.0, schedule=schedule, warmup=warmup, optimizer="sgd")
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    made, found = make_schedule(optimizer, settings, updates), []
    for step in range(updates):
        if step == resume_at:
            states = made.state_dict(), optimizer.state_dict()
            optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
            made = make_schedule(optimizer, settings, updates)
            optimizer.load_state_dict(states[1])
            made.load_state_dict(states[0])
        found.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    return found


def test_warmup_stable_decay_is_flat_between_its_ends():
    found = factors({"name": "wsd", "num_decay_steps": 0.25}, warmup=4)
    assert found[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert found[5:16] == pytest.approx([1] * 11) and found[16] > found[17] > found[18] > found[19] > 0
    assert factors("wsd", updates=100)[:90] == pytest.approx([1] * 90)  # by default the last tenth decays
    assert factors("warmup_stable_decay") == factors("wsd")


def test_cosine_with_a_minimum_ends_there():
    assert factors({"name": "cosine_with_min_lr", "min_lr_rate": 0.3})[-1] == pytest.approx(0.3, abs=0.01)
    assert factors({"name": "cosine_with_min_lr", "min_lr": 0.5})[-1] == pytest.approx(0.5, abs=0.01)
    assert factors("cosine_with_min_lr")[-1] == pytest.approx(0.1, abs=0.01)


def test_polynomial_and_inverse_square_root_are_the_formulas():
    found = factors({"name": "polynomial", "power": 2.0, "lr_end": 0.0})
    assert found == pytest.approx([(1 - step / 20) ** 2 for step in range(20)])
    found = factors({"name": "inverse_sqrt", "timescale": 4})
    assert found == pytest.approx([1 / math.sqrt((step + 4) / 4) for step in range(20)])


def test_the_names_of_recipes_are_those_of_transformers_that_a_resume_can_repeat():
    told_of_losses = {"reduce_lr_on_plateau", "greedy"}
    assert {*SCHEDULES} - {*OTHER_NAMES} == {kind.value for kind in SchedulerType} - {*OTHER_NAMES} - told_of_losses
    assert tuple(KNOWN) == OPTIMIZERS


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_known_schedule_is_made_and_goes_on_after_a_resume(name):
    found = factors(name, warmup=3)
    assert all(0 <= value <= 1 for value in found) and max(found) == pytest.approx(1)
    assert factors(name, warmup=3, resume_at=11) == found


def test_a_function_by_path_is_the_whole_schedule(tmp_path):
    (tmp_path / "mine.py").write_text(LINE)
    name = f"{tmp_path}/mine.py:line"
    assert factors(name, warmup=5) == pytest.approx([1 - step / 20 for step in range(20)])
    assert factors(name, resume_at=7) == factors(name)
    assert factors(lambda step, steps: 0.5) == [0.5] * 20  # from Python


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "polynomial", "powr": 2}, "polynomial has no field 'powr'. Did you mean 'power'?"),
        ({"name": "linear", "power": 2}, "linear has no field 'power'. It has none."),
        ({"name": "polynomial", "lr_end": 3.0}, "polynomial: lr_end"),
        ({"name": "wsd", "num_decay_steps": 5, "decay_type": "sudden"}, "wsd: "),
        ("math:pi", "cannot be called"),
        ("FOLDER/mine.py:below", r"below gave -1 at step 0 of 20"),
        ("FOLDER/mine.py:raising", r"raising raised ZeroDivisionError"),
        ("FOLDER/mine.py:alone", r"called with (step, steps), and its parameters are (step)"),
    ],
)
def test_what_cannot_be_is_refused(schedule, message, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def below(step, steps):\n    return -1\ndef raising(step, steps):\n    return 1 / 0\ndef alone(step):\n    return 1\n"
    )
    if isinstance(schedule, str):
        schedule = schedule.replace("FOLDER", str(tmp_path))
    with pytest.raises(PrefoptError) as refused:
        factors(schedule)
    assert message in str(refused.value) and str(refused.value).startswith("train.schedule")
