"""Training of the shipped model of the games: `python -m prefopt.testbeds.games.build`, three minutes on one core.

It learns how transcripts of play at random go on: which words are moves, and what the world answers to them.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from prefopt.recipe import Recipe
from prefopt.runs.run import run

from .language import FOLDER, tokenizer, untrained

SHIPPED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
STEPS, ROWS = 400, 12


def build(into: Path = FOLDER, steps: int = STEPS) -> None:
    """Train the model and put its weights and tokenizer into a folder, in place of those there."""
    with tempfile.TemporaryDirectory() as temporary:
        model, trained = Path(temporary) / "untrained", Path(temporary) / "run"
        untrained().save_pretrained(model)
        tokenizer().save_pretrained(model)
        data = "prefopt.testbeds.games:corpus"
        spec = {
            "name": "games-lm",
            "policy": {"model": str(model)},
            "source": {
                "data": data,
                "arguments": {"n": steps * ROWS},
                "split": [1, 0, 0],
                "test": {"data": data, "arguments": {"n": 48, "seed": 1}},
                "max_completion_tokens": 640,
            },
            "objective": "SFT",
            "train": {"steps": steps, "batch_size": ROWS, "micro_batch_size": ROWS, "lr": 3e-3, "schedule": "cosine",
                      "betas": [0.9, 0.95], "threads": 1},
            "evaluate": {"prompts": 0},
        }  # fmt: skip
        run(Recipe.model_validate(spec), trained)
        into.mkdir(parents=True, exist_ok=True)
        for name in SHIPPED:
            shutil.copyfile(trained / "policy" / name, into / f".{name}")
            os.replace(into / f".{name}", into / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder to write; the shipped one by default")
    build(parser.parse_args().into)
