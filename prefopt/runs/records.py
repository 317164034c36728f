"""Run folders as comparisons read them: what was found, how the run ended, and what it cost."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefopt.recipe.flat import flat, short_value, within
from prefopt.recipe.immaterial import OF_RUNS, material
from prefopt.runs.folder import OF_SETS, RunFolder
from prefopt.runs.written import metrics_of
from prefopt.support.errors import PrefoptError
from prefopt.support.terminal import one_line

if TYPE_CHECKING:
    from prefopt.evaluation.evaluation import Evaluation

State = Literal["finished", "stopped", "failed", "unfinished"]

AT_KL = "_at_kl"
"""Ending of the name of a metric that is read where two arms have the same KL."""


@dataclass(frozen=True)
class RunOfArm:
    """Where one run of a comparison is.

    Attributes:
        arm: what it is a run of.
        seed: which of its runs.
        folder: a run folder, or one with only an error.txt.
    """

    arm: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class RunRecord:
    """A run as comparisons read it, however it ended.

    Attributes:
        arm: what it is a run of.
        seed: which of its runs.
        folder: where it is.
        state: finished; stopped by `train.limits`, which has numbers; failed, with an error; or unfinished.
        trouble: why it stopped or failed, in a line.
        recipe: resolved; empty where the run failed before it was written.
        manifest: versions, fingerprints, device, seeds.
        before: held-out numbers at step 0, and those that were measured later.
        after: held-out numbers at the end, and those that were measured later.
        history: lines of metrics.jsonl, in order.
        costs: what training cost, as `prefopt.runs.accounting.Spent` has it; empty where the run did not say.
    """

    arm: str
    seed: int
    folder: Path
    state: State
    trouble: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    costs: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def evaluation(self) -> "Evaluation | None":
        """The last one on rows of `part`, prompt by prompt, with what was measured later; None where there is none."""
        run = RunFolder(self.folder)
        return run.with_measured(run.last_evaluation(self.part)) if self.after else None

    @cached_property
    def measured_later(self) -> Mapping[str, Mapping[str, Any]]:
        """How what was measured later came about, by its name."""
        return {name: one["made"] for name, one in RunFolder(self.folder).measured().items()}

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric of training."""
        known = [(int(line["step"]), line[name]) for line in self.history if line.get(name) is not None]
        return [step for step, _ in known], [value for _, value in known]

    @property
    def part(self) -> str:
        """The part of the data that `before` and `after` are measured on, and so what tables show."""
        evaluate = self.recipe.get("evaluate")
        return str(evaluate.get("part", "test")) if isinstance(evaluate, Mapping) else "test"

    @cached_property
    def part_of_curves(self) -> str:
        """The one part that `measured` is of: validation rows where the run was measured on them, else `part`."""
        between = any(key.startswith("validation/") for line in self.history for key in line)
        return "validation" if between else self.part

    def measured(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a held-out metric, all on one part of the data, `part_of_curves`, or on a set: `SET/gold`."""
        key = name if "/" in name else f"{self.part_of_curves}/{name}"
        known = {int(line["step"]): line[key] for line in self.history if line.get(key) is not None}
        return sorted(known), [known[step] for step in sorted(known)]

    def path(self, name: str) -> list[tuple[float, float]]:
        """(KL, value) at every evaluation, in the order of the steps."""
        place = name.rpartition("/")[0]
        kl, value = (dict(zip(*self.measured(what), strict=True)) for what in (f"{place}/kl" if place else "kl", name))
        return [(kl[step], value[step]) for step in kl if step in value]


def rows_of(runs: Sequence[RunRecord], curves: bool = False) -> str:
    """The held-out rows that tables of these runs are of, or their curves, in words: `test rows`; all of them where runs differ."""
    parts = sorted({run.part_of_curves if curves else run.part for run in runs if run.after or run.history})
    return f"{' and '.join(parts) or 'held-out'} rows"


def rows_of_others(runs: Sequence[RunRecord], metric: str) -> str:
    """The rows that a metric is of, in words, where they are not the run's own held-out ones; else empty.

    They are those of a further set, which the recipe or a later command named, of a benchmark, or of a task of the harness.
    """
    name, slash, _ = metric.partition("[")[0].partition("/")
    for run in runs:
        evaluate = run.recipe.get("evaluate")
        sets = (evaluate.get("sets") if isinstance(evaluate, Mapping) else None) or {}
        if slash and name in sets:
            return f"rows of the set {name}{_data(sets[name].get('data'))}"
        if words := next(filter(None, (_later(name, *one) for one in run.measured_later.items())), ""):
            return f"{words}, measured later"
    return f"rows of {name}" if slash else ""


def _later(name: str, file: str, made: Mapping[str, Any]) -> str:
    """What a file of later measurements has metrics of this name of; empty where it has none, or of the run's own samples."""
    data, tasks = made.get("data"), made.get("tasks")
    if file == f"{OF_SETS}{name}":
        return f"{made.get('rows', '')} rows of the set {name}{_data(data)}".lstrip()
    if file == name and isinstance(data, Mapping):
        return f"{data.get('rows', '')} rows of the benchmark {name}{_data(data.get('name'))}".lstrip()
    if isinstance(tasks, Mapping) and name in tasks:
        documents = tasks[name].get("documents", "") if isinstance(tasks[name], Mapping) else ""
        return f"{documents} documents of the task {name} ({made.get('harness', 'lm-evaluation-harness')})".lstrip()
    return ""


def _data(names: Any) -> str:
    """Files and data sets in brackets, those of this machine without their folders."""
    every = [str(one) for one in ([names] if isinstance(names, str) else names or ())]
    return f" ({', '.join(Path(one).name if one.startswith('/') else one for one in every)})" if every else ""


def usual_metric(measured: Sequence[Collection[str]], own: Sequence[str]) -> str:
    """Where none is named: the first of gold, win_rate, the recipes' own, return and accuracy that all runs measure.

    Args:
        measured: the held-out metrics of each run.
        own: names of the recipes' own.
    """
    order = ["gold", "win_rate", *own, "return", "accuracy", *(name for names in measured for name in names)]
    return next((name for name in order if all(name in names for names in measured)), order[0])


def read_runs(results: Sequence[RunOfArm]) -> list[RunRecord]:
    """Every run, also those that came to nothing."""
    return [read_run(result) for result in results]


def find_runs(folders: Sequence[str | Path]) -> list[RunOfArm]:
    """The runs in these folders: run folders, studies (arms/ARM/seed-N), or folders of run folders.

    A run folder outside of a study is of the arm that its name says before `-seedN`, else of its recipe's name.

    Raises:
        PrefoptError: a folder is not there or holds no run; two runs are of one arm and seed.
    """
    runs: list[RunOfArm] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise PrefoptError(f"{folder} is no folder; give run folders, studies, or folders of run folders")
        below = sorted(folder.glob("arms/*/seed-*")) or ([folder] if _is_run(folder) else sorted(folder.iterdir()))
        here = [_run_of_arm(path) for path in below if path.is_dir() and _is_run(path)]
        if not here:
            raise PrefoptError(f"there is no run in {folder}: none with a recipe.yaml or an error.txt")
        runs += here
    runs = _told_apart(runs)
    seen: dict[tuple[str, int], Path] = {}
    for result in runs:
        if other := seen.get((result.arm, result.seed)):
            raise PrefoptError(
                f"{other} and {result.folder} are both seed {result.seed} of {result.arm}; a run counts once. Give one of them"
            )
        seen[result.arm, result.seed] = result.folder
    arms = list(dict.fromkeys(result.arm for result in runs))  # in the order given: the first is the baseline
    return sorted(runs, key=lambda r: (arms.index(r.arm), r.seed))


def _told_apart(runs: Sequence[RunOfArm]) -> list[RunOfArm]:
    """Runs of one name and seed as arms of their own, called by what differs in their recipes: `dpo beta=0.3`."""
    times = Counter((run.arm, run.seed) for run in runs)
    twice = {arm for (arm, _), count in times.items() if count > 1}
    by_arm = {arm: [run for run in runs if run.arm == arm] for arm in twice}
    values = {run.folder: _flat_recipe(run) for of_arm in by_arm.values() for run in of_arm}

    def name(run: RunOfArm) -> str:
        keys = dict.fromkeys(key for other in by_arm[run.arm] for key in values[other.folder])
        differing = [key for key in keys if len({values[other.folder].get(key) for other in by_arm[run.arm]}) > 1]
        differences = (f"{key.rpartition('.')[2]}={values[run.folder].get(key, 'default')}" for key in differing)
        return " ".join([run.arm, ", ".join(differences)]) if differing else run.arm

    return [replace(run, arm=name(run)) if run.arm in twice else run for run in runs]


def _flat_recipe(run: RunOfArm) -> dict[str, str]:
    """Dotted keys and short values of a run's recipe that say what was trained, seeds aside."""
    fields = flat(material(RunFolder(run.folder).recipe_tree(), OF_RUNS))
    return {key: short_value(value) for key, value in fields.items() if not within(key, ("seed", "seeds"))}


def _is_run(folder: Path) -> bool:
    run = RunFolder(folder)
    return (run.begun and not run.labels) or run.failed


def _run_of_arm(folder: Path) -> RunOfArm:
    if folder.parent.parent.name == "arms" and (match := re.fullmatch(r"seed-(\d+)", folder.name)):
        return RunOfArm(one_line(folder.parent.name), int(match[1]), folder)
    content = RunFolder(folder).recipe_tree()
    named = re.fullmatch(r"(.+)-seed(\d+)(?:-\d+)?", folder.name)
    arm = named[1] if named else content.get("name", folder.name)
    seed: Any = content.get("seed", named[2] if named else 0)
    if not isinstance(seed, int | str) or not str(seed).isdigit():
        raise PrefoptError(
            f"{RunFolder(folder).recipe_file} is damaged: its seed is {seed!r}; restore it or remove the run"
        )
    return RunOfArm(one_line(str(arm)), int(seed), folder)


def read_run(result: RunOfArm) -> RunRecord:
    """One run, also one that failed."""
    run = RunFolder(result.folder)
    state: State
    summary = run.summary()
    if run.finished:
        trouble = summary.get("stopped", "")
        state = "stopped" if trouble else "finished"
    elif run.failed:
        state, trouble = "failed", (run.error().strip().splitlines() or ["no message"])[-1]
    else:
        state, trouble = "unfinished", run.divergence() or f"no summary.json in {run}"
    before, after = (_values(summary.get(when, {})) for when in ("before", "after"))
    for later in run.measured().values() if after else ():  # which never replaces what the run itself measured
        for known, added in ((after, later), (before, later.get("before", {}))):
            known |= {name: value for name, value in _values(metrics_of(added)).items() if name not in known}
    return RunRecord(
        result.arm,
        result.seed,
        result.folder,
        state,
        trouble,
        run.recipe_tree(),
        run.manifest(),
        before,
        after,
        list(run.history()),
        summary.get("costs", {}),
    )


def _values(summary: Mapping[str, Any]) -> dict[str, float]:
    """Estimates and plain numbers alike as numbers; what is not finite is NaN."""
    numbers = {name: entry["value"] if isinstance(entry, dict) else entry for name, entry in summary.items()}
    return {name: math.nan if value is None else float(value) for name, value in numbers.items()}
