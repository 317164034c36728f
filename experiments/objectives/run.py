"""Every objective on the pocket world, three seeds each: `python experiments/objectives/run.py`, again to go on.

`--share i/n` takes every n-th run only, for n such processes side by side.
"""

import argparse
import os
from pathlib import Path

from prefopt import load_recipe, run

HERE = Path(__file__).parent
RECIPES = HERE.parent.parent / "recipes" / "pocket"
RUNS = Path("runs") / "objectives"
SEEDS = (0, 1, 2)
NOT_POLICIES = {"base", "bradleyterry", "kwise", "plackettlucereward", "ratingregression"}


def jobs() -> list[tuple[Path, int]]:
    """Recipe and seed of each run; the first seed of all before the second of any."""
    recipes = [file for file in sorted(RECIPES.glob("*.yaml")) if file.stem not in NOT_POLICIES]
    return [(file, seed) for seed in SEEDS for file in recipes]


def main() -> None:
    """Run what is not finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", default="0/1")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    index, number = map(int, options.share.split("/"))
    for file, seed in jobs()[index::number]:
        folder = RUNS / f"{file.stem}-seed{seed}"
        if (folder / "summary.json").exists():
            continue
        settings = load_recipe(
            file, [f"seed={seed}", f"train.threads={max(1, (os.cpu_count() or 1) // number)}", *options.overrides]
        )
        run(settings, folder, resume=folder.exists())


if __name__ == "__main__":
    main()
