"""Executors: a study's result does not depend on where its jobs run, and an executor that loses jobs is noticed."""

import dataclasses
import json
import multiprocessing
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt import PrefoptError
from prefopt.study import Executor, LocalProcesses, Outcome, Study, ThisProcess, perform, run_study
from prefopt.study.executors import checked_outcomes
from prefopt.study.executors.local_processes import first_ready
from prefopt.study.jobs import Job
from prefopt.support import dates

QUIET = Console(quiet=True)
DOCS = Path(__file__).parents[3] / "docs" / "studies.md"


class Backwards(Executor):
    """A user's executor: the last job first."""

    def run(self, jobs: Sequence[Job]) -> Iterable[Outcome]:
        return map(perform, reversed(jobs))


@dataclass(frozen=True)
class Writing(Job):
    """Finishes at once, or fails."""

    def check(self) -> None: ...

    def changed_fields(self) -> list[str]:
        return []

    def summary(self, metric: str) -> list[str]:
        return []

    def run(self, console: Console, pause: Any = None) -> None:
        if self.recipe == "fails":
            raise ValueError("first line\nsecond line")
        if self.recipe == "waits for c":
            other, until = self.folder.parents[1] / "c" / "seed-0" / "summary.json", time.monotonic() + 60
            while not other.exists():
                assert time.monotonic() < until, "c has not begun"
                time.sleep(0.05)
        console.print(f"this is {self}")
        self.folder.mkdir(parents=True)
        (self.folder / "summary.json").write_text("{}")


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    (tmp_path / "study.yaml").write_text("")
    names = {"a": None, "b": "fails", "c": None}
    return [Writing(name, 0, tmp_path / "arms" / name / "seed-0", kind) for name, kind in names.items()]


def outcomes_of(executor: Executor, jobs: Sequence[Job]) -> list[tuple[str, str | None]]:
    return [(outcome.job.name, outcome.error) for outcome in checked_outcomes(executor, jobs)]


def small_study(folder: Path) -> Study:
    base = tiny_recipe(folder, tiny_model(folder / "lm"), tiny_pairs(folder / "pairs.jsonl"))
    common = {"evaluate.prompts": 0, "train.steps": 2}
    arms: dict[str, Any] = {"A": {}, "B": {"objective": "IPO"}, "broken": {"train.lr": 1e30}}
    return Study(recipe=str(base), arms=arms, seeds=2, metric="nll", better="lower", common=common)


def numbers(folder: Path) -> dict[str, Any]:
    """results.csv without the column that depends on the machine, and every line of every run's metrics."""
    rows = [line.rpartition(",")[0] for line in (folder / "results.csv").read_text().splitlines()]
    logs = {
        str(file.relative_to(folder)): [json.loads(line) | {"seconds": 0} for line in file.read_text().splitlines()]
        for file in sorted(folder.rglob("metrics.jsonl"))
    }
    return {"results.csv": rows, **logs}


