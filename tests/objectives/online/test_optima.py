"""Where each objective stands still on the testbeds' bandit: a group of 20,000 completions in proportion to the policy."""

import pytest
import torch

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives import A2C, GRPO, PPO, REINFORCE, RLOO, DrGRPO, ReinforcePlusPlus
from prefopt.testbeds.bandit import optimum

REFERENCE = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
SIZE = 20_000


def pull(objective, policy):
    """The largest slope of the loss along a logit, at this policy, on its own completions."""
    logits = policy.log().requires_grad_()
    logps = logits.log_softmax(-1)
    counts = (policy * SIZE).round().long()
    actions = torch.arange(4).repeat_interleave(counts)[None]
    mask = torch.ones(*actions.shape, 1, dtype=torch.bool)
    batch = Batch(((1,),), actions[..., None], mask, scores=REWARDS[actions])
    values = torch.zeros_like(mask, dtype=torch.float64)
    kl = (logps.exp() * (logps - REFERENCE.log())).sum().expand(mask.shape)
    now = Outputs(mask, logps[actions][..., None], values, statistics={"kl_policy_ref": kl})
    said = Outputs(mask, REFERENCE.log()[actions][..., None])
    loss = evaluate_loss(objective, batch, now, said, now.detach())
    return torch.autograd.grad(loss, logits)[0].abs().max().item()


EXACT = {"beta": 1.0, "estimator": "exact", "placement": "loss"}
K2 = {"beta": 1.0, "estimator": "k2", "placement": "loss"}
KEPT = [
    *(cls(**kl) for cls in (RLOO, REINFORCE, A2C) for kl in ({"beta": 1.0}, EXACT, K2)),
    *(PPO(**kl, whiten_advantages=False) for kl in ({"beta": 1.0}, EXACT, K2)),
    ReinforcePlusPlus(beta=1.0),
]


@pytest.mark.parametrize("objective", KEPT, ids=repr)
def test_the_optimum_of_reward_less_kl(objective):
    assert pull(objective, optimum(REFERENCE, REWARDS, 1.0)) < 1e-4
    assert pull(objective, REFERENCE) > 5e-2


@pytest.mark.parametrize(
    ("objective", "policy"),
    [
        (GRPO(beta=1.0, e=0.0), [0.4886, 0.2099, 0.1764, 0.1251]),
        (DrGRPO(beta=1.0, length=1.0), [0.3413, 0.2522, 0.2320, 0.1744]),
        (GRPO(beta=1.0, e=0.0, estimator="k2"), [0.5064, 0.3208, 0.1524, 0.0204]),
        (GRPO(beta=1.0, e=0.0, estimator="exact"), [0.5064, 0.3208, 0.1524, 0.0204]),
    ],
    ids=repr,
)
def test_groups_have_an_optimum_of_their_own(objective, policy):
    """The numbers are the testbed's, of four digits."""
    policy = torch.tensor(policy, dtype=torch.float64)
    assert pull(objective, policy / policy.sum()) < 2e-4
    assert pull(objective, optimum(REFERENCE, REWARDS, 1.0)) > 5e-2


def test_k3_or_k1_in_the_loss_have_not_that_optimum():
    best = optimum(REFERENCE, REWARDS, 1.0)
    for estimator in ("k1", "k3"):
        assert pull(RLOO(beta=1.0, estimator=estimator, placement="loss"), best) > 2e-2
