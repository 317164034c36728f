"""lm-evaluation-harness on a policy: its tasks' metrics, document by document, with intervals.

Source: github.com/EleutherAI/lm-evaluation-harness, here 0.4.13; intervals: see `scores.Mean`, and Miller, arXiv 2411.00640.
"""

import importlib.util
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from scipy import stats

from prefopt.evaluation.benchmarks.scores import Mean
from prefopt.evaluation.evaluator import Evaluation
from prefopt.evaluation.intervals import Observations
from prefopt.policy import Policy
from prefopt.support.errors import PrefoptError, nearest
from prefopt.types import Estimate

CONFIDENCE = 0.95


@dataclass(frozen=True)
class TaskMetric:
    """One metric of one task.

    Attributes:
        name: TASK/METRIC, and /FILTER where the task has filters.
        estimate: with an interval over documents; of a metric that is no mean over documents, from the harness's standard error.
        higher_is_better: as the task says; None where it does not.
        observations: document by document, where the metric is their mean.
    """

    name: str
    estimate: Estimate
    higher_is_better: bool | None
    observations: Observations | None


@dataclass(frozen=True)
class Tasks:
    """What the harness came to.

    Attributes:
        metrics: of all tasks and groups.
        made: versions of harness and tasks, documents, shots.
    """

    metrics: Sequence[TaskMetric]
    made: Mapping[str, Any]

    @property
    def evaluation(self) -> Evaluation:
        """As a run folder keeps it."""
        observed = {m.name: m.observations for m in self.metrics if m.observations is not None}
        return Evaluation(observed, {m.name: m.estimate.value for m in self.metrics if m.observations is None})


def check_tasks(names: Sequence[str], include: Sequence[str] = ()) -> Any:
    """The harness's own index of tasks, which has all of these.

    Args:
        names: of tasks, groups or tags, with * for any letters.
        include: folders with the YAML files of further tasks.

    Raises:
        PrefoptError: the harness is not installed, or has no such task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise PrefoptError("--tasks needs lm-evaluation-harness: pip install 'prefopt-research[lm-eval]'")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=list(include) or None)
    for name in names:
        if not manager.match_tasks([name]):
            raise PrefoptError(
                f"lm-evaluation-harness has no task {name!r}.{nearest(name, manager.all_tasks)} `lm-eval ls tasks` lists its own; "
                "--include names a folder with yours"
            )
    return manager


def run_tasks(
    policy: Policy,
    names: Sequence[str],
    manager: Any,
    accelerator: Accelerator,
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 16,
    turns: bool = False,
) -> Tasks:
    """Evaluate a policy on tasks of the harness.

    Args:
        policy: with its tokenizer; adapters and all, as it is.
        names: of the tasks.
        manager: what `check_tasks` returned.
        accelerator: knows the device and the precision.
        limit: documents of each task, from the first on; None is all.
        fewshot: worked examples before each document; None is the task's own number.
        batch_size: requests in one forward pass; memory and speed only.
        turns: whether the tokenizer's chat template writes prompts and worked examples, as turns.

    Raises:
        PrefoptError: several processes, or a task whose data cannot be had.
    """
    if accelerator.num_processes > 1:
        raise PrefoptError(
            "lm-evaluation-harness runs in one process here; start without torchrun or accelerate launch"
        )
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with _quiet(), accelerator.autocast():
        model = HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=batch_size)
        try:
            found = lm_eval.simple_evaluate(
                model, tasks=manager.match_tasks(list(names)), num_fewshot=fewshot, limit=limit, task_manager=manager,
                apply_chat_template=turns, fewshot_as_multiturn=turns, log_samples=True,
            )  # fmt: skip
        except (OSError, ConnectionError, ValueError) as error:  # data that are not there raise all of these
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise PrefoptError(f"lm-evaluation-harness could not run {', '.join(names)}: {first}") from error
    shots = {task: found["n-shot"].get(task) for task in found["configs"]}
    made = {
        "harness": f"lm-evaluation-harness {lm_eval.__version__}",
        "tasks": {
            task: {
                "version": found["versions"].get(task),
                "documents": found["n-samples"][task]["effective"],
                "of": found["n-samples"][task]["original"],
                "fewshot": shots[task],
            }
            for task in found["configs"]
        },
        "chat_template": turns,
    }
    return Tasks(list(_metrics(found)), made)


def _metrics(found: Mapping[str, Any]) -> Iterator[TaskMetric]:
    for task, results in {**found["results"], **found.get("groups", {})}.items():
        for key, value in results.items():
            metric, _, which = key.partition(",")
            if metric.endswith("_stderr") or not which or not isinstance(value, int | float):
                continue
            name = f"{task}/{metric}" if which == "none" else f"{task}/{metric}/{which}"
            better = found.get("higher_is_better", {}).get(task, {}).get(metric)
            observed = _observed(found.get("samples", {}).get(task, ()), metric, which, float(value))
            if observed is None:
                error = results.get(f"{metric}_stderr,{which}")
                documents = found["n-samples"].get(task, {}).get("effective", 0)
                yield TaskMetric(name, _normal(float(value), error, documents), better, None)
            else:
                yield TaskMetric(name, Mean(observed.values, observed.groups).estimate(CONFIDENCE), better, observed)


def _observed(samples: Sequence[Mapping[str, Any]], metric: str, which: str, value: float) -> Observations | None:
    """The metric of each document; None where it is no number of a document, or their mean is not what the harness says."""
    own = [sample for sample in samples if sample.get("filter") == which]
    values = [sample.get(metric) for sample in own]
    if not values or not all(isinstance(one, int | float | np.number) for one in values):
        return None
    numbers = np.array(values, dtype=float)
    if not math.isclose(numbers.mean(), value, rel_tol=1e-9, abs_tol=1e-12):
        return None
    return Observations(numbers, np.ones_like(numbers), [str(sample["doc_hash"]) for sample in own])


def _normal(value: float, error: Any, documents: int) -> Estimate:
    """From a standard error; NaN ends without one."""
    half = float(error) * float(stats.norm.ppf((1 + CONFIDENCE) / 2)) if isinstance(error, int | float) else math.nan
    return Estimate(value, value - half, value + half, documents)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's advice on how it was called; what goes wrong is raised."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
