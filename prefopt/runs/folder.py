"""A run folder: the names of its files, and the one place where they are read and written.

recipe.yaml          resolved, written when the run begins: from then on it can be resumed
manifest.json        versions, code, data, weights, device, seeds
metrics.jsonl        a line for each step and evaluation
evaluations/         PART-step-NNNNNN.json, every observation and sample of the policy of that step
measured/            NAME.json, what was measured of the finished run later, and how
checkpoints/         step-NNNNNN/, what a resume goes on from, each with a policy/ of its own
best/                step-NNNNNN/, the best policy on validation rows so far, of a run that keeps it
policy/              the trained model, in the Hugging Face format
trained.json         training is over: how it ended, which is what a resume needs to conclude
summary.json         the run is over: before, after, change, costs
earlier/             step-NNNNNN/, of a run that was extended: policy, summary and measured/ of its earlier end
diverged.txt         training diverged, and no resume has gone on since: where and why
error.txt            of a study's run that failed: the traceback
TRACKER-id.txt       of a run that is logged to W&B, MLflow, trackio or Comet: its id there, with which a resume goes on
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.recipe import Recipe, recipe_from, with_new_names
from prefopt.recipe.parsing import parsed
from prefopt.runs.written import (
    check_manifest,
    check_measured,
    check_summary,
    check_training,
    is_line,
    keys_and_values,
    metrics_of,
    read,
    read_json,
)
from prefopt.support.errors import PrefoptError
from prefopt.support.files import write_whole

if TYPE_CHECKING:
    from prefopt.evaluation.evaluation import Evaluation
    from prefopt.evaluation.win_rates import Sample

OF_SETS = "set-"
"""How the names of files in measured/ begin that hold what was measured on a further set; no metric is called so."""
MEASURED_AGAIN = "restore it, or remove it: a run that is not finished measures again"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder; it need not be there yet.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def manifest_file(self) -> Path:
        """What the run is made of."""
        return self.path / "manifest.json"

    @property
    def metrics_file(self) -> Path:
        """Lines of numbers."""
        return self.path / "metrics.jsonl"

    def write_rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep what the policy wrote for a step; a resume that makes the step again writes the same."""
        file = self.path / "rollouts" / f"step-{step}.jsonl"
        file.parent.mkdir(exist_ok=True)
        write_whole(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The folder of the best policy so far."""
        return self.path / "best"

    def best_policy(self, step: int) -> Path:
        """Where the policy of a step is kept while it is the best."""
        return self.best / f"step-{step:06d}"

    def earlier(self, step: int) -> Path:
        """Where the result of an earlier end is, of a run that was extended."""
        return self.path / "earlier" / f"step-{step:06d}"

    @property
    def newest_checkpoint(self) -> Path | None:
        """The last one that is complete; None where there is none."""
        return max(self.checkpoints.glob("step-*"), default=None)  # of six digits or more

    @property
    def policy(self) -> Path:
        """The folder of the trained model."""
        return self.path / "policy"

    @property
    def trained_file(self) -> Path:
        """Written when training ends."""
        return self.path / "trained.json"

    @property
    def summary_file(self) -> Path:
        """What the run came to."""
        return self.path / "summary.json"

    @property
    def error_file(self) -> Path:
        """Why a study's run failed."""
        return self.path / "error.txt"

    @property
    def diverged_file(self) -> Path:
        """Where training diverged, and why."""
        return self.path / "diverged.txt"

    def tracker_id_file(self, tracker: str) -> Path:
        """The run's id at a tracker: wandb-id.txt."""
        return self.path / f"{tracker}-id.txt"

    def evaluation_file(self, part: str, step: int) -> Path:
        """Of an evaluation on a part of the data."""
        return self.path / "evaluations" / f"{part}-step-{step:06d}.json"

    @property
    def measured_folder(self) -> Path:
        """Of what was measured later."""
        return self.path / "measured"

    def measured_file(self, name: str) -> Path:
        """Of something that was measured later."""
        return self.measured_folder / f"{name}.json"

    @property
    def begun(self) -> bool:
        """Whether there is a run here that can be resumed, or is over."""
        return self.recipe_file.is_file()

    @property
    def labels(self) -> bool:
        """Whether this is the folder of a labelling, whose recipe has a feedback and no objective."""
        try:
            recipe = self.recipe_tree()
        except PrefoptError:  # damaged: whoever reads it says so
            return False
        return "feedback" in recipe and "objective" not in recipe and not self.metrics_file.exists()

    @property
    def trained(self) -> bool:
        """Whether training is over, so that a resume only evaluates and concludes."""
        return self.trained_file.is_file() and not self.finished

    @property
    def has_numbers(self) -> bool:
        """Whether something was measured or trained."""
        return any((self.path / "evaluations").glob("*.json")) or any(self.checkpoints.glob("step-*"))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary_file.is_file()

    @property
    def failed(self) -> bool:
        """Whether a study noted an error."""
        return self.error_file.is_file()

    @property
    def diverged(self) -> bool:
        """Whether training diverged, so that a resume, which has the same settings, would diverge again."""
        return self.diverged_file.is_file() and not self.finished

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe, with overrides; keys of the previous version are read under their new names.

        Raises:
            PrefoptError: there is none, or it cannot be read.
        """
        if not self.begun:
            raise PrefoptError(f"{self} is no run folder: it has no recipe.yaml")
        return recipe_from(self.recipe_tree(), overrides, where=str(self.recipe_file))

    def recipe_tree(self) -> dict[str, Any]:
        """The recipe as keys and values, also one that this version would refuse; empty where there is none.

        Raises:
            PrefoptError: the file is damaged.
        """
        if not self.begun:
            return {}
        tree = read(self.recipe_file, keys_and_values(_yaml), "restore it; nothing goes without it")
        return with_new_names(tree, where=None)

    def manifest(self) -> dict[str, Any]:
        """What the run is made of; empty where it is not written yet.

        Raises:
            PrefoptError: the file is damaged.
        """
        return read_json(
            self.manifest_file,
            "restore it, or remove it: what a resume compares and a report lists is lost",
            check_manifest,
        )

    def summary(self) -> dict[str, Any]:
        """What the run came to; empty where it is not over.

        Raises:
            PrefoptError: the file is damaged.
        """
        remedy = f"restore it, or remove it: `prefopt run {self} --resume` writes it again"
        return read_json(self.summary_file, remedy, check_summary)

    def training(self) -> dict[str, Any]:
        """How training ended; empty where it is not over.

        Raises:
            PrefoptError: the file is damaged.
        """
        return read_json(
            self.trained_file,
            f"restore it, or remove it: `prefopt run {self} --resume` then trains on from the last checkpoint",
            check_training,
        )

    def error(self) -> str:
        """What a study noted when the run failed; empty where it did not."""
        return self.error_file.read_text(encoding="utf-8", errors="replace") if self.failed else ""

    def divergence(self) -> str:
        """Where training diverged, and why; empty where it did not."""
        return self.diverged_file.read_text(encoding="utf-8", errors="replace").strip() if self.diverged else ""

    def tracker_id(self, tracker: str) -> str:
        """The run's id at a tracker; empty where it was never logged there."""
        file = self.tracker_id_file(tracker)
        return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""

    def history(self) -> Iterator[dict[str, Any]]:
        """Lines of metrics.jsonl in order, without a last one that a kill cut short.

        Raises:
            PrefoptError: another line is damaged.
        """
        file = self.metrics_file
        content = file.read_bytes() if file.is_file() else b""
        lines = content.splitlines()
        for number, text in enumerate(lines, 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            if is_line(line):
                yield line
            elif number < len(lines) or content.endswith(b"\n"):  # a line that was cut has no end
                raise PrefoptError(
                    f"{file}, line {number}, is damaged: restore the file, or remove the line, which takes its step out of curves"
                )

    def evaluation(self, part: str, step: int) -> "Evaluation | None":
        """An evaluation that was kept; None where there is none.

        Raises:
            PrefoptError: the file is damaged.
        """
        from prefopt.evaluation.evaluation import Evaluation  # with torch, which few readers of a folder need

        file = self.evaluation_file(part, step)
        return read(file, Evaluation.from_json, MEASURED_AGAIN) if file.exists() else None

    def last_evaluation(self, part: str = "test") -> "Evaluation | None":
        """The latest that was kept of a part; None where there is none.

        Raises:
            PrefoptError: the file is damaged.
        """
        from prefopt.evaluation.evaluation import Evaluation

        files = sorted((self.path / "evaluations").glob(f"{part}-step-*.json"))
        return read(files[-1], Evaluation.from_json, MEASURED_AGAIN) if files else None

    def measured(self) -> "dict[str, dict[str, Any]]":
        """What was measured later, by its name: `made` and what `Evaluation.to_json` writes. This takes no torch to read.

        Raises:
            PrefoptError: a file is damaged.
        """
        files = sorted(self.measured_folder.glob("*.json"))
        return {
            file.stem: read_json(file, "restore it, or remove it and measure again", check_measured) for file in files
        }

    def with_measured(self, evaluation: "Evaluation | None") -> "Evaluation | None":
        """An evaluation of the finished run, and what was measured later; of the same samples, it is with them.

        Raises:
            PrefoptError: a file is damaged.
        """
        from prefopt.evaluation.evaluation import Evaluation

        if evaluation is None:
            return None
        for one in self.measured().values():
            own = {key: value for key, value in one.items() if key not in ("made", "before")}
            later = Evaluation.from_json(json.dumps(own))
            evaluation = replace(
                evaluation,
                observations={**later.observations, **evaluation.observations},
                corpus={**later.corpus, **evaluation.corpus},
                samples=_joined(evaluation.samples, later.samples),
            )
        return evaluation

    def samples(self) -> "dict[str, list[Sample]]":
        """The samples of the last evaluation on test rows, by `evaluation.win_rates.key_of_sample`.

        Raises:
            PrefoptError: there are none.
        """
        from prefopt.evaluation.win_rates import Sample, key_of_sample

        evaluation = self.last_evaluation()
        if evaluation is None or not evaluation.samples:
            raise PrefoptError(
                f"{self} holds no samples of a policy on test rows (evaluations/test-step-*.json); name the folder of a "
                "finished run with evaluate.prompts above 0"
            )
        by_prompt: dict[str, list[Sample]] = {}
        for sample in evaluation.samples:
            by_prompt.setdefault(key_of_sample(sample), []).append(Sample(sample["completion"], bool(sample["ended"])))
        return by_prompt

    def write_recipe(self, settings: Recipe) -> None:
        """Begin: from here on the run can be resumed."""
        write_whole(self.recipe_file, settings.to_yaml())

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """Say what the run is made of."""
        write_whole(self.manifest_file, json.dumps(content, indent=2, default=repr))

    def write_evaluation(self, part: str, step: int, evaluation: "Evaluation") -> None:
        """Keep an evaluation."""
        file = self.evaluation_file(part, step)
        file.parent.mkdir(exist_ok=True)
        write_whole(file, evaluation.to_json())

    def write_measured(
        self, name: str, made: Mapping[str, Any], evaluation: "Evaluation", before: "Evaluation | None" = None
    ) -> Path:
        """Add what was measured later.

        Args:
            name: new in this run.
            made: when, by what command, of what.
            evaluation: its observations and numbers.
            before: the same of the model before training.

        Raises:
            PrefoptError: there is one of this name, or one of its metrics is measured already; nothing is overwritten.
        """
        file = self.measured_file(name)
        if file.exists():
            raise PrefoptError(f"{file} is there already, and nothing is overwritten: give another name, or remove it")
        taken = {
            metric: f"measured/{other}.json" for other, one in self.measured().items() for metric in metrics_of(one)
        }
        taken |= dict.fromkeys(self.summary().get("after", {}), "summary.json")
        content = json.loads(evaluation.to_json())
        if twice := [metric for metric in metrics_of(content) if metric in taken]:
            raise PrefoptError(f"{self}: {twice[0]} is measured already, in {taken[twice[0]]}; give another name")
        file.parent.mkdir(exist_ok=True)
        start = {} if before is None else {"before": json.loads(before.to_json())}
        write_whole(file, json.dumps({"made": made} | content | start, indent=1, default=repr))
        return file

    def write_training(self, content: Mapping[str, Any]) -> None:
        """Training is over, and the model is in policy/."""
        write_whole(self.trained_file, json.dumps(content, indent=2))

    def write_summary(self, content: Mapping[str, Any]) -> None:
        """The run is over."""
        write_whole(self.summary_file, json.dumps(content, indent=2))

    def write_tracker_id(self, tracker: str, run_id: str) -> None:
        """Under which id a resume goes on at a tracker."""
        write_whole(self.tracker_id_file(tracker), f"{run_id}\n")

    def write_divergence(self, sentence: str) -> None:
        """Note where training diverged, and why."""
        write_whole(self.diverged_file, f"{sentence}\n")

    def write_error(self, details: str) -> None:
        """Note why the run failed."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.error_file, details)


def run_of(place: Path) -> tuple[RunFolder, Path]:
    """The run that a folder belongs to, and which of its models is meant.

    Args:
        place: a run folder, its policy/, one of its checkpoints, best policies or earlier ends, or the policy/ of one.

    Returns:
        The run, which may not be there, and the folder with the model's files.
    """
    place = place.absolute()  # of `.`, too, the folders above are known
    holder = place.parent if place.name == RunFolder(place).policy.name else place
    inside = holder.parent.name in ("checkpoints", "best", "earlier")
    run = RunFolder(holder.parent.parent if inside else holder)
    return run, RunFolder(holder).policy


def _joined(samples: Sequence[Mapping[str, Any]], later: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Samples with what was measured of them later, where these are the same."""
    texts = ([(one["prompt"], one["completion"]) for one in several] for several in (samples, later))
    return (
        [{**new, **one} for one, new in zip(samples, later, strict=True)] if len({*map(repr, texts)}) == 1 else samples
    )


def _yaml(text: str) -> Any:
    try:
        return parsed(text, "recipe.yaml")
    except PrefoptError as error:
        raise ValueError(str(error).removeprefix("recipe.yaml, ")) from error
