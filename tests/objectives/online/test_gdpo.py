"""GDPO: several named scores, each normalised in its group before they are summed."""

import dataclasses
import math

import pytest
import torch
from trl_grpo import trl_gdpo

from prefopt import Batch, Outputs, PrefoptError
from prefopt.objectives import GDPO, GRPO
from prefopt.objectives.contract.case import make_case
from prefopt.objectives.online.advantage import total_scores

EXACT = {"rtol": 0, "atol": 1e-12}


def three_scores(seed=0):
    """A batch with named scores, and rewards of turns."""
    objective = GDPO({"helpful": 1.0, "short": 0.5, "return": 2.0})
    case = make_case(objective, seed)
    return objective, case


def by_hand(batch, weights):
    """GDPO's advantages in plain Python."""
    present = batch.present.tolist()
    values = {name: s.tolist() for name, s in batch.named_scores.items()}
    values["return"] = total_scores(dataclasses.replace(batch, scores=0 * batch.scores)).tolist()

    def scaled(numbers):
        mean = sum(numbers.values()) / len(numbers)
        std = math.sqrt(sum((x - mean) ** 2 for x in numbers.values()) / max(len(numbers) - 1, 1))
        return {place: (x - mean) / (std + 1e-4) for place, x in numbers.items()}

    summed = {(b, k): 0.0 for b, row in enumerate(present) for k, there in enumerate(row) if there}
    for name, weight in weights.items():
        for b, row in enumerate(present):
            group = {(b, k): values[name][b][k] for k, there in enumerate(row) if there}
            for place, x in scaled({p: v for p, v in group.items() if not math.isnan(v)}).items():
                summed[place] += weight * x
    return scaled(summed)


@pytest.mark.parametrize("unknown", [False, True])
def test_gdpo_by_hand(unknown):
    objective, case = three_scores()
    batch = case.batch
    if unknown:
        batch.named_scores["short"][0, 1] = torch.nan
    found = objective.targets(batch, case.old, None).rows["advantages"]
    expected = by_hand(batch, objective.weights)
    for b, k, t in batch.mask.nonzero().tolist():
        assert found[b, k, t].item() == pytest.approx(expected[b, k], abs=1e-12)


def test_gdpo_as_trl():
    """TRL 1.16's `normalize_then_sum`, whose own rounding is of 32 bits."""
    rewards = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rewards[0, :, 1] = 0.25  # a group in which one score is constant
    mask = torch.ones(3, 4, 1, dtype=torch.bool)
    named = {"one": rewards[..., 0], "two": rewards[..., 1]}
    batch = Batch(((1,),) * 3, mask.long(), mask, torch.zeros(3, 4).double(), named_scores=named)
    old = Outputs(mask, torch.zeros(mask.shape).double())
    found = GDPO({"one": 1.0, "two": 0.3}).targets(batch, old, None).rows["advantages"]
    torch.testing.assert_close(found[..., 0], trl_gdpo(rewards, [1.0, 0.3]), rtol=0, atol=1e-6)


def test_gdpo_tells_apart_what_a_sum_does_not():
    """Of two scores, completions that have one of each and completions that have one twice: the sums of 1 are all alike to GRPO."""
    right, short = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0]]), torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1]])
    mask = torch.ones(2, 4, 1, dtype=torch.bool)
    batch = Batch(((1,), (2,)), mask.long(), mask, right + short, named_scores={"right": right, "short": short})
    old = Outputs(mask, torch.zeros(mask.shape))
    alike = GRPO(beta=0.0).targets(batch, old, None).rows["advantages"][0]
    assert (alike == 0).all()
    found = GDPO({"right": 2.0, "short": 1.0}).targets(batch, old, None).rows["advantages"][0, :, 0]
    assert found[0] == found[1] > 0 > found[2] == found[3]


def test_gdpo_takes_every_score_unless_some_are_weighed():
    objective, case = three_scores(1)
    every = dataclasses.replace(objective, weights={"helpful": 1.0, "short": 1.0})
    rows = [o.targets(case.batch, case.old, None).rows["advantages"] for o in (every, GDPO())]
    torch.testing.assert_close(*rows, **EXACT)
    assert objective.needs.named_scores == ("helpful", "short") and GDPO().needs == dataclasses.replace(
        objective.needs, named_scores=()
    )
    nameless = dataclasses.replace(case.batch, named_scores={})
    rows = [
        o.targets(nameless, case.old, None).rows["advantages"] for o in (GDPO({"score": 1.0, "return": 1.0}), GDPO())
    ]
    torch.testing.assert_close(*rows, **EXACT)
    plain = dataclasses.replace(nameless, rewards=None)
    alone = GDPO().targets(plain, case.old, None).rows["advantages"]
    grpo = GRPO(beta=0.0).targets(plain, case.old, None).rows["advantages"]
    ratio = (alone / grpo)[plain.mask & (grpo != 0)]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # of one score, GRPO's up to a factor
    metrics = objective.targets(case.batch, case.old, None).metrics
    assert metrics["scores/helpful"] == pytest.approx(
        case.batch.named_scores["helpful"][case.batch.present].mean().item()
    )


def test_gdpo_refuses_what_it_cannot_weigh():
    _, case = three_scores()
    with pytest.raises(ValueError, match="at least one above or below 0"):
        GDPO({"right": 0.0})
    with pytest.raises(PrefoptError, match="GDPO weighs 'right', and a batch has only score, helpful, short, return"):
        GDPO({"right": 1.0}).targets(case.batch, case.old, None)
