"""The bandit of two turns as an environment: rollouts write what the testbed says, and training finds the closed form."""

from dataclasses import replace

import pytest
import torch

from prefopt import Needs
from prefopt.objectives import REINFORCE, RLOO
from prefopt.testbeds.bandit_online import online_trainer
from prefopt.testbeds.two_turn import ANSWER, SECOND, WORLD, Choices, TwoTurnPolicy, episodes
from prefopt.testbeds.two_turn_episodes import make_episodes


def elsewhere():
    draw = torch.Generator().manual_seed(2)
    noisy = (p.log() + 0.3 * torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in WORLD.reference)
    return Choices(*(logits.softmax(-1) for logits in noisy))


@pytest.mark.parametrize("answers", [(1, 1), (1, 4)])
def test_rollouts_write_the_episodes_of_the_testbed(answers):
    world = replace(WORLD, answers=answers)
    policy = TwoTurnPolicy(world, elsewhere())
    batch = next(iter(make_episodes(world, policy, 400, 2)))
    a, e = batch.completion_ids[..., 0], batch.completion_ids[..., 1] - ANSWER
    last = batch.lengths - 1
    b = batch.completion_ids.gather(-1, last[..., None])[..., 0] - SECOND
    expected = episodes(world, a, e, b)
    width = expected.mask.shape[-1]
    assert torch.equal(batch.mask, expected.mask)
    assert torch.equal(batch.completion_ids.where(torch.arange(width) <= last[..., None], 0), expected.completion_ids)
    at_end = torch.arange(width) == last[..., None]  # the second turn has all of the reward
    torch.testing.assert_close(batch.rewards.double(), torch.where(at_end, expected.scores[..., None], 0.0))
    assert (batch.scores == 0).all()
    sampled = batch.columns["sampler_logps"].double().where(batch.mask, 0.0)
    torch.testing.assert_close(sampled, policy(batch, Needs()).logps.detach())
    counts = torch.zeros(3, 2, 2).index_put((a, e, b), torch.ones(a.shape), accumulate=True)
    chance = world.trajectories(policy.choices)
    # Two episodes of a prompt share their luck: they are worth at least those of 400 prompts.
    assert ((counts / a.numel() - chance).abs() < 4 * (chance * (1 - chance) / 400).sqrt()).all()
    alike = (a[:, 0] == a[:, 1]).nonzero().flatten()
    assert len(alike) > 50 and torch.equal(e[alike, 0], e[alike, 1])  # one task
    assert 0.2 < (e[alike, 0] == 0).float().mean() < 0.9  # and another one for each prompt


@pytest.mark.parametrize("objective", [RLOO(beta=1.0), REINFORCE(beta=1.0, credit="reward_to_go")])
def test_training_in_the_environment_is_that_of_the_testbed(objective):
    """Five updates on what rollouts write, and on the same draws as the testbed writes them: experiments/two_turn goes on to π*."""
    acting, alike = TwoTurnPolicy(WORLD), TwoTurnPolicy(WORLD)
    drawn = []

    def kept(source):
        for batch in source:
            drawn.append(batch.completion_ids)
            yield batch

    def copies():
        for ids in drawn:
            yield episodes(WORLD, ids[..., 0], ids[..., 1] - ANSWER, ids[..., 2] - SECOND)

    for policy, batches in ((acting, kept(make_episodes(WORLD, acting, 8, 4))), (alike, copies())):
        source = type("Source", (), {"batch_size": 8, "__iter__": lambda self, batches=batches: batches})()
        for _ in online_trainer(policy, objective, source, policy.frozen(), 5, lr=0.1):
            pass
    assert len(drawn) == 5
    for one, other, start in zip(acting.choices, alike.choices, WORLD.reference, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # rewards of batches are fp32
        assert (one - start).abs().max() > 0.02