@pytest.mark.slow
def test_the_result_is_the_same_with_an_executor_of_ones_own(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    here = run_study(study, tmp_path / "here", console=QUIET)
    there = run_study(study, tmp_path / "there", executor=Backwards(), console=QUIET)
    assert [(r.arm, r.seed) for r in here] == [(r.arm, r.seed) for r in there]
    assert numbers(tmp_path / "here") == numbers(tmp_path / "there") and len(numbers(tmp_path / "here")) == 7


class Calendar(date):
    """A day that tests set."""

    day = date(2031, 5, 7)

    @classmethod
    def today(cls) -> date:
        return cls.day


class OneADay(Executor):
    """Each job on the day after the one before."""

    def run(self, jobs: Sequence[Job]) -> Iterable[Outcome]:
        for job in jobs:
            yield perform(job)
            Calendar.day += timedelta(days=1)


def test_a_study_has_one_date_however_long_it_takes_and_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dates, "date", Calendar)
    base = tiny_recipe(tmp_path, tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl"))
    common = {"evaluate.prompts": 0, "train.steps": 0}

    def dated(seeds: int) -> list[str]:
        study = Study(recipe=str(base), arms={"DPO": {}}, common=common, seeds=seeds, metric="nll", better="lower")
        run_study(study, tmp_path / "s", executor=OneADay(), console=QUIET)
        folders = [tmp_path / "s", *sorted((tmp_path / "s" / "arms" / "DPO").iterdir())]
        return [json.loads((folder / "manifest.json").read_text())["date"] for folder in folders]

    assert dated(seeds=2) == ["2031-05-07"] * 3
    assert Calendar.day == date(2031, 5, 9)
    assert dated(seeds=3) == ["2031-05-07"] * 4
    (tmp_path / "s" / "manifest.json").unlink()  # as studies were written before
    assert dated(seeds=4) == ["2031-05-07"] * 5


@pytest.mark.slow  # with `jobs`, in tests/study/test_study_kill.py
@pytest.mark.timeout(300)
def test_the_result_is_the_same_in_the_executor_of_the_docs(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    run_study(study, tmp_path / "here", console=QUIET)
    (code,) = re.findall(r"```python\n(.*?)\n\n\nif __name__", DOCS.read_text(), re.DOTALL)
    defined: dict[str, Any] = {}
    exec(code, defined)
    run_study(study, tmp_path / "pool", executor=defined["Pool"](2), console=QUIET)
    assert numbers(tmp_path / "here") == numbers(tmp_path / "pool")
    assert not multiprocessing.active_children()


def test_an_error_is_in_the_outcome_and_in_the_folder_and_the_log_in_logs(jobs: list[Job], tmp_path: Path) -> None:
    assert outcomes_of(ThisProcess(), jobs) == [("a", None), ("b", "ValueError: first line"), ("c", None)]
    assert "second line" in (jobs[1].folder / "error.txt").read_text()
    assert (tmp_path / "logs" / "c-seed-0.txt").read_text() == "this is c seed 0\n"


def test_a_job_that_an_executor_forgets_has_failed(jobs: list[Job]) -> None:
    class Forgetful(Executor):
        def run(self, jobs: Sequence[Job]) -> Iterable[Outcome]:
            return map(perform, jobs[:1])

    why = "Forgetful.run has ended without an outcome of it"
    assert outcomes_of(Forgetful(), jobs) == [("a", None), ("b", why), ("c", why)]
    assert why in (jobs[2].folder / "error.txt").read_text()


def test_a_job_is_passed_over_until_what_it_reads_from_has_ended(jobs: list[Job]) -> None:
    a, b, c = jobs
    b, last = (dataclasses.replace(job, after=(of.folder,)) for job, of in ((b, a), (c, b)))
    assert first_ready([last, b, a, c], []) == a
    assert first_ready([last, b], [a]) is None
    assert first_ready([last, b], []) == b  # a has ended, and if it failed, b says so
    assert first_ready([], [b]) is None


@pytest.mark.slow
def test_processes_do_not_stand_idle_while_another_job_is_waited_for(jobs: list[Job]) -> None:
    a, b, c = jobs
    a = dataclasses.replace(a, recipe="waits for c")
    b = dataclasses.replace(b, recipe=None, after=(a.folder,))
    with LocalProcesses(2) as executor:
        assert outcomes_of(executor, [a, b, c]) == [("c", None), ("a", None), ("b", None)]


def test_a_job_that_left_nothing_in_its_folder_has_failed(jobs: list[Job]) -> None:
    class Elsewhere(Executor):
        def run(self, jobs: Sequence[Job]) -> Iterable[Outcome]:
            return map(Outcome, jobs)

    (_, why), *_ = outcomes_of(Elsewhere(), jobs)
    assert why == f"Elsewhere says that it finished, but {jobs[0].folder} holds no finished job"
    assert "share this folder?" in (jobs[0].folder / "error.txt").read_text()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda jobs: [None], r"Wrong\.run must yield an Outcome for each job, as perform\(job\) returns, got None"),
        (lambda jobs: [perform(jobs[0])] * 2, r"Wrong\.run has yielded an outcome that nobody waits for: of a seed 0"),
        (lambda jobs: None, r"Wrong\.run must return or yield outcomes, got None"),
    ],
)
def test_what_is_no_outcome_is_refused(jobs: list[Job], wrong: Any, message: str) -> None:
    class Wrong(Executor):
        def run(self, jobs: Sequence[Job]) -> Iterable[Outcome]:
            return wrong(jobs)  # type: ignore[no-any-return]

    with pytest.raises(PrefoptError, match=message):
        outcomes_of(Wrong(), jobs)


def test_an_executor_is_closed_when_the_study_is_interrupted(tmp_path: Path) -> None:
    class Interrupted(Executor):
        closed = False

        def __exit__(self, *error: object) -> None:
            self.closed = True

        def run(self, jobs: Sequence[Job]) -> Iterable[Outcome]:
            raise KeyboardInterrupt

    executor = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run_study(small_study(tmp_path), tmp_path / "s", executor=executor, console=QUIET)
    assert executor.closed


def test_a_number_of_processes_and_an_executor_are_not_both_taken(tmp_path: Path) -> None:
    with pytest.raises(PrefoptError, match="an executor is given, too"):
        run_study(small_study(tmp_path), tmp_path / "s", jobs=2, executor=LocalProcesses(2), console=QUIET)
    assert not (tmp_path / "s").exists()
