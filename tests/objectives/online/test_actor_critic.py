"""PPO, its penalised form, A2C, REINFORCE++ and the Lagrangian: against loops over tokens, and against one another."""

import dataclasses
import math

import pytest
import torch
from trl_grpo import rollouts

from prefopt import evaluate_loss
from prefopt.objectives import A2C, PPO, PPOKL, LagrangianPPO, ReinforcePlusPlus
from prefopt.objectives.online.advantage import explained_variance


def tokens(batch):
    """Each completion's places in the mask."""
    return [
        (b, k, batch.mask[b, k].nonzero().flatten().tolist())
        for b in range(len(batch))
        for k in range(batch.mask.shape[1])
    ]


def whitened(numbers):
    mean = sum(numbers) / len(numbers)
    variance = sum((x - mean) ** 2 for x in numbers) / len(numbers)
    return [(x - mean) / math.sqrt(variance + 1e-8) for x in numbers]


def naive_targets(batch, old, reference, ppo, scores=None):
    """{(b, k, t): advantage}, {…: return}, in plain Python."""
    scores = (batch.scores if scores is None else scores).tolist()
    said, refs, values = old.logps.tolist(), reference.logps.tolist(), old.values.tolist()
    rewards = {}
    for b, k, places in tokens(batch):
        for t in places:
            rewards[b, k, t] = -ppo.beta * (said[b][k][t] - refs[b][k][t]) + (t == places[-1]) * scores[b][k]
    if getattr(ppo, "whiten_rewards", False):
        mean = sum(rewards.values()) / len(rewards)
        rewards = dict(zip(rewards, (x + mean for x in whitened(list(rewards.values()))), strict=True))
    advantages, returns = {}, {}
    for b, k, places in tokens(batch):
        advantage = value = 0.0
        for t in reversed(places):
            delta = rewards[b, k, t] + ppo.gamma * value - values[b][k][t]
            advantage = delta + ppo.gamma * ppo.lam * advantage
            value = values[b][k][t]
            advantages[b, k, t], returns[b, k, t] = advantage, advantage + value
    if ppo.whiten_advantages:
        advantages = dict(zip(advantages, whitened(list(advantages.values())), strict=True))
    return advantages, returns


def naive_ppo(batch, policy, old, reference, ppo, scores=None):
    advantages, returns = naive_targets(batch, old, reference, ppo, scores)
    losses = []
    for place, a in advantages.items():
        ratio = (policy.logps[place] - old.logps[place]).exp()
        losses.append(torch.maximum(-a * ratio, -a * ratio.clamp(1 - ppo.epsilon, 1 + ppo.epsilon)))
        v, before, r = policy.values[place], old.values[place], returns[place]
        error = (v - r) ** 2
        if ppo.epsilon_v is not None:
            near = before + (v - before).clamp(-ppo.epsilon_v, ppo.epsilon_v)
            error = torch.maximum(error, (near - r) ** 2)
        losses[-1] = losses[-1] + ppo.c_v * error / 2
    return sum(losses) / len(losses)


def assert_same(ours, theirs, *leaves, value=True):
    if value:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for leaf in leaves:
        one, other = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (ours, theirs))
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "ppo",
    [
        PPO(),
        PPO(epsilon=0.05, gamma=0.9, lam=0.7, c_v=0.5, epsilon_v=0.05),
        PPO(epsilon_v=None, whiten_advantages=False),
        PPO(whiten_rewards=True),
    ],
    ids=repr,
)
def test_ppo_as_a_loop_over_tokens(ppo):
    batch, policy, old, reference = rollouts(absent=((1, 1),))
    ours = evaluate_loss(ppo, batch, policy, reference, old)
    assert_same(ours, naive_ppo(batch, policy, old, reference, ppo), policy.logps, policy.values)


def test_both_clips_are_in_these_tests():
    batch, policy, old, reference = rollouts(absent=((1, 1),))
    ppo = PPO(epsilon=0.05, epsilon_v=0.05)
    assert ppo.loss(batch, policy, ppo.targets(batch, old, reference)).metrics["ratio/clipped"].mean() > 0
    assert ((policy.values - old.values).abs()[batch.mask] > 0.05).any()


def test_one_epoch_one_minibatch_no_critic_is_reinforce_with_the_same_advantages():
    batch, policy, _, reference = rollouts(seed=1)
    old = dataclasses.replace(policy.detach())
    ppo = PPO(c_v=0.0)
    advantages = ppo.targets(batch, old, reference).rows["advantages"]
    reinforce = -(advantages * policy.logps)[batch.mask].sum() / batch.mask.sum()
    assert_same(evaluate_loss(ppo, batch, policy, reference, old), reinforce, policy.logps, value=False)


def test_a2c_is_ppo_at_the_first_update():
    batch, policy, _, reference = rollouts(seed=2)
    old = policy.detach()
    fields = {"lam": 0.95, "c_v": 0.3, "whiten_advantages": True}
    one = evaluate_loss(A2C(**fields), batch, policy, reference, old)
    other = evaluate_loss(PPO(epsilon_v=None, **fields), batch, policy, reference, old)
    assert_same(one, other, policy.logps, policy.values, value=False)


