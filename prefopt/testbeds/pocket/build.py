"""Training of the shipped LM: `make pocket`, 13 minutes on two cores.

Two runs like any other, of several terms of our SFT objective, through our trainer. On one machine
with one number of threads it gives the same weights, bit by bit.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prefopt.recipe import Recipe
from prefopt.runs.run import run

from .language import FOLDER, tokenizer, untrained
from .marks import marks

SHIPPED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


class Lines(NamedTuple):
    """What a term of SFT reads: `corpus` with these settings.

    Attributes:
        ratings: rating lines instead of opinions.
        longest: words of the longest opinion.
        weight: of the term.
    """

    ratings: bool = False
    longest: int | None = None
    weight: float = 1


class Stage(NamedTuple):
    """One run; each starts from the weights of the one before.

    Attributes:
        steps: optimiser steps.
        lr: peak learning rate; it falls to 0 along a cosine.
        terms: what is learnt side by side, as many lines of each in a step.
    """

    steps: int
    lr: float
    terms: tuple[Lines, ...]


ROWS = 64
"""Lines of each kind in a step; each is seen once."""

SHORT = 7
"""Words of a short opinion: one statement or two."""

STAGES = (
    # Short opinions beside whole ones: on them attention soon learns that an adjective depends on its noun, which it does not
    # find in ten minutes of long opinions alone, where a noun is one token among forty.
    Stage(1200, 3e-3, (Lines(), Lines(longest=SHORT))),
    # Ratings only now: the noise of their labels would drown what is learnt before.
    Stage(600, 1.5e-3, (Lines(), Lines(True, SHORT, 0.5), Lines(True))),
)


def recipe(model: Path, stage: Stage, seed: int) -> Recipe:
    """The run of a stage from the weights in `model`."""

    def source(lines: Lines, seed: int) -> dict:
        arguments = {"n": stage.steps * ROWS, "seed": seed, "ratings": float(lines.ratings), "longest": lines.longest}
        return {"data": "prefopt.testbeds.pocket:corpus", "arguments": arguments, "split": [1, 0, 0]}

    first, *others = [source(lines, 10 * seed + number) for number, lines in enumerate(stage.terms)]
    terms: list[dict] = [{"name": "SFT", "weight": lines.weight} for lines in stage.terms]
    for term, own in zip(terms[1:], others, strict=True):
        term["source"] = own
    test = {"data": first["data"], "arguments": {"n": 512, "seed": 1, "ratings": 0.0}}
    return Recipe.model_validate(
        {
            "name": "pocket-lm",
            "policy": {"model": str(model)},
            "source": {**first, "test": test},
            "objective": terms,
            "train": {
                "steps": stage.steps,
                "batch_size": ROWS,
                "micro_batch_size": ROWS,
                "lr": stage.lr,
                "schedule": "cosine",
                "warmup": 50,
                "betas": [0.9, 0.95],
                "weight_decay": 0.01,
                "threads": 2,
            },
            "evaluate": {"gold": "prefopt.testbeds.pocket:gold", "sampling": {"max_tokens": 48}},
        }
    )


def build(into: Path = FOLDER, stages: Sequence[Stage] = STAGES) -> None:
    """Train the LM and put its weights and tokenizer into a folder, in place of those there."""
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "untrained"
        untrained().save_pretrained(model)
        tokenizer().save_pretrained(model)
        for number, stage in enumerate(stages):
            folder = Path(temporary) / f"stage-{number}"
            run(recipe(model, stage, seed=1 + number), folder)
            model = folder / "policy"
        into.mkdir(parents=True, exist_ok=True)
        for name in SHIPPED:
            shutil.copyfile(model / name, into / f".{name}")
        for name in SHIPPED:
            os.replace(into / f".{name}", into / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder to write; the shipped one by default")
    arguments = parser.parse_args()
    build(arguments.into)
    for mark in marks(folder=arguments.into):
        print(mark, flush=True)
