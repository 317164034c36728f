"""RLAIF beside RLHF on the pocket world: `python experiments/rlaif/run.py`, again to go on. README.md says what was found."""

import csv
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from prefopt import label, load_label_recipe, load_recipe, run

HERE = Path(__file__).parent
RECIPES = HERE.parent.parent / "recipes" / "pocket"
RUNS = Path("runs") / "rlaif"
SEEDS = (0, 1, 2)
PAIRS = 3000
"""Labelled pairs of each offline arm, and of the reward model of RLHF-PPO."""
SHORT = ["train.threads=1", "train.steps=40", "evaluate.rows=64", "evaluate.prompts=192"]
QUIET = Console(quiet=True)


def arms(seed: int) -> Iterator[tuple[str, str, list[str]]]:
    """Name, recipe and overrides of each arm; all start from one SFT model."""
    start = f"policy.model={RUNS / 'sft'}"
    yield "RLAIF-PPO", "rlaif/ppo", [start]
    yield "online RLAIF-DPO", "rlaif/onlinedpo", [start]
    yield "offline RLAIF-DPO", "rlaif/softdpo", [start, f"variables.labels={RUNS / 'labels'}"]
    yield "RLHF-DPO", "dpo", [start, f"source.arguments.n={PAIRS}"]
    reward = RUNS / f"reward-seed{seed}"
    trained("bradleyterry", reward, [start, f"seed={seed}", f"source.arguments.n={PAIRS}", "train.lr=1e-3"])
    feedback = f"{{name: RewardModel, model: {reward}, max_completion_tokens: 48, shape: [{{name: ReferenceNormalise, std: 0.5}}]}}"
    yield "RLHF-PPO", "ppo", [start, f"feedback={feedback}"]


def trained(recipe: str, folder: Path, overrides: list[str]) -> dict[str, float]:
    """The summary of a run that is made unless it is there: gold reward before and after, with the interval of the change."""
    if not (folder / "summary.json").exists():
        run(load_recipe(RECIPES / f"{recipe}.yaml", [*SHORT, *overrides]), folder, folder.exists(), QUIET)
    return measured(folder)


def measured(folder: Path) -> dict[str, float]:
    """Gold reward before and after, and the interval of its change over held-out prompts."""
    import json

    summary = json.loads((folder / "summary.json").read_text())
    return summary


def main() -> None:
    """Run what is not finished; results.csv has a row for each run."""
    print(trained("rlhf/sft", RUNS / "sft", []).keys())
    offline = ["threads=1", f"policy.model={RUNS / 'sft'}", f"source.arguments.n={PAIRS}", "samples.completions=2"]
    if not (RUNS / "labels").exists():
        label(load_label_recipe(RECIPES / "rlaif" / "label.yaml", offline), RUNS / "labels", QUIET)
    for seed in SEEDS:
        for name, recipe, overrides in arms(seed):
            trained(recipe, RUNS / f"{name.replace(' ', '-')}-seed{seed}", [*overrides, f"seed={seed}"])
            print(name, seed, flush=True)


if __name__ == "__main__":
    main()
