"""Kuhn poker: three cards, two players, one bet; its rules, and exactly how much a best response wins from a policy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from random import Random

CARDS = ("jack", "queen", "king")
ACTIONS = ("pass", "bet")
ROLES = ("first", "second")
POT = 2.0
"""The antes of both, of 1 each; a bet is 1 more."""

History = tuple[str, ...]
InformationSet = tuple[str, History]
"""What a player knows when it is its turn: its card, and what was done so far."""

Play = Mapping[InformationSet, float]
"""The probability of a bet in each of the twelve information sets."""

TURNS: tuple[History, ...] = ((), ("pass",), ("bet",), ("pass", "bet"))
"""The histories after which somebody acts, by turns: the first player where their length is even."""

SETS: tuple[InformationSet, ...] = tuple((card, history) for history in TURNS for card in CARDS)


def over(history: History) -> bool:
    """Whether a game has ended."""
    return history not in TURNS


def winnings(cards: tuple[str, str], history: History) -> float:
    """What the first player wins in a game that is over; the second loses as much."""
    if history[-1] == "pass" and "bet" in history:
        return 1.0 if history[-2:] == ("bet", "pass") and len(history) == 2 else -1.0
    stake = 2.0 if "bet" in history else 1.0
    return stake if CARDS.index(cards[0]) > CARDS.index(cards[1]) else -stake


def deal(seed: int) -> tuple[str, str]:
    """The cards of the two players."""
    first, second = Random(f"kuhn {seed}").sample(CARDS, 2)
    return first, second


def uniform() -> dict[InformationSet, float]:
    """Play at random."""
    return dict.fromkeys(SETS, 0.5)


def equilibrium(alpha: float = 1 / 3) -> dict[InformationSet, float]:
    """One of the equilibria, which α from 0 to 1/3 tells apart: how often the first player bluffs with the jack."""
    return uniform() | {
        ("jack", ()): alpha, ("queen", ()): 0.0, ("king", ()): 3 * alpha,
        ("jack", ("pass",)): 1 / 3, ("queen", ("pass",)): 0.0, ("king", ("pass",)): 1.0,
        ("jack", ("bet",)): 0.0, ("queen", ("bet",)): 1 / 3, ("king", ("bet",)): 1.0,
        ("jack", ("pass", "bet")): 0.0, ("queen", ("pass", "bet")): alpha + 1 / 3, ("king", ("pass", "bet")): 1.0,
    }  # fmt: skip


def value(first: Play, second: Play) -> float:
    """What the first player wins on average; −1/18 between equilibria."""
    deals = list(permutations(CARDS, 2))
    return sum(_value(cards, (), (first, second)) for cards in deals) / len(deals)


def _value(cards: Sequence[str], history: History, players: tuple[Play, Play]) -> float:
    if over(history):
        return winnings((cards[0], cards[1]), history)
    turn = len(history) % 2
    bet = players[turn][cards[turn], history]
    return sum(
        p * _value(cards, (*history, action), players) for action, p in zip(ACTIONS, (1 - bet, bet), strict=True)
    )


def action_values(play: Play) -> dict[InformationSet, tuple[float, float]]:
    """What each action is worth to who takes it, on average over what the other may hold, when all goes on by this play."""
    values = {}
    for card, history in SETS:
        role = len(history) % 2
        deals = [cards for cards in permutations(CARDS, 2) if cards[role] == card]
        reached = [_reached(cards[1 - role], history, 1 - role, play) for cards in deals]
        totals = [
            sum(
                weight * _value(cards, (*history, action), (play, play))
                for weight, cards in zip(reached, deals, strict=True)
            )
            for action in ACTIONS
        ]
        sign = (1 - 2 * role) / max(sum(reached), 1e-12)
        values[card, history] = (sign * totals[0], sign * totals[1])
    return values


def _reached(card: str, history: History, role: int, play: Play) -> float:
    """How likely a player with this card does what the history has of it."""
    likely = 1.0
    for turn in range(role, len(history), 2):
        bet = play[card, history[:turn]]
        likely *= bet if history[turn] == "bet" else 1 - bet
    return likely


def exploitability(play: Play) -> float:
    """The mean of what a best response wins from it as the first and as the second player, in antes.

    0 of an equilibrium, .4583 of play at random. A best response is found among all pure ones, 64 for each role.
    """
    as_first = max(value(response, play) for response in _pure(0))
    as_second = max(-value(play, response) for response in _pure(1))
    return (as_first + as_second) / 2


def _pure(role: int) -> Iterator[Play]:
    own = [place for place in SETS if len(place[1]) % 2 == role]
    for number in range(2 ** len(own)):
        yield {place: float(number >> i & 1) for i, place in enumerate(own)}


def play_of(bet: Callable[[str], float]) -> dict[InformationSet, float]:
    """The play of a policy that is asked in words, `kuhn first king pass bet`, for its probability of a bet."""
    return {(card, history): bet(words(card, history)) for card, history in SETS}


def words(card: str, history: History) -> str:
    """What a player has read and written when it is its turn."""
    return " ".join(("kuhn", ROLES[len(history) % 2], card, *history))
