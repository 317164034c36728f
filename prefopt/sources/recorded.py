"""Logical batches of recorded data: a data set from which the completions that an objective needs were selected."""

from collections.abc import Iterator, Sequence
from typing import Any

from prefopt.data.collating import collate
from prefopt.data.ordering import Shuffled
from prefopt.data.tokenised import Tokenised
from prefopt.sources.writers import ADDED
from prefopt.support.errors import PrefoptError
from prefopt.types import Batch


class Recorded:
    """An endless stream of logical batches from recorded rows, and a place in it.

    Each epoch is a permutation that depends on the seed and the epoch alone, so two objectives on as many rows see them
    in the same order. Epochs follow each other without a gap: every batch has `batch_size` rows, and may span two.

    Args:
        rows: tokenised, with the completions that the objective needs.
        batch_size: prompts in a logical batch.
        seed: of the order.
        columns: names of columns to put in the batches.
        writers: names of those who add completions to the batches.

    Raises:
        PrefoptError: fewer rows than a batch holds.
    """

    def __init__(
        self,
        rows: Sequence[Tokenised],
        batch_size: int,
        seed: int,
        columns: Sequence[str] = (),
        writers: Sequence[str] = (),
    ) -> None:
        if not 1 <= batch_size <= len(rows):
            raise PrefoptError(
                f"a logical batch of {batch_size} rows from {len(rows)} rows; it must have at least one row "
                "and no more than there are: make it smaller or give more data"
            )
        self.rows = rows
        self.batch_size = batch_size
        self.columns = tuple(columns)
        self.writers = [ADDED[name] for name in writers]
        self.order = Shuffled(len(rows), seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the place on; the place moves as they are taken."""
        while True:
            batch = collate([self.rows[number] for number in self.order.take(self.batch_size)], self.columns)
            for writer in self.writers:
                batch = writer(batch)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place, and what it is a place in."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Returns to a place.

        Raises:
            PrefoptError: it is a place in other data, or in another order.
        """
        self.order.load_state_dict(state)
