"""The tensor maths that online objectives are made of, against closed forms and loops over single numbers."""

import math

import pytest
import torch

from prefopt.objectives.maths import bounded_exp, discounted_returns, gae, kl_estimate, masked_mean, masked_sum, whiten

DOUBLE = {"dtype": torch.float64}


def ragged(seed=0, rows=6, tokens=7):
    draw = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(2, rows // 2, tokens, generator=draw, **DOUBLE) for _ in range(2))
    return rewards, values, torch.rand(2, rows // 2, tokens, generator=draw) < 0.6


def gae_by_definition(rewards, values, gamma, lam):
    """A_t = Σ_l (γλ)^l δ_{t+l} over a list without holes."""
    delta = [r + gamma * (values[t + 1] if t + 1 < len(values) else 0) - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** n * d for n, d in enumerate(delta[t:])) for t in range(len(delta))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (0.97, 1.0)])
def test_gae_is_its_definition_with_holes_skipped(gamma, lam):
    rewards, values, mask = ragged()
    found = gae(rewards, values, mask, gamma, lam)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        b, k = index
        keep = mask[b, k]
        expected = gae_by_definition(rewards[b, k][keep].tolist(), values[b, k][keep].tolist(), gamma, lam)
        assert found[b, k][keep].tolist() == pytest.approx(expected, abs=1e-12)
        assert (found[b, k][~keep] == 0).all()


def test_gae_closed_forms():
    """λ = 1: returns less values. λ = 0: one-step errors. A score at the end, V = 0, γ = 1: λ^(distance to the end)."""
    rewards, values, mask = ragged(1)
    returns = discounted_returns(rewards, mask, 0.9)
    torch.testing.assert_close(gae(rewards, values, mask, 0.9, 1.0), (returns - values) * mask)
    one = torch.tensor([[0.0, 0.0, 0.0, 1.0]], **DOUBLE)
    whole = torch.ones(1, 4, dtype=torch.bool)
    assert gae(one, 0 * one, whole, 1.0, 0.95)[0].tolist() == pytest.approx([0.95**3, 0.95**2, 0.95, 1])
    flat = torch.full((1, 4), 0.5, **DOUBLE)
    assert gae(one, flat, whole, 1.0, 0.0)[0].tolist() == pytest.approx([0, 0, 0, 0.5])


def test_what_stands_outside_the_mask_is_never_read():
    rewards, values, mask = ragged(2)
    other = gae(rewards.masked_fill(~mask, 99), values.masked_fill(~mask, -99), mask, 1.0, 0.95)
    assert torch.equal(other, gae(rewards, values, mask, 1.0, 0.95))


def test_returns_by_hand():
    rewards = torch.tensor([1.0, 2.0, 5.0, 4.0], **DOUBLE)
    mask = torch.tensor([True, True, False, True])
    assert discounted_returns(rewards, mask, 0.5).tolist() == [1 + 0.5 * 4, 2 + 0.5 * 4, 0, 4]


@pytest.mark.parametrize("shift", [True, False])
def test_whitening_is_over_the_mask_of_all_rows(shift):
    values, _, mask = ragged(3)
    kept = values[mask].tolist()
    mean = sum(kept) / len(kept)
    variance = sum((x - mean) ** 2 for x in kept) / len(kept)
    found = whiten(values.masked_fill(~mask, 1e6), mask, shift)
    expected = [(x - mean) / math.sqrt(variance + 1e-8) + (0 if shift else mean) for x in kept]
    assert found[mask].tolist() == pytest.approx(expected, abs=1e-12)
    assert (found[~mask] == 0).all()


def test_whitening_equal_values_gives_nothing_and_nothing_gives_nothing():
    mask = torch.tensor([[True, True, False]])
    equal = torch.full((1, 3), 0.5, **DOUBLE)
    assert whiten(equal, mask).tolist() == [[0, 0, 0]]
    assert whiten(equal, mask, shift_mean=False).tolist() == [[0.5, 0.5, 0]]
    assert whiten(equal, torch.zeros_like(mask)).tolist() == [[0, 0, 0]]


