import dataclasses
import math

import pytest
import torch
from trl_dpo import assert_same, random_pairs

from prefopt import evaluate_loss
from prefopt.objectives.contract import make_case
from prefopt.objectives.preference.exo import EXO, EXOList


def test_pair_is_the_kl_to_the_smoothed_label(pairs):
    """Against torch's own distributions; β h = .75, 2.5."""
    batch, policy, reference = pairs
    q = torch.distributions.Bernoulli(logits=torch.tensor([0.75, 2.5], dtype=torch.float64))
    p = torch.distributions.Bernoulli(torch.tensor(0.9, dtype=torch.float64))
    expected = torch.distributions.kl_divergence(q, p)
    loss = evaluate_loss(EXO(0.5, 0.1), batch, policy, reference)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-12, atol=0)
    loss.backward()
    # dKL/dx of q = σ(x) is q(1 − q)(x − logit p)
    slope = q.probs * (1 - q.probs) * (q.logits - math.log(9)) * 0.5 / 2
    torch.testing.assert_close(policy.logps.grad, torch.stack([slope, -slope], 1)[:, :, None] * batch.mask)


def test_a_list_of_two_with_the_label_as_scores_is_the_pair():
    """r_w − r_l = β_r logit(1 − ε)."""
    batch, policy, reference = random_pairs()
    scores = torch.tensor([0.5 * math.log(9), 0.0], dtype=torch.float64).expand(len(batch), 2)
    ours = evaluate_loss(EXOList(0.3, 0.5), dataclasses.replace(batch, scores=scores), policy, reference)
    assert_same(ours, evaluate_loss(EXO(0.3, 0.1), batch, policy, reference), policy)


def test_list_by_hand_without_the_absent():
    """K = 4, the last prompt has two; each prompt on its own, by torch's distributions."""
    case = make_case(objective := EXOList(0.3, 0.2), seed=3)
    policy = dataclasses.replace(case.policy, logps=case.policy.logps.clone().requires_grad_())
    loss = objective.loss(case.batch, policy, case.targets())
    delta = (policy.sum() - case.reference.sum()).detach()
    for row, present in enumerate(case.batch.present):
        q = torch.distributions.Categorical(logits=0.3 * delta[row][present])
        p = torch.distributions.Categorical(logits=case.batch.scores[row][present] / 0.2)
        assert loss.total[row].item() == pytest.approx(torch.distributions.kl_divergence(q, p).item(), rel=1e-12)
        best, worst = case.batch.scores[row][present].argmax(), case.batch.scores[row][present].argmin()
        margin = 0.3 * (delta[row][best] - delta[row][worst])
        assert loss.metrics["rewards/margin"][row].item() == pytest.approx(margin.item(), rel=1e-12)
    assert case.batch.present.sum(-1).tolist() == [4, 4, 4, 2]


def test_list_is_least_at_the_optimum_of_the_product_of_temperatures():
    """Δ = r/(ββ_r) + const."""
    case = make_case(objective := EXOList(0.3, 0.2))
    delta = case.batch.scores / (0.3 * 0.2) + 5
    logps = case.reference.logps.clone()
    logps[..., 0] += delta * case.batch.present
    policy = dataclasses.replace(case.policy, logps=logps.requires_grad_())
    total = objective.loss(case.batch, policy, case.targets()).total
    assert total.abs().max() < 1e-12
    assert torch.autograd.grad(total.sum(), logps)[0].abs().max() < 1e-12
