"""Games in which the best that a policy can do is known, written in words: a frozen lake, a pole on a cart, Kuhn poker.

The first two are Gymnasium's own, through `prefopt.environments.Gymnasium`.
"""

from .comparisons import segments, steps_by_outcome
from .data import corpus, prompts
from .gym_words import boxes, move, push, square, square_apart
from .optimum import optimal_value
from .progress import Progress
from .self_play import Exploitability, KuhnPoker

__all__ = [
    "Exploitability",
    "KuhnPoker",
    "Progress",
    "boxes",
    "corpus",
    "move",
    "optimal_value",
    "prompts",
    "push",
    "segments",
    "square",
    "square_apart",
    "steps_by_outcome",
]
