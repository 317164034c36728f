"""How far a study has come, read from its folder; stopping one; the page that is kept up to date."""

import io
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from _folders import begun
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt.cli import main
from prefopt.study import Study, run_study
from prefopt.study.executors import Executor, perform
from prefopt.study.places import note_queued
from prefopt.study.report.live_page import live_page
from prefopt.study.status import read_status
from prefopt.study.status_table import advice, headline, show_status
from prefopt.study.stopping import ask_to_stop, asked_to_stop
from prefopt.support.errors import PrefoptError
from prefopt.support.files import locked
from prefopt.support.terminal import Terminal

LONG_AGO = 1_000_000


def test_each_job_is_in_the_state_that_its_files_say(tmp_path):
    status = read_status(begun(tmp_path))
    assert [job.state for job in status.jobs] == ["finished", "failed", "running", "waiting"]
    done, broken, working, waiting = status.jobs
    assert (working.step, working.steps, working.rate) == (2, 4, 2.0)  # half a second for each step
    assert broken.trouble == "ValueError: the loss is nan"
    # A run takes 40 s, as the one that has finished did, start-up and evaluations included: 30 s and 40 s, by two processes.
    assert done.spent == pytest.approx(40, abs=1)
    assert (working.left, waiting.left) == (pytest.approx(30, abs=2), pytest.approx(40, abs=2))
    assert status.left == pytest.approx(35, abs=2)
    assert headline(status) == "1 of 4 runs finished · 1 running · 1 waiting · 1 failed · about 35 s left"


@pytest.mark.parametrize("how", [{"ended": LONG_AGO}, {"pid": 2**22 + 1}])
def test_what_nobody_works_on_is_interrupted(tmp_path, how):
    status = read_status(begun(tmp_path, **how))
    assert [job.state for job in status.jobs] == ["finished", "failed", "interrupted", "waiting"]
    assert not status.working and "nobody works on it" in headline(status)


def test_a_study_of_another_machine_works_until_it_says_that_it_ended(tmp_path):
    assert read_status(begun(tmp_path, host="elsewhere", pid=2**22 + 1)).working


def test_what_was_begun_before_this_start_waits_for_its_turn(tmp_path):
    folder = begun(tmp_path)
    os.utime(folder / "logs/working-seed-0.started", (LONG_AGO, LONG_AGO))
    assert read_status(folder).jobs[2].state == "interrupted"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_terminal_is_too_narrow_for_it(tmp_path, width):
    terminal = Terminal(file=io.StringIO(), width=width)
    show_status(terminal, begun(tmp_path))
    printed = terminal.file.getvalue()
    assert "…" not in printed
    for text in ("working seed 0", "2/4", "30 s", "the loss is nan", f"prefopt study {tmp_path} --stop"):
        assert text in printed
    assert ("steps/s" in printed) == (width >= 76)


def test_a_wish_that_nobody_would_see_is_refused(tmp_path, capsys):
    begun(tmp_path, ended=LONG_AGO)
    with pytest.raises(SystemExit):
        main(["study", str(tmp_path), "--stop"])
    assert "nobody works on" in capsys.readouterr().err and not asked_to_stop(tmp_path)
    note_queued(tmp_path, "next", 0, "slurm", "4711", "SLURM job 4711")  # left there by `interrupt: leave`
    main(["study", str(tmp_path), "--stop"])
    assert asked_to_stop(tmp_path)


def test_how_to_go_on_names_where_its_jobs_ran(tmp_path):
    file = begun(tmp_path, ended=LONG_AGO) / "jobs.json"
    (without,) = advice(read_status(tmp_path))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"options": "--on slurm --jobs 8"}))
    assert advice(read_status(tmp_path)) == [f"{without} --on slurm --jobs 8"]


