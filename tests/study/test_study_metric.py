"""A study may decide by a metric of the recipe's own."""

import json
import re
from pathlib import Path

from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt.cli import main


def test_a_metric_of_ones_own_is_primary(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "def words(prompts, completions, rows):\n    return [[float(len(t.split())) for t in ts] for ts in completions]\n"
    )
    evaluate = f"{{prompts: 3, sampling: {{max_tokens: 4}}, metrics: {{words: '{own}:words'}}}}"
    train = "{steps: 2, batch_size: 8, lr: 1e-2, threads: 1}"
    model, data = tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl")
    recipe = tiny_recipe(tmp_path, model, data, evaluate=evaluate, train=train)
    content = {
        "name": "own",
        "recipe": str(recipe),
        "arms": {"DPO": {"objective": "DPO"}, "IPO": {"objective": "IPO"}},
        "seeds": 2,
        "metric": "words",
        "folder": str(tmp_path / "runs"),
    }
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(content))
    main(["study", str(file)])
    page = (tmp_path / "runs" / "own" / "report.html").read_text()
    assert re.search(r"Against DPO, on words", page)
    header, *rows = (tmp_path / "runs" / "own" / "results.csv").read_text().splitlines()
    assert "words" in header.split(",") and len(rows) == 4
