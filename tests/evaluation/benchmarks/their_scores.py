"""Run by an interpreter that has the package rewardbench: scores on stdin as JSON, what the package makes of them on stdout."""

import json
import sys

import numpy as np
from datasets import Dataset
from rewardbench import constants, utils

given = json.load(sys.stdin)
sections = utils.calculate_scores_per_section(constants.EXAMPLE_COUNTS, constants.SUBSET_MAPPING, given["accuracies"])
_, ties = utils.process_single_model(Dataset.from_list(given["ties"]))
flat = [
    {"text": "t", "scores": score, "subset": "Math", "id": str(n)}
    for n, of_row in enumerate(given["four"])
    for score in of_row
]
rolled = utils.reroll_and_score_dataset(Dataset.from_list(flat), [4] * len(given["four"]))
out = {
    "subsets": constants.SUBSET_MAPPING,
    "sections": sections,
    "ties": ties,
    "four": float(np.mean(rolled["results"])),
}
print(json.dumps(out))
