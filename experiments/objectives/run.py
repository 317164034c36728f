"""Every objective on the pocket world, three seeds each: `python experiments/objectives/run.py`, again to go on.

`--online` runs those that learn from the policy's own completions instead of recorded pairs. `--share i/n` takes every n-th run
only, for n such processes side by side.
"""

import argparse
import os
from pathlib import Path

from prefopt import load_objective, load_recipe, run

HERE = Path(__file__).parent
RECIPES = HERE.parent.parent / "recipes" / "pocket"
RUNS = Path("runs") / "objectives"
SEEDS = (0, 1, 2)


def jobs(online: bool) -> list[tuple[Path, int]]:
    """Recipe and seed of each run; the first seed of all before the second of any."""
    recipes = [file for file in sorted(RECIPES.glob("*.yaml")) if file.stem not in ("base", "online")]
    chosen = [file for file in recipes if _trains_a_policy(file) and _is_online(file) == online]
    return [(file, seed) for seed in SEEDS for file in chosen]


def _is_online(file: Path) -> bool:
    return load_recipe(file).source.rollouts is not None


def _trains_a_policy(file: Path) -> bool:
    return not any(load_objective(term.name, **term.fields).needs.rewards for term in load_recipe(file).objective)


def main() -> None:
    """Run what is not finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--online", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    index, number = map(int, options.share.split("/"))
    for file, seed in jobs(options.online)[index::number]:
        folder = RUNS / f"{file.stem}-seed{seed}"
        if (folder / "summary.json").exists():
            continue
        settings = load_recipe(
            file, [f"seed={seed}", f"train.threads={max(1, (os.cpu_count() or 1) // number)}", *options.overrides]
        )
        run(settings, folder=folder, resume=folder.exists())


if __name__ == "__main__":
    main()
