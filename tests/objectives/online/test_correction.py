"""Corrections for the sampler: weights in closed form, holes, what is logged, and what a recipe may say."""

import dataclasses
import itertools
import math

import pytest
import torch
from trl_grpo import rollouts, trl_grpo

from prefopt import check_objective, evaluate_loss
from prefopt.objectives import CATALOGUE, GRPO, GSPO, PPO, REINFORCE, RLOO, load_objective
from prefopt.objectives.online.correction import Correction, correction_of
from prefopt.support.errors import PrefoptError

NAN = float("nan")
RATIOS = [0.25, 0.8, 7.0, 1.25, 3.0]
HOLE = 2  # an environment's token: whatever stands there
OWN = [0.25, 0.8, 1.25, 3.0]


def weights(correction, ratios=RATIOS, mask=(True, True, False, True, True)):
    """Of one completion, whose sampler's log-probs are such that the tokens have these ratios."""
    old = torch.linspace(-2, -1, len(ratios), dtype=torch.float64).view(1, 1, -1).requires_grad_()
    sampler = old.detach() - torch.tensor(ratios, dtype=torch.float64).log()
    mask = torch.tensor(mask).view(1, 1, -1)
    ratio = correction.ratio(old, sampler, mask)
    weight = correction.weight(ratio, mask)
    assert not weight.requires_grad and not ratio.requires_grad
    return weight.flatten().tolist()


def exactly(values):
    return pytest.approx(values, abs=1e-12, rel=0)


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        ({}, OWN),
        ({"high": 2.0}, [0.25, 0.8, 1.25, 2.0]),
        ({"low": 0.5, "high": 2.0}, [0.5, 0.8, 1.25, 2.0]),
        ({"outside": "mask", "high": 2.0}, [0.25, 0.8, 1.25, 0]),
        ({"outside": "mask", "low": 0.5, "high": 2.0}, [0, 0.8, 1.25, 0]),
        ({"outside": "drop", "high": 2.0}, [0, 0, 0, 0]),
        ({"outside": "drop", "low": 0.2, "high": 3.5}, OWN),
        ({"per": "sequence"}, [0.75] * 4),
        ({"per": "sequence", "low": 0.8, "high": 2.0}, [0.8] * 4),
        ({"per": "sequence", "high": 0.7}, [0.7] * 4),
        ({"per": "sequence", "outside": "mask", "low": 0.8}, [0] * 4),
        ({"per": "sequence", "outside": "mask", "low": 0.7, "high": 0.8}, [0.75] * 4),
        ({"per": "geometric"}, [0.75**0.25] * 4),
        ({"per": "geometric", "low": 0.95}, [0.95] * 4),
        ({"per": "geometric", "outside": "mask", "low": 0.95}, [0] * 4),
    ],
    ids=str,
)
def test_weights_in_closed_form(fields, own):
    found = weights(Correction(**fields))
    assert found.pop(HOLE) == 1
    assert found == exactly(own)


def test_a_number_is_the_cap_of_a_token():
    assert correction_of(2.0) == Correction("token", "truncate", None, 2.0)
    assert correction_of(Correction("geometric")) == Correction("geometric")


@pytest.mark.parametrize("per", ["token", "sequence", "geometric"])
def test_a_token_that_the_sampler_said_nothing_of_has_ratio_one(per):
    expected = {"token": [0.5, 1, 0.5], "sequence": [0.25] * 3, "geometric": [0.25 ** (1 / 3)] * 3}[per]
    assert weights(Correction(per), [0.5, NAN, 0.5], (True,) * 3) == exactly(expected)


@pytest.mark.parametrize("per", ["token", "sequence", "geometric"])
def test_a_sampler_that_found_a_token_impossible_gives_a_finite_weight(per):
    assert all(map(math.isfinite, weights(Correction(per), [1e300, 1e-300, 1e300], (True,) * 3)))


