"""Held-out rows: what has no pairs is measured otherwise, and a row that is wrong among right ones is refused."""

import json

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import PrefoptError, load_recipe
from prefopt.data import formats
from prefopt.evaluation.held_out import best, check_held_out, pairs
from prefopt.runs.planning import plan

PAIR = {"prompt": "a", "chosen": "good", "rejected": "bad"}
RATED = {"prompt": "b", "completions": ["x", "y", "z"], "scores": [1.0, 3.0, 2.0]}
TIED = {"prompt": "c", "completions": ["x", "y"], "scores": [1.0, 1.0]}
COMPARED = {"prompt": "c", "completions": ["p", "q"], "preference": [[0.5, 0.2], [0.8, 0.5]]}
BARE = {"prompt": "d", "completions": ["one", "two"]}
SHOWN = {"prompt": "e", "completion": "the answer"}
PROMPT = {"prompt": "f"}


def texts(rows):
    return [list(row.completions) for row in rows]


@pytest.mark.parametrize(
    ("data", "in_pairs", "answers"),
    [
        ([PAIR, RATED], [["good", "bad"], ["y", "x"]], [["good"], ["y"]]),
        ([RATED, SHOWN, PROMPT], [["y", "x"]], [["y"], ["the answer"]]),
        ([COMPARED, TIED], [["q", "p"]], [["q"], ["x"]]),
        ([TIED], [], [["x"]]),
        ([SHOWN, PROMPT], [], [["the answer"]]),
        ([BARE, PROMPT, BARE], [], []),
        ([PROMPT], [], []),
        ([], [], []),
    ],
)
def test_rows_are_measured_by_what_they_have(data, in_pairs, answers):
    rows = [formats.parse(row) for row in data]
    assert (texts(pairs(rows)), texts(best(rows))) == (in_pairs, answers)


@pytest.mark.parametrize("others", [[PAIR], [RATED, PROMPT], [COMPARED], [TIED], [SHOWN]])
@pytest.mark.parametrize("read", [pairs, best, check_held_out])
def test_a_row_that_nothing_orders_among_others_is_named(read, others):
    rows = [formats.parse(row, where=f"line {i + 1}") for i, row in enumerate([*others, BARE])]
    with pytest.raises(PrefoptError, match=rf"line {len(rows)} has 2 completions and nothing that orders them"):
        read(rows)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_run_is_refused_before_its_model_is_loaded(part, tmp_path):
    files = {"pairs": [PAIR, PAIR], "bare": [BARE]}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tiny_recipe(tmp_path, tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "train.jsonl"))
    held_out = f"source.{part}={{data: [{tmp_path}/pairs.jsonl, {tmp_path}/bare.jsonl]}}"
    with pytest.raises(PrefoptError, match=r"evaluate: .*bare\.jsonl:1 has 2 completions and nothing that orders"):
        plan(load_recipe(file, [held_out]))
    # The evaluation reads the first two only.
    assert len(getattr(plan(load_recipe(file, [held_out, "evaluate.rows=2"])).data, part)) == 3
