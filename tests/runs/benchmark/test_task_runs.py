"""lm-evaluation-harness on runs, offline: local tasks, whose numbers are worked out from the model's own logits."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt import PrefoptError, run
from prefopt.cli import main
from prefopt.runs.benchmark.tasks import tasks
from prefopt.runs.records import RunOfArm, read_run
from prefopt.support.terminal import Terminal

QUIET = Terminal(quiet=True)
CHOICES = ("w10", "w11", "w12")

here = pytest.mark.filterwarnings("default")  # the harness's own, at import and while it loads data


def tiny_task(folder: Path, name: str = "tiny_choice", template: str = "{{question}}") -> list[dict[str, Any]]:
    """A multiple-choice task with data in a file, and its documents."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    rows = [
        {"question": f"w{draw.integers(9)} w{draw.integers(9)}", "answer": int(draw.integers(3))} for _ in range(12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        f"test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{template}'\ndoc_to_choice: {list(CHOICES)}\n"
        "doc_to_target: '{{answer}}'\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {version: 3.0}\n"
    )
    return rows


def trained(folder: Path, adapter: str = "null", chat: bool = False) -> Path:
    folder.mkdir()
    model = tiny_model(folder / "model", chat)
    recipe = tiny_recipe(
        folder, model, tiny_pairs(folder / "pairs.jsonl"), policy=f"{{model: {model}, adapter: {adapter}}}"
    )
    return run(str(recipe), folder=folder / "run", console=QUIET).folder


def by_hand(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[float]:
    """Whether the right choice is the likeliest continuation of each question."""
    right = []
    for row in rows:
        ids = tokenizer(row["question"], return_tensors="pt").input_ids
        with torch.no_grad():
            following = model(ids).logits[0, -1]
        choices = torch.stack([following[tokenizer.convert_tokens_to_ids(choice)] for choice in CHOICES])
        right.append(float(choices.argmax() == row["answer"]))
    return right


@here
@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["null", "{r: 4, alpha: 8}"])
def test_a_local_task_enters_the_run_with_its_documents(tmp_path: Path, adapter: str, capsys: Any) -> None:
    pytest.importorskip("lm_eval")
    rows = tiny_task(tmp_path / "tasks")
    folder = trained(tmp_path / "dpo", adapter)
    out = tmp_path / "out.json"
    main(
        [
            "benchmark",
            str(folder),
            "--tasks",
            "tiny_choice",
            "--include",
            str(tmp_path / "tasks"),
            "--add",
            "--out",
            str(out),
        ]
    )
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder / "policy"),
        AutoTokenizer.from_pretrained(folder / "policy"),
    )
    right = by_hand(model, tokenizer, rows)
    assert 0 < sum(right) < len(right)
    content = json.loads(out.read_text())
    made = content["made"]["tasks"]["tiny_choice"]
    assert (
        made == {"version": 3.0, "documents": 12, "of": 12, "fewshot": 0} and content["made"]["chat_template"] is False
    )
    measured = content["metrics"]["tiny_choice/acc"]
    assert measured["value"] == pytest.approx(np.mean(right)) and measured["higher_is_better"] is True
    z, n, p = 1.959964, 12, np.mean(right)
    middle, half = p + z**2 / 2 / n, z * math.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    assert (measured["low"], measured["high"]) == pytest.approx(
        ((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)), abs=1e-6
    )
    record = read_run(RunOfArm("dpo", 0, folder))
    assert record.after["tiny_choice/acc"] == pytest.approx(np.mean(right))
    assert record.evaluation is not None and record.evaluation.observations["tiny_choice/acc"].values.tolist() == right
    assert "tiny_choice/acc" in capsys.readouterr().out


@here
@pytest.mark.slow
def test_a_model_with_a_chat_template_is_asked_in_turns(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = tiny_task(tmp_path / "tasks")
    model = tiny_model(tmp_path / "model", chat=True)
    found, made = tasks(str(model), ["tiny_choice"], QUIET, include=[str(tmp_path / "tasks")], limit=7)
    assert made["chat_template"] is True and made["tasks"]["tiny_choice"]["documents"] == 7
    asked = [row | {"question": f"user {row['question']} w0"} for row in rows[:7]]
    right = by_hand(AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model), asked)
    assert found.metrics[0].observations is not None and found.metrics[0].observations.values.tolist() == right
    plain, made = tasks(str(model), ["tiny_choice"], QUIET, include=[str(tmp_path / "tasks")], prompts="text", limit=7)
    assert made["chat_template"] is False and plain.metrics[0].observations is not None
    right = by_hand(AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model), rows[:7])
    assert plain.metrics[0].observations.values.tolist() == right


@here
@pytest.mark.slow
def test_what_the_harness_cannot_run_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    tiny_task(tmp_path / "tasks")
    (tmp_path / "tasks" / "rows.jsonl").unlink()
    model = str(tiny_model(tmp_path / "model"))
    with pytest.raises(PrefoptError, match=r"no task 'tiny_chioce'. Did you mean 'tiny_choice'"):
        tasks(model, ["tiny_chioce"], QUIET, include=[str(tmp_path / "tasks")])
    with pytest.raises(PrefoptError, match=r"could not run tiny_choice: .*rows\.jsonl"):
        tasks(model, ["tiny_choice"], QUIET, include=[str(tmp_path / "tasks")])


def test_options_that_say_nothing_and_targets_that_write_nothing_are_refused(tmp_path: Path, capsys: Any) -> None:
    model = str(tiny_model(tmp_path / "model"))
    for arguments, wrong in (
        ([], "give --data FILE, rows of a benchmark of reward models or judges, or --tasks"),
        (["--tasks", "a", "--reward", "logp"], "--reward says nothing of --tasks"),
        (["--data", "a.jsonl", "--include", "b"], "--include says nothing of --data"),
        (["--tasks", "a/b"], "'a/b' is no name for a result"),
        (["--tasks", "a", "--add"], "is no run folder; --out writes a file anywhere"),
        (["--tasks", "a", "--prompts", "none"], "--prompts none is for rows with answers"),
    ):
        with pytest.raises(SystemExit):
            main(["benchmark", model, *arguments])
        assert wrong in capsys.readouterr().err
