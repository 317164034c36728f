"""Comparisons of segments of play on the frozen lake by what they earn, as people compared clips of play in Christiano et al."""

import math
from collections.abc import Iterator
from random import Random
from typing import Any

from prefopt.support.extras import extra

from .gym_words import MOVES, square
from .optimum import Table

Segment = tuple[list[str], float]
"""Its steps in words, ` d3 right` each, and the sum of their rewards."""


def segments(n: int, seed: int = 0, length: int = 40, nats: float = 5.0) -> Iterator[dict[str, Any]]:
    """Pairs of segments of play at random on the lake without slipping, as `prompt/chosen/rejected` with lists of steps.

    Play begins on any square from which one can move, each as likely, and after the goal or a hole goes on from another one. A
    segment has 1 to `length` steps, each number as likely: segments of one length would leave a constant per step free, for which
    a policy would stay alive or die. Pairs that earn the same are drawn again, as what a rater cannot compare is left out of the
    data; `drawn` counts the pairs up to and with this one. Of the others, the one that earns more by d is chosen with the
    probability σ(nats · d). A step is a square and a move, in the words of an episode, and is rewarded at its move.

    Source: Christiano et al., arXiv 1706.03741, §2.2.1 to 2.2.3, whose segments have one length and 10% of random answers.

    Args:
        n: number of pairs.
        seed: fixes all of them.
        length: the most steps of a segment.
        nats: how sure the comparisons are; at 5, one in 150 is wrong.
    """
    gym = extra("gymnasium", "agents", "games:segments")
    table = gym.make("FrozenLake-v1", is_slippery=False).unwrapped.P
    random, drawn = Random(f"segments {seed}"), 0
    for i in range(n):
        one = other = _segment(table, random, length)
        while one[1] == other[1]:
            one, other = _segment(table, random, length), _segment(table, random, length)
            drawn += 1
        right = random.random() < 1 / (1 + math.exp(-nats * abs(one[1] - other[1])))
        chosen, rejected = (one, other) if (one[1] > other[1]) == right else (other, one)
        pair = {"prompt": "lake", "chosen": chosen[0], "rejected": rejected[0], "step_separator": ""}
        yield {**pair, "group": f"{seed} {i}", "drawn": drawn}


def _segment(table: Table, random: Random, length: int) -> Segment:
    squares = [s for s, actions in table.items() if any(after != s for ((_, after, *_),) in actions.values())]
    steps: list[str] = []
    state, earned, over = 0, 0.0, True
    for _ in range(random.randint(1, length)):
        state = random.choice(squares) if over else state
        action = random.randrange(len(MOVES))
        steps.append(f" {square(state)} {MOVES[action]}")
        ((_, state, reward, over),) = table[state][action]
        earned += float(reward)
    return steps, earned


def steps_by_outcome(row: dict[str, Any]) -> dict[str, Any] | None:
    """Labels of the steps of episodes as play from there on went: each is right if its episode ended well.

    A row of `prefopt label` (docs/label.md) becomes one with `step_labels`: true for each turn of an episode that earned more
    than 0, else false. What a model of such labels learns is how likely it is to arrive, after each step. An episode whose
    environment failed is left out, as nobody knows how it would have ended; None where that is all of them.

    Source: Wang et al., arXiv 2312.08935 (Math-Shepherd), §3.3: hard estimation, with the one completion that there is.
    """
    whole = [k for k, failed in enumerate(row["failed"]) if not failed]
    if not whole:
        return None
    labels = [[sum(rewards) > 0] * len(rewards) for rewards in row["turn_rewards"]]
    columns = {"completions": row["completions"], "eos": row["eos"], "step_labels": labels}
    kept = {name: [column[k] for k in whole] for name, column in columns.items()}
    return {"prompt": row["prompt"], "group": row["group"], **kept}
