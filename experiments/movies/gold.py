"""How well the gold scorer tells what the policies wrote: its AUC for labels.jsonl.

python experiments/movies/gold.py
"""

import json
from pathlib import Path

import numpy as np
from scipy import stats

RESAMPLES = 2000


def auc(scores: np.ndarray, good: np.ndarray) -> float:
    """P(a good one has a higher score than another), ties ½."""
    n, m = good.sum(), (~good).sum()
    return (stats.rankdata(scores)[good].sum() - n * (n + 1) / 2) / (n * m)


def show(name: str, scores: np.ndarray, good: np.ndarray) -> None:
    """The AUC with its percentile bootstrap interval over texts."""
    draw, found = np.random.default_rng(0), []
    while len(found) < RESAMPLES:
        rows = draw.integers(len(scores), size=len(scores))
        if good[rows].any() and not good[rows].all():
            found.append(auc(scores[rows], good[rows]))
    low, high = np.percentile(found, [2.5, 97.5])
    print(f"{name:<32} {auc(scores, good):.3f} [{low:.3f}, {high:.3f}]  {good.sum()} of {len(good)}")


if __name__ == "__main__":
    rows = [json.loads(line) for line in (Path(__file__).parent / "labels.jsonl").read_text().splitlines()]
    gold, label = np.array([r["gold"] for r in rows]), np.array([r["label"] for r in rows])
    policy = np.array([r["policy"] for r in rows])
    show("positive against the rest", gold, label > 0)
    for who in ("sft", "ppo"):
        show(f"  of {who}", gold[policy == who], label[policy == who] > 0)
    show("positive against negative", gold[label != 0], label[label != 0] > 0)
    for value in (-1, 0, 1):
        print(f"mean where the label is {value:+d}: {gold[label == value].mean():+.2f}")
