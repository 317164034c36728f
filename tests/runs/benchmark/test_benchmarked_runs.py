"""Runs, models and judges on a benchmark, from the command line to the report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import PrefoptError, run
from prefopt.cli import main
from prefopt.runs.benchmark.targets import Manner, find_target
from prefopt.runs.folder import RunFolder
from prefopt.runs.records import RunOfArm, read_run
from prefopt.support.terminal import Terminal

QUIET = Terminal(quiet=True)


def trained(folder: Path, objective: str, chat: bool = False) -> Path:
    """A run of four steps."""
    folder.mkdir()
    model, data = tiny_model(folder / "model", chat), tiny_pairs(folder / "pairs.jsonl")
    if chat:
        rows = [json.loads(line) for line in data.read_text().splitlines()]
        turns = [
            {"prompt": [{"role": "user", "content": row["prompt"]}]}
            | {name: [{"role": "assistant", "content": row[name].strip()}] for name in ("chosen", "rejected")}
            for row in rows
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in turns))
    recipe = tiny_recipe(folder, model, data, objective, reference="{cache: false}")
    return run(str(recipe), folder=folder / "run", console=QUIET).folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Pairs in the shape of RewardBench, of two of its subsets."""
    file = tiny_pairs(tmp_path / "quiz.jsonl", 24)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    subsets = ("hep-go", "donotanswer")
    file.write_text("".join(json.dumps(row | {"subset": subsets[n % 2]}) + "\n" for n, row in enumerate(lines)))
    return file


def written(*arguments: str | Path) -> dict[str, Any]:
    """What `prefopt benchmark … --out` writes."""
    out = Path(arguments[0]).parent / "out.json"
    out.unlink(missing_ok=True)
    main(["benchmark", *map(str, arguments), "--out", str(out)])
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def test_a_dpo_run_is_measured_by_its_log_ratios_and_the_report_has_it(tmp_path: Path, rows: Path, capsys: Any) -> None:
    folder = trained(tmp_path / "dpo", "DPO")
    result = written(folder, "--data", rows, "--add", "--name", "quiz")
    assert (result["made"]["who"], result["made"]["reward"], result["made"]["prompts"]) == (
        "policy",
        "logratio",
        "text",
    )
    assert result["made"]["benchmark"] == "rewardbench" and result["made"]["data"]["rows"] == 24
    right = [float(row["scores"][0] > row["scores"][1]) for row in result["rows"]]
    assert result["sections"]["reasoning"]["value"] == pytest.approx(sum(right[::2]) / 12)
    assert result["overall"]["value"] == pytest.approx(sum(right) / 24)
    after = read_run(RunOfArm("dpo", 0, folder)).after
    assert (
        after["quiz"] == pytest.approx(result["overall"]["value"]) and {"quiz/reasoning", "quiz/safety"} <= after.keys()
    )
    shown = capsys.readouterr().out
    assert "rewardbench: quiz" in shown and "reasoning" in shown and "24" in shown
    with pytest.raises(SystemExit):
        main(["benchmark", str(folder), "--data", str(rows), "--add", "--name", "quiz"])
    assert "quiz.json is there already" in capsys.readouterr().err


def test_all_runs_of_a_study_get_the_result_and_the_same_command_goes_on(
    tmp_path: Path, rows: Path, capsys: Any
) -> None:
    study, first = tmp_path / "study", trained(tmp_path / "dpo", "DPO")
    folders = [study / "arms" / arm / "seed-0" for arm in ("a", "b", "c")]
    for folder in folders:
        shutil.copytree(first, folder)
    (folders[2] / "summary.json").unlink()
    command = ["benchmark", str(study), "--data", str(rows), "--add"]
    with pytest.raises(SystemExit):
        main([*command, "--out", str(tmp_path / "out.json")])
    assert "--out names one file" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
    assert not (folders[0] / "measured").exists()
    main(command)
    assert "arms/c/seed-0 is not finished" in " ".join(capsys.readouterr().err.split())
    assert [(folder / "measured" / "quiz.json").exists() for folder in folders] == [True, True, False]
    values = [read_run(RunOfArm(folder.parent.name, 0, folder)).after["quiz"] for folder in folders[:2]]
    assert values[0] == values[1]
    (folders[0] / "measured" / "quiz.json").unlink()
    main(command)
    shown = capsys.readouterr()
    assert "arms/a/seed-0" in shown.out and "arms/b/seed-0" not in shown.out
    assert "arms/b/seed-0/measured/quiz.json is there already" in " ".join(shown.err.split())
    with pytest.raises(SystemExit):
        main(command)


