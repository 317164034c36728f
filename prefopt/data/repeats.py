"""Rows that stand in the data more than once, and pairs that another row orders the other way."""

from collections import Counter

from prefopt.data.tokenised import Tokenised

REPEATED = "rows that repeat an earlier one"
CONTRADICTED = "pairs that an earlier row orders the other way"


class Repeats:
    """Counts both among the rows that were added; of each it keeps a hash of 64 bits.

    Attributes:
        counts: how many there are.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._seen: set[int] = set()

    def add(self, row: Tokenised) -> None:
        """One more row, as it is read: two that differ only in what was cut off are the same."""
        scores = [score for score in row.scores or () if score is not None]
        if row.size == len(scores) == 2 and scores[0] != scores[1]:
            one, other = row.completion_ids
            better, worse = (one, other) if scores[0] > scores[1] else (other, one)
            key = hash((row.prompt_ids, better, worse))
            self.counts[CONTRADICTED] += better != worse and hash((row.prompt_ids, worse, better)) in self._seen
        else:
            key = hash((row.prompt_ids, row.completion_ids, row.scores, row.preference))
        self.counts[REPEATED] += key in self._seen
        self._seen.add(key)
