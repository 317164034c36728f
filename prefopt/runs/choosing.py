"""The best policy of a run: chosen on validation rows in the course of training, kept on disk, and the result at the end.

All that it decides follows from the lines of metrics.jsonl, which a resume takes back to its checkpoint; so a run that is killed
and gone on with chooses and stops as it would have undisturbed.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from accelerate import Accelerator

from prefopt import recipe
from prefopt.data import Example
from prefopt.policy import Policy, Scorer
from prefopt.policy.sharding import whole_weights
from prefopt.runs.folder import RunFolder
from prefopt.runs.held_out_metrics import held_out_metrics
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.files import replacing_folder
from prefopt.training.checkpoints import checkpoints, step_of
from prefopt.training.devices import on_main_process
from prefopt.training.weights import fit, read_weights, write_weights

HIGHER: tuple[str, ...] = (
    *("gold", "reward", "win_rate", "win_rate_length_controlled", "accuracy", "likelihood_accuracy", "ended"),
    *("logratio_margin", "rewards_margin", "accuracy_small_gap", "accuracy_medium_gap", "accuracy_large_gap"),
)
LOWER: tuple[str, ...] = ("nll", "pair_nll", "step_nll", "brier", "ece")
"""Built-in metrics of which more, or less, is better; of the others a recipe has to say."""


class Best(NamedTuple):
    """The best evaluation so far.

    Attributes:
        step: of the run.
        value: of the metric.
    """

    step: int
    value: float


@dataclass(frozen=True)
class Choice:
    """What `train.keep_best` and `train.patience` ask of a run.

    Attributes:
        train: settings of the loop.
        folder: of the run, which has the evaluations so far and the best policies.
        accelerator: all methods are called on every process.
    """

    train: recipe.Train
    folder: RunFolder
    accelerator: Accelerator

    def keep(self, model: Policy | Scorer, step: int) -> None:
        """Keep the model of this step, just evaluated, if it is the best; written whole before the former one is removed."""
        if self.train.keep_best is not None:
            with whole_weights(model, accelerator=self.accelerator):
                on_main_process(self.accelerator, lambda: self._keep(model, step))

    def reason_to_stop(self, done: int, steps: int) -> str:
        """Why to stop before all steps are done, by the evaluations so far; empty to go on."""
        if self.train.patience is None or done >= steps:
            return ""
        return on_main_process(self.accelerator, self._reason)

    def put_back(self, model: Policy | Scorer, done: int) -> dict[str, Any]:
        """Make the model the best one.

        Args:
            model: as it is after the last step.
            done: number of steps.

        Returns:
            What a summary says of the choice; empty where nothing is chosen.

        Raises:
            PrefoptError: what was kept is gone or damaged.
        """
        keep = self.train.keep_best
        if keep is None or not done:
            return {}
        best = on_main_process(self.accelerator, self._best)
        if best is None:
            raise PrefoptError(
                f"{keep.metric} was a number in no evaluation on validation rows, so there is no best policy; the one of the last "
                f"step is in the newest checkpoint, if there is one. Leave out train.keep_best, or choose by another metric"
            )
        if best.step != done:
            fit(model, read_weights(self.folder.best_policy(best.step)))
        return {"step": best.step, "metric": keep.metric, "value": best.value, "better": better(keep)}

    def remove(self) -> None:
        """Once policy/ is the best one, it need not be there twice; only a run with checkpoints can be gone on with."""
        if self.accelerator.is_main_process and not checkpoints(self.folder.checkpoints):
            shutil.rmtree(self.folder.best, ignore_errors=True)

    def _keep(self, model: Policy | Scorer, step: int) -> None:
        values = self._values()
        best = best_of(values, self._better)
        if best is not None and best.step == step:
            self.folder.best.mkdir(exist_ok=True)
            with replacing_folder(self.folder.best_policy(step)) as staging:
                staging.mkdir()
                write_weights(model, staging)
        # A resume goes back to a checkpoint, and then needs the one that was the best there.
        points = (step, *(step_of(path) for path in checkpoints(self.folder.checkpoints)))
        needed = {best_of([v for v in values if v[0] <= point], self._better) for point in points}
        for old in self.folder.best.glob("step-*"):
            if step_of(old) not in {one.step for one in needed if one is not None}:
                shutil.rmtree(old)

    def _reason(self) -> str:
        values, keep = self._values(), self.train.keep_best
        best = best_of(values, self._better)
        since = [step for step, _ in values if best is None or step > best.step]
        assert keep is not None and self.train.patience is not None
        if len(since) < self.train.patience:
            return ""
        was = f"the {best.value:.4g} of step {best.step}" if best else "no number at all"
        return f"step {since[-1]}: no better {keep.metric} than {was} in {len(since)} evaluations (train.patience)"

    def _best(self) -> Best | None:
        return best_of(self._values(), self._better)

    def _values(self) -> list[tuple[int, float | None]]:
        assert self.train.keep_best is not None
        return measured(self.folder.history(), self.train.keep_best.metric)

    @property
    def _better(self) -> Literal["higher", "lower"]:
        assert self.train.keep_best is not None
        return better(self.train.keep_best)


def measured(history: Iterable[Mapping[str, Any]], metric: str) -> list[tuple[int, float | None]]:
    """Steps and values of a metric on validation rows, of policies that were trained; None is no finite number."""
    key = f"validation/{metric}"
    return [(int(line["step"]), line[key]) for line in history if key in line and line["step"] > 0]


def best_of(values: Sequence[tuple[int, float | None]], better: Literal["higher", "lower"]) -> Best | None:
    """The best value, the earliest of equal ones; what is no finite number is never the best."""
    sign = 1 if better == "higher" else -1
    known = [Best(step, value) for step, value in values if value is not None]
    return max(known, key=lambda one: sign * one.value, default=None)  # the first of several that are largest


def better(keep: recipe.KeepBest) -> Literal["higher", "lower"]:
    """The direction, as the recipe says or as it is known; one's own metrics are better when higher."""
    return keep.better or ("lower" if keep.metric.partition("[")[0] in LOWER else "higher")


def check_choice(settings: recipe.Recipe, scorer: bool, rows: Sequence[Example] | None) -> None:
    """Refuse to choose by what will not be measured, or by a metric without a direction.

    Args:
        settings: the recipe.
        scorer: whether an objective trains rewards.
        rows: of the validation part; None where they are not there yet.

    Raises:
        PrefoptError: says what can be chosen by, and how.
    """
    keep = settings.train.keep_best
    if keep is None:
        return
    if rows is not None and not rows:
        raise PrefoptError(
            "train.keep_best chooses on validation rows, and there are none: give some in source.validation or source.split"
        )
    known = held_out_metrics(settings, scorer, rows)
    if keep.metric not in known:
        raise PrefoptError(
            f"train.keep_best: validation rows are not measured by {keep.metric!r}.{nearest(keep.metric, known)} They are by: "
            f"{', '.join(known)}"
        )
    name = keep.metric.partition("[")[0]
    if keep.better is None and name not in (*HIGHER, *LOWER, *settings.evaluate.metrics):
        raise PrefoptError(
            f"train.keep_best: whether more or less {keep.metric} is better depends on what is wanted: write "
            f"`keep_best: {{metric: {keep.metric}, better: higher}}`, or lower"
        )
