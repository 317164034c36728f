"""Objectives that compare with completions of others: ReMax, Nash-MD, XPO and SPIN, by hand."""

import dataclasses
import math

import pytest
import torch
from trl_grpo import rollouts

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives import DPO, SPIN, XPO, NashMD, ReMax
from prefopt.types import ORIGINS


def from_(batch, *origins, **fields):
    """The batch with these origins, the same for each prompt."""
    origin = torch.tensor([ORIGINS.index(o) for o in origins]).expand(batch.present.shape)
    return dataclasses.replace(batch, columns={"origin": origin}, **fields)


def assert_same(ours, theirs, policy):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    one, other = (torch.autograd.grad(loss, policy.logps, retain_graph=True)[0] for loss in (ours, theirs))
    assert other.abs().max() > 0
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_remax_by_hand():
    batch, policy, old, reference = rollouts(completions=3, absent=((1, 0),))
    batch = from_(batch, "policy", "policy", "greedy")
    expected = 0
    for b in range(3):
        own = [k for k in (0, 1) if batch.mask[b, k].any()]
        for k in own:
            places = batch.mask[b, k].nonzero().flatten().tolist()
            kl = (old.logps - reference.logps)[b, k]
            for n, t in enumerate(places):
                earned = batch.scores[b, k] - 0.2 * sum(kl[s] for s in places[n:])
                expected = expected - (earned - batch.scores[b, 2]) * policy.logps[b, k, t] / len(own) / 3
    assert_same(evaluate_loss(ReMax(beta=0.2), batch, policy, reference, old), expected, policy)


def test_remax_without_a_greedy_completion_has_no_baseline():
    batch, policy, old, reference = rollouts(completions=2)
    batch = from_(batch, "policy", "policy")
    expected = -(batch.scores * policy.sum()).sum() / 2 / 3
    assert_same(evaluate_loss(ReMax(beta=0.0), batch, policy, reference, old), expected, policy)


def preferences(batch, seed=0):
    draw = torch.Generator().manual_seed(seed)
    upper = torch.rand(len(batch), *[batch.present.shape[1]] * 2, generator=draw, dtype=torch.float64).triu(1)
    return upper + (1 - upper).transpose(1, 2).tril(-1) + 0.5 * torch.eye(batch.present.shape[1])


def test_nash_md_by_hand():
    batch, policy, _, reference = rollouts(completions=2)
    wins = preferences(batch)
    batch = from_(batch, "policy", "mixture", preference=wins)
    delta = (policy.sum() - reference.sum()).detach()
    expected = -sum((wins[b, 0, 1] - 0.5 - 0.3 * delta[b, 0]) * policy.sum()[b, 0] for b in range(3)) / 3
    assert_same(evaluate_loss(NashMD(tau=0.3), batch, policy, reference), expected, policy)
    metrics = NashMD().loss(batch, policy, NashMD().targets(batch, None, reference)).metrics
    assert metrics["preference/win"].tolist() == pytest.approx(wins[:, 0, 1].tolist())
    assert metrics["kl/policy"].tolist() == pytest.approx(delta[:, 0].tolist())


def test_nash_md_with_several_on_each_side():
    batch, policy, _, reference = rollouts(completions=4, absent=((0, 3), (1, 2), (1, 3)))
    wins = preferences(batch)
    batch = from_(batch, "policy", "policy", "mixture", "mixture", preference=wins)
    delta = (policy.sum() - reference.sum()).detach()
    expected = 0
    for b, rivals in ((0, [2]), (2, [2, 3])):  # the second prompt has no rival, and no loss
        for k in (0, 1):
            advantage = sum(wins[b, k, j] for j in rivals) / len(rivals) - 0.5 - 0.1 * delta[b, k]
            expected = expected - advantage * policy.sum()[b, k] / 2 / 3
    assert_same(evaluate_loss(NashMD(), batch, policy, reference), expected, policy)
    assert NashMD().loss(batch, policy, NashMD().targets(batch, None, reference)).metrics["preference/win"][1].isnan()


