"""Executors on clusters: what is lost is sent again and goes on, stopping reaches the cluster, settings are checked."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt import PrefoptError
from prefopt.runs.folder import RunFolder
from prefopt.runs.pausing import Paused
from prefopt.study import RayExecutor, SlurmExecutor, Study, perform, run_study
from prefopt.study.cluster_settings import RayCluster, Slurm
from prefopt.study.executors.remote import Lost, RemoteExecutor, Sent, SentJob
from prefopt.study.jobs import Job
from prefopt.study.places import in_words, note_queued, queued_file, read_place, started_file
from prefopt.study.status import jobs_file, read_status
from prefopt.study.stopping import NOT_STARTED, PAUSED, PREEMPTED, ask_to_stop

QUIET = Console(quiet=True)


class Counting(Job):
    """Counts to three in its folder, a step at a time, and saves a checkpoint of each."""

    def check(self) -> None: ...

    def changed_fields(self) -> list[str]:
        return []

    def summary(self, metric: str) -> list[str]:
        return []

    def run(self, console: Console, pause: Callable[[], bool] | None = None) -> None:
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.yaml").touch()
        for step in range(1, 4):
            if not (self.folder / "checkpoints" / str(step)).exists():
                (self.folder / "checkpoints" / str(step)).touch()
                if pause is not None and pause():
                    raise Paused
        (self.folder / "summary.json").write_text("{}")


class Flaky(RemoteExecutor):
    """A cluster that runs a job when it is looked at, and loses it where `lose` says so: at once, or after a step."""

    def __init__(self, lose: Callable[[int], str], at_once: int | None = None, retries: int = 2):
        super().__init__("flaky", at_once, retries, 0.0)
        self.lose, self.number, self.most, self.withdrawn = lose, 0, 0, False

    def send(self, job: SentJob) -> int:
        self.number += 1
        return self.number

    def describe(self, handle: int) -> tuple[str, str]:
        return str(handle), f"flaky job {handle}"

    def look(self, sent: Sent) -> Any:
        self.most = max(self.most, len(self.sent))
        match self.lose(sent.handle):
            case "at once":
                return Lost("its node went")
            case "after a step":
                assert perform(sent.job, lambda: True).error == PREEMPTED
                return Lost("its node went")
        return perform(sent.job, within=f"flaky job {sent.handle}")

    def withdraw_waiting(self) -> None:
        self.withdrawn = True


def counting(folder: Path, *names: str) -> list[Job]:
    (folder / "study.yaml").write_text("")
    return [Counting(name, 0, folder / "arms" / name / "seed-0", None) for name in names]


def errors(executor: RemoteExecutor, jobs: Sequence[Job]) -> dict[str, str | None]:
    with executor:
        return {outcome.job.name: outcome.error for outcome in executor.run(jobs)}


def test_a_job_that_comes_further_each_time_is_sent_again_however_often_it_is_lost(tmp_path):
    (job,) = counting(tmp_path, "a")
    executor = Flaky(lambda number: "after a step" if number <= 3 else "", retries=1)
    assert errors(executor, [job]) == {"a": None} and executor.number == 4 and job.finished
    assert (tmp_path / "logs" / "a-seed-0.txt").read_text().count("its node went; sent again") == 3


def test_a_job_that_does_not_come_further_is_given_up(tmp_path):
    (job,) = counting(tmp_path, "a")
    executor = Flaky(lambda number: "at once", retries=2)
    why = "its node went, 3 times in a row without a new checkpoint"
    assert errors(executor, [job]) == {"a": why} and executor.number == 3
    assert (job.folder / "error.txt").read_text().startswith(why)
    assert not queued_file(tmp_path, "a", 0).exists()


def test_no_more_jobs_are_sent_at_once_than_asked_for(tmp_path):
    jobs = counting(tmp_path, *"abc")
    for at_once, most in ((2, 2), (None, 3)):
        executor = Flaky(lambda number: "", at_once)
        assert set(errors(executor, jobs)) == set("abc") and executor.most == most


def test_a_study_that_is_asked_to_stop_takes_back_what_waits_and_sends_nothing_more(tmp_path):
    jobs = counting(tmp_path, *"abc")

    def lose(number: int) -> str:
        if number == 1:  # the third is this job again
            return "after a step"
        ask_to_stop(tmp_path)
        return "at once"

    executor = Flaky(lose, at_once=2)
    assert errors(executor, jobs) == {"a": PAUSED, "b": NOT_STARTED, "c": NOT_STARTED}
    assert executor.number == 3 and executor.withdrawn and not list(tmp_path.rglob("error.txt"))


# What the folder says of it


def written(folder: Path, ended: float | None) -> None:
    """A study of one job, as `announced` writes it."""
    process = {"pid": os.getpid(), "host": socket.gethostname(), "started": 0.0, "ended": ended, "processes": None}
    jobs = [{"name": "a", "seed": 0, "folder": "arms/a/seed-0", "kind": "run", "steps": 3}]
    jobs_file(folder).write_text(json.dumps({"title": "t", "metric": "nll", "process": process, "jobs": jobs}))


def test_the_folder_says_which_queue_a_job_waits_in_and_where_it_runs(tmp_path):
    (job,) = counting(tmp_path, "a")
    written(tmp_path, ended=None)

    def now() -> tuple[str, str]:
        (status,) = read_status(tmp_path).jobs
        return status.state, status.where

    assert now() == ("waiting", "")
    note_queued(tmp_path, "a", 0, "slurm", "4711", "SLURM job 4711")
    assert now() == ("waiting", "SLURM job 4711")
    time.sleep(0.02)
    perform(job, lambda: True, within="SLURM job 4711")
    assert now() == ("running", f"{socket.gethostname()}, SLURM job 4711")
    time.sleep(0.02)
    note_queued(tmp_path, "a", 0, "slurm", "4711", "SLURM job 4711")  # preempted, and in the queue again
    assert now() == ("interrupted", "SLURM job 4711")
    perform(job)
    assert now() == ("finished", "")


def test_a_job_that_was_left_on_the_cluster_runs_as_long_as_its_folder_is_worked_in(tmp_path):
    from prefopt.support.files import locked

    (job,) = counting(tmp_path, "a")
    note_queued(tmp_path, "a", 0, "slurm", "4711", "SLURM job 4711")
    time.sleep(0.02)
    perform(job, lambda: True, within="SLURM job 4711")
    written(tmp_path, ended=1.0)
    assert read_status(tmp_path).jobs[0].state == "interrupted"
    with locked(job.folder):
        assert read_status(tmp_path).jobs[0].state == "running"


def test_a_process_of_the_study_itself_is_named_by_its_machine_where_that_is_another():
    assert in_words({"host": socket.gethostname(), "within": ""}) == ""
    assert in_words({"host": "node7", "within": ""}) == "node7"
    assert in_words({}) == ""


# What is refused before anything starts


def test_slurm_is_refused_where_there_is_none(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrefoptError, match=r"this machine has no sbatch.*executor\.slurm\.cluster=local"):
        SlurmExecutor().check()


def test_what_sbatch_refuses_is_refused_before_the_study_begins(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    for command in ("srun", "squeue", "scancel", "sbatch"):
        file = tmp_path / command
        file.write_text('#!/bin/sh\necho "sbatch: error: invalid partition specified: $2" >&2; exit 1\n')
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(PrefoptError, match=r"invalid partition specified: --partition=gpu; `sinfo` lists"):
        SlurmExecutor(Slurm(partition="gpu")).check()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("here", "it is HOST:PORT"),
        ("127.0.0.1:1", r"nobody answers there \(.*refused; waited 2 s at most\).*ray status"),
    ],
)
def test_an_address_where_no_cluster_is_is_refused(address, message):
    pytest.importorskip("ray")
    with pytest.raises(PrefoptError, match=message):
        RayExecutor(RayCluster(address=address, timeout=2)).check()


# On submitit, as on SLURM


def test_a_rehearsed_job_is_out_of_reach_of_a_terminal_and_ends_silently_when_it_is_cancelled(tmp_path, capfd):
    pytest.importorskip("submitit")
    executor = SlurmExecutor(Slurm(cluster="local"))
    handle = executor.send(SentJob(counting(tmp_path, "a")[0], tmp_path))
    assert os.getpgid(int(handle.job_id)) == int(handle.job_id) != os.getpgrp()
    executor._cancel(handle.job_id)
    assert handle._process.wait(10) == -signal.SIGKILL and capfd.readouterr().err == ""


@contextmanager
def disturbing(folder: Path, what: Callable[[int], None]) -> Iterator[None]:
    """Do it to the process of the first job of arm A that has done two steps."""
    over = threading.Event()

    def watch() -> None:
        metrics = folder / "arms" / "A" / "seed-0" / "metrics.jsonl"
        while not over.wait(0.02):
            if metrics.exists() and metrics.read_text().count("\n") >= 2:
                return what(read_place(started_file(folder, "A", 0))["pid"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def steps(folder: Path) -> list[Any]:
    return [line | {"seconds": 0} for line in RunFolder(folder / "arms" / "A" / "seed-0").history()]


def small_study(folder: Path) -> Study:
    base = tiny_recipe(folder, tiny_model(folder / "lm"), tiny_pairs(folder / "pairs.jsonl"))
    common = {"evaluate.prompts": 0, "train.steps": 60, "train.checkpoint_every": 1}
    return Study(recipe=str(base), arms={"A": {}}, seeds=1, metric="nll", better="lower", common=common)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_that_submitit_preempts_saves_and_goes_on_to_the_same_result(tmp_path):
    pytest.importorskip("submitit")
    study = small_study(tmp_path)
    run_study(study, tmp_path / "here", console=QUIET)
    executor = SlurmExecutor(Slurm(cluster="local"))
    with disturbing(tmp_path / "there", lambda pid: os.kill(pid, signal.SIGUSR2)):
        run_study(study, tmp_path / "there", executor=executor, console=QUIET)
    assert "resumed at step" in (tmp_path / "there" / "logs" / "A-seed-0.txt").read_text()
    assert steps(tmp_path / "here") == steps(tmp_path / "there") and len(steps(tmp_path / "here")) > 60
    submitted = list((tmp_path / "there" / "logs" / "slurm").glob("*_submitted.pkl"))
    assert len(submitted) == 1  # it was queued again, and not submitted again


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_job_whose_ray_worker_is_killed_goes_on_to_the_same_result(tmp_path):
    pytest.importorskip("ray")
    study = small_study(tmp_path)
    run_study(study, tmp_path / "here", console=QUIET)
    executor = RayExecutor(RayCluster(address="local"))
    with disturbing(tmp_path / "there", lambda pid: os.kill(pid, signal.SIGKILL)):
        run_study(study, tmp_path / "there", executor=executor, console=QUIET)
    log = (tmp_path / "there" / "logs" / "A-seed-0.txt").read_text()
    assert "Ray lost it" in log and "resumed at step" in log
    assert steps(tmp_path / "here") == steps(tmp_path / "there") and len(steps(tmp_path / "here")) > 60
