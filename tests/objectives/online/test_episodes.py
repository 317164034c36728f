"""Episodes of several turns: what an environment writes counts nowhere; turns are credited with what is earned from them on."""

import dataclasses
import itertools
import math

import pytest
import torch
from trl_grpo import rollouts

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives import CATALOGUE, CISPO, DAPO, GDPO, GRPO, PPO, REINFORCE, RLOO, DrGRPO, ReinforcePlusPlus
from prefopt.objectives.contract.case import make_case
from prefopt.objectives.contract.gradients import gradients_of, with_leaves
from prefopt.objectives.contract.invariance import with_environment
from prefopt.objectives.maths import discounted_returns, gae, whiten
from prefopt.objectives.online.advantage import last_token
from prefopt.objectives.online.kl import KL

EXACT = {"rtol": 0, "atol": 1e-12}
ONLINE = [
    *(cls() for cls in CATALOGUE.values() if cls().needs.rollouts),
    PPO(estimator="exact", placement="loss", tis=2.0, whiten_rewards=True, gamma=0.9, lam=0.7),
    RLOO(estimator="k2", placement="loss"),
    GRPO(tis=2.0, credit="reward_to_go"),
    DrGRPO(credit="reward_to_go"),
    REINFORCE(credit="reward_to_go", baseline=0.3),
    ReinforcePlusPlus(baseline="group"),
    GDPO({"helpful": 1.0, "short": -0.5, "return": 2.0}),
]


def test_the_catalogue_has_online_objectives():
    assert len([cls for cls in CATALOGUE.values() if cls().needs.rollouts]) >= 16


@pytest.mark.parametrize("objective", ONLINE, ids=lambda objective: type(objective).__name__)
@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_an_environments_tokens_change_nothing(objective, noise):
    """Totals, gradients, targets, metrics and what running numbers move by; with `noise`, models say anything of them."""
    case = make_case(objective, 1)
    other, spread = with_environment(case, extra=6, noise=noise)
    assert (other.batch.completion_ids[~other.batch.mask] > 0).any() and other.policy.mask.shape[-1] == 11
    own, there = case.targets(), other.targets()
    for name, row in own.rows.items():
        expected, found = (
            (spread(row), there.rows[name]) if row.shape == case.batch.mask.shape else (row, there.rows[name])
        )
        if found.shape == other.batch.mask.shape:
            expected, found = expected[other.batch.mask], found[other.batch.mask]
        torch.testing.assert_close(found, expected, **EXACT, msg=name)
    (one, leaves), (two, others) = with_leaves(case), with_leaves(other)
    loss, found = one.loss(own), two.loss(there)
    torch.testing.assert_close(found.total, loss.total, **EXACT)
    gradients, moved = gradients_of(loss.total.sum(), leaves), gradients_of(found.total.sum(), others)
    for name, gradient in gradients.items():
        expected = spread(gradient) if gradient.ndim == 3 else gradient
        torch.testing.assert_close(moved[name], expected, **EXACT, msg=name)
    assert found.metrics.keys() == loss.metrics.keys() and there.metrics == pytest.approx(own.metrics, abs=1e-12)
    for name, metric in loss.metrics.items():
        torch.testing.assert_close(found.metrics[name], metric, **EXACT, equal_nan=True, msg=name)
    assert objective.needs.count(case.batch) == objective.needs.count(other.batch)


def test_gae_returns_whitening_and_kl_bridge_what_an_environment_wrote():
    case = make_case(PPO(), 2)
    other, spread = with_environment(case, extra=7, noise=9.0)
    for rewards, old, mask in ((r.batch.rewards, r.old, r.batch.mask) for r in (case, other)):
        assert (old.values[~mask].abs() > 1).any() == (mask is other.batch.mask), (
            "nobody's values are in the second one"
        )
        made = {
            "gae": gae(rewards, old.values, mask, 0.9, 0.8),
            "returns": discounted_returns(rewards, mask, 0.9),
            "whiten": whiten(old.values, mask),
            "scale": whiten(old.values, mask, shift_mean=False),
            "last": last_token(mask).double(),
        }
        if mask is case.batch.mask:
            expected = {name: spread(value) for name, value in made.items()}
    for name, value in made.items():
        torch.testing.assert_close(value, expected[name], **EXACT, msg=name)
    for estimator in ("k1", "k2", "k3"):
        kl = KL(0.3, estimator, "reward")
        own, there = (kl.penalty(c.batch.mask, c.old, c.reference) for c in (case, other))
        torch.testing.assert_close(there, spread(own), **EXACT)
        assert kl.metrics(other.old, other.reference) == pytest.approx(kl.metrics(case.old, case.reference), abs=1e-12)


