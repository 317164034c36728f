"""A weak reward model is climbed: what happens to the true reward?

    python experiments/overoptimisation/run.py train     # reward models, and RLOO on each with three seeds; again to go on
    python experiments/overoptimisation/run.py report    # best of n, fits, results.csv and overoptimisation.svg

Gao, Schulman & Hilton, arXiv 2210.10760, on the pocket world: raters label few pairs, a reward model learns from them, a policy
climbs the model without any KL penalty, and the gold reward is watched.
"""

import csv
import json
import math
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch

from prefopt import load_recipe, run
from prefopt.feedback import RewardModel
from prefopt.support.seeds import seed_for
from prefopt.testbeds.pocket import gold, prompts
from prefopt.testbeds.pocket.language import sample

matplotlib.use("agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
POCKET = HERE.parent.parent / "recipes" / "pocket"
RUNS = Path("runs") / "overoptimisation"
LABELS = {1000: 60, 4000: 150, 10000: 300}
"""Pairs that are labelled, and steps of the reward model that learns from them: both grow."""
SEEDS = (0, 1, 2)
DRAWS, PROMPTS = 64, 192
START = 10
"""Steps over whose mean the start is taken, as the policy has hardly moved."""


def train() -> None:
    """What is not finished."""
    for labels, steps in LABELS.items():
        reward = RUNS / f"reward-{labels}"
        made = [
            f"source.arguments={{n: {labels}}}",
            *(f"train.steps={steps}", "train.batch_size=32", "train.lr=1e-3", "train.threads=1"),
        ]
        finish(POCKET / "bradleyterry.yaml", made, reward)
        for seed in SEEDS:
            climbs = [
                f"feedback={{name: RewardModel, model: {reward}, transforms: ReferenceNormalise}}",
                *("objective.beta=0", "train.steps=120", "train.lr=3e-4", "train.schedule=constant", "train.limits={}"),
                *("train.threads=1", "evaluate.prompts=64", f"seed={seed}"),
            ]
            finish(POCKET / "rloo.yaml", climbs, RUNS / f"rloo-{labels}-seed{seed}")


def finish(recipe: Path, overrides: list[str], folder: Path) -> None:
    """Run, or go on, or leave alone what is finished."""
    if not (folder / "summary.json").exists():
        run(load_recipe(recipe, overrides), folder=folder, resume=folder.exists())


def curve(labels: int, seed: int) -> np.ndarray:
    """[steps, 3]: √KL, proxy reward and gold reward of the policy's own samples at each step."""
    lines = (RUNS / f"rloo-{labels}-seed{seed}" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "rollouts/kl" in line]
    rows = [(max(s["rollouts/kl"], 0) ** 0.5, s["rollouts/reward"], s["rollouts/gold"]) for s in steps]
    return np.array(rows)


def smooth(values: np.ndarray, width: int = 8) -> np.ndarray:
    """Means over `width` steps: a batch of 128 completions is noisy."""
    count = len(values) // width * width
    return values[:count].reshape(-1, width, values.shape[1]).mean(1)


def best_of_n(labels: int) -> np.ndarray:
    """[n, 3] for n = 1, 2, …, 64: √KL, proxy reward and gold reward of the one that the proxy finds best of n."""
    texts = [row["prompt"] for row in prompts(PROMPTS, seed=1, split="test")]
    drawn = sample(texts, DRAWS, [seed_for("best of n", i) for i in range(len(texts))])
    scorer = RewardModel(str(RUNS / f"reward-{labels}"), batch_size=512)
    proxy = scorer(texts, drawn, [{}] * len(texts)).scores.double()
    known = ~proxy.isnan()  # an empty text has no verdict, and is nobody's best
    proxy = (proxy - proxy[known].mean()) / proxy[known].std()
    proxy = proxy.where(known, proxy[known].min())
    true = gold(texts, drawn).scores.double()
    order = proxy.argsort(1)
    proxy, true = proxy.gather(1, order), true.gather(1, order)  # the proxy's worst first
    rows = []
    for n in (1, 2, 4, 8, 16, 32, 64):
        # The k-th of all is the best of n of them, drawn without replacement, in C(k, n − 1) of C(64, n) cases.
        chance = torch.tensor([math.comb(k, n - 1) / math.comb(DRAWS, n) for k in range(DRAWS)], dtype=torch.float64)
        kl = math.log(n) - (n - 1) / n
        rows.append((kl**0.5, (proxy @ chance).mean().item(), (true @ chance).mean().item()))
    return np.array(rows)


def fitted(d: np.ndarray, gain: np.ndarray, shape: str) -> tuple[float, float, float]:
    """α, β and R² of gain = d(α − β log d) ("rl") or d(α − βd) ("bon"), by least squares: both are linear in α and β."""
    kept = d > 0.3  # nearer, d is noise
    d, gain = d[kept], gain[kept]
    second = -d * np.log(d) if shape == "rl" else -(d**2)
    columns = np.stack([d, second], 1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, gain, rcond=None)
    rest = gain - columns @ [alpha, beta]
    return float(alpha), float(beta), float(1 - rest.var() / gain.var())


def report() -> None:
    """Fits, the numbers and the figure."""
    rows: list[dict[str, float | str]] = []
    with plt.rc_context({"font.size": 8, "svg.hashsalt": "prefopt", "svg.fonttype": "none"}):
        figure, axes = plt.subplots(2, len(LABELS), figsize=(10, 5.2), sharex="row", sharey=True, layout="constrained")
        for column, labels in enumerate(LABELS):
            rows += [climb(axes[0, column], labels), pick(axes[1, column], labels)]
        axes[0, 0].set_ylabel("RLOO, β = 0")
        axes[1, 0].set_ylabel("best of n")
        axes[0, 0].legend(frameon=False)
        figure.supxlabel("√KL to the start, √nats a completion")
        figure.supylabel("reward less the start's")
        figure.savefig(HERE / "overoptimisation.svg", metadata={"Date": None})
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    for row in rows:
        print(row)


def climb(axis, labels: int) -> dict[str, float | str]:
    """The curves of three seeds and the fit to all of them."""
    points = []
    for seed in SEEDS:
        run_ = curve(labels, seed)
        found = smooth(run_) - [0, *run_[:START, 1:].mean(0)]
        points.append(found)
        axis.plot(
            found[:, 0], found[:, 1], color="#c55a11", linewidth=1, alpha=0.7, label="proxy" * (seed == 0) or None
        )
        axis.plot(found[:, 0], found[:, 2], color="#1f4e79", linewidth=1, alpha=0.7, label="gold" * (seed == 0) or None)
    every = np.concatenate(points)
    alpha, beta, r2 = fitted(every[:, 0], every[:, 2], "rl")
    draw(axis, every[:, 0].max(), lambda d: d * (alpha - beta * np.log(d)), f"{labels} labels")
    peaks = [p[p[:, 2].argmax()] for p in points]
    return summary("RLOO", labels, alpha, beta, r2, np.array(peaks), np.array([p[-1] for p in points]))


def pick(axis, labels: int) -> dict[str, float | str]:
    """Best of n, and its fit."""
    found = best_of_n(labels)
    found[:, 1:] -= found[0, 1:]
    axis.plot(found[:, 0], found[:, 1], "o-", color="#c55a11", markersize=3, linewidth=1)
    axis.plot(found[:, 0], found[:, 2], "o-", color="#1f4e79", markersize=3, linewidth=1)
    alpha, beta, r2 = fitted(found[:, 0], found[:, 2], "bon")
    draw(axis, found[-1, 0], lambda d: d * (alpha - beta * d), f"{labels} labels")
    return summary("best of n", labels, alpha, beta, r2, found[[found[:, 2].argmax()]], found[[-1]])


def draw(axis, most: float, shape, title: str) -> None:
    d = np.linspace(0.05, most, 100)
    axis.plot(d, shape(d), color="black", linewidth=0.8, linestyle="--")
    axis.axhline(0, color="0.85", linewidth=0.8)
    axis.set_title(title)


def summary(
    how: str, labels: int, alpha: float, beta: float, r2: float, peaks: np.ndarray, ends: np.ndarray
) -> dict[str, float | str]:
    """Means over seeds: where the gold reward is highest, and where it ends."""
    peak, end = peaks.mean(0), ends.mean(0)
    return {
        "how": how,
        "labels": labels,
        "alpha": alpha,
        "beta": beta,
        "r2": r2,
        "peak_d": peak[0],
        "peak_gold": peak[2],
        "end_d": end[0],
        "end_proxy": end[1],
        "end_gold": end[2],
    }


if __name__ == "__main__":
    {"train": train, "report": report}[sys.argv[1]]()
