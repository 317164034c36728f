"""Episodes in a plain text that a policy writes and a labelling keeps: read again, they are what was drawn."""

import json
import math

import pytest
from _tiny import tiny_recipe
from accelerate import Accelerator
from rich.console import Console

import prefopt
from prefopt import load_label_recipe, load_recipe, run
from prefopt.data import collate, load_examples, tokenise
from prefopt.policy import load_tokenizer
from prefopt.recipe import Policy
from prefopt.runs.label.completions import PolicyCompletions, to_label
from prefopt.testbeds.games.language import FOLDER

QUIET = Console(quiet=True)

LAKE = '''
from prefopt import Turn

class Lake:
    """Moves end turns as a text, by EOS or by their length; it says nothing now and then, and at the beginning where it is told."""

    def reset(self, row, seed):
        self.turn, self.moves = 0, row["moves"]
        self.stop = ("left", "up") if row["stops"] else ()
        return " a1" if row["opens"] else None

    def step(self, text, *, truncated):
        self.turn += 1
        done = truncated or self.turn == self.moves
        return Turn("" if self.turn == 2 else f" b{self.turn}", reward=float(len(text.split())), done=done)
'''


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "lake.py").write_text(LAKE)
    rows = [
        {"prompt": "lake", "task": n, "moves": 1 + n % 4, "opens": n % 3 == 0, "stops": n % 2 == 0} for n in range(12)
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "label.yaml"
    content = {
        "policy": {"model": str(FOLDER)},
        "source": {"data": str(tmp_path / "tasks.jsonl")},
        "samples": {
            "completions": 4,
            "sampling": {"max_tokens": 3, "stop": ["right", "down", "<eos>"]},
            "environment": {"name": f"{tmp_path}/lake.py:Lake", "max_turns": 3, "max_tokens": 40},
        },
        "feedback": "EnvironmentReward",
        "threads": 1,
    }
    file.write_text(json.dumps(content))
    return load_label_recipe(file, [])


def drawn(settings):
    """What the policy writes for these settings, by the task of its row."""
    rows = to_label(load_examples(settings.source.data), settings)
    completions = PolicyCompletions(rows, settings, Accelerator(cpu=True))
    kept = {}
    write = completions.completer.write

    def watched(model, rows, *arguments):
        written = write(model, rows, *arguments)
        kept.update({row.columns["task"]: group for row, group in zip(rows, written, strict=True)})
        return written

    object.__setattr__(completions.completer, "write", watched)
    completions(range(len(rows)))
    return kept


def test_rows_have_the_ids_and_masks_that_were_drawn(settings, tmp_path):
    data = prefopt.label(settings, tmp_path / "out", QUIET).data
    written, tokenizer = drawn(settings), load_tokenizer(Policy(model=(str(FOLDER),)))
    examples = load_examples(str(data))
    read, _ = tokenise(examples, tokenizer)
    stops, turns = set(), set()
    assert len(read) == 12
    for row in read:
        group = written[row.columns["task"]]
        batch = collate([row])
        assert row.size == len(group) == 4
        assert row.prompt_ids == group[0].prompt
        for k, one in enumerate(group):
            assert row.completion_ids[k] == one.ids
            assert batch.mask[0, k, : len(one.ids)].tolist() == list(one.mask)
            assert len(one.turns) == 1 or row.step_ends[k] == tuple(turn.stop - 1 for turn in one.turns)
            stops.add(one.stop), turns.add(len(one.turns))
    assert {"stop", "turns", "length"} <= stops and turns == {1, 2, 3}, "the case says something"


def test_dpo_learns_from_what_was_labelled(settings, tmp_path):
    data = prefopt.label(settings, tmp_path / "out", QUIET).data
    file = tiny_recipe(
        tmp_path,
        FOLDER,
        data,
        "DPO",
        train="{steps: 3, batch_size: 4, lr: 1e-3, threads: 1}",
        evaluate="{prompts: 0}",
        source=f"{{data: {data}, split: [1, 0, 0], ties: drop}}",
    )
    run(load_recipe(file), folder=tmp_path / "run", console=QUIET)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses[-1] < losses[0]


def test_labelled_again_they_keep_their_turns(settings, tmp_path):
    """Feedback sees prompt with opening and one text, and the turns in the column `messages`."""
    data = prefopt.label(settings, tmp_path / "out", QUIET).data
    (tmp_path / "seen.py").write_text(
        "def seen(prompts, texts, rows):\n"
        "    assert all(isinstance(text, str) for row in texts for text in row)\n"
        "    return [[float(len(text)) for text in row] for row in texts]\n"
    )
    again = {"source": {"data": str(data)}, "feedback": f"{tmp_path}/seen.py:seen", "threads": 1}
    (tmp_path / "again.yaml").write_text(json.dumps(again))
    other = prefopt.label(load_label_recipe(tmp_path / "again.yaml", []), tmp_path / "again", QUIET).data
    one, two = ({row["task"]: row for row in map(json.loads, file.read_text().splitlines())} for file in (data, other))
    assert one.keys() == two.keys()
    for task, row in one.items():
        assert two[task]["completions"] == row["completions"] and two[task]["eos"] == row["eos"]
        assert two[task]["prompt"] == row["prompt"] == "lake"
