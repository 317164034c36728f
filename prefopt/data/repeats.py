"""Rows that stand in the data more than once, pairs that another row orders the other way, and rows that contradict themselves."""

from collections import Counter

from prefopt.data.tokenised import Tokenised

REPEATED = "rows that repeat an earlier one"
CONTRADICTED = "pairs that an earlier row orders the other way"
DISAGREEING = "rows whose scores and votes (or preference) order completions differently; scores decide"


class Repeats:
    """Counts them among the rows that were added; of each it keeps a hash of 64 bits.

    Attributes:
        counts: how many there are.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._seen: set[int] = set()

    def add(self, row: Tokenised) -> None:
        """One more row, as it is read: two that differ only in what was cut off are the same, and other tasks are others."""
        asked = row.prompt_ids, row.example.task
        scores = [score for score in row.scores or () if score is not None]
        if row.size == len(scores) == 2 and scores[0] != scores[1]:
            one, other = row.completion_ids
            better, worse = (one, other) if scores[0] > scores[1] else (other, one)
            key = hash((asked, better, worse))
            self.counts[CONTRADICTED] += better != worse and hash((asked, worse, better)) in self._seen
        else:
            key = hash((asked, row.completion_ids, row.scores, row.preference))
        self.counts[DISAGREEING] += _disagrees(row)
        self.counts[REPEATED] += key in self._seen
        self._seen.add(key)


def _disagrees(row: Tokenised) -> bool:
    """Whether two completions have scores in one order and a preference in the other."""
    if row.scores is None or row.preference is None:
        return False
    scored = [(i, score) for i, score in enumerate(row.scores) if score is not None]
    return any(one > other and row.preference[i][j] < 0.5 for i, one in scored for j, other in scored)
