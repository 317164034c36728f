"""JudgeBench: two answers of one model, of which one is objectively right, and a judge that is asked in both orders.

Source: Tan et al., arXiv 2410.12784, §4.1; `compute_final_metrics` of github.com/ScalerLab/JudgeBench.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefopt.evaluation.benchmarks.answers import Answer
from prefopt.evaluation.benchmarks.cases import Case, pair
from prefopt.evaluation.benchmarks.scores import Score, by_subset, over_rows
from prefopt.support.errors import PrefoptError

CATEGORIES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
"""By the beginning of `source`."""


class JudgeBench:
    """The share of pairs on which the judge is right, over all pairs, and by category.

    Of the two orders, one right and one undecided are right; one right and one wrong are not, nor are two undecided. So where the
    same place wins in both orders, the pair counts as wrong whatever the likelihoods add up to. A feedback without order, such
    as a reward model, is right where the right answer has the higher score.
    """

    name = "judgebench"
    columns = "question, response_A, response_B, label: A>B or B>A (source)"

    def recognises(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of this benchmark."""
        return {"response_A", "response_B", "label"} <= row.keys()

    def case(self, row: Mapping[str, Any], where: str) -> Case:
        """A row of the data.

        Raises:
            PrefoptError: it has no question, answer or label.
        """
        if missing := [name for name in ("question", "response_A", "response_B") if not isinstance(row.get(name), str)]:
            raise PrefoptError(f"{where}: `{missing[0]}` must be a text; JudgeBench has {self.columns}")
        if row.get("label") not in ("A>B", "B>A"):
            raise PrefoptError(f"{where}: `label` must be A>B or B>A, got {row.get('label')!r}")
        chosen, rejected = (row[f"response_{letter}"] for letter in str(row["label"]).split(">"))
        source = str(row.get("source") or "pairs")
        subset = next((category for beginning, category in CATEGORIES.items() if source.startswith(beginning)), source)
        row = {"prompt": row["question"], "chosen": chosen, "rejected": rejected, "id": row.get("pair_id", where)}
        return pair(row, where, subset)

    def subsets(self, cases: Sequence[Case], answers: Sequence[Answer]) -> dict[str, Score]:
        """The share that is right in each category."""
        return by_subset([answer.prefers(0, 1) == 1 and not answer.turned for answer in answers], cases)

    def sections(self, subsets: Mapping[str, Score]) -> dict[str, Score]:
        """The categories."""
        return dict(subsets)

    def overall(self, subsets: Mapping[str, Score], sections: Mapping[str, Score]) -> Score:
        """The mean over all pairs."""
        return over_rows(subsets)

    def numbers(self, cases: Sequence[Case], answers: Sequence[Answer]) -> dict[str, float]:
        """The share of pairs in which the same place won in both orders, and of those in which neither answer was preferred."""
        return {
            "turned": float(np.mean([answer.turned for answer in answers])),
            "ties": float(np.mean([answer.prefers(0, 1) == 0.5 for answer in answers])),
        }
