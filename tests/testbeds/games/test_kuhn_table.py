"""Self-play of Kuhn poker by a table: a KL to a reference that follows makes it converge, and without it goes in circles."""

import pytest

from prefopt.objectives import GRPO, RLOO
from prefopt.testbeds.bandit import tabular
from prefopt.testbeds.games.kuhn import SETS, action_values, equilibrium, exploitability, uniform, value
from prefopt.testbeds.games.kuhn_table import Magnet, self_play


def test_in_an_equilibrium_mixed_actions_are_worth_the_same():
    values = action_values(equilibrium())
    for place, bet in equilibrium().items():
        worse, better = sorted(values[place])
        if 0 < bet < 1:
            assert better == pytest.approx(worse), place
        else:
            assert values[place][round(bet)] == pytest.approx(better), place


def test_values_are_what_a_deviation_earns():
    play = uniform()
    passed, bet = action_values(play)["king", ()]
    always, never = (value(play | {("king", ()): p}, play) for p in (1.0, 0.0))
    assert always - never == pytest.approx((bet - passed) / 3)
    passed, bet = action_values(play)["jack", ("bet",)]
    always, never = (value(play, play | {("jack", ("bet",)): p}) for p in (1.0, 0.0))
    assert never - always == pytest.approx((bet - passed) / 3 / 2)  # a third of the cards, half of the first actions


def test_the_reference_follows_at_its_pace():
    import torch

    policy, other = (tabular(torch.tensor([[1 - p, p]])) for p in (0.5, 0.8))
    magnet = Magnet(policy.frozen().policy, every=10, mix=0.5)
    magnet.follow(other, 9)
    assert magnet.policy.probabilities[0, 1] == pytest.approx(0.5)
    magnet.follow(other, 10)
    assert magnet.policy.probabilities[0, 1] == pytest.approx(2 / 3)  # halfway in log-odds


def test_two_steps_of_self_play():
    first, second = self_play(GRPO(beta=0.1), 2)
    assert len(SETS) == 12 and first == pytest.approx(exploitability(uniform()), abs=0.1) and second != first


@pytest.mark.slow
def test_the_last_iterate_is_near_an_equilibrium_with_a_magnet_alone():
    *_, held = self_play(RLOO(beta=0.5), 300)
    *_, free = self_play(RLOO(beta=0.0), 100)
    assert held < 0.05 and free > 0.1
