"""Evaluations in the course of a run: made, kept on disk, logged and shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from prefopt.evaluation.evaluation import Evaluation
from prefopt.policy import Policy, Scorer
from prefopt.runs.first_evaluation import first_evaluation
from prefopt.runs.folder import RunFolder
from prefopt.runs.preparing import Prepared
from prefopt.runs.progress import show_validation
from prefopt.support.profile import timed
from prefopt.training.trackers import Tracker, has_line
from prefopt.types import Estimate


@dataclass(frozen=True)
class Measurements:
    """The evaluations of one run.

    Attributes:
        prepared: the run.
        folder: where evaluations are kept.
        tracker: where their numbers go.
        console: where a person sees that one is being made.
    """

    prepared: Prepared
    folder: RunFolder
    tracker: Tracker
    console: Console

    def keep(self, evaluations: Mapping[str, Evaluation], step: int, of: int | None = None) -> None:
        """Write down the evaluations of all parts at the start or end of the run, unless they are there already.

        Args:
            evaluations: by part.
            step: of the run.
            of: the step whose policy was measured, where that is another one: the best, which was kept.
        """
        main, of = self.prepared.accelerator.is_main_process, step if of is None else of
        with timed("evaluation"):
            for part, evaluation in evaluations.items():
                keep_evaluation(self.folder, self.tracker, evaluation, part, step, of, main)

    def validate(self, model: Policy | Scorer, step: int) -> None:
        """Measure the model in the middle of training, on validation rows; its numbers are logged and shown."""
        with self.console.status("evaluating on validation rows"), timed("evaluation"):
            evaluation = self.prepared.evaluators["validation"](model)
        log_evaluation(self.tracker, evaluation, "validation", step)
        show_validation(self.console, step, evaluation.estimates())


def parts_at_ends(prepared: Prepared) -> Sequence[str]:
    """The parts of the data that are measured at start and end; that of tables, `evaluate.part`, comes first, sets come last.

    Where there are evaluations on validation rows in between, so are these: a curve needs its ends on the rows of its middle.
    """
    evaluate = prepared.recipe.evaluate
    between = evaluate.every is not None and len(prepared.data["validation"]) > 0
    return tuple(dict.fromkeys([evaluate.part, *["validation"] * between, *evaluate.sets]))


def evaluated(
    prepared: Prepared, folder: RunFolder, model: Policy | Scorer, step: int, console: Console
) -> dict[str, Evaluation]:
    """What the model of a step comes to, by the part of the data: measured, or read where it was before."""
    return {part: _evaluated(prepared, part, folder, model, step, console) for part in parts_at_ends(prepared)}


def _evaluated(
    prepared: Prepared, part: str, folder: RunFolder, model: Policy | Scorer, step: int, console: Console
) -> Evaluation:
    evaluation = folder.evaluation(part, step)
    if evaluation is None:
        with console.status(f"evaluating on {part} rows"), timed("evaluation"):
            evaluation = prepared.evaluators[part](model) if step else first_evaluation(prepared, part, model, folder)
    return evaluation


def keep_evaluation(
    folder: RunFolder, tracker: Tracker, evaluation: Evaluation, part: str, step: int, of: int, main: bool
) -> None:
    """Write an evaluation and its line of metrics, each unless it is there.

    The file has its name from the policy's step, the line stands at the run's and says where the policy is of another one. A kill
    may have come between the two, and a resume takes away lines that come after its checkpoint.

    Args:
        folder: of the run.
        tracker: where the numbers go.
        evaluation: of the model.
        part: of the data.
        step: of the run.
        of: the step that the model is of.
        main: whether this is the process that writes.
    """
    if main and not folder.evaluation_file(part, of).exists():
        folder.write_evaluation(part, of, evaluation)
    if not has_line(folder.metrics_file, step, f"{part}/"):
        log_evaluation(tracker, evaluation, part, step, of)


def log_evaluation(tracker: Tracker, evaluation: Evaluation, part: str, step: int, of: int | None = None) -> None:
    """Send an evaluation's numbers to the trackers, with the step of the policy where that is another than the run's."""
    numbers = flat(evaluation.estimates()) | dict(evaluation.numbers)
    if of not in (None, step):
        numbers["of_step"] = of
    tracker.log(step, {f"{part}/{name}": value for name, value in numbers.items()})


def flat(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """For trackers: the value under the metric's name, the interval's ends beside it."""
    numbers: dict[str, float] = {}
    for name, e in estimates.items():
        numbers |= {name: e.value, f"{name}/low": e.low, f"{name}/high": e.high}
    return numbers
