"""Batches that an older policy wrote: which one, what is said of it, and that nothing depends on where a run was interrupted."""

import io
import threading
from itertools import islice

import pytest
import torch

from prefopt import Needs, PrefoptError
from prefopt.objectives import RLOO
from prefopt.objectives.online.correction import Correction
from prefopt.sources.rollouts import AGE
from prefopt.testbeds.bandit import tabular
from prefopt.testbeds.bandit_online import Payoff, TableSampler, make_rollouts, make_writers, online_trainer
from prefopt.training.checkpoints import check_state

TABLE, REWARDS = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).double(), torch.tensor([[1.0, 0.5, 0.0, -1.0]]).double()
STEPS = 7


class Elsewhere(TableSampler):
    """Draws from a copy of the weights, in threads; beyond the first draws only once the policy has been updated meanwhile.

    Attributes:
        patient: draws that do not wait.
        updated: set by an update of the policy.
    """

    remote = True

    def __init__(self, patient):
        self.patient, self.updated, self.threads = patient, threading.Event(), []

    def sync(self, policy, version):
        self.updated.clear()
        self.copy = policy.frozen()

    def __call__(self, model, *given):
        self.threads.append(threading.current_thread())
        assert len(self.threads) <= self.patient or self.updated.wait(20), "nothing was learnt while this was drawn"
        return super().__call__(self.copy, *given)


def training(staleness, tis=None, sampler=None):
    """A trainer with its source, and its policy."""
    policy = tabular(TABLE)
    objective, reference = RLOO(tis=tis), policy.frozen()
    writers = make_writers(policy, reference, 16, {})
    source = make_rollouts(writers, Payoff(REWARDS), objective.needs, staleness=staleness, sampler=sampler)
    return online_trainer(policy, objective, source, reference, STEPS, lr=0.3), source, policy


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_a_batch_is_written_by_the_policy_of_so_many_batches_ago(staleness):
    trainer, source, policy = training(staleness)
    policies, seen = [policy.probabilities.log()[0]], []
    taken = source._next
    source._next = lambda: seen.append(taken()) or seen[-1]
    ages = []
    for _ in trainer:
        policies.append(policy.probabilities.log()[0])
        ages.append(source.metrics.get(AGE))
    assert not torch.equal(policies[0], policies[1])
    for t, batch in enumerate(seen):
        written_by = max(0, t - staleness)
        assert (batch.version == written_by).all()
        expected = policies[written_by][batch.completion_ids[..., 0]]
        torch.testing.assert_close(batch.columns["sampler_logps"][..., 0].double(), expected, atol=1e-6, rtol=0)
    assert len(seen) == STEPS
    assert ages == ([min(t, staleness) for t in range(STEPS)] if staleness else [None] * STEPS)


def test_without_an_update_older_batches_are_the_same_batches():
    def batches(staleness):
        writers = make_writers(tabular(TABLE), tabular(TABLE).frozen(), 4, {})
        return list(islice(iter(make_rollouts(writers, Payoff(REWARDS), Needs(), staleness=staleness)), 3))

    for one, other in zip(batches(0), batches(2), strict=True):
        assert torch.equal(one.completion_ids, other.completion_ids) and torch.equal(one.scores, other.scores)


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("halt", [1, 4])
def test_a_resumed_run_has_the_same_numbers_and_weights(staleness, halt):
    whole, _, expected = training(staleness, Correction("sequence", high=2.0))
    numbers = [step.metrics for step in whole]
    trainer, source, policy = training(staleness, Correction("sequence", high=2.0))
    assert [str(step.metrics) for step in islice(trainer, halt)] == list(map(str, numbers[:halt]))
    state, written = trainer.state_dict(), io.BytesIO()
    check_state(state)
    assert len(state["source"]["ahead"]) == staleness
    torch.save({"trainer": state, "weights": policy.state_dict(), "optimizer": trainer.optimizer.state_dict()}, written)
    written.seek(0)
    kept = torch.load(written, weights_only=True)
    resumed, again, weights = training(staleness, Correction("sequence", high=2.0))
    weights.load_state_dict(kept["weights"])
    resumed.optimizer.load_state_dict(kept["optimizer"])
    resumed.load_state_dict(kept["trainer"])
    if staleness:
        assert again._ahead[0].told(None) == source._ahead[0].told(None) != []
    assert [str(step.metrics) for step in resumed] == list(map(str, numbers[halt:]))
    assert torch.equal(weights.probabilities, expected.probabilities)


@pytest.mark.parametrize("staleness", [1, 3])
@pytest.mark.parametrize("halt", [None, 3])
def test_a_remote_sampler_draws_while_the_policy_is_trained_and_changes_nothing(staleness, halt):
    """Numbers, what it cost and weights are those of a run that draws and trains by turns, and of one that was interrupted."""
    whole, expected_source, expected = training(staleness, Correction("sequence", high=2.0))
    numbers = [str(step.metrics) for step in whole]
    sampler = Elsewhere(staleness)
    trainer, source, policy = training(staleness, Correction("sequence", high=2.0), sampler)
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: sampler.updated.set())
    steps = islice(trainer, halt)
    assert [str(step.metrics) for step in steps] == numbers[:halt]
    assert len(source._ahead) == staleness - 1
    state = trainer.state_dict()  # waits for what is being drawn
    assert len(state["source"]["ahead"]) == staleness
    assert threading.main_thread() not in sampler.threads and len(sampler.threads) == (halt or STEPS) + staleness
    if halt is None:
        assert (source.tokens, source.judged) == (expected_source.tokens, expected_source.judged)
        assert torch.equal(policy.probabilities, expected.probabilities)
        return
    resumed, _, weights = training(staleness, Correction("sequence", high=2.0))
    weights.load_state_dict(policy.state_dict())
    resumed.optimizer.load_state_dict(trainer.optimizer.state_dict())
    resumed.load_state_dict(state)
    assert [str(step.metrics) for step in resumed] == numbers[halt:]
    assert torch.equal(weights.probabilities, expected.probabilities)


def test_what_goes_wrong_while_the_policy_is_trained_is_told():
    def refusing(*given):
        raise PrefoptError("the server is gone")

    sampler = Elsewhere(100)
    trainer, source, _ = training(1, sampler=sampler)
    next(iter(trainer))
    source.settle()
    sampler.__class__ = type("Gone", (Elsewhere,), {"__call__": refusing})
    with pytest.raises(PrefoptError, match="the server is gone"):
        list(trainer)


def test_the_correction_is_of_the_age():
    """The weight of a token is π_now / π_then, and 1 where no update lies between."""
    trainer, _, policy = training(2, Correction())
    policies = [policy.probabilities[0]]
    for t, step in enumerate(trainer):
        if t == 0:
            assert step.metrics["ratio/sampler_max"] == pytest.approx(1, abs=1e-6)
        if t == 4:
            largest = (policies[4] / policies[2]).max().item()
            assert 1 < step.metrics["ratio/sampler_max"] <= largest + 1e-6
        policies.append(policy.probabilities[0])
