"""The documents of the task `pocket_rating`: opinions of the pocket world that no model has seen, and their true ratings."""

from typing import Any

from datasets import Dataset

from prefopt.testbeds.pocket import corpus

DOCUMENTS = 500


def documents(**_: Any) -> dict[str, Dataset]:
    """The split `test`: without noise in the labels, from another seed than the pretraining's."""
    return {"test": Dataset.from_list([dict(row) for row in corpus(DOCUMENTS, seed=2026, ratings=1.0, noise=0.0)])}