def test_the_ratio_of_sequences_makes_expectations_those_of_the_policy():
    """Two tokens of two values, the second drawn by the first: Σ_y π_sampler(y) w(y) f(y) = Σ_y π_old(y) f(y), for all f."""
    draw = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 2, generator=draw, dtype=torch.float64), torch.rand(2, 2, 2, generator=draw).double()
    pair = [(a.log_softmax(-1), b.log_softmax(-1)) for a, b in zip(first, second, strict=True)]
    old, sampler = (
        torch.stack([torch.stack([a[i], b[i, j]]) for i, j in itertools.product(range(2), repeat=2)]) for a, b in pair
    )
    mask = torch.ones(4, 1, 2, dtype=torch.bool)
    ratio = Correction("sequence").ratio(old[:, None], sampler[:, None], mask)[:, 0, 0]
    torch.testing.assert_close(sampler.sum(-1).exp() * ratio, old.sum(-1).exp(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "objective", [GRPO(), GSPO(), PPO(estimator="k3"), RLOO(beta=0.0), REINFORCE(beta=0.0)], ids=repr
)
@pytest.mark.parametrize("outside", ["truncate", "mask", "drop"])
def test_a_completions_loss_is_multiplied_by_its_weight(objective, outside):
    """With one ratio for all its tokens, a completion's loss is that many times what it was, and no denominator changes."""
    batch, policy, old, reference = rollouts(seed=5, prompts=1)
    if objective.needs.values:
        objective = dataclasses.replace(objective, c_v=0.0)
    ratios = torch.tensor([0.25, 0.8, 1.25, 3.0], dtype=torch.float64)[None, :, None]
    batch = dataclasses.replace(batch, columns={**batch.columns, "sampler_logps": old.logps - ratios.log()})
    correction = Correction(outside=outside, low=0.5, high=2.0)
    factors = {"truncate": [0.5, 0.8, 1.25, 2.0]}.get(outside, [0, 0.8, 1.25, 0])
    objective = dataclasses.replace(objective, **({"beta": 0.0} if hasattr(objective, "beta") else {}))
    corrected = dataclasses.replace(objective, tis=correction)
    of_each = []
    for one in (objective, corrected):
        total = evaluate_loss(one, batch, policy, reference, old)
        (gradient,) = torch.autograd.grad(total, policy.logps, retain_graph=True)
        of_each.append(gradient)
    expected = of_each[0] * torch.tensor(factors, dtype=torch.float64)[None, :, None]
    torch.testing.assert_close(of_each[1], expected, atol=1e-12, rtol=0)


def test_what_is_logged():
    batch, policy, old, reference = rollouts(seed=6, prompts=2)
    ratios = torch.tensor([[0.25, 0.8, 1.25, 3.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)[..., None]
    batch = dataclasses.replace(batch, columns={**batch.columns, "sampler_logps": old.logps - ratios.log()})
    objective = GRPO(tis=Correction(outside="mask", low=0.5, high=2.0))
    metrics = objective.loss(batch, policy, objective.targets(batch, old, reference)).metrics
    lengths = batch.mask[0].sum(-1).double()
    share = lengths / lengths.sum()
    assert metrics["ratio/sampler"].tolist() == exactly([(share[1] * 0.8 + share[2] * 1.25).item(), 1])
    assert metrics["ratio/sampler_max"].tolist() == exactly([3, 1])
    assert metrics["ratio/sampler_outside"].tolist() == exactly([(share[0] + share[3]).item(), 0])


@pytest.mark.parametrize("per", ["token", "sequence"])
@pytest.mark.parametrize("outside", ["truncate", "mask"])
def test_a_loss_is_that_of_trls_mode(per, outside):
    """TRL 1.16's `vllm_importance_sampling_mode`, of which its trainer's own lines are written out here."""
    batch, policy, old, reference = rollouts(seed=3)
    noise = torch.Generator().manual_seed(0)
    sampler = old.logps + 0.3 * torch.randn(old.logps.shape, generator=noise, dtype=torch.float64)
    batch = dataclasses.replace(batch, columns={"sampler_logps": sampler})
    difference = (old.logps - sampler) * batch.mask
    ratio = (difference if per == "token" else difference.sum(-1, keepdim=True)).exp().expand_as(difference)
    low, high = 0.8, 1.2
    theirs = ratio.clamp(low, high) if outside == "truncate" else ratio.masked_fill((ratio < low) | (ratio > high), 0)
    assert (theirs != ratio)[batch.mask].any() and (theirs == ratio)[batch.mask].any()
    scores = batch.scores
    advantages = (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)
    expected = trl_grpo("grpo", policy, old, advantages, reference=reference, weights=theirs, beta=0.04)
    objective = GRPO(beta=0.04, tis=Correction(per, outside, low, high))
    torch.testing.assert_close(evaluate_loss(objective, batch, policy, reference, old), expected, atol=1e-12, rtol=0)


WITH = [name for name, cls in CATALOGUE.items() if "tis" in {field.name for field in dataclasses.fields(cls)}]
CORRECTIONS = [
    {"per": "sequence", "high": 1.5},
    {"per": "geometric", "outside": "mask", "low": 0.3, "high": 3.0},
    {"outside": "drop", "low": 0.5, "high": 2.2},
]


@pytest.mark.parametrize("name", WITH)
@pytest.mark.parametrize("fields", CORRECTIONS, ids=str)
def test_every_objective_that_takes_one_keeps_the_contract(name, fields):
    objective = load_objective(name, tis=fields)
    assert objective.tis == Correction(**fields) and "sampler_logps" in objective.needs.columns
    check_objective(objective)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"per": "word"}, "'tis.per' must be 'token', 'sequence' or 'geometric'"),
        ({"high": -1}, "'tis.high' must be greater than 0"),
        ({"cap": 2}, "'tis.cap' is not known"),
        ({"low": 3, "high": 2}, "low must be below high"),
        ({"outside": "mask"}, "needs a bound"),
    ],
)
def test_mistakes_are_refused_with_their_place(fields, message):
    with pytest.raises(PrefoptError, match=message):
        load_objective("GRPO", tis=fields)
