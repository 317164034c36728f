"""Whether studies came to the same: `python same.py LOCAL OTHER…` compares results.csv without its last column, and every run.

Of each run the metrics of every step, the evaluations and the weights are compared; seconds are left out.
"""

import csv
import hashlib
import json
import sys
from pathlib import Path
from typing import Any


def untimed(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {
            key: untimed(value) for key, value in tree.items() if not any(name in key for name in ("second", "time"))
        }
    return [untimed(item) for item in tree] if isinstance(tree, list) else tree


def table(folder: Path) -> list[list[str]]:
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert "seconds" in rows[0][-1]
    return [row[:-1] for row in rows]


def runs(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for summary in sorted(folder.rglob("summary.json")):
        run, name = summary.parent, str(summary.parent.relative_to(folder))
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        found[f"{name} metrics"] = [untimed(json.loads(line)) for line in lines]
        for file in sorted([*run.rglob("*.safetensors"), *run.rglob("evaluations/*")]):
            if "checkpoints" not in file.parts:
                found[f"{name} {file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def main(first: Path, *others: Path) -> None:
    for other in others:
        whole, there = runs(first), runs(other)
        different = sorted(name for name in whole.keys() | there.keys() if whole.get(name) != there.get(name))
        print(
            f"{other}: results.csv {'equal' if table(first) == table(other) else 'DIFFERENT'} but for its last column, "
            f"{len(whole) - len(different)} of {len(whole)} histories, evaluations and weights equal"
        )
        for name in different:
            print(f"  different: {name}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
