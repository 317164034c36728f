"""The section of a recipe about evaluation on held-out data."""

import re
from typing import Literal

from pydantic import Field, model_validator

from prefopt.recipe.names import Named, Names
from prefopt.recipe.schema.feedback import FeedbackOrName, MetricOrName
from prefopt.recipe.schema.sampling import Acting, Samples, Sampling
from prefopt.recipe.schema.source import Data
from prefopt.recipe.section import Section

GAPS = ("small", "medium", "large")
"""Thirds of the pairs by how far their scores are apart, for each of which a scorer's accuracy is measured."""

PARTS = ("train", "validation", "test")
"""Names that sets cannot have, because evaluations on these parts are called so."""


class Evaluate(Section):
    """Evaluation on held-out data: at the start, at the end, and in between."""

    part: Literal["test", "validation"] = Field(
        "test", description="part of the data for start and end; use validation for choosing settings"
    )
    every: int | None = Field(
        None,
        gt=0,
        description="steps between evaluations on validation rows, which are then measured at start and end, too; null: none",
    )
    sets: dict[str, Data] = Field(
        default_factory=dict,
        description="further held-out rows by name, measured at start and end: {hard: {data: hard.jsonl}} gives `hard/gold`",
    )
    by: Names = Field(
        (),
        description="columns of held-out rows, for each of whose values metrics are given, too: `gold[source=movies]`",
    )
    rows: int = Field(512, gt=0, description="most held-out rows")
    prompts: int = Field(128, ge=0, description="most held-out prompts to sample for; 0: no sampling")
    completions: int = Field(1, gt=0, description="samples of each prompt")
    sampling: Sampling = Field(Sampling(), description="how completions are sampled")
    sampler: Named = Field("transformers", description="transformers, vllm, or `file.py:Class`")
    server: str | None = Field(None, description="address of a vLLM server")
    environment: Acting | None = Field(
        None, description="what samples are written in; null: what rollouts are written in, if anything"
    )
    gold: FeedbackOrName | None = Field(
        None,
        description="feedback that scores samples, and rollouts to be watched: the reward that counts; nothing learns from it",
    )
    judge: FeedbackOrName | None = Field(
        None, description="feedback that says whether samples beat the reference's on the same prompts: the win rate"
    )
    metrics: dict[str, MetricOrName] = Field(
        default_factory=dict,
        description="your own measures of samples, called like feedback: {exact_match: file.py:function} (docs/metrics.md)",
    )
    against: str | None = Field(
        None,
        description="finished run folder whose test samples `judge` compares with; null is the reference's own samples",
    )
    batch_size: int = Field(32, gt=0, description="prompts in one forward pass; affects memory and speed only")
    confidence: float = Field(0.95, gt=0, lt=1, description="confidence level of the intervals around estimates")

    @property
    def samples(self) -> Samples:
        """How samples are drawn, as a section of its own; four completions for each prompt of a forward pass."""
        return Samples(
            completions=self.completions,
            sampling=self.sampling,
            sampler=self.sampler,
            server=self.server,
            batch_size=4 * self.batch_size,
        )

    @model_validator(mode="after")
    def _names_of_sets(self) -> "Evaluate":
        for name in self.sets:
            if name in PARTS:
                raise ValueError(f"sets: {name} is the name of a part of `source`; give the set another")
            if not re.fullmatch(r"[A-Za-z0-9_][\w-]*", name):
                raise ValueError(f"sets: {name!r} names files and metrics: write letters, digits, - and _")
        return self

    @model_validator(mode="after")
    def _somebody_judges(self) -> "Evaluate":
        if self.against is not None and self.judge is None:
            raise ValueError("against names whom to compare with; say who judges, in evaluate.judge, or leave it out")
        if self.judge is not None and not self.prompts:
            raise ValueError("judge compares samples, and evaluate.prompts is 0: nothing is sampled")
        if self.metrics and not self.prompts:
            raise ValueError("metrics measure samples, and evaluate.prompts is 0: nothing is sampled")
        return self