def test_log_ratios_are_those_of_policy_and_start(tmp_path: Path, rows: Path) -> None:
    folder = trained(tmp_path / "dpo", "DPO")
    ratios = written(folder, "--data", rows, "--limit", "5")["rows"]
    mine = written(folder, "--data", rows, "--limit", "5", "--reward", "logp")["rows"]
    start = written(tmp_path / "dpo" / "model", "--data", rows, "--limit", "5", "--reward", "logp")["rows"]
    other = written(folder / "policy", "--data", rows, "--limit", "5", "--reference", tmp_path / "dpo" / "model")[
        "rows"
    ]
    for ratio, one, before, same in zip(ratios, mine, start, other, strict=True):
        expected = [a - b for a, b in zip(one["scores"], before["scores"], strict=True)]
        assert ratio["scores"] == pytest.approx(expected, abs=1e-4) == same["scores"]
        assert max(map(abs, ratio["scores"])) > 1e-3


def test_the_usual_reward_is_that_of_the_objective(tmp_path: Path) -> None:
    assert find_target(str(trained(tmp_path / "simpo", "SimPO")), (), Manner()).about["reward"] == "mean_logp"
    talk = find_target(str(trained(tmp_path / "talk", "DPO", chat=True)), (), Manner())
    assert (talk.about["reward"], talk.about["prompts"]) == ("logratio", "turns")


def test_a_reward_model_is_measured_as_the_run_reads(tmp_path: Path, rows: Path) -> None:
    folder = trained(tmp_path / "reward", "BradleyTerry")
    result = written(folder, "--data", rows, "--name", "quiz")
    assert result["made"]["who"] == "reward model"
    again = written(folder / "policy", "--data", rows, "--batch-size", "3")
    assert [row["scores"] for row in result["rows"]] == [
        pytest.approx(row["scores"], abs=1e-5) for row in again["rows"]
    ]
    bare = written(folder, "--data", rows, "--prompts", "none")
    assert [row["scores"] for row in bare["rows"]] != [row["scores"] for row in result["rows"]]


def test_a_feedback_or_judge_of_a_recipe_of_any_kind(tmp_path: Path, rows: Path) -> None:
    (tmp_path / "rules.py").write_text(
        "def ends(prompts, completions, rows):\n    return [[t.endswith('w1') for t in ts] for ts in completions]\n"
    )
    for kind in ("judge", "feedback"):
        file = tmp_path / f"{kind}.yaml"
        file.write_text(f"{kind}: {{name: 'rules.py:ends'}}\nsource: {{data: nowhere.jsonl}}\n")
        result = written(file, "--data", rows)
        assert result["made"]["who"] == kind and result["overall"]["value"] > 0.9
    file.write_text("feedback: rules.py:ends\nsouce: {data: nowhere.jsonl}\n")
    with pytest.raises(PrefoptError, match=r"souce(.|\n)*source|souce"):
        find_target(str(file), (), Manner())
    file.write_text("source: {data: nowhere.jsonl}\n")
    with pytest.raises(PrefoptError, match="names no `judge`, no `feedback` and no `policy`"):
        find_target(str(file), (), Manner())


def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(tmp_path: Path, rows: Path) -> None:
    model = tiny_model(tmp_path / "model")
    recipe = tiny_recipe(tmp_path, model, tiny_pairs(tmp_path / "pairs.jsonl"))
    with pytest.raises(PrefoptError, match="its own reference, so that every log-ratio is 0"):
        find_target(str(recipe), (), Manner("logratio"))
    with pytest.raises(PrefoptError, match="a model without a run, so nothing says what it is compared with"):
        find_target(str(model), (), Manner("logratio"))
    with pytest.raises(PrefoptError, match="trains a reward model, which is not trained yet"):
        find_target(str(recipe), ("objective=BradleyTerry",), Manner())
    with pytest.raises(PrefoptError, match="is a model and has no recipe"):
        find_target(str(model), ("seed=1",), Manner())
    assert RunFolder(tmp_path / "runs").finished is False
