"""A judge in the place of people: does the gold reward rise?

    python experiments/rlaif/run.py train [JOBS]   # three seeds of each arm, JOBS at a time; again to go on
    python experiments/rlaif/run.py report         # results.csv, and the table

The pocket LM judges its own texts by its rating lines. Arms with people in its place get as many labels from the gold reward.
"""

import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prefopt.estimates import over_seeds

HERE = Path(__file__).parent
POCKET = HERE.parent.parent / "recipes" / "pocket"
RUNS = Path("runs") / "rlaif"
SEEDS = (0, 1, 2)
COMMON = ("train.threads=1", "evaluate.prompts=192", "evaluate.rows=256")
PEOPLE = "feedback=prefopt.testbeds.pocket:compared"
REWARD = "feedback={name: RewardModel, model: %s, max_completion_tokens: 48, shape: ReferenceNormalise}"
ARMS = ("RLAIF-PPO", "RLHF-PPO", "online RLAIF-DPO", "offline RLAIF-DPO", "offline RLHF-DPO")


def prefopt(*arguments: str) -> None:
    """The command line, in a process of its own; whatever it made before is left alone or gone on with."""
    subprocess.run([sys.executable, "-m", "prefopt.cli", *arguments], check=True, stderr=subprocess.DEVNULL)


def run(recipe: str, folder: Path, seed: int, *overrides: str) -> Path:
    """A run, unless it is finished."""
    if not (folder / "summary.json").exists():
        resume = ["--resume"] if folder.exists() else []
        prefopt("run", str(POCKET / recipe), *COMMON, f"seed={seed}", *overrides, "--out", str(folder), *resume)
    return folder


def label(folder: Path, seed: int, *overrides: str) -> Path:
    """A labelling, unless it is finished."""
    prefopt(
        "label", str(POCKET / "rlaif" / "label.yaml"), f"seed={seed}", "threads=1", *overrides, "--out", str(folder)
    )
    return folder


def arm(name: str, seed: int) -> None:
    """One arm with one seed, with what has to be made first."""
    folder = RUNS / f"{name.replace(' ', '-').lower()}-seed{seed}"
    made = RUNS / "made"
    match name:
        case "RLAIF-PPO":  # 80 steps of 32 prompts × 4 texts: 10,240 judgements
            run("rlaif/ppo.yaml", folder, seed)
        case "RLHF-PPO":  # a reward model of 5,120 pairs: 10,240 texts that people have seen
            pairs = ("source.arguments={n: 5390}", "train.steps=160", "train.batch_size=32", "train.lr=1e-3")
            reward = run("bradleyterry.yaml", made / f"reward-seed{seed}", seed, *pairs)
            run("ppo.yaml", folder, seed, REWARD % reward)
        case "online RLAIF-DPO":  # 80 steps of 32 prompts × 2 texts: 5,120 judgements
            run("rlaif/onlinedpo.yaml", folder, seed)
        case "offline RLAIF-DPO":  # 1,500 prompts × 4 texts: 6,000 judgements
            labels = label(made / f"judged-seed{seed}", seed)
            run("rlaif/softdpo.yaml", folder, seed, f"variables.labels={labels}")
        case "offline RLHF-DPO":
            labels = label(made / f"seen-seed{seed}", seed, PEOPLE)
            run("rlaif/softdpo.yaml", folder, seed, f"variables.labels={labels}")


def train(jobs: int) -> None:
    """All arms and seeds."""
    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(arm, name, seed) for seed in SEEDS for name in ARMS]:
            done.result()


def report() -> None:
    """The numbers of every run, and means over seeds."""
    rows = []
    for name in ARMS:
        for seed in SEEDS:
            folder = RUNS / f"{name.replace(' ', '-').lower()}-seed{seed}"
            summary = json.loads((folder / "summary.json").read_text())
            after, before = summary["after"], summary["before"]
            row = {"arm": name, "seed": seed, "sft": before["gold"]["value"], "gold": after["gold"]["value"]}
            row["change"] = summary["change"]["gold"]["value"]
            rows.append(row | {key: after[key]["value"] for key in ("kl", "length")})
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    print("| arm | gold before | gold after | change | KL | tokens |\n|---|---|---|---|---|---|")
    for name in ARMS:
        own = [row for row in rows if row["arm"] == name]
        cells = [over_seeds([row[key] for row in own]) for key in ("sft", "gold", "change", "kl", "length")]
        print(f"| {name} | " + " | ".join(f"{mean:.3f} ±{half:.3f}" for mean, half in cells) + " |")


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    else:
        report()