def test_a2c_by_a_loop():
    batch, policy, old, reference = rollouts(seed=3)
    a2c = A2C(lam=0.8)
    advantages, returns = naive_targets(batch, old, reference, a2c)
    losses = [-a * policy.logps[p] + (policy.values[p] - returns[p]) ** 2 / 2 for p, a in advantages.items()]
    ours = evaluate_loss(a2c, batch, policy, reference, old)
    assert_same(ours, sum(losses) / len(losses), policy.logps, policy.values)


def test_ppokl_by_a_loop():
    batch, policy, old, reference = rollouts(seed=4)
    ppo = PPOKL(beta_kl=1.7)
    advantages, returns = naive_targets(batch, old, reference, ppo)
    losses = []
    for p, a in advantages.items():
        moved = policy.logps[p] - old.logps[p]
        kl = moved.exp() - 1 - moved
        losses.append(-a * moved.exp() + 1.7 * kl + 0.1 * (policy.values[p] - returns[p]) ** 2 / 2)
    ours = evaluate_loss(ppo, batch, policy, reference, old)
    assert_same(ours, sum(losses) / len(losses), policy.logps, policy.values)


def test_ppokl_adapts_to_the_kl_it_logs():
    batch, policy, old, reference = rollouts(seed=4, moved=2.0)
    ppo = PPOKL()
    metrics = ppo.loss(batch, policy, ppo.targets(batch, old, reference)).metrics
    assert metrics["ratio/kl"].mean() > 0.015 and (metrics["ratio/clipped"] == 0).all()
    assert ppo.adapted({"ratio/kl": metrics["ratio/kl"].mean().item()}).beta_kl == 2.0


