"""The order in which sources take rows: shuffled, or a curriculum."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prefopt.support.errors import PrefoptError
from prefopt.support.seeds import digested

Numbers = NDArray[np.intp]
"""Row numbers."""


class Order(Protocol):
    """Yields row numbers; its state can be saved."""

    def take(self, count: int) -> list[int]:
        """The next `count` row numbers."""
        ...

    def observe(self, rows: Sequence[int], rewards: Sequence[float]) -> None:
        """Mean rewards of the policy's completions of these rows."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue here."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        ...


def permutation(rows: int, seed: int, epoch: int) -> Numbers:
    """The order of an epoch, by a hash: it does not depend on the version of a library's random generator."""
    return digested((f"{seed}:{epoch}:{row}" for row in range(rows)), rows).argsort(kind="stable")


class Shuffled:
    """An endless sequence of epochs, each a permutation that depends on the seed and the number of the epoch alone.

    Args:
        rows: number of rows.
        seed: of the permutations.
    """

    def __init__(self, rows: int, seed: int):
        self.rows = rows
        self.seed = seed
        self.drawn = 0
        self._epoch: tuple[int, Numbers] = (-1, np.empty(0, np.intp))

    def take(self, count: int) -> list[int]:
        """The next `count` row numbers."""
        places = range(self.drawn, self.drawn + count)
        self.drawn += count
        return [self._at(place) for place in places]

    def observe(self, rows: Sequence[int], rewards: Sequence[float]) -> None:
        """Rewards are not used."""

    def state_dict(self) -> dict[str, Any]:
        """The position, and the rows and seed that it belongs to."""
        return {"drawn": self.drawn, "rows": self.rows, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            PrefoptError: the state is of other data or another seed.
        """
        _check_same(state, {"rows": self.rows, "seed": self.seed})
        self.drawn = state["drawn"]

    def _at(self, place: int) -> int:
        """The row at a position of the endless sequence."""
        epoch, index = divmod(place, self.rows)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.arranged(epoch))
        return int(self._epoch[1][index])

    def arranged(self, epoch: int) -> Numbers:
        """The order of an epoch."""
        return permutation(self.rows, self.seed, epoch)


class EasyFirst:
    """Epochs in order of difficulty: shortest prompts first, or highest present reward first.

    Bengio et al., "Curriculum learning", ICML 2009. Prompts without a reward yet come first; ties are
    shuffled.

    Args:
        rows: number of rows.
        seed: of the shuffling.
        lengths: of each prompt; None orders by reward.
    """

    def __init__(self, rows: int, seed: int, lengths: Sequence[int] | None = None):
        self.rows = rows
        self.seed = seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0
        self.left = np.empty(0, np.intp)
        self.rewards: dict[int, float] = {}

    def take(self, count: int) -> list[int]:
        """The next `count` row numbers."""
        while len(self.left) < count:
            shuffled = permutation(self.rows, self.seed, self.epoch)
            self.left = np.concatenate([self.left, _easiest(shuffled, self._difficulties())])
            self.epoch += 1
        taken, self.left = self.left[:count], self.left[count:]
        return taken.tolist()

    def observe(self, rows: Sequence[int], rewards: Sequence[float]) -> None:
        """Store the last reward of each prompt."""
        self.rewards |= {row: reward for row, reward in zip(rows, rewards, strict=True) if not math.isnan(reward)}

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the rest of it, and the rewards."""
        state = copy.deepcopy({k: v for k, v in vars(self).items() if k != "lengths"})
        return state | {"left": self.left.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            PrefoptError: the state is of other data or another seed.
        """
        _check_same(state, {"rows": self.rows, "seed": self.seed})
        self.epoch, self.rewards = state["epoch"], dict(state["rewards"])
        self.left = np.array(state["left"], np.intp)

    def _difficulties(self) -> NDArray[Any]:
        return -_known(self.rewards, self.rows, math.inf) if self.lengths is None else self.lengths


class SelfPaced:
    """At first only the easiest prompts by their present reward, and gradually all.

    Kumar, Packer & Koller, "Self-paced learning for latent variable models", NeurIPS 2010: the learner
    decides what is easy, and the threshold falls as it learns. Here the share of admitted prompts grows linearly from a quarter to
    all over the first `batches` batches. Prompts without a reward yet count as the median.

    Args:
        rows: number of rows.
        seed: of the draws among the admitted.
        batches: number of batches after which all prompts are admitted; half of a run, say.
    """

    START = 0.25

    def __init__(self, rows: int, seed: int, batches: int):
        self.rows = rows
        self.seed = seed
        self.batches = max(batches, 1)
        self.taken = 0
        self.visits: dict[int, int] = {}
        self.rewards: dict[int, float] = {}

    def take(self, count: int) -> list[int]:
        """The next `count` row numbers: of the admitted prompts, those used least often, in random order."""
        share = self.START + (1 - self.START) * min(self.taken / self.batches, 1)
        known = sorted(self.rewards.values())
        median = known[len(known) // 2] if known else 0.0
        shuffled = permutation(self.rows, self.seed, self.taken)
        easiest = _easiest(shuffled, -_known(self.rewards, self.rows, median))
        admitted = easiest[: max(count, math.ceil(share * self.rows))]
        place, visits = shuffled.argsort(), _known(self.visits, self.rows, 0)
        ranked = admitted[np.lexsort((place[admitted], visits[admitted]))]
        chosen = np.resize(ranked, count).tolist()
        self.visits |= {row: self.visits.get(row, 0) + 1 for row in chosen}
        self.taken += 1
        return chosen

    def observe(self, rows: Sequence[int], rewards: Sequence[float]) -> None:
        """Store the last reward of each prompt."""
        self.rewards |= {row: reward for row, reward in zip(rows, rewards, strict=True) if not math.isnan(reward)}

    def state_dict(self) -> dict[str, Any]:
        """Batches taken, visits and rewards."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            PrefoptError: the state is of other data or another seed.
        """
        _check_same(state, {"rows": self.rows, "seed": self.seed})
        self.taken, self.visits, self.rewards = state["taken"], dict(state["visits"]), dict(state["rewards"])


def _known(values: Mapping[int, float], rows: int, unknown: float) -> NDArray[np.float64]:
    """[rows], with `unknown` where there is no value."""
    filled = np.full(rows, unknown, np.float64)
    filled[list(values)] = list(values.values())
    return filled


def _easiest(shuffled: Numbers, difficulty: NDArray[Any]) -> Numbers:
    """Sorted by difficulty, easiest first; ties stay in the given order."""
    return shuffled[difficulty[shuffled].argsort(kind="stable")]


ORDERS: dict[str, Callable[[Sequence[int], int, int], Order]] = {
    "shuffled": lambda lengths, seed, batches: Shuffled(len(lengths), seed),
    "length": lambda lengths, seed, batches: EasyFirst(len(lengths), seed, lengths),
    "reward": lambda lengths, seed, batches: EasyFirst(len(lengths), seed),
    "self-paced": lambda lengths, seed, batches: SelfPaced(len(lengths), seed, batches // 2),
}
"""By name in a recipe: makes an order from the prompts' lengths in tokens, a seed, and the number of batches of a run."""


def _check_same(state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if state[name] != value:
            raise PrefoptError(
                f"cannot resume: the checkpoint has {name} {state[name]}, the recipe {value}; use the same"
            )
