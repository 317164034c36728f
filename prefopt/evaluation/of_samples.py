"""What samples are measured by: feedback on each of them, and numbers of all of them together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from prefopt import recipe
from prefopt.data import Tokenised
from prefopt.evaluation.corpus import CorpusMetric
from prefopt.evaluation.intervals import Halved, halved
from prefopt.evaluation.metrics import metric_key, value_names
from prefopt.feedback import ask, together
from prefopt.support.errors import PrefoptError
from prefopt.support.profile import timed
from prefopt.types import Completion, Feedback, Prompt


class SampleScores(NamedTuple):
    """What was measured of B prompts with K samples each.

    Attributes:
        of_each: [B, K] by the metric; NaN where there is no verdict.
        of_all: numbers of all samples together.
    """

    of_each: dict[str, Tensor]
    of_all: dict[str, Halved]

    def missing(self) -> dict[str, float]:
        """The share of samples without a verdict, for each metric."""
        return {f"{name}_missing": scores.isnan().double().mean().item() for name, scores in self.of_each.items()}


@dataclass(frozen=True)
class SampleMetrics:
    """The feedbacks that measure samples.

    Attributes:
        feedbacks: gold, the reward that is learnt from, and the recipe's own, by name.
        corpus: the recipe's own that are over all samples.
        specs: the recipe's `evaluate.metrics`.
    """

    feedbacks: Mapping[str, Feedback] = field(default_factory=dict)
    corpus: Mapping[str, CorpusMetric] = field(default_factory=dict)
    specs: Mapping[str, recipe.Metric] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Of the metrics that it measures."""
        return {name for key in (*self.feedbacks, *self.corpus) for name in value_names(key, self.specs) or [key]}

    def __call__(
        self,
        prompts: Sequence[Tokenised],
        asked: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        columns: Sequence[Mapping[str, Any]],
        accelerator: Accelerator,
        seed: int,
    ) -> SampleScores:
        """Measure.

        Args:
            prompts: B of them.
            asked: the same as the policy saw them: with what an environment said at the beginning.
            completions: K samples of each; a feedback sees text, in which an end token is not to be seen, or messages.
            columns: of each prompt, beside those of its row: how its samples came to an end, and what an environment gave.
            accelerator: knows the processes.
            seed: of the halves of prompts.

        Raises:
            PrefoptError: a feedback or function failed.
        """
        rows = [{**row.example.columns, **more} for row, more in zip(prompts, columns, strict=True)]
        of_each: dict[str, Tensor] = {}
        for name, feedback in self.feedbacks.items():
            with _told_as_metric(name, name in self.specs):
                verdict = ask(feedback, metric_key(name), asked, completions, rows, accelerator).whole()
            scores = verdict.named if (several := value_names(name, self.specs)) else {name: verdict.scores}
            of_each |= {key: scores[value].double() for key, value in (several or {name: name}).items()}
        groups = [row.example.group for row in prompts]
        of_all: dict[str, Halved] = {}
        for name, metric in self.corpus.items():

            def of(numbers: np.ndarray, metric: CorpusMetric = metric) -> float:
                return metric(
                    [asked[i] for i in numbers], [completions[i] for i in numbers], [rows[i] for i in numbers]
                )

            with timed("feedback"):
                of_all[name] = halves_together(metric, of, groups, seed, accelerator)
        return SampleScores(of_each, of_all)


@contextmanager
def _told_as_metric(name: str, own: bool) -> Iterator[None]:
    """What is wrong with a metric of the recipe's own, in its words: whoever wrote one has written no feedback."""
    try:
        yield
    except PrefoptError as error:
        if not own:
            raise
        raise PrefoptError(f"{metric_key(name)}: {str(error).replace('the feedback ', 'the metric ')}") from error


def halves_together(
    metric: CorpusMetric, of: Callable[[np.ndarray], float], groups: Sequence[str], seed: int, accelerator: Accelerator
) -> Halved:
    """`halved`, the same on all processes."""
    return together(metric, accelerator, lambda: halved(of, groups, seed))
