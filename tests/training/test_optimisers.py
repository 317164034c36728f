"""Whether weights of 16 bits move, which small steps leave as they are."""

import pytest
import torch
from torch import nn
from updates import seven_rows, train

from prefopt import PrefoptError, recipe
from prefopt.training import optimisers
from prefopt.training.optimisers import LowPrecisionWeights, make_optimizer


def test_the_share_of_weights_that_moved_is_that_of_weights_that_differ() -> None:
    model = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False)]).bfloat16()
    watched = LowPrecisionWeights.of(model)
    before = watched.copy()
    with torch.no_grad():
        model[0].weight[0] += 1  # 3 of 8
        model[1].weight[:] += 2**-20  # rounded away
    assert watched.moved_since(before) == 3 / 8


def test_weights_of_full_precision_and_frozen_ones_are_not_watched() -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 1).half().requires_grad_(False)])
    assert LowPrecisionWeights.of(model).copy() == []


def test_of_a_large_model_evenly_spread_weights_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisers, "WATCHED", 100)
    model = nn.Linear(64, 64, bias=False).half()
    watched = LowPrecisionWeights.of(model)
    before = watched.copy()
    assert 90 <= sum(map(len, before)) <= 100
    with torch.no_grad():
        model.weight[:32] += 1
    assert watched.moved_since(before) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("lr", "low", "high"), [(1e-12, 0, 0), (1.0, 0.8, 1)])
def test_a_step_of_low_precision_weights_logs_how_many_it_moved(lr: float, low: float, high: float) -> None:
    _, steps = train("dpo", torch.bfloat16, 7, seven_rows(), steps=2, lr=lr)
    assert all(low <= step.metrics["weights_moved"] <= high for step in steps)


def test_a_step_of_full_precision_weights_logs_none() -> None:
    assert "weights_moved" not in train("dpo", torch.float32, 7, seven_rows(), steps=1)[1][0].metrics


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 6e4), ("bfloat16", 3.38e38), ("float32", 3.4e38)])
@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_a_number_that_no_weight_can_be_is_refused_and_the_largest_one_is_a_step(dtype, largest, key) -> None:
    weight = nn.Parameter(torch.ones(2, dtype=getattr(torch, dtype)))
    weight.grad = torch.zeros_like(weight)
    groups = [{"params": [weight]}]
    make_optimizer(groups, recipe.Train(steps=1, optimizer="sgd", **{key: largest})).step()
    if dtype != "float32":  # a recipe holds no larger one
        with pytest.raises(
            PrefoptError, match=rf"train\.{key} is 3\.4e\+38, and a weight of torch\.{dtype} holds no such"
        ):
            make_optimizer(groups, recipe.Train(steps=1, optimizer="sgd", **{key: 3.4e38}))
