"""Kuhn poker against what is known of it: its value, its equilibria, and what a best response wins."""

from itertools import permutations

import pytest

from prefopt.testbeds.games.kuhn import (
    CARDS,
    SETS,
    deal,
    equilibrium,
    exploitability,
    over,
    play_of,
    uniform,
    value,
    winnings,
)


@pytest.mark.parametrize(
    ("history", "won"),
    [
        (("pass", "pass"), 1),
        (("bet", "pass"), 1),
        (("bet", "bet"), 2),
        (("pass", "bet", "pass"), -1),
        (("pass", "bet", "bet"), 2),
    ],
)
def test_what_the_first_player_wins_with_the_better_card(history, won):
    assert over(history) and winnings(("king", "jack"), history) == won
    folded = history[-1] == "pass" and "bet" in history
    assert winnings(("jack", "king"), history) == (won if folded else -won)


def test_a_hand_goes_on_until_somebody_answered():
    assert not any(over(history) for history in [(), ("pass",), ("bet",), ("pass", "bet")])


def test_all_deals_are_as_likely():
    deals = [deal(seed) for seed in range(3000)]
    shares = [deals.count(cards) / 3000 for cards in permutations(CARDS, 2)]
    assert shares == pytest.approx([1 / 6] * 6, abs=0.03)


@pytest.mark.parametrize("alpha", [0, 0.2, 1 / 3])
def test_equilibria_lose_nothing_to_anybody_and_are_worth_an_eighteenth(alpha):
    assert exploitability(equilibrium(alpha)) == pytest.approx(0, abs=1e-12)
    assert value(equilibrium(alpha), equilibrium()) == pytest.approx(-1 / 18)


def test_play_at_random_loses_its_known_share():
    assert exploitability(uniform()) == pytest.approx(0.4583, abs=5e-5)


def test_exploitability_is_of_both_roles():
    always = dict.fromkeys(
        SETS, 1.0
    )  # in either role the king wins 2, the jack loses 1 by folding, the queen wins 0 by calling
    assert exploitability(always) == pytest.approx(1 / 3)
    calls = equilibrium() | {("jack", ("bet",)): 1.0}  # only the second player errs
    assert exploitability(calls) > 0.01


def test_a_policy_is_asked_in_words():
    asked = []
    play_of(lambda text: asked.append(text) or 0.5)
    assert asked[0] == "kuhn first jack" and asked[-1] == "kuhn first king pass bet" and len(asked) == 12
    assert "kuhn second queen bet" in asked
