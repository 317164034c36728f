"""Recipes: what a run is, in a YAML file that is checked before anything is loaded."""

import typing
from typing import Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from prefopt.recipe.names import Callback, Named, Names, WithFields, named_section, named_sections


class Section(BaseModel):
    """A part of a recipe, or a whole one: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_yaml(self) -> str:
        """It in full, as it can be loaded again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def to_tree(self) -> dict[str, Any]:
        """It as dicts and lists, as a file would have it, in which Python objects stay what they are."""
        tree: dict[str, Any] = _lists(self.model_dump())
        return tree


def _lists(value: Any) -> Any:
    """With lists for tuples."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


class Adapter(Section):
    """LoRA (arXiv 2106.09685), through peft. The reference is then the model with the adapter switched off."""

    r: int = Field(16, gt=0, description="rank of the update")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / r")
    targets: str | tuple[str, ...] = Field("all-linear", description="modules to adapt: names, or all-linear")


class Critic(Section):
    """What tells values, for objectives that need them (PPO)."""

    model: Names | None = Field(
        None,
        description="folder, run folder (a reward model's, often) or hub id; null is a head on the policy's states",
    )


class Policy(Section):
    """The model that is trained: a causal LM, or a scorer when the objective learns rewards."""

    model: Names = Field(description="folder, run folder or hub id; of several, the first that is on disk")
    tokenizer: Named | None = Field(None, description="folder or hub id; null is the model's own")
    adapter: Adapter | None = Field(None, description="train a LoRA adapter; null trains all weights")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="dtype of the weights; train.precision decides the arithmetic"
    )
    attention: str | None = Field(
        None, description="how transformers computes attention: sdpa, eager, …; null leaves it the choice"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations again instead of keeping them")
    remote_code: bool = Field(False, description="allow the model's repository to run its own code")
    critic: Critic = Field(Critic(), description="what tells values, where the objective needs them")


class Reference(Section):
    """What the policy is held near to."""

    model: Names | None = Field(None, description="folder, run folder or hub id; null is the policy at step 0")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = Field(
        None, description="dtype of a frozen copy or another model; null is the policy's"
    )
    every: int | None = Field(
        None, gt=0, description="steps between its moves towards the policy (TR-DPO); null never moves"
    )
    mix: float = Field(
        0.6, gt=0, le=1, description="share of the policy in what a move makes of it; 1 copies the policy"
    )
    cache: bool = Field(
        True, description="keep what one that does not move says of recorded data, on disk, for further runs"
    )

    @model_validator(mode="after")
    def _one_start(self) -> "Reference":
        if self.model is not None and self.every is not None:
            raise ValueError("a reference that moves (reference.every) starts as the policy: leave out reference.model")
        return self


class Data(Section):
    """Rows in one of the formats of docs/data.md."""

    data: Names = Field(description="files (JSONL, Parquet, CSV), `module:function` or `file.py:function`, or a hub id")
    arguments: dict[str, Any] = Field(default_factory=dict, description="arguments of the function")
    adapt: Named | None = Field(
        None,
        description="function, `file.py:function`, that makes a row of a known format of each row, or None to leave it out",
    )
    hub_split: str | None = Field(None, description="split of a hub data set, or the value of a column `split`")
    limit: int | None = Field(None, gt=0, description="use only the first so many rows; null uses all")


class Embeddings(Section):
    """What says how alike two prompts are, for objectives that compare across prompts (RPO); computed once, and kept on disk."""

    model: Names | None = Field(
        None, description="sentence encoder: folder or hub id; null is the policy at step 0, by its last hidden states"
    )
    max_tokens: int = Field(
        256, gt=0, description="an encoder reads so much of a prompt; the policy all that it is given"
    )
    batch_size: int = Field(64, gt=0, description="prompts in one forward pass; memory only")


class Sampling(Section):
    """How completions are drawn."""

    temperature: float = Field(1.0, ge=0, description="divides the logits; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="smallest set of tokens with this much probability; 1 is all")
    top_k: int = Field(0, ge=0, description="only so many of the likeliest tokens; 0 is all")
    max_tokens: int = Field(64, gt=0, description="tokens of the longest completion")
    stop: Names = Field((), description="texts that end a completion, beside EOS; each must be a single token")


class Samples(Section):
    """Completions that a policy writes, and what draws them."""

    completions: int = Field(4, gt=0, description="samples of each prompt")
    sampling: Sampling = Field(Sampling(), description="how they are drawn")
    sampler: Named = Field("transformers", description="what draws: transformers, vllm, or `file.py:Class`")
    server: str | None = Field(None, description="address of a vLLM server (docs/recipes.md says how to start one)")
    batch_size: int = Field(128, gt=0, description="completions drawn at a time; memory only")


class Environment(WithFields):
    """What the policy acts in; keys other than its name are its fields."""

    name: Named = Field(description="your class, `package.module:Class` or `file.py:Class`")


Acting = typing.Annotated[Environment, BeforeValidator(named_section)]
"""An environment, which may be given by its name alone."""


class Rollouts(Samples):
    """The policy writes the completions of the batches itself; the data bring prompts, `feedback` brings scores."""

    order: Literal["shuffled", "length", "reward", "self-paced"] = Field(
        "shuffled",
        description="of the prompts: easiest first by length or by their present reward, or ever harder ones",
    )
    environment: Acting | None = Field(
        None, description="what the policy acts in, whose rewards score its completions: `file.py:Class`; null is none"
    )
    refill: bool = Field(
        False, description="replace prompts that cannot be used or whose completions all have one score (DAPO)"
    )
    mixture: float = Field(0.5, ge=0, le=1, description="the reference's share in what the writer `mixture` writes")


WRITERS = {
    "recorded": ("mismatched",),
    "rollouts": ("mismatched", "reference", "mixture", "greedy", "dataset"),
}


class Source(Data):
    """Where the training batches come from."""

    validation: Data | None = Field(None, description="held-out rows to watch in between; null takes them from `split`")
    test: Data | None = Field(None, description="held-out rows for the end; null takes them from `split`")
    split: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="shares of train, validation and test; rows of one group stay together"
    )
    max_prompt_tokens: int = Field(512, gt=0, description="longer prompts lose their beginning")
    max_completion_tokens: int = Field(512, gt=0, description="longer completions lose their end")
    rollouts: Rollouts | None = Field(
        None, description="let the policy write the completions; {} does, with these defaults"
    )
    writers: Names = Field(
        (),
        description="who writes further completions: mismatched (another prompt's, for KTO); with rollouts also reference, "
        "mixture, greedy, dataset",
    )
    embeddings: Embeddings | None = Field(
        None, description="embed the prompts, for an objective that needs it; {} does, by the policy itself"
    )
    ties: Literal["drop", "keep"] = Field(
        "drop", description="what to do with completions of equal score where an order is needed"
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
            raise ValueError(f"split must be three shares that add up to 1, got {list(self.split)}")
        return self


class Transform(WithFields):
    """What is done to scores before anything learns from them; keys other than the name are its fields."""

    name: Named = Field(
        description="LengthPenalty, RepetitionPenalty, Clip, Normalise, ReferenceNormalise, MissingEOS, or your own by path"
    )


class Feedback(WithFields):
    """What scores completions; keys other than these are its fields."""

    name: Named = Field(
        description="RewardModel, Judge, Ensemble, Panel, or your own function or class: `package.module:name`, `file.py:name`"
    )
    timeout: float | None = Field(None, gt=0, description="seconds that a call may take; null is any time")
    transforms: typing.Annotated[tuple[Transform, ...], BeforeValidator(named_sections)] = Field(
        (), description="what is done to its scores, in this order: [{name: Clip, low: -5, high: 5}, …]"
    )
    members: typing.Annotated[tuple["Feedback", ...], BeforeValidator(named_sections)] = Field(
        (),
        description="of an Ensemble or Panel, or of your own class: feedbacks, each a name or a section like this one",
    )


FeedbackOrName = typing.Annotated[Feedback, BeforeValidator(named_section)]
"""A feedback, which may be given by its name alone."""


class Term(WithFields):
    """An objective and its hyperparameters; keys other than these are its fields."""

    name: Named = Field(
        description="of the catalogue (`prefopt objectives`), or `package.module:Class`, `file.py:Class`"
    )
    weight: float = Field(1.0, description="its factor in the sum of several terms")
    source: Source | None = Field(None, description="batches of its own; null shares the run's")


class Train(Section):
    """The loop."""

    steps: int | None = Field(None, ge=0, description="logical batches to train on; give this or epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the source; give this or steps")
    batch_size: int = Field(64, gt=0, description="prompts in a logical batch, over all processes")
    minibatch_size: int | None = Field(None, gt=0, description="prompts in one optimiser step; null is batch_size")
    passes: int = Field(1, gt=0, description="times that each logical batch is gone through")
    micro_batch_size: int = Field(
        16, gt=0, description="prompts in one forward pass of a process, at most; memory only"
    )
    micro_tokens: int | None = Field(
        None,
        gt=0,
        description="tokens in one forward pass, at most, each prompt counted once and with padding; memory only; null is any",
    )
    lr: float = Field(1e-6, ge=0, description="peak learning rate")
    critic_lr: float | None = Field(None, gt=0, description="peak learning rate of a critic's weights; null is lr")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="how lr falls to 0 after the warm-up"
    )
    warmup: float = Field(0.1, ge=0, description="optimiser steps of linear warm-up; below 1, a share of all")
    optimizer: Literal["adamw", "rmsprop", "sgd"] = Field("adamw", description="the optimiser")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of adamw's averages")
    eps: float = Field(1e-8, gt=0, description="keeps adamw and rmsprop from dividing by 0")
    weight_decay: float = Field(0.0, ge=0, description="shrinks the weights; decoupled in adamw")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null does not clip")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic; auto is bf16 on devices that have it"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; null leaves torch's choice")
    limits: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=dict,
        description="bounds of metrics: `{rollouts/kl: [null, 20], rollouts/entropy: [0.1, null]}`",
    )
    beyond: Literal["warn", "stop"] = Field("warn", description="what happens when a metric leaves its bounds")
    callbacks: typing.Annotated[tuple[Callback, ...], BeforeValidator(named_sections)] = Field(
        (), description="functions called with every step, `file.py:function`; one that returns a reason stops the run"
    )
    checkpoint_every: int | None = Field(None, gt=0, description="steps between checkpoints; null writes none")
    keep_checkpoints: int = Field(1, gt=0, description="older ones are deleted once a newer one is complete")

    @field_validator("limits")
    @classmethod
    def _ordered(
        cls, limits: dict[str, tuple[float | None, float | None]]
    ) -> dict[str, tuple[float | None, float | None]]:
        for name, (low, high) in limits.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"the bounds of {name} are [low, high], got [{low:g}, {high:g}]")
        return limits

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.steps and train.epochs; set the other one to null")
        if self.minibatch_size is not None and self.batch_size % self.minibatch_size:
            raise ValueError(f"minibatch_size {self.minibatch_size} does not divide batch_size {self.batch_size}")
        return self


class Evaluate(Section):
    """What is measured on held-out data; at the start, at the end, and in between."""

    part: Literal["test", "validation"] = Field(
        "test", description="of the data, that start and end are measured on; validation is for choosing settings"
    )
    every: int | None = Field(
        None, gt=0, description="steps between evaluations on validation rows; null is start and end"
    )
    rows: int = Field(512, gt=0, description="held-out rows, at most")
    prompts: int = Field(128, ge=0, description="held-out prompts to sample from, at most; 0 samples nothing")
    completions: int = Field(1, gt=0, description="samples of each prompt")
    sampling: Sampling = Field(Sampling(), description="how they are drawn")
    sampler: Named = Field("transformers", description="what draws: transformers, vllm, or `file.py:Class`")
    server: str | None = Field(None, description="address of a vLLM server")
    gold: FeedbackOrName | None = Field(
        None,
        description="feedback that scores samples, and rollouts to be watched: the reward that counts; nothing learns from it",
    )
    judge: FeedbackOrName | None = Field(
        None, description="feedback that says whether samples beat the reference's on the same prompts: the win rate"
    )
    metrics: dict[str, FeedbackOrName] = Field(
        default_factory=dict,
        description="your own measures of samples, called like feedback: {exact_match: file.py:function}",
    )
    against: str | None = Field(
        None,
        description="finished run folder whose test samples `judge` compares with; null is the reference's own samples",
    )
    batch_size: int = Field(32, gt=0, description="prompts in one forward pass")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals around every estimate")

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
    def _somebody_judges(self) -> "Evaluate":
        if self.against is not None and self.judge is None:
            raise ValueError("against names whom to compare with; say who judges, in evaluate.judge, or leave it out")
        if self.judge is not None and not self.prompts:
            raise ValueError("judge compares samples, and evaluate.prompts is 0: nothing is sampled")
        if self.metrics and not self.prompts:
            raise ValueError("metrics measure samples, and evaluate.prompts is 0: nothing is sampled")
        return self


class Wandb(Section):
    """Weights & Biases; offline unless a login is present."""

    project: str = Field("prefopt", description="project at W&B")
    entity: str | None = Field(None, description="user or team; null is the login's own")
    name: str | None = Field(None, description="of the run at W&B; null is the run folder's")
    group: str | None = Field(None, description="runs that belong together")
    tags: Names = Field((), description="labels of the run")
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto is online where a login is present")


class Track(Section):
    """Where numbers go; metrics.jsonl is always written."""

    every: int = Field(1, gt=0, description="steps between lines of metrics")
    wandb: Wandb | None = Field(None, description="also log to W&B; {} does, with these defaults")
    folder: str = Field("runs", description="where run folders are made")


class Seeds(Section):
    """One seed for each source of chance; null derives it from `seed`."""

    data: int | None = Field(None, description="the split")
    init: int | None = Field(None, description="weights that start at random: adapters and heads")
    order: int | None = Field(None, description="the order of the batches")
    sampling: int | None = Field(None, description="completions drawn during training")
    evaluation: int | None = Field(None, description="completions drawn to evaluate, and resampling")


class Recipe(Section):
    """A run."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # `name: 2024`, `variables: {size: 135}`

    name: str = Field(
        "run", pattern=r"^[^/\\]+$", description="names the run folder; a file's default is its folder and name"
    )
    variables: dict[str, str] = Field(
        default_factory=dict, description="used elsewhere as ${name}; ${env:NAME} reads the environment"
    )
    seed: int = Field(0, ge=0, description="every seed that `seeds` does not give")
    seeds: Seeds = Field(Seeds(), description="one seed for each source of chance")
    policy: Policy = Field(description="the model that is trained")
    reference: Reference = Field(Reference(), description="what it is held near to")
    source: Source = Field(description="where the batches come from")
    feedback: FeedbackOrName | None = Field(
        None, description="what scores the policy's own completions: {name: RewardModel, model: runs/reward}"
    )
    cost: FeedbackOrName | None = Field(
        None, description="a second feedback, of what is to be kept low, for constrained objectives"
    )
    objective: typing.Annotated[tuple[Term, ...], BeforeValidator(named_sections)] = Field(
        min_length=1, description="one objective, or a list of terms: {name: DPO, beta: 0.1}"
    )
    train: Train = Field(description="the loop")
    evaluate: Evaluate = Field(Evaluate(), description="what is measured")
    track: Track = Field(Track(), description="where numbers go")

    def seed_of(self, what: str) -> int:
        """The seed of one source of chance, by its name in `Seeds`."""
        given = getattr(self.seeds, what)
        return self.seed if given is None else given