def test_the_penalty_of_ppokl_has_the_gradient_of_the_kl_from_the_old_policy():
    logits = torch.tensor([0.3, -0.2, 0.6], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    moved = logits.log_softmax(-1) - old.log()
    mean = (old * (moved.exp() - 1 - moved)).sum()
    assert_same(mean, -(old * moved).sum(), logits)


def test_a_turns_reward_changes_the_returns_before_it_and_none_after_it():
    """By hand: γ = λ = 1 without a critic's help makes the return of a token the sum of all later rewards."""
    batch, _, old, reference = rollouts(seed=3)
    old = dataclasses.replace(old, values=torch.zeros_like(old.values))
    b, k, places = next(one for one in tokens(batch) if len(one[2]) >= 4)
    middle = places[len(places) // 2 - 1]
    rewards = torch.zeros_like(old.values)
    rewards[b, k, middle] = 3.0
    a2c = A2C(beta=0.0, gamma=1.0, lam=1.0)
    plain, with_reward = (
        a2c.targets(dataclasses.replace(batch, rewards=r), old, reference).rows["returns"] for r in (None, rewards)
    )
    expected = torch.zeros_like(plain)
    expected[b, k, [t for t in places if t <= middle]] = 3.0
    torch.testing.assert_close(with_reward - plain, expected, rtol=0, atol=1e-12)
    discounted = dataclasses.replace(a2c, gamma=0.5)
    first = [
        discounted.targets(dataclasses.replace(batch, rewards=r), old, reference).rows["returns"][b, k, places[0]]
        for r in (None, rewards)
    ]
    assert (first[1] - first[0]).item() == pytest.approx(3 * 0.5 ** places.index(middle))


@pytest.mark.parametrize("baseline", ["none", "group"])
def test_reinforce_plus_plus_by_a_loop(baseline):
    batch, policy, old, reference = rollouts(seed=5)
    objective = ReinforcePlusPlus(beta=0.3, epsilon=0.05, baseline=baseline)
    scores = batch.scores - (batch.scores.mean(1, keepdim=True) if baseline == "group" else 0)
    returns = {}
    for b, k, places in tokens(batch):
        kl = [(old.logps - reference.logps)[b, k, t].item() for t in places]
        for n, t in enumerate(places):
            returns[b, k, t] = scores[b, k].item() - 0.3 * sum(kl[n:])
    losses = []
    for p, a in zip(returns, whitened(list(returns.values())), strict=True):
        ratio = (policy.logps[p] - old.logps[p]).exp()
        losses.append(torch.maximum(-a * ratio, -a * ratio.clamp(0.95, 1.05)))
    assert_same(evaluate_loss(objective, batch, policy, reference, old), sum(losses) / len(losses), policy.logps)


def constrained(seed=6):
    batch, policy, old, reference = rollouts(seed=seed, absent=((2, 0),))
    cost = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return dataclasses.replace(batch, columns={"cost": cost}), policy, old, reference


def test_lagrangian_is_ppo_on_the_mixed_reward():
    batch, policy, old, reference = constrained()
    objective = LagrangianPPO(multiplier=2.5)
    mixed = (batch.scores - 2.5 * batch.columns["cost"]) / 3.5
    expected = naive_ppo(batch, policy, old, reference, objective, mixed)
    assert_same(evaluate_loss(objective, batch, policy, reference, old), expected, policy.logps, policy.values)


def test_the_mixed_reward_gives_safe_rlhfs_mixed_advantage():
    """(A_r − ν A_c)/(1 + ν), with a critic for each and the KL in both, is GAE with the mixed critic."""
    batch, _, old, reference = constrained()
    nu = 1.5
    objective = LagrangianPPO(multiplier=nu, whiten_advantages=False)
    cost_values = torch.randn(old.values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, reversed_kl = PPO(whiten_advantages=False), PPO(whiten_advantages=False)
    of_reward = plain.targets(batch, old, reference).rows["advantages"]
    negated = dataclasses.replace(batch, scores=-batch.columns["cost"])  # −cost − β kl is minus Safe RLHF's cost + β kl
    of_cost = -reversed_kl.targets(negated, dataclasses.replace(old, values=-cost_values * old.mask), reference).rows[
        "advantages"
    ]
    mixed = dataclasses.replace(old, values=(old.values - nu * cost_values) / (1 + nu) * old.mask)
    found = objective.targets(batch, mixed, reference).rows["advantages"]
    torch.testing.assert_close(found, (of_reward - nu * of_cost) / (1 + nu), rtol=0, atol=1e-12)


def test_the_multiplier_follows_the_mean_cost():
    batch, _, old, reference = constrained()
    objective = LagrangianPPO(threshold=0.25)
    metrics = objective.targets(batch, old, reference).metrics
    mean = batch.columns["cost"][batch.present].mean().item()
    assert metrics["cost/mean"] == pytest.approx(mean) and metrics["cost/multiplier"] == 1.0
    assert objective.adapted(metrics).multiplier == pytest.approx(math.exp(0.1 * (mean - 0.25)))
    started = LagrangianPPO(multiplier=2.0).adapted({"cost/mean": 0.5})
    assert started.multiplier == pytest.approx(2 * math.exp(0.1 * 2 * 0.5))
    assert LagrangianPPO().adapted({"cost/mean": 1e9}).multiplier == pytest.approx(5.0)
    assert 0 < LagrangianPPO().adapted({"cost/mean": -1e9}).multiplier <= 1e-6
    for cost in (3.0, -3.0):  # to the cap, and towards 0, without ever becoming invalid
        moving = LagrangianPPO()
        for _ in range(200):
            moving = moving.adapted({"cost/mean": cost})
        assert moving.multiplier == pytest.approx(5.0) if cost > 0 else moving.multiplier < 0.1


def test_dearer_completions_are_pushed_down_harder_as_the_multiplier_rises():
    batch, _, old, reference = constrained()
    cost = torch.zeros(3, 4, dtype=torch.float64)
    cost[0, 0] = 5.0
    batch = dataclasses.replace(batch, columns={"cost": cost})
    pulls = []
    for nu in (0.1, 1.0, 4.0):
        advantages = LagrangianPPO(multiplier=nu).targets(batch, old, reference).rows["advantages"]
        pulls.append(advantages[0, 0][batch.mask[0, 0]].mean().item())
    assert pulls[0] > pulls[1] > pulls[2]


def test_explained_variance():
    actual = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(actual, actual) == 1.0
    assert explained_variance(torch.zeros(3), actual) == 0.0
    assert explained_variance(-actual, actual) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(actual, torch.ones(3))) and math.isnan(
        explained_variance(actual[:0], actual[:0])
    )


def test_metrics_of_the_critic():
    batch, policy, old, reference = rollouts(seed=7, absent=((0, 0),))
    ppo = PPO(epsilon_v=None)
    targets = ppo.targets(batch, old, reference)
    returns = targets.rows["returns"]
    error = ((policy.values - returns) ** 2 / 2).detach()
    metrics = ppo.loss(batch, policy, targets).metrics
    expected = [error[b][batch.mask[b]].mean().item() for b in range(3)]
    assert metrics["values/loss"].tolist() == pytest.approx(expected)
    assert targets.metrics["values/mean"] == pytest.approx(old.values[batch.mask].mean().item())
    raw, _ = naive_targets(batch, old, reference, dataclasses.replace(ppo, whiten_advantages=False))
    raw = torch.tensor(list(raw.values()))
    assert targets.metrics["advantages/mean"] == pytest.approx(raw.mean().item(), abs=1e-6)
    assert targets.metrics["advantages/std"] == pytest.approx(raw.std(correction=0).item(), rel=1e-5)


@pytest.mark.parametrize("objective", [PPO(), PPOKL(), A2C(), ReinforcePlusPlus()], ids=repr)
def test_the_total_keeps_the_dtype_of_the_policy(objective):
    batch, policy, old, reference = rollouts(dtype=torch.float32)
    for scores in (batch.scores, batch.scores.double(), batch.scores.round().long()):
        scored = dataclasses.replace(batch, scores=scores)
        loss = objective.loss(scored, policy, objective.targets(scored, old, reference))
        assert loss.total.dtype in (torch.float32, scores.dtype) and loss.total.isfinite().all()
