"""What the best policy earns, by dynamic programming."""

from collections.abc import Mapping, Sequence

import numpy as np

Table = Mapping[int, Mapping[int, Sequence[tuple[float, int, float, bool]]]]
"""Gymnasium's `P` of toy texts: state → action → (probability, next state, reward, over)."""


def optimal_value(table: Table, steps: int, start: int = 0) -> float:
    """The largest expected sum of rewards within so many steps, which a policy can reach that knows how many are left.

    V_0 = 0,  V_n(s) = max_a Σ_s' P(s'|s, a) (r + [not over] V_{n−1}(s'))

    FrozenLake-v1: 1 without slipping; with it .5459 within 50 steps, .7442 within 100, and .8235 without a limit.

    Args:
        table: of the environment, `env.unwrapped.P`.
        steps: how many.
        start: the first state.
    """
    values = np.zeros(len(table))
    for _ in range(steps):
        values = np.array(
            [
                max(
                    sum(p * (reward + (not over) * values[after]) for p, after, reward, over in outcomes)
                    for outcomes in actions.values()
                )
                for actions in table.values()
            ]
        )
    return float(values[start])
