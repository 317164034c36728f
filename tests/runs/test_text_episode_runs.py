"""Episodes in a plain text through whole runs of every kind of objective."""

import json
import math

import pytest
from _tiny import tiny_recipe
from rich.console import Console

from prefopt import load_recipe, run
from prefopt.testbeds.games.gym_words import SQUARES
from prefopt.testbeds.games.language import FOLDER


def says(text):
    return {"role": "assistant", "content": text}


def hears(text):
    return {"role": "environment", "content": text}


def long(number):
    return [says(" left"), hears(f" {SQUARES[number % 16]}"), says(" up <eos>"), hears(" c2"), says(" down")]


def short(number):
    return [says(" right"), hears(f" {SQUARES[(number + 3) % 16]}"), says(" up")]


FORMS = {
    "paired": lambda n: {
        "chosen": [hears(" a1"), *long(n)],
        "rejected": [hears(" a1"), *short(n)],
        "eos": [False, True],
    },
    "unpaired": lambda n: {"completion": long(n) if n % 2 else short(n), "label": bool(n % 2)},
    "rated": lambda n: {"completions": [long(n), short(n), " up"], "scores": [1, 0, 0.5]},
    "labelled": lambda n: {"completion": long(n), "step_labels": [True, bool(n % 2), False]},
}

CASES = {
    "DMPO": "paired",
    "SegmentBradleyTerry": "paired",
    "StepReward": "labelled",
    "KTO": "unpaired",
    "InfoNCA": "rated",
    "BradleyTerry": "paired",
    "SFT": "unpaired",
}
QUICK = ("SegmentBradleyTerry", "StepReward", "KTO")


@pytest.mark.parametrize("objective", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_whole_episodes_through_a_run(objective, tmp_path):
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"lake {SQUARES[n]}", **FORMS[CASES[objective]](n)} for n in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ", writers: [mismatched]" if objective == "KTO" else ""
    file = tiny_recipe(
        tmp_path,
        FOLDER,
        data,
        objective,
        train="{steps: 2, batch_size: 4, lr: 1e-2, threads: 1}",
        evaluate="{prompts: 0}",
        source=f"{{data: {data}, split: [0.7, 0, 0.3]{more}}}",
    )
    run(load_recipe(file), folder=tmp_path / "run", console=Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 2 and all(line["grad_norm"] > 0 and math.isfinite(line["loss"]) for line in steps)
