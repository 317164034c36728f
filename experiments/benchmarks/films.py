"""Rows in the shape of RewardBench out of film snippets that people rated: prompt, chosen, rejected, subset, id.

python experiments/benchmarks/films.py ~/.cache/prefopt-assets/movies.jsonl runs/benchmarks/films.jsonl

recipes/movies/README.md says how movies.jsonl is made. The subset says how far the mean ratings are apart.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes" / "movies"))

import snippets  # noqa: E402

ROWS = 200


def rows(movies: str) -> list[dict[str, str]]:
    """The first pairs of the test part, whose snippets nothing was trained on."""
    found = itertools.islice(snippets.pairs(movies, "test", gap=0.5, seed=7), ROWS)
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["chosen"],
            "rejected": row["rejected"],
            "subset": subset(row["score_chosen"] - row["score_rejected"]),
            "id": str(number),
        }
        for number, row in enumerate(found)
    ]


def subset(gap: float) -> str:
    """How far the two ratings are apart."""
    return "close" if gap < 1 else "apart" if gap < 2 else "far"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("movies", help="movies.jsonl")
    parser.add_argument("out", type=Path, help="a file that is not there yet")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("x") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(options.movies))


if __name__ == "__main__":
    main()
