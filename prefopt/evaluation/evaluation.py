"""The result of an evaluation: every observation and sample, what they come to, and the same in a file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from prefopt.evaluation.intervals import Bounds, Halved, Observations, change, common, estimate
from prefopt.recipe.schema.evaluate import GAPS, PARTS
from prefopt.support.json_values import json_values
from prefopt.types import Estimate

SHARES = frozenset(
    {
        "accuracy",
        "likelihood_accuracy",
        "step_accuracy",
        "ended",
        "win_rate",
        "ties",
        "brier",
        *(f"accuracy_{gap}_gap" for gap in GAPS),
    }
)
"""Metrics that lie between 0 and 1 for every prompt."""


def bounds_of(name: str) -> Bounds | None:
    """Between which a metric lies, of a set and of a part of the rows, too; None where prefopt does not know."""
    return (0.0, 1.0) if name.rpartition("/")[2].partition("[")[0] in SHARES else None


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        observations: of each metric, by prompt.
        numbers: metrics of all samples together, which have no interval by prompt.
        samples: one for each prompt and completion: prompt, the same as the model saw it (`rendered`: pieces of text, each with
            whether it is a special token), completion, and what was measured of it.
        confidence: of the intervals.
        seed: of the resampling.
        corpus: numbers of all samples together that have an interval.
    """

    observations: Mapping[str, Observations]
    numbers: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    confidence: float = 0.95
    seed: int = 0
    corpus: Mapping[str, Halved] = field(default_factory=dict)

    def estimates(self) -> dict[str, Estimate]:
        """Each metric with its interval."""
        means = {
            name: estimate(o, self.confidence, self.seed, bounds_of(name)) for name, o in self.observations.items()
        }
        return means | {name: one.estimate(self.confidence) for name, one in self.corpus.items()}

    def to_json(self) -> str:
        """Everything, so that later runs can be compared with this one prompt by prompt."""
        observed = {
            name: {"values": o.values.tolist(), "weights": o.weights.tolist(), "groups": list(o.groups)}
            for name, o in self.observations.items()
        }
        samples = [{k: None if v != v else v for k, v in sample.items()} for sample in self.samples]  # JSON has no NaN
        corpus = {
            name: {
                "value": _number(one.value),
                "halves": [*map(_number, one.halves.tolist())],
                "groups": list(one.groups),
            }
            for name, one in self.corpus.items()
        }
        numbers = json_values(self.numbers)
        content = {**vars(self), "observations": observed, "corpus": corpus, "numbers": numbers, "samples": samples}
        return json.dumps(content, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote.

        Raises:
            ValueError: it is something else; KeyError, TypeError and AttributeError say the same.
        """
        content = json.loads(text)
        observed = {name: _read_observations(name, o) for name, o in content.pop("observations").items()}
        numbers = {n: math.nan if value is None else float(value) for n, value in content.pop("numbers").items()}
        corpus = {name: _read_halved(name, one) for name, one in content.pop("corpus", {}).items()}
        evaluation = cls(observed, numbers, corpus=corpus, **content)
        if not (0 < evaluation.confidence < 1 and isinstance(evaluation.seed, int) and evaluation.seed >= 0):
            raise ValueError(f"confidence {evaluation.confidence}, seed {evaluation.seed}")
        if not all({"prompt", "completion"} <= sample.keys() for sample in evaluation.samples):
            raise ValueError("samples without prompt and completion")
        return evaluation

    def change_since(self, before: "Evaluation") -> dict[str, Estimate]:
        """Paired differences of the metrics that both have, over the prompts on which both have them: a verdict may be missing."""
        paired = {
            name: common(before.observations[name], o)
            for name, o in self.observations.items()
            if name in before.observations
        }
        means = {
            name: change(*both, self.confidence, self.seed, bounds_of(name))
            for name, both in paired.items()
            if both[0].groups
        }
        return means | {
            name: one.minus(before.corpus[name]).estimate(self.confidence)
            for name, one in self.corpus.items()
            if name in before.corpus
            and list(one.groups) == list(before.corpus[name].groups)
            and self.seed == before.seed
        }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _read_halved(name: str, content: Mapping[str, Any]) -> Halved:
    value, *halves = (
        math.nan if number is None else float(number) for number in (content["value"], *content["halves"])
    )
    groups = content["groups"]
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise ValueError(f"{name}: groups are no list of names")
    return Halved(value, np.array(halves, dtype=float), groups)


def _read_observations(name: str, content: Mapping[str, Any]) -> Observations:
    values, weights = (np.array(content[key], dtype=float) for key in ("values", "weights"))
    groups = content["groups"]
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise ValueError(f"observations of {name}: groups are no list of names")
    if not values.shape == weights.shape == (len(groups),):
        raise ValueError(
            f"observations of {name}: {values.shape} values, {weights.shape} weights, {len(groups)} groups"
        )
    return Observations(values, weights, groups)


def with_sets(part: str, evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """The evaluations of one model as one: a part of the data under its own names, further sets as `SET/gold`.

    Args:
        part: whose metrics have plain names, and whose samples are kept.
        evaluations: by the part or set; other parts are left out.
    """
    whole = evaluations[part]
    for name, one in evaluations.items():
        if name not in PARTS:
            whole = replace(
                whole,
                observations={
                    **whole.observations,
                    **{f"{name}/{metric}": o for metric, o in one.observations.items()},
                },
                corpus={**whole.corpus, **{f"{name}/{metric}": c for metric, c in one.corpus.items()}},
                numbers={**whole.numbers, **{f"{name}/{metric}": value for metric, value in one.numbers.items()}},
            )
    return whole
