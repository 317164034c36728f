"""What a run came to, for Python: its numbers as tables, and its policy to go on with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.policy import Policy, load_policy, load_tokenizer
from prefopt.runs.folder import RunFolder
from prefopt.support.errors import PrefoptError
from prefopt.types import Estimate

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        folder: recipe.yaml, manifest.json, metrics.jsonl, evaluations/, policy/, summary.json.
        before: held-out estimates at step 0.
        after: and at the end.
        change: after − before, paired by prompt.
        numbers: before and after, of the metrics of all samples together, which have no interval.
        rows: held-out rows that were measured.
        part: of the data that they are.
        writes: the model is a policy that can be sampled from, not a scorer.
        sets: rows of each further held-out set; its metrics are called `SET/METRIC`.
    """

    folder: Path
    before: Mapping[str, Estimate]
    after: Mapping[str, Estimate]
    change: Mapping[str, Estimate]
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rows: int = 0
    part: str = "test"
    writes: bool = True
    sets: Mapping[str, int] = field(default_factory=dict)

    @property
    def metrics(self) -> "DataFrame":
        """The history: a row for each step, 0 for the start, with what was logged and measured at it; NaN where it was not.

        Columns of training come first, then those of the held-out parts, `test/…` and `validation/…`.
        """
        import pandas

        history = pandas.DataFrame(list(RunFolder(self.folder).history())).groupby("step").first()
        return history[sorted(history.columns, key=lambda name: name.startswith(("test/", "validation/")))]

    def samples(self) -> "DataFrame":
        """What the trained policy wrote after held-out prompts, with what was measured of it; a row for each completion."""
        import pandas

        settings = RunFolder(self.folder).recipe()
        evaluation = RunFolder(self.folder).last_evaluation(settings.evaluate.part)
        return pandas.DataFrame([dict(sample) for sample in evaluation.samples] if evaluation else [])

    def policy(self) -> Policy:
        """The trained policy: its `model` is one of transformers, adapters merged in, and its `tokenizer` goes with it.

        Raises:
            PrefoptError: the run trained a scorer.
        """
        if not self.writes:
            raise PrefoptError(f"{self.folder} trained a scorer, which writes nothing: prefopt.load_scorer loads it")
        own = {"model": (str(self.folder),), "adapter": None, "tokenizer": None, "gradient_checkpointing": False}
        own |= {"quantization": None}  # merged in 4 bits it would be rounded
        spec = RunFolder(self.folder).recipe().policy.model_copy(update=own)
        policy = load_policy(spec, load_tokenizer(spec), seed=0)
        policy.eval()
        return policy
