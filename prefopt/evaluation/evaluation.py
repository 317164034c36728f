"""The result of an evaluation: every observation and sample, what they come to, and the same in a file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from prefopt.evaluation.intervals import Observations, change, common, estimate
from prefopt.recipe.schema.evaluate import PARTS
from prefopt.support.json_values import json_values
from prefopt.types import Estimate


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
    """

    observations: Mapping[str, Observations]
    numbers: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    confidence: float = 0.95
    seed: int = 0

    def estimates(self) -> dict[str, Estimate]:
        """Each metric with its interval."""
        return {name: estimate(o, self.confidence, self.seed) for name, o in self.observations.items()}

    def to_json(self) -> str:
        """Everything, so that later runs can be compared with this one prompt by prompt."""
        observed = {
            name: {"values": o.values.tolist(), "weights": o.weights.tolist(), "groups": list(o.groups)}
            for name, o in self.observations.items()
        }
        samples = [{k: None if v != v else v for k, v in sample.items()} for sample in self.samples]  # JSON has no NaN
        content = {**vars(self), "observations": observed, "numbers": json_values(self.numbers), "samples": samples}
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
        evaluation = cls(observed, numbers, **content)
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
        return {name: change(*both, self.confidence, self.seed) for name, both in paired.items() if both[0].groups}


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
                numbers={**whole.numbers, **{f"{name}/{metric}": value for metric, value in one.numbers.items()}},
            )
    return whole
