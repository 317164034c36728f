import dataclasses
import math

import pytest
import torch
from trl_dpo import assert_same, random_pairs, trl_dpo

from prefopt import evaluate_loss
from prefopt.objectives.preference.wpo import WPO


def with_squares(policy, factor):
    squares = factor * policy.statistics["log_sum_squares"]
    return dataclasses.replace(policy, statistics={"log_sum_squares": squares})


def test_agrees_with_trl_where_no_weight_reaches_1():
    batch, policy, reference = random_pairs(scale=2.0)
    policy = with_squares(policy, 0.1)
    ours = evaluate_loss(WPO(0.3), batch, policy, reference)
    assert_same(ours, trl_dpo("sigmoid", policy, reference, beta=0.3, use_weighting=True), policy)


def test_trl_leaves_out_the_clamp(pairs):
    """log Σ π² = −3 everywhere: all weights are 1, and this is DPO; TRL's are e^(6 − …)."""
    batch, policy, reference = pairs
    policy = dataclasses.replace(policy, statistics={"log_sum_squares": -3.0 * batch.mask.double()})
    ours = evaluate_loss(WPO(0.5), batch, policy, reference)
    dpo = [math.log(1 + math.exp(-0.5 * m)) for m in (1.5, 5.0)]
    assert ours.item() == pytest.approx(sum(dpo) / 2, rel=1e-12)
    # mean log-probs of the tokens: −3.5/3 and −2; −.5 and −4
    weights = [math.exp(6 - 3.5 / 3 - 2), math.exp(6 - 4.5)]
    theirs = trl_dpo("sigmoid", policy, reference, beta=0.5, use_weighting=True)
    assert theirs.item() == pytest.approx(sum(w * d for w, d in zip(weights, dpo, strict=True)) / 2, rel=1e-12)


@pytest.mark.parametrize(("aligned", "weights"), [(True, [math.exp(1 - 9.5 / 3), math.exp(1 - 4.5)]), (False, None)])
def test_weights_by_hand_are_constants(aligned, weights, pairs):
    batch, policy, reference = pairs
    policy = dataclasses.replace(policy, statistics={"log_sum_squares": -0.5 * batch.mask.double()})
    weights = weights or [math.exp(-9.5 / 3), math.exp(-4.5)]
    loss = evaluate_loss(WPO(0.5, aligned), batch, policy, reference)
    expected = [w * math.log(1 + math.exp(-0.5 * m)) for w, m in zip(weights, (1.5, 5.0), strict=True)]
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-12)
    loss.backward()
    pull = [0.5 * w / (1 + math.exp(0.5 * m)) / 2 for w, m in zip(weights, (1.5, 5.0), strict=True)]
    pull = torch.tensor(pull, dtype=torch.float64)
    torch.testing.assert_close(policy.logps.grad, torch.stack([-pull, pull], 1)[:, :, None] * batch.mask)
