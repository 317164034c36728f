"""RLAIF beside RLHF on the pocket world: `python experiments/rlaif/run.py`, again to go on. README.md says what was found."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def rlaif(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Arms with the pocket LM as judge."""
    yield "RLAIF-PPO", trained("rlaif/ppo", "RLAIF-PPO", seed)
    yield "online RLAIF-DPO", trained("rlaif/onlinedpo", "online-RLAIF-DPO", seed)
    yield (
        "offline RLAIF-DPO",
        trained("rlaif/softdpo", "offline-RLAIF-DPO", seed, f"variables.labels={RUNS / 'labels'}"),
    )


def rlhf(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Arms with gold-labelled pairs, or a reward model of them."""
    pairs = f"source.arguments.n={PAIRS}"
    yield "RLHF-DPO", trained("dpo", "RLHF-DPO", seed, pairs)
    trained("bradleyterry", "reward", seed, pairs, "train.lr=1e-3")
    transforms = "[{name: ReferenceNormalise, std: 0.5}]"
    feedback = (
        f"{{name: RewardModel, model: {RUNS}/reward-seed{seed}, max_completion_tokens: 48, transforms: {transforms}}}"
    )
    yield "RLHF-PPO", trained("ppo", "RLHF-PPO", seed, f"feedback={feedback}")


def trained(recipe: str, name: str, seed: int, *overrides: str) -> dict[str, Any]:
    """The summary of a run from the SFT model, which is made unless it is there."""
    folder = RUNS / f"{name}-seed{seed}"
    if not (folder / "summary.json").exists():
        given = [*SHORT, f"policy.model={RUNS / 'sft'}", f"seed={seed}", *overrides]
        run(load_recipe(RECIPES / f"{recipe}.yaml", given), folder=folder, resume=folder.exists(), console=QUIET)
    return json.loads((folder / "summary.json").read_text())


def write(rows: list[dict[str, Any]]) -> None:
    """results.csv: gold reward before and after, its change with the interval over prompts, and what it took."""
    with (HERE / "results.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def row(arm: str, seed: int, summary: dict[str, Any]) -> dict[str, Any]:
    """A line of results.csv."""
    change, after = summary["change"]["gold"], summary["after"]
    found = {"before": summary["before"]["gold"]["value"], "after": after["gold"]["value"], "gain": change["value"]}
    found |= {"gain_low": change["low"], "gain_high": change["high"], "kl": after["kl"]["value"]}
    found |= {"length": after["length"]["value"]}
    return {"arm": arm, "seed": seed} | {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """Run what is not finished; results.csv has a row for each run so far."""
    if not (RUNS / "sft" / "summary.json").exists():
        run(
            load_recipe(RECIPES / "rlhf" / "sft.yaml", SHORT),
            folder=RUNS / "sft",
            resume=(RUNS / "sft").exists(),
            console=QUIET,
        )
    labelling = ["threads=1", f"policy.model={RUNS / 'sft'}", f"source.arguments.n={PAIRS}", "samples.completions=2"]
    label(load_label_recipe(RECIPES / "rlaif" / "label.yaml", labelling), RUNS / "labels", QUIET)
    rows = []
    for arms in (rlaif, rlhf):
        for seed in SEEDS:
            for arm, summary in arms(seed):
                rows.append(row(arm, seed, summary))
                write(rows)


if __name__ == "__main__":
    main()
