"""What a run is said to measure before it begins is what its summary has at the end."""

import json

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import load_recipe, run
from prefopt.evaluation.metrics import BUILT_IN
from prefopt.runs.held_out_metrics import held_out_metrics
from prefopt.runs.measured_by import MEASURED_BY
from prefopt.runs.planning import plan
from prefopt.runs.records import usual_metric

CODE = """
def brevity(prompts, completions, rows):
    return [[-float(len(text)) for text in texts] for texts in completions]
"""
CASES = {
    "pairs": ("DPO", {}),
    "no samples": ("DPO", {"evaluate": "{prompts: 0}"}),
    "greedy": ("DPO", {"evaluate": "{prompts: 3, sampling: {max_tokens: 4, temperature: 0}}"}),
    "gold, a judge and a metric": (
        "DPO",
        {
            "evaluate": "{prompts: 3, sampling: {max_tokens: 4}, gold: m.py:brevity, judge: m.py:brevity, "
            "metrics: {brief: m.py:brevity}}"
        },
    ),
    "rewards of pairs": ("BradleyTerry", {}),
    "rewards of ratings": ("MarginBradleyTerry", {"source": "{data: rated.jsonl}"}),
    "demonstrations": ("SFT", {"source": "{data: answers.jsonl}"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    tiny_model(home / "lm")
    pairs = [json.loads(line) for line in tiny_pairs(home / "pairs.jsonl", rows=80).read_text().splitlines()]
    rated = [
        {"prompt": p["prompt"], "completions": [p["chosen"], p["rejected"]], "scores": [i % 3 + 1, 0]}
        for i, p in enumerate(pairs)
    ]
    answers = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in pairs]
    for name, rows in (("rated", rated), ("answers", answers)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "m.py").write_text(CODE)
    return home


@pytest.mark.parametrize("case", CASES)
def test_a_run_measures_what_was_said_before_it_began(folder, tmp_path, monkeypatch, case):
    monkeypatch.chdir(folder)
    objective, sections = CASES[case]
    source = {"source": f"{{data: {folder / 'pairs.jsonl'}}}"} | sections
    settings = load_recipe(tiny_recipe(tmp_path, folder / "lm", folder / "pairs.jsonl", objective, **source))
    planned = plan(settings)
    names = held_out_metrics(settings, planned.needs.rewards, planned.data.test)
    result = run(settings, folder=tmp_path / "run")
    thresholds = {"gap_small_to", "gap_medium_to"}  # of the data, and no metrics of a model
    measured = {*result.after, *result.numbers} - thresholds
    assert set(names) == measured
    own = {"brief", "brief_missing"}
    assert set(names) - own <= MEASURED_BY.keys()
    assert set(names) <= set(held_out_metrics(settings, planned.needs.rewards))


def test_no_metric_of_ones_own_can_take_the_name_of_one_that_is_measured():
    assert {name for name in MEASURED_BY if not name.endswith("_missing")} <= BUILT_IN


def test_the_usual_metric_is_the_first_that_all_measure():
    everything = ["nll", "accuracy", "brief", "win_rate", "gold"]
    assert usual_metric([everything, everything], ["brief"]) == "gold"
    assert usual_metric([everything, everything[:4]], ["brief"]) == "win_rate"
    assert usual_metric([everything[:3], everything], ["brief"]) == "brief"
    assert usual_metric([everything[:2], everything], ["brief"]) == "accuracy"
    assert usual_metric([["nll"], everything], ["brief"]) == "nll"