def test_nash_md_stands_still_at_the_regularised_solution():
    """The testbed's game: at its solution, m = 0, the expected gradient is 0."""
    game = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]], dtype=torch.float64)

    def pull(solution, tau):
        logits = solution.log().clone().requires_grad_()
        rows = [(i, j) for i in range(3) for j in range(3)]
        logps = logits.log_softmax(-1)[torch.tensor(rows)][..., None]
        mask = torch.ones(9, 2, 1, dtype=torch.bool)
        chance = torch.tensor([(solution[i] * solution[j]).item() for i, j in rows], dtype=torch.float64)
        win = torch.tensor([game[i, j].item() for i, j in rows], dtype=torch.float64)
        half = torch.full_like(win, 0.5)
        preference = torch.stack([torch.stack([half, win], 1), torch.stack([1 - win, half], 1)], 1)
        batch = from_(Batch(((1,),) * 9, mask.long(), mask, preference=preference), "policy", "mixture")
        reference = Outputs(mask, torch.full((9, 2, 1), -math.log(3), dtype=torch.float64))
        objective = NashMD(tau=tau)
        loss = objective.loss(batch, Outputs(mask, logps), objective.targets(batch, None, reference))
        return torch.autograd.grad((chance * loss.total).sum(), logits)[0].abs().max().item()

    assert pull(torch.tensor([0.2744, 0.2792, 0.4464], dtype=torch.float64), 0.1) < 3e-5
    assert pull(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64) / 9, 1e-9) < 1e-9
    assert pull(torch.full((3,), 1 / 3, dtype=torch.float64), 0.1) > 1e-2


@pytest.mark.parametrize("order", [("policy", "reference"), ("reference", "policy")])
def test_xpo_by_hand(order):
    batch, policy, _, reference = rollouts(completions=2)
    scores = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.5]], dtype=torch.float64)
    batch = from_(batch, *order, scores=scores)
    delta = policy.sum() - reference.sum()
    other = order.index("reference")
    expected = 0
    for b, margin in ((0, delta[0, 0] - delta[0, 1]), (1, delta[1, 1] - delta[1, 0]), (2, None)):
        expected = expected + 0.01 * policy.sum()[b, other] / 3
        if margin is not None:
            expected = expected - torch.nn.functional.logsigmoid(0.3 * margin) / 3
    objective = XPO(beta=0.3, alpha=0.01)
    assert_same(evaluate_loss(objective, batch, policy, reference), expected, policy)
    metrics = objective.loss(batch, policy, objective.targets(batch, None, reference)).metrics
    assert metrics["rewards/chosen"][:2].tolist() == pytest.approx([0.3 * delta[0, 0].item(), 0.3 * delta[1, 1].item()])
    assert metrics["rewards/accuracy"][2].isnan()
    assert metrics["logps/reference"].tolist() == pytest.approx(policy.sum()[:, other].tolist())


def test_xpo_without_its_bonus_is_online_dpo():
    batch, policy, _, reference = rollouts(completions=2)
    scored = from_(batch, "policy", "reference", scores=torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64))
    ours = evaluate_loss(XPO(alpha=0.0), scored, policy, reference)
    assert_same(ours, evaluate_loss(DPO(), batch, policy, reference), policy)


@pytest.mark.parametrize("order", [("dataset", "policy"), ("policy", "dataset"), ("reference", "dataset")])
def test_spin_is_dpo_whose_chosen_completion_is_the_datas(order):
    batch, policy, _, reference = rollouts(completions=2)
    ours = evaluate_loss(SPIN(0.3), from_(batch, *order), policy, reference)
    if order[0] != "dataset":
        flip = lambda o: dataclasses.replace(o, mask=o.mask.flip(1), logps=o.logps.flip(1))  # noqa: E731
        batch = dataclasses.replace(batch, completion_ids=batch.completion_ids.flip(1), mask=batch.mask.flip(1))
        theirs = evaluate_loss(DPO(0.3), batch, flip(policy), flip(reference))
    else:
        theirs = evaluate_loss(DPO(0.3), batch, policy, reference)
    assert_same(ours, theirs, policy)


def test_spin_starts_at_ln_2():
    batch, policy, _, _ = rollouts(completions=2)
    loss = evaluate_loss(SPIN(), from_(batch, "dataset", "policy"), policy, policy.detach())
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
