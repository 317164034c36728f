"""In which order rollouts take prompts. A curriculum is an order of the source, not a loss."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prefopt.support.errors import PrefoptError
from prefopt.support.seeds import digested

Numbers = NDArray[np.intp]
"""Of rows."""


class Order(Protocol):
    """Which prompts come next, by their numbers; and a place that can be saved."""

    def take(self, count: int) -> list[int]:
        """The next ones; the place moves."""
        ...

    def observe(self, rows: Sequence[int], rewards: Sequence[float]) -> None:
        """What the policy's completions of these prompts got on average."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return there."""
        ...


def permutation(rows: int, seed: int, epoch: int) -> Numbers:
    """The order of an epoch: by a hash, so that no library's generator can change it from one version to the next."""
    return digested((f"{seed}:{epoch}:{row}" for row in range(rows)), rows).argsort(kind="stable")


class Shuffled:
    """An endless sequence of epochs, each a permutation that depends on the seed and the epoch alone, without a gap between.

    Args:
        rows: how many there are.
        seed: of the permutations.
    """

    def __init__(self, rows: int, seed: int):
        self.rows = rows
        self.seed = seed
        self.drawn = 0
        self._epoch: tuple[int, Numbers] = (-1, np.empty(0, np.intp))

    def take(self, count: int) -> list[int]:
        """The next ones; the place moves."""
        places = range(self.drawn, self.drawn + count)
        self.drawn += count
        return [self._at(place) for place in places]

    def observe(self, rows: Sequence[int], rewards: Sequence[float]) -> None:
        """Rewards do not matter here."""

    def state_dict(self) -> dict[str, Any]:
        """The place, and what it is a place in."""
        return {"drawn": self.drawn, "rows": self.rows, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a place.

        Raises:
            PrefoptError: it is a place in other data, or in another order.
        """
        _check_same(state, {"rows": self.rows, "seed": self.seed})
        self.drawn = state["drawn"]

    def _at(self, place: int) -> int:
        """The row at a place of the endless sequence."""
        epoch, index = divmod(place, self.rows)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.arranged(epoch))
        return int(self._epoch[1][index])

    def arranged(self, epoch: int) -> Numbers:
        """An epoch."""
        return permutation(self.rows, self.seed, epoch)


class EasyFirst:
    """Epochs that begin with what is easiest: the shortest prompts, or those that now get the highest reward.

    Bengio et al., "Curriculum learning", ICML 2009. Prompts whose reward is not known yet come first, shuffled; equally easy ones
    are shuffled, too.

    Args:
        rows: how many there are.
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
        """The next ones; the place moves."""
        while len(self.left) < count:
            shuffled = permutation(self.rows, self.seed, self.epoch)
            self.left = np.concatenate([self.left, _easiest(shuffled, self._difficulties())])
            self.epoch += 1
        taken, self.left = self.left[:count], self.left[count:]
        return taken.tolist()

    def observe(self, rows: Sequence[int], rewards: Sequence[float]) -> None:
        """Remembers the last reward of each prompt."""
        self.rewards |= {row: reward for row, reward in zip(rows, rewards, strict=True) if not math.isnan(reward)}

    def state_dict(self) -> dict[str, Any]:
        """The place, what is left of the epoch, and the rewards."""
        state = copy.deepcopy({k: v for k, v in vars(self).items() if k != "lengths"})
        return state | {"left": self.left.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a place.

        Raises:
            PrefoptError: it is a place in other data, or in another order.
        """
        _check_same(state, {"rows": self.rows, "seed": self.seed})
        self.epoch, self.rewards = state["epoch"], dict(state["rewards"])
        self.left = np.array(state["left"], np.intp)

    def _difficulties(self) -> NDArray[Any]:
        return -_known(self.rewards, self.rows, math.inf) if self.lengths is None else self.lengths


class SelfPaced:
    """Only the easiest prompts at first, by the reward that they get now, and more with every batch, until all are in.

    Kumar, Packer & Koller, "Self-paced learning for latent variable models", NeurIPS 2010: what is easy is for the learner to
    say, and the threshold is lowered as it learns. Here the share of prompts that are admitted grows linearly from a quarter to
    all over the first `batches` batches. Those whose reward is not known yet count as the median.

    Args:
        rows: how many there are.
        seed: of the draws among the admitted.
        batches: after so many all are admitted; half of a run, say.
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
        """The next ones: of those admitted, the ones that were had least often, in random order."""
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
        """Remembers the last reward of each prompt."""
        self.rewards |= {row: reward for row, reward in zip(rows, rewards, strict=True) if not math.isnan(reward)}

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and what it knows."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a place.

        Raises:
            PrefoptError: it is a place in other data, or in another order.
        """
        _check_same(state, {"rows": self.rows, "seed": self.seed})
        self.taken, self.visits, self.rewards = state["taken"], dict(state["visits"]), dict(state["rewards"])


def _known(values: Mapping[int, float], rows: int, unknown: float) -> NDArray[np.float64]:
    """[rows], with that number where there is none yet."""
    found = np.full(rows, unknown, np.float64)
    found[list(values)] = list(values.values())
    return found


def _easiest(shuffled: Numbers, difficulty: NDArray[Any]) -> Numbers:
    """The easiest first; equally easy ones stay as they are."""
    return shuffled[difficulty[shuffled].argsort(kind="stable")]


ORDERS: dict[str, Callable[[Sequence[int], int, int], Order]] = {
    "shuffled": lambda lengths, seed, batches: Shuffled(len(lengths), seed),
    "length": lambda lengths, seed, batches: EasyFirst(len(lengths), seed, lengths),
    "reward": lambda lengths, seed, batches: EasyFirst(len(lengths), seed),
    "self-paced": lambda lengths, seed, batches: SelfPaced(len(lengths), seed, batches // 2),
}
"""By the name in a recipe: from the prompts' lengths in tokens, a seed, and the batches of a run."""


def _check_same(state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if state[name] != value:
            raise PrefoptError(
                f"cannot resume: the checkpoint has {name} {state[name]}, the recipe {value}; use the same"
            )