def test_masked_sums_and_means():
    values, mask = torch.tensor([[1.0, 2, 9], [9, 9, 9]]), torch.tensor([[True, True, False], [False] * 3])
    assert masked_sum(values, mask).tolist() == [3, 0] and masked_mean(values, mask).tolist() == [1.5, 0]


def test_bounded_exp_is_exp_and_then_its_tangent():
    x = torch.tensor([-300.0, -1.0, 0.0, 19.9, 20.0, 25.0, 1e4], **DOUBLE, requires_grad=True)
    y = bounded_exp(x)
    assert y[:5].tolist() == pytest.approx([math.exp(v) for v in x[:5].tolist()])
    assert y[5:].tolist() == pytest.approx([math.exp(20) * (1 + v - 20) for v in (25, 1e4)])
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.tolist() == pytest.approx([math.exp(min(v, 20)) for v in x.tolist()])
    assert bounded_exp(torch.tensor(1e4)).isfinite()  # fp32


POLICY = torch.tensor([0.5, -0.2, 1.3, 0.1], **DOUBLE)
REFERENCE = torch.tensor([0.1, 0.2, 0.3, 0.4], **DOUBLE).log()


def expected_gradient(estimator):
    """Σ_y π(y) ∇k(y): the samples are π's, and the gradient does not see that they depend on it."""
    logits = POLICY.clone().requires_grad_()
    logps = logits.log_softmax(-1)
    (logps.exp().detach() * kl_estimate(logps - REFERENCE, estimator)).sum().backward()
    return logits.grad


def exact(divergence):
    logits = POLICY.clone().requires_grad_()
    logps = logits.log_softmax(-1)
    value = (
        (logps.exp() * (logps - REFERENCE)).sum()
        if divergence == "policy_ref"
        else (REFERENCE.exp() * (REFERENCE - logps)).sum()
    )
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def test_gradients_of_the_estimators_on_the_policys_own_samples():
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(expected_gradient("k1"), torch.zeros(4, **DOUBLE), **close)
    torch.testing.assert_close(expected_gradient("k2"), exact("policy_ref")[1], **close)
    torch.testing.assert_close(expected_gradient("k3"), exact("ref_policy")[1], **close)


def test_values_of_the_estimators():
    logps = POLICY.log_softmax(-1)
    for estimator in ("k1", "k3"):
        mean = (logps.exp() * kl_estimate(logps - REFERENCE, estimator)).sum()
        torch.testing.assert_close(mean, exact("policy_ref")[0], rtol=0, atol=1e-12)
    near = REFERENCE + 1e-4 * torch.tensor([1.0, -1.0, 0.5, -0.5], **DOUBLE)
    near = near.log_softmax(-1)
    mean = (near.exp() * kl_estimate(near - REFERENCE, "k2")).sum()
    torch.testing.assert_close(mean, (near.exp() * (near - REFERENCE)).sum(), rtol=1e-3, atol=0)
    assert (kl_estimate(logps - REFERENCE, "k3") >= 0).all()


def test_far_below_the_reference_k3_still_pulls_back():
    ratio = torch.tensor([-2000.0], requires_grad=True)
    kl_estimate(ratio, "k3").sum().backward()
    assert ratio.grad.item() < 0


def test_estimators_on_ratios_of_whole_completions():
    """Two tokens of two kinds: the same expectations hold when k is taken of the completion's log-ratio."""
    first = torch.tensor([0.3, -0.4], **DOUBLE, requires_grad=True)
    second = torch.tensor([[0.2, 0.9], [-0.5, 0.1]], **DOUBLE, requires_grad=True)
    reference = torch.tensor([[0.1, 0.4], [0.3, 0.2]], **DOUBLE).log()  # of the four completions
    logps = first.log_softmax(-1)[:, None] + second.log_softmax(-1)  # [2, 2]
    kl = (logps.exp() * (logps - reference)).sum()
    back = (reference.exp() * (reference - logps)).sum()
    parameters = (first, second)
    for estimator, expected in (("k2", kl), ("k3", back)):
        mean = (logps.exp().detach() * kl_estimate(logps - reference, estimator)).sum()
        for one, other in zip(
            torch.autograd.grad(mean, parameters, retain_graph=True),
            torch.autograd.grad(expected, parameters, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_an_unknown_estimator():
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(torch.zeros(1), "k4")
