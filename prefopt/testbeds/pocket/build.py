"""How the shipped LM was made: `python -m prefopt.testbeds.pocket.build`, 10 minutes on two cores.

A run like any other: our SFT objective twice, once on opinions and once on rating lines, through our trainer. On one machine
with one number of threads it gives the same weights, bit by bit.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from prefopt.recipe import Recipe
from prefopt.runs import run

from .language import FOLDER, tokenizer, untrained
from .marks import marks

SHIPPED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def recipe(model: Path, steps: int, batch_size: int = 64) -> Recipe:
    """The run that trains the LM from the weights in `model`, each row seen once."""

    def corpus(rows: int, seed: int, ratings: float) -> dict:
        arguments = {"n": rows, "seed": seed, "ratings": ratings}
        return {"data": "prefopt.testbeds.pocket:corpus", "arguments": arguments}

    rows = steps * batch_size
    return Recipe.model_validate(
        {
            "name": "pocket-lm",
            "policy": {"model": str(model)},
            "source": {**corpus(rows, 0, 0), "split": [1, 0, 0], "test": corpus(512, 1, 0)},
            "objective": [
                {"name": "SFT"},
                # A term of its own, since the few tokens of labels would drown among those of opinions.
                {"name": "SFT", "weight": 0.5, "source": {**corpus(rows, 2, 1), "split": [1, 0, 0]}},
            ],
            "train": {
                "steps": steps,
                "batch_size": batch_size,
                "micro_batch_size": batch_size,
                "lr": 4e-3,
                "schedule": "cosine",
                "warmup": 50,
                "betas": [0.9, 0.95],
                "weight_decay": 0.01,
                "threads": 2,
            },
            "evaluate": {"gold": "prefopt.testbeds.pocket:gold", "sampling": {"max_tokens": 48}},
        }
    )


def build(into: Path = FOLDER, steps: int = 1500) -> None:
    """Train the LM and put its weights and tokenizer into a folder, in place of those there."""
    with tempfile.TemporaryDirectory() as temporary:
        start, folder = Path(temporary) / "untrained", Path(temporary) / "run"
        untrained().save_pretrained(start)
        tokenizer().save_pretrained(start)
        run(recipe(start, steps), folder)
        into.mkdir(parents=True, exist_ok=True)
        for name in SHIPPED:
            shutil.copyfile(folder / "policy" / name, into / f".{name}")
        for name in SHIPPED:
            os.replace(into / f".{name}", into / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder to write; the shipped one by default")
    parser.add_argument("--steps", type=int, default=1500, help="of 64 opinions and 64 rating lines")
    arguments = parser.parse_args()
    build(arguments.into, arguments.steps)
    for mark in marks(folder=arguments.into):
        print(mark, flush=True)
