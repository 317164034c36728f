"""A run and a labelling have one date, whatever day it is."""

import io
import json
import re
from datetime import date
from pathlib import Path

import pytest
import yaml
from _tiny import tiny_model, tiny_recipe
from rich.console import Console

from prefopt.recipe import load_recipe
from prefopt.runs.inspecting import sample, trained
from prefopt.runs.label import label, load_label_recipe
from prefopt.runs.run import run
from prefopt.support import dates

TEMPLATE = "{{ strftime_now('w%-d') }} {% for m in messages %}{{ m['content'] }} {% endfor %}"


class Calendar(date):
    """Today is the 7th of May 2031."""

    @classmethod
    def today(cls):
        return cls(2031, 5, 7)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tiny_model(tmp_path / "model", chat=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def chat_pairs(file: Path) -> Path:
    rows = [
        {"prompt": [{"role": "user", "content": f"w{10 + i}"}], "chosen": "w1 w2", "rejected": "w3"} for i in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def first_word(recipe, **more) -> tuple[Path, str]:
    """The folder of a run, and the first word of the row that it shows."""
    shown = io.StringIO()
    folder = run(recipe, console=Console(file=shown), **more).folder
    return folder, re.search(r"prompt \(2 tokens\)\s+(w\d+)", shown.getvalue())[1]


def test_a_run_its_resume_and_its_samples_have_the_date_it_began_on(model, tmp_path, monkeypatch):
    recipe = load_recipe(tiny_recipe(tmp_path, model, chat_pairs(tmp_path / "d.jsonl")))
    whole, word = first_word(recipe, folder=tmp_path / "run")
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["date"] == date.today().isoformat()
    assert word == f"w{date.today().day}"
    (whole / "manifest.json").write_text(json.dumps(manifest | {"date": "2024-02-03"}))
    monkeypatch.setattr(dates, "date", Calendar)
    prompt = sample(trained(whole), ["w9"], 1, 1)[0].prompt
    assert prompt.split() == ["w3", "w9"]
    (whole / "summary.json").rename(tmp_path / "kept.json")  # as if it had been killed before its first checkpoint
    for part in ("metrics.jsonl", "trained.json"):
        (whole / part).unlink(missing_ok=True)
    for file in (whole / "evaluations").iterdir():
        file.unlink()
    assert first_word(load_recipe(whole / "recipe.yaml"), folder=whole, resume=True) == (whole, "w3")


def test_a_labelling_goes_on_with_the_date_it_began_on(model, tmp_path, monkeypatch):
    (tmp_path / "rule.py").write_text(
        "def rule(prompts, completions, rows):\n    return [[float(len(t)) for t in row] for row in completions]\n"
    )
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": f"w{i}"}]}) + "\n" for i in range(6)))
    file = tmp_path / "label.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "policy": {"model": str(model)},
                "source": {"data": str(prompts)},
                "samples": {"completions": 2, "sampling": {"max_tokens": 3}},
                "feedback": f"{tmp_path}/rule.py:rule",
            }
        )
    )
    settings = load_label_recipe(file, [])
    seen = []
    from prefopt.runs.label import completions as module

    def watched(rows, tokenizer, *rest):
        made = original(rows, tokenizer, *rest)
        seen.extend(tokenizer.decode(list(row.prompt_ids)).split()[0] for row in made[0])
        return made

    original = module.tokenise_to_disk
    monkeypatch.setattr(module, "tokenise_to_disk", watched)
    folder = label(settings, tmp_path / "labels").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["date"] == date.today().isoformat() and set(seen) == {f"w{date.today().day}"}
    seen.clear()
    manifest = {name: value for name, value in manifest.items() if name != "finished"} | {"date": "2024-02-03"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(dates, "date", Calendar)
    label(settings, folder)
    assert set(seen) == {"w3"}