def test_values_of_an_environments_tokens_are_not_learnt():
    """The critic's loss is over the policy's tokens, and a value goes over to the policy's next one."""
    mask = torch.tensor([[[True, False, False, True]]])
    values = torch.tensor([[[1.0, 70.0, -70.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    logps = torch.zeros(1, 1, 4, dtype=torch.float64, requires_grad=True)
    batch = Batch(((1,),), torch.tensor([[[1, 8, 9, 2]]]), mask, torch.tensor([[5.0]], dtype=torch.float64))
    outputs = Outputs(mask, logps, values)
    ppo = PPO(beta=0.0, lam=0.5, c_v=1.0, epsilon_v=None, whiten_advantages=False)
    rows = ppo.targets(batch, outputs.detach(), None).rows
    # δ = 5 − 2 at the last token; before it 0 + 2 − 1 and half of that.
    assert rows["advantages"].tolist() == [[[1 + 0.5 * 3, 0, 0, 3]]]
    loss = evaluate_loss(ppo, batch, outputs, old=outputs.detach())
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient.tolist() == [[[(1 - 3.5) / 2, 0, 0, (2 - 5) / 2]]]


def episodes(*turns):
    """One prompt's episodes, a token of the policy for each turn and one of the environment between two, with turns' rewards."""
    width = 2 * max(map(len, turns)) - 1
    mask, rewards = torch.zeros(1, len(turns), width, dtype=torch.bool), torch.zeros(1, len(turns), width).double()
    for k, earned in enumerate(turns):
        mask[0, k, : 2 * len(earned) - 1 : 2] = True
        rewards[0, k, : 2 * len(earned) - 1 : 2] = torch.tensor(earned).double()
    ids = torch.full(mask.shape, 7)
    return Batch(((1,),), ids, mask, torch.zeros(1, len(turns)).double(), rewards=rewards)


def advantages(objective, batch):
    """Of each turn of each episode."""
    nothing = Outputs(batch.mask, torch.zeros(batch.mask.shape, dtype=torch.float64))
    rows = objective.targets(batch, nothing, nothing).rows
    return [row[keep].tolist() for row, keep in zip(rows["advantages"][0], batch.mask[0], strict=True)]


def test_reward_to_go_by_hand():
    """Three episodes that earn 3, 1 and 2: mean 2, standard deviation 1."""
    batch = episodes([1.0, 2.0], [1.0], [0.0, 0.5, 1.5])
    to_go = [[3.0, 2.0], [1.0], [2.0, 2.0, 1.5]]
    centred = [[g - 2 for g in turns] for turns in to_go]
    for cls in (GRPO, DAPO, CISPO):
        assert advantages(cls(beta=0.0, e=0.0, credit="reward_to_go"), batch) == centred
        assert advantages(cls(beta=0.0, e=1.0, credit="reward_to_go"), batch) == [[a / 2 for a in t] for t in centred]
        assert advantages(cls(beta=0.0, e=0.0), batch) == [[1, 1], [-1], [0, 0, 0]]
    assert advantages(DrGRPO(credit="reward_to_go"), batch) == centred
    assert advantages(REINFORCE(beta=0.0, baseline=0.5, credit="reward_to_go"), batch) == [
        [g - 0.5 for g in turns] for turns in to_go
    ]
    scored = dataclasses.replace(batch, scores=torch.tensor([[0.0, 2.0, 1.0]]).double())  # all earn 3 now
    assert advantages(GRPO(beta=0.0, credit="reward_to_go"), scored) == [[0, 0], [0], [0, 0, 0]]
    assert advantages(REINFORCE(beta=0.0, credit="reward_to_go"), scored) == [[3, 2], [3], [3, 3, 2.5]]


@pytest.mark.parametrize("cls", [GRPO, DAPO, CISPO, DrGRPO, REINFORCE])
def test_of_one_reward_at_the_end_both_credits_are_one(cls):
    batch, policy, old, reference = rollouts(seed=3, absent=((1, 2),))
    kl = {"beta": 0.0} if cls is REINFORCE else {"beta": 0.1}  # a KL in the reward is credited, too
    one, other = (
        evaluate_loss(cls(credit=c, **kl), batch, policy, reference, old) for c in ("outcome", "reward_to_go")
    )
    torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("cls", [GRPO, DAPO, CISPO, DrGRPO, REINFORCE])
def test_another_credit_is_refused(cls):
    with pytest.raises(ValueError, match="outcome, reward_to_go, got 'turn'"):
        cls(credit="turn")


def test_reinforce_with_reward_to_go_has_the_gradient_of_whole_returns():
    """In expectation over all episodes of two turns: and a KL is in the rewards, which depends on the policy itself."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(
        7, generator=draw, dtype=torch.float64
    ).requires_grad_()  # of the first turn, 3, and of the second, 2 × 2
    earned = torch.randn(3, 2, 2, generator=draw, dtype=torch.float64)
    first, second = (
        logits[:3].log_softmax(-1),
        logits[3:].view(2, 2).log_softmax(-1),
    )  # the second one sees the answer alone
    plays = list(itertools.product(range(3), range(2), range(2)))
    chance = [0.3, 0.7]
    logps = torch.stack([torch.stack([first[a], torch.zeros(()).double(), second[e, b]]) for a, e, b in plays])[:, None]
    mask = torch.tensor([True, False, True]).expand(len(plays), 1, 3)
    rewards = torch.zeros(mask.shape, dtype=torch.float64)
    rewards[:, 0, 0] = torch.tensor([float(a) for a, _, _ in plays])
    rewards[:, 0, 2] = torch.stack([earned[p] for p in plays])
    batch = Batch(((1,),) * len(plays), mask.long(), mask, torch.zeros(len(plays), 1).double(), rewards=rewards)
    outputs, reference = Outputs(mask, logps), Outputs(mask, -0.9 * mask.double())
    weight = torch.stack([(first[a] + second[e, b]).exp() * chance[e] for a, e, b in plays])
    ratio = (logps - reference.logps).masked_fill(~mask, 0).sum((1, 2))
    (exact,) = torch.autograd.grad(-(weight * (rewards.sum((1, 2)) - 0.2 * ratio)).sum(), logits, retain_graph=True)
    for credit in ("outcome", "reward_to_go"):
        objective = REINFORCE(beta=0.2, baseline=0.4, credit=credit)
        loss = objective.loss(batch, outputs, objective.targets(batch, outputs.detach(), reference))
        (found,) = torch.autograd.grad((weight.detach() * loss.total).sum(), logits, retain_graph=True)
        torch.testing.assert_close(found, exact, **EXACT)


def normalised_by_turn(batch, together):
    """Wrong: each turn's reward normalised among turns, all `together` or each turn number apart; then summed from a turn on."""
    turns = [row[keep].tolist() for row, keep in zip(batch.rewards[0], batch.mask[0], strict=True)]

    def scaled(x, others):
        mean = sum(others) / len(others)
        std = math.sqrt(sum((o - mean) ** 2 for o in others) / max(len(others) - 1, 1))
        return (x - mean) / (std + 1e-4)

    rewards = [
        [scaled(x, [o for t in turns for o in (t if together else t[i : i + 1])]) for i, x in enumerate(t)]
        for t in turns
    ]
    return [[sum(row[i:]) for i in range(len(row))] for row in rewards]


@pytest.mark.parametrize(
    ("short", "long", "together"),
    [
        ([0.0], [0.1, -1.0], False),  # a call that parses pays a little, and the turn that it leads to costs more
        ([-0.5], [-0.3, -0.3], True),
    ],
)
def test_turns_normalised_by_themselves_would_pay_for_taking_more_of_them(short, long, together):
    """Two episodes end after a turn, two go on and earn less. The first turn of those is to become less likely, and so it does."""
    batch = episodes(short, short, long, long)
    assert sum(long) < sum(short)
    wrong = normalised_by_turn(batch, together)
    assert wrong[2][0] > 0 > wrong[0][0], "it pays to go on"
    for objective in (GRPO(beta=0.0, credit="reward_to_go"), DrGRPO(credit="reward_to_go")):
        right = advantages(objective, batch)
        assert right[2][0] < 0 < right[0][0]
