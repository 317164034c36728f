"""Sections of a recipe about training batches: recorded data, rollouts, and environments."""

from typing import Any, Literal

from pydantic import Field, model_validator

from prefopt.recipe.names import Named, Names, SomeNames
from prefopt.recipe.schema.sampling import Samples
from prefopt.recipe.section import Section

DATA_FILES = (".jsonl", ".json", ".csv", ".parquet")
"""Endings of files that hold rows."""


DIALECTS = (
    *(
        "ultrafeedback-overall",
        "ultrafeedback-aspects",
        "helpsteer2",
        "nectar",
        "shp",
        "webgpt",
        "helpsteer2-preference",
    ),
    *(
        "helpsteer3",
        "saferlhf-better",
        "saferlhf-safer",
        "summarize-from-feedback",
        "arena-55k",
        "arena",
        "hh",
        "hh-chat",
    ),
    *("oasst", "orca-pairs", "ultrainteract", "stepwise", "stepwise-whole", "argilla", "label-studio"),
)
"""Dialects by name."""


class Data(Section):
    """Rows in one of the formats of docs/data.md."""

    data: SomeNames = Field(
        description="files (JSONL, Parquet, CSV), `module:function` or `file.py:function`, or a hub id, also `owner/name@revision`"
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the function, or of load_dataset"
    )
    adapt: Named | None = Field(
        None,
        description="dialect of docs/data.md, such as helpsteer2; or function, `file.py:function`, that turns each row into one of "
        "a known format, or returns None to leave it out; null: a dialect that the columns show, if any",
    )
    hub_split: str | None = Field(None, description="split of a hub data set, or the value of a column `split`")
    limit: int | None = Field(None, gt=0, description="number of rows to use, from the first on; null: all")


class Embeddings(Section):
    """Embeddings of prompts, for objectives that compare across prompts (RPO); kept on disk (docs/cache.md)."""

    model: SomeNames | None = Field(
        None, description="sentence encoder: folder or hub id; null: the last hidden states of the policy at step 0"
    )
    max_tokens: int = Field(
        256, gt=0, description="most tokens of a prompt that the encoder reads; the policy reads all"
    )
    batch_size: int = Field(64, gt=0, description="prompts in one forward pass; memory only")


class Rollouts(Samples):
    """The policy samples the completions of each batch; the data give the prompts, `feedback` gives the scores."""

    order: Literal["shuffled", "length", "reward", "self-paced"] = Field(
        "shuffled",
        description="of the prompts: random, shortest first, highest reward first, or first the easiest and then gradually all",
    )
    refill: bool = Field(
        False, description="replace prompts whose completions all have one score, or that cannot be used (DAPO)"
    )
    staleness: int = Field(
        0,
        ge=0,
        description="a batch is written by the policy of so many batches ago; a correction is the objective's `tis`; 0: by the "
        "policy that learns from it",
    )
    mixture: float = Field(
        0.5, ge=0, le=1, description="the reference's share in what the writer `mixture` samples from"
    )


WRITERS = {
    "recorded": ("mismatched",),
    "rollouts": ("mismatched", "reference", "mixture", "greedy", "dataset"),
}


class Source(Data):
    """The source of the training batches."""

    validation: Data | None = Field(
        None, description="held-out rows for evaluations in between; null: a share of `split`"
    )
    test: Data | None = Field(
        None, description="held-out rows for evaluations at start and end; null: a share of `split`"
    )
    split: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="shares of train, validation and test rows; rows of one group go to the same part"
    )
    max_prompt_tokens: int = Field(
        512, gt=0, description="most tokens of a prompt; `too_long` says what becomes of longer ones"
    )
    max_completion_tokens: int = Field(
        512, gt=0, description="most tokens of a completion, EOS included; `too_long` says what becomes of longer ones"
    )
    too_long: Literal["cut", "drop", "cut_turns"] = Field(
        "cut",
        description="what becomes of longer ones: cut prompts at the beginning and completions at the end, drop the row, or "
        "cut whole turns, the earliest first, and drop what is too long even so",
    )
    rollouts: Rollouts | None = Field(
        None, description="sample completions from the policy; {}: with these defaults; null: use those of the data"
    )
    writers: Names = Field(
        (),
        description="who writes further completions: mismatched (another prompt's, for KTO); with rollouts also reference, "
        "mixture, greedy, dataset",
    )
    embeddings: Embeddings | None = Field(
        None, description="embed the prompts, for an objective that needs it; {}: by the policy; null: no embeddings"
    )
    ties: Literal["drop", "keep"] = Field(
        "drop",
        description="of completions with equal scores where an order is needed: drop all but the first, or keep all",
    )

    @model_validator(mode="after")
    def _known_writers(self) -> "Source":
        kind = "recorded" if self.rollouts is None else "rollouts"
        if unknown := [writer for writer in self.writers if writer not in WRITERS[kind]]:
            known = ", ".join(WRITERS[kind])
            raise ValueError(f"writers: unknown writer {unknown[0]!r}; {kind} data can have {known}")
        return self

    @model_validator(mode="after")
    def _shares(self) -> "Source":
        if min(self.split) < 0 or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split must be three shares of 0 or more that add up to 1, got {list(self.split)}")
        return self