def test_the_page_says_it_too_and_loads_itself_anew_while_somebody_works(tmp_path):
    page = live_page(read_status(begun(tmp_path)))
    assert '<meta http-equiv="refresh"' in page
    assert "1 of 4 runs finished" in page and f"prefopt study {tmp_path} --stop" in page
    assert "<td>2/4</td><td>2</td>" in page and "the loss is nan" in page
    assert "rewards/margin of done: between 0.200 and 0.800 up to step 4" in page
    assert page.count("<polyline") == 2 * 4 - 0  # gold on both parts, margin and loss, of the two that have numbers
    (tmp_path / "jobs.json").write_text((tmp_path / "jobs.json").read_text().replace('"ended": null', '"ended": 1'))
    assert "refresh" not in live_page(read_status(tmp_path)).partition("</head>")[0]


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(PrefoptError, match=r"holds no study that has begun"):
        read_status(tmp_path)
    with pytest.raises(PrefoptError, match=r"holds no study"):
        ask_to_stop(tmp_path)
    (tmp_path / "jobs.json").write_text('{"process": 3}')
    with pytest.raises(PrefoptError, match=r"jobs.json is damaged"):
        read_status(tmp_path)


class AsksToStop(Executor):
    """Runs one job after another; after the first, somebody asks the study to stop."""

    def __init__(self, folder: Path):
        self.folder, self.seen = folder, []

    def run(self, jobs: Sequence[Any]) -> Any:
        for job in jobs:
            self.seen.append(read_status(self.folder))
            yield perform(job)
            main(["study", str(self.folder), "--stop"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return tiny_recipe(folder, tiny_model(folder / "lm"), tiny_pairs(folder / "pairs.jsonl"))


def test_a_study_that_is_asked_to_stop_begins_no_further_run_and_goes_on_later(base, tmp_path, capsys):
    arms = {"a": {}, "b": {"train.lr": 1e-4}, "c": {"train.lr": 1e-5}}
    common = {"evaluate.prompts": 0, "train.steps": 2}
    study = Study(recipe=str(base), arms=arms, seeds=1, metric="nll", better="lower", common=common)
    folder, printed = tmp_path / "s", Console(file=io.StringIO(), width=300)
    executor = AsksToStop(folder)
    run_study(study, folder, executor=executor, console=printed)
    assert "stopped as asked" in printed.file.getvalue() and "1 of 3 runs are finished" in printed.file.getvalue()
    assert not (folder / "report.html").exists() and not list(folder.rglob("error.txt"))
    assert executor.seen[0].working and not read_status(folder).working
    assert asked_to_stop(folder)
    main(["study", str(folder), "--status"])
    assert "1 of 3 runs finished · 2 waiting · nobody works on it" in capsys.readouterr().out
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json")))
    with pytest.raises(SystemExit) as ended:  # a start that is asked to stop says so in its exit status
        _stopped_at_once(tmp_path / "study.yaml", folder)
    assert ended.value.code == 1
    run_study(study, folder, console=printed)
    assert (folder / "report.html").exists() and not asked_to_stop(folder)
    assert headline(read_status(folder)) == "3 of 3 runs finished"
    page = (folder / "live.html").read_text()
    assert "All runs are finished" in page and not re.search("http-equiv=.refresh", page)


def _stopped_at_once(file: Path, folder: Path) -> None:
    """Ask the study to stop as soon as it has begun."""
    import threading

    def ask() -> None:
        while asked_to_stop(folder):
            time.sleep(0.001)
        ask_to_stop(folder)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        main(["study", str(file), "--out", str(folder)])
    finally:
        asking.join()


def test_watching_ends_with_the_study(tmp_path, capsys):
    begun(tmp_path, ended=LONG_AGO)
    main(["study", str(tmp_path), "--watch"])
    assert "nobody works on it" in capsys.readouterr().out


def test_a_study_that_is_being_started_says_so(tmp_path):
    with locked(tmp_path), pytest.raises(PrefoptError, match="is being started"):
        read_status(tmp_path)
    with pytest.raises(PrefoptError, match="holds no study that has begun"):
        read_status(tmp_path)
