"""What `prefopt runs` lists: every run below a folder, with how far it has come."""

import json

import pytest
from _folders import failed_run, finished_run, study

from prefopt import PrefoptError
from prefopt.cli import main
from prefopt.runs.folder import RunFolder
from prefopt.runs.listing import listed_runs
from prefopt.support.files import locked


def test_every_run_is_listed_with_how_far_it_has_come(tmp_path):
    done = finished_run(tmp_path / "a" / "dpo-seed3", 3, 0.5)
    open_one = finished_run(tmp_path / "b", 1, 0.7, steps=7)
    (open_one / "summary.json").unlink()
    trained = finished_run(tmp_path / "c", 2, 0.9)
    (trained / "summary.json").unlink()
    (trained / "trained.json").write_text(json.dumps({"steps": 4}))
    broken = failed_run(tmp_path / "d")
    damaged = finished_run(tmp_path / "e", 4, 0.9)
    (damaged / "summary.json").write_text("{")
    stopped = finished_run(tmp_path / "f", 5, 0.25, stopped="kl 9 above 8")
    (tmp_path / "g").mkdir()
    runs = {run.folder: run for run in listed_runs(tmp_path)}
    assert {folder: run.state for folder, run in runs.items()} == {
        done: "finished",
        open_one: "unfinished",
        trained: "trained",
        broken: "failed",
        damaged: "damaged",
        stopped: "stopped",
    }
    one = runs[done]
    assert (one.objective, one.seed, one.step, one.result) == ("DPO", 3, 4, "gold 0.500")
    assert (runs[open_one].step, runs[open_one].result) == (7, "")
    assert list(runs) == sorted(runs)


def test_the_runs_of_studies_and_weights_of_terms_are_listed(tmp_path):
    folder = study(tmp_path / "study", {"a": [0.1, 0.2], "b": [0.3, None]})
    assert [run.folder.relative_to(folder).as_posix() for run in listed_runs(tmp_path)] == [
        "arms/a/seed-0",
        "arms/a/seed-1",
        "arms/b/seed-0",
        "arms/b/seed-1",
    ]
    terms = {"objective": [{"name": "DPO"}, {"name": "SFT", "weight": 0.1}]}
    (run,) = listed_runs(finished_run(tmp_path / "two", 0, 0.1, recipe=terms))
    assert run.objective == "DPO + 0.1 SFT"


def test_the_list_is_read_in_a_narrow_terminal_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    finished_run(tmp_path / "dpo-seed3", 3, 0.5)
    (finished_run(tmp_path / "rpo-seed1", 1, 0.5) / "summary.json").unlink()
    main(["runs", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "dpo-seed3" in shown and "finished" in shown and "gold 0.500" in shown
    assert f"prefopt run {tmp_path / 'rpo-seed1'} --resume" in shown.replace("\n", " ").replace("  ", " ")


def test_of_a_run_that_diverged_it_says_what_helps_and_offers_no_resume(tmp_path, capsys):
    diverged = finished_run(tmp_path / "dpo", 3, 0.5)
    (diverged / "summary.json").unlink()
    RunFolder(diverged).write_divergence("step 3: the loss is nan")
    (run,) = listed_runs(tmp_path)
    assert run.state == "diverged"
    main(["runs", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "--resume" not in shown
    assert f"prefopt run {diverged}/recipe.yaml train.lr=0.0003" in shown.replace("\n", " ")  # a third


def test_a_folder_that_is_not_there_or_is_empty_is_said(tmp_path, capsys):
    with pytest.raises(PrefoptError, match="there is no folder"):
        list(listed_runs(tmp_path / "nowhere"))
    main(["runs", str(tmp_path)])
    assert "no run" in capsys.readouterr().out


def test_what_a_process_works_on_is_running_and_a_run_of_a_study_goes_on_with_the_study(tmp_path):
    alone = finished_run(tmp_path / "alone", 0, 0.5)
    member = finished_run(tmp_path / "study" / "arms" / "A" / "seed-0", 0, 0.5)
    for run in (alone, member):
        (run / "summary.json").unlink()
    (tmp_path / "study" / "study.yaml").touch()

    def listed() -> dict:
        return {run.folder: (run.state, run.go_on) for run in listed_runs(tmp_path)}

    by_study = f"prefopt study {tmp_path}/study/study.yaml --out {tmp_path}/study"
    assert listed() == {alone: ("unfinished", f"prefopt run {alone} --resume"), member: ("unfinished", by_study)}
    with locked(alone), locked(tmp_path / "study"):
        assert listed() == {alone: ("running", ""), member: ("unfinished", "")}
    assert listed()[member] == ("unfinished", by_study)
