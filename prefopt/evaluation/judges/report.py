"""A judge compared with people on the same texts, and people with each other."""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from accelerate import Accelerator
from pydantic import ConfigDict, Field
from rich.console import Console

from prefopt import recipe
from prefopt.data import Example, load_examples
from prefopt.data.formats import ADAPT_COLUMNS
from prefopt.evaluation.judges.ratings import Judgements, RatedRow, measure
from prefopt.feedback import Transformed, ask, check_feedback, make_feedback
from prefopt.feedback.judges.judge import Judge
from prefopt.feedback.judges.memory import Memory
from prefopt.feedback.judges.trust import Bounds
from prefopt.recipe import Data, FeedbackOrName, Section
from prefopt.support.errors import PrefoptError
from prefopt.support.json_values import json_values
from prefopt.support.seeds import seed_for
from prefopt.support.terminal import Terminal
from prefopt.training.devices import computing, of_main_process
from prefopt.types import Estimate

log = logging.getLogger(__name__)

FEW = 5
"""Texts that have to be the same again before that says something about who wrote them."""


class JudgeRecipe(Section):
    """A judge, and rows with people's ratings or preferences."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str = Field("judge", pattern=r"^[^/\\]+$", description="a file's default is its folder and name")
    variables: dict[str, str] = Field(
        default_factory=dict, description="used elsewhere as ${name}; ${env:NAME} reads the environment"
    )
    seed: int = Field(0, ge=0, description="of the resampling, and of repeats")
    judge: FeedbackOrName = Field(
        description="the judge that is compared with people: {name: Judge, …}, or any other feedback"
    )
    source: Data = Field(
        description="texts with people's ratings: a column `ratings` (for each completion, a list of its raters' numbers), or a "
        "preference, votes or scores of several completions"
    )
    rows: int | None = Field(None, gt=0, description="the first so many; null is all")
    middle: float = Field(0.0, description="ratings above it are good, below it bad")
    repeats: int = Field(2, gt=0, description="times that each row is judged; 1 says nothing about consistency")
    batch_size: int = Field(32, gt=0, description="rows that are judged together")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals around every estimate")
    require: dict[str, Bounds] = Field(
        default_factory=dict, description="bounds within which whole intervals must be: `{auc: [0.7, null]}`"
    )
    precision: recipe.Precision = Field(
        "auto", description="arithmetic of models; auto is bf16 on devices that have it"
    )
    threads: recipe.ThreadsOrMost | None = Field(None, description=recipe.PLAIN_THREADS)


@dataclass(frozen=True)
class JudgeReport:
    """How well a judge agrees with people.

    Attributes:
        estimates: agreement and biases, with intervals that resample rows.
        numbers: those without an interval: counts of what was no verdict, calibration error, cost.
        identity: of the judge: everything that its verdicts depend on.
        confidence: of the intervals.
        models: of a judge on a server, what that said of every model that answered, as `Models.all`.
    """

    estimates: Mapping[str, Estimate]
    numbers: Mapping[str, float]
    identity: Mapping[str, Any] = field(default_factory=dict)
    confidence: float = 0.95
    models: Sequence[str] = ()

    def to_json(self) -> str:
        """What `Judge.report` reads."""
        content = {
            "identity": dict(self.identity),
            "models": list(self.models),
            "confidence": self.confidence,
            "estimates": {name: json_values(asdict(e)) for name, e in self.estimates.items()},
            "numbers": json_values(self.numbers),
        }
        return json.dumps(content, indent=2, ensure_ascii=False)


def report(settings: JudgeRecipe, console: Console | None = None) -> JudgeReport:
    """Ask the judge about every row, and compare.

    Args:
        settings: the judge and the rows.
        console: for progress; None is standard error.

    Raises:
        PrefoptError: whatever a user can put right: a judge that cannot work, rows without ratings or preferences of people.
    """
    console = console or Terminal(stderr=True)
    check_feedback(settings.judge, "judge", fixed=True)
    rows = [RatedRow.of(example) for example in load_rows(settings.source)[: settings.rows]]
    with computing(settings) as accelerator:
        return _report(settings, rows, accelerator, of_main_process(accelerator, console))


def _report(settings: JudgeRecipe, rows: Sequence[RatedRow], accelerator: Accelerator, console: Console) -> JudgeReport:
    judge = make_feedback(settings.judge, accelerator, "judge")
    parts = [rows[start : start + settings.batch_size] for start in range(0, len(rows), settings.batch_size)]
    started = time.perf_counter()
    rounds = []
    for repeat in range(settings.repeats):
        asked = again(judge, repeat)
        with console.status(f"judging {len(rows)} rows, round {repeat + 1} of {settings.repeats}"):
            rounds.append(
                Judgements.of([ask(asked, "judge", *_shown(part), accelerator).whole() for part in parts], rows)
            )
    seconds = (time.perf_counter() - started) / (len(rows) * settings.repeats)
    estimates, numbers = measure(rows, rounds, settings.middle, settings.confidence, seed_for(settings.seed, "report"))
    numbers |= {"seconds_per_row": seconds} | _redrawn(judge)
    models = judge.feedback.models if isinstance(judge.feedback, Judge) else ()
    return JudgeReport(estimates, numbers, identity(judge, settings.judge), settings.confidence, models)


def _redrawn(judge: Transformed) -> dict[str, float]:
    """Of the texts that a judge wrote anew, how many were the same again: where all were, consistency says nothing."""
    asked = judge.feedback.asked if isinstance(judge.feedback, Judge) else None
    if not isinstance(asked, Memory) or not asked.redrawn["drawn"]:
        return {}
    drawn, same = asked.redrawn["drawn"], asked.redrawn["same"]
    if drawn == same >= FEW:
        log.warning(
            "the judge wrote the same text each time that it was asked anew, %d of %d, at a temperature above 0: its server may "
            "take no notice of it (`transformers serve` does not, unless the model's generation settings sample). "
            "`consistency` then says nothing of the judge",
            same, drawn,
        )  # fmt: skip
    return {"redrawn": float(drawn), "redrawn_same": float(same)}


def identity(judge: Transformed, spec: recipe.Feedback) -> dict[str, Any]:
    """Everything that the verdicts depend on."""
    inner = judge.feedback
    return inner.identity if isinstance(inner, Judge) else spec.model_dump(mode="json")


def load_rows(source: Data) -> list[Example]:
    """The rows with completions of a source.

    Raises:
        PrefoptError: there are none.
    """
    rows = load_examples(list(source.data), source.arguments, split=source.hub_split, adapt=source.adapt)
    rows = rows[: source.limit]
    with_completions = [row for row in rows if row.size]
    if not with_completions:
        columns = sorted({name for row in rows[:100] for name in row.columns})
        raise PrefoptError(
            f"{', '.join(source.data)} has no completions to judge"
            + (f"; the columns beside `prompt` are {columns}. {ADAPT_COLUMNS}" if columns else "")
        )
    return with_completions


def again(judge: Transformed, repeat: int) -> Transformed:
    """The same judge for another round; what it writes is drawn anew."""
    inner = judge.feedback
    if not repeat or not isinstance(inner, Judge):
        return judge
    fresh = dataclasses.replace(
        inner, seed=inner.seed + 1000 * repeat, backend=inner.asked, model=None, server=None, cache=None, budget=None
    )
    return dataclasses.replace(judge, feedback=fresh)


def _shown(rows: Sequence[RatedRow]) -> tuple[list[Any], list[tuple[str, ...]], list[dict[str, Any]]]:
    """What the judge sees: prompts, completions, other columns; not people's ratings."""
    hidden = {"ratings", "scores"}
    columns = [{name: value for name, value in row.example.columns.items() if name not in hidden} for row in rows]
    return [row.example.prompt for row in rows], [row.texts for row in rows], columns
