"""The schema of recipes: every section and field of the YAML file that describes a run."""

import typing
from typing import Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from prefopt.recipe.names import Callback, FileName, Named, Names, SomeNames, WithFields, named_section, named_sections
from prefopt.recipe.section import Section
from prefopt.support.domains import Decay, Factor


class Adapter(Section):
    """LoRA (arXiv 2106.09685), through peft. The reference is then the model with the adapter switched off."""

    r: int = Field(16, gt=0, description="rank of the update")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / r")
    targets: str | tuple[str, ...] = Field("all-linear", description="modules to adapt: names, or all-linear")
    dora: bool = Field(
        False, description="train magnitudes and directions of the weights apart (DoRA, arXiv 2402.09353)"
    )
    modules_to_save: tuple[str, ...] = Field(
        (), description="modules to train whole and save with the adapter, such as lm_head and embed_tokens"
    )


class Critic(Section):
    """The critic, for objectives that need values (PPO)."""

    model: SomeNames | None = Field(
        None,
        description="folder, run folder (often a reward model's) or hub id; null: a linear head on the policy's states",
    )


class Policy(Section):
    """The model that is trained: a causal LM, or a scorer when the objective learns rewards."""

    model: SomeNames = Field(description="folder, run folder or hub id; of a list, the first that is on disk")
    tokenizer: Named | None = Field(None, description="folder or hub id; null: the model's own")
    adapter: Adapter | None = Field(None, description="train a LoRA adapter; null: train all weights")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="dtype of the weights; train.precision sets the dtype of the arithmetic"
    )
    attention: str | None = Field(
        None, description="attention implementation of transformers: sdpa, eager, …; null: its default"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations instead of keeping them: less memory, slower"
    )
    remote_code: bool = Field(False, description="allow the model's repository to run its own code")
    critic: Critic = Field(Critic(), description="the critic, where the objective needs values")


class Reference(Section):
    """The reference: the model that the policy is compared with and kept close to."""

    model: SomeNames | None = Field(None, description="folder, run folder or hub id; null: the policy at step 0")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = Field(
        None, description="dtype of the reference's own weights; null: the policy's"
    )
    every: int | None = Field(
        None, gt=0, description="update the reference towards the policy every so many steps (TR-DPO); null: never"
    )
    mix: float = Field(
        0.6, gt=0, le=1, description="weight of the policy in an update of the reference; 1 copies the policy"
    )
    cache: bool = Field(
        True, description="keep log-probs of a fixed reference on disk, for this and later runs (docs/cache.md)"
    )

    @model_validator(mode="after")
    def _one_start(self) -> "Reference":
        if self.model is not None and self.every is not None:
            raise ValueError("a reference that moves (reference.every) starts as the policy: leave out reference.model")
        return self


class Data(Section):
    """Rows in one of the formats of docs/data.md."""

    data: SomeNames = Field(
        description="files (JSONL, Parquet, CSV), `module:function` or `file.py:function`, or a hub id"
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the function, or of load_dataset"
    )
    adapt: Named | None = Field(
        None,
        description="function, `file.py:function`, that turns each row into one of a known format, or returns None to leave it out",
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


class Sampling(Section):
    """How completions are sampled."""

    temperature: float = Field(1.0, ge=0, description="divides the logits; 0: greedy")
    top_p: float = Field(
        1.0, gt=0, le=1, description="sample from the smallest set of tokens with this much probability; 1: all tokens"
    )
    top_k: int = Field(0, ge=0, description="sample from this many of the most likely tokens; 0: all tokens")
    max_tokens: int = Field(64, gt=0, description="most tokens of a completion")
    stop: Names = Field((), description="texts that end a completion, in addition to EOS; each must be a single token")


class Samples(Section):
    """Completions sampled from a policy, and the sampler."""

    completions: int = Field(4, gt=0, description="samples of each prompt")
    sampling: Sampling = Field(Sampling(), description="how completions are sampled")
    sampler: Named = Field("transformers", description="transformers, vllm, or `file.py:Class`")
    server: str | None = Field(None, description="address of a vLLM server (docs/recipes.md says how to start one)")
    batch_size: int = Field(128, gt=0, description="completions sampled at a time; affects memory and speed only")


class Environment(WithFields):
    """What the policy acts in; keys other than its name are its fields."""

    name: Named = Field(description="your class, `package.module:Class` or `file.py:Class`")


Acting = typing.Annotated[Environment, BeforeValidator(named_section)]
"""An environment, which may be given by its name alone."""


class Rollouts(Samples):
    """The policy samples the completions of each batch; the data give the prompts, `feedback` gives the scores."""

    order: Literal["shuffled", "length", "reward", "self-paced"] = Field(
        "shuffled",
        description="of the prompts: random, shortest first, highest reward first, or first the easiest and then gradually all",
    )
    environment: Acting | None = Field(
        None, description="what the policy acts in, whose rewards score its completions: `file.py:Class`; null is none"
    )
    refill: bool = Field(
        False, description="replace prompts whose completions all have one score, or that cannot be used (DAPO)"
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
        512, gt=0, description="most tokens of a prompt; longer ones are cut at the beginning"
    )
    max_completion_tokens: int = Field(
        512, gt=0, description="most tokens of a completion; longer ones are cut at the end"
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
    weight: float = Field(1.0, description="factor of its loss in the sum of terms")
    source: Source | None = Field(None, description="batches of its own; null: those of the run")


class Train(Section):
    """The training loop."""

    steps: int | None = Field(None, ge=0, description="number of logical batches to train on; give this or epochs")
    epochs: float | None = Field(None, gt=0, description="number of passes over the training rows; give this or steps")
    batch_size: int = Field(64, gt=0, description="prompts in a logical batch, over all processes")
    minibatch_size: int | None = Field(
        None, gt=0, description="prompts in one optimiser step; must divide batch_size; null: batch_size"
    )
    passes: int = Field(1, gt=0, description="number of times that each logical batch is trained on")
    micro_batch_size: int = Field(
        16, gt=0, description="most prompts in one forward pass of a process; affects memory and speed only"
    )
    micro_tokens: int | None = Field(
        None,
        gt=0,
        description="most tokens in one forward pass, with padding, each prompt once; affects memory and speed only; "
        "null: no limit",
    )
    lr: Factor = Field(1e-6, ge=0, description="peak learning rate")
    critic_lr: Factor | None = Field(None, gt=0, description="peak learning rate of the critic's weights; null: lr")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="how the learning rate falls to 0 after the warm-up"
    )
    warmup: float = Field(
        0.1, ge=0, description="optimiser steps of linear warm-up; below 1: a fraction of all optimiser steps"
    )
    optimizer: Literal["adamw", "rmsprop", "sgd"] = Field("adamw", description="the optimiser")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.999), description="decay rates of adamw's two averages, each from 0 to below 1"
    )
    eps: Factor = Field(1e-8, gt=0, description="added to the denominator of adamw and rmsprop")
    weight_decay: Factor = Field(0.0, ge=0, description="weight decay; decoupled in adamw")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: no clipping")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic; auto: bf16 on devices that support it, otherwise fp32"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; null: torch's default")
    limits: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=dict,
        description="bounds of metrics: `{rollouts/kl: [null, 20], rollouts/entropy: [0.1, null]}`",
    )
    beyond: Literal["warn", "stop"] = Field(
        "warn", description="when a metric leaves its bounds: log a warning, or stop the run"
    )
    callbacks: typing.Annotated[tuple[Callback, ...], BeforeValidator(named_sections)] = Field(
        (), description="functions called with every step, `file.py:function`; one that returns a reason stops the run"
    )
    checkpoint_every: int | None = Field(None, gt=0, description="steps between checkpoints; null: no checkpoints")
    keep_checkpoints: int = Field(
        1, gt=0, description="checkpoints to keep; older ones are deleted once a newer one is complete"
    )

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
    """Evaluation on held-out data: at the start, at the end, and in between."""

    part: Literal["test", "validation"] = Field(
        "test", description="part of the data for start and end; use validation for choosing settings"
    )
    every: int | None = Field(
        None, gt=0, description="steps between evaluations on validation rows; null: only at start and end"
    )
    rows: int = Field(512, gt=0, description="most held-out rows")
    prompts: int = Field(128, ge=0, description="most held-out prompts to sample for; 0: no sampling")
    completions: int = Field(1, gt=0, description="samples of each prompt")
    sampling: Sampling = Field(Sampling(), description="how completions are sampled")
    sampler: Named = Field("transformers", description="transformers, vllm, or `file.py:Class`")
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

    project: str = Field("prefopt", description="project in W&B")
    entity: str | None = Field(None, description="user or team; null: the login's own")
    name: str | None = Field(None, description="name of the run in W&B; null: the run folder's")
    group: str | None = Field(None, description="group of runs in W&B")
    tags: Names = Field((), description="tags of the run in W&B")
    mode: Literal["auto", "online", "offline"] = Field(
        "auto", description="auto: online if a login is present, otherwise offline"
    )


class Track(Section):
    """Tracking of metrics; metrics.jsonl is always written."""

    every: int = Field(1, gt=0, description="steps between lines of metrics")
    wandb: Wandb | None = Field(None, description="also log to W&B; {} uses the defaults; null: no W&B")
    folder: str = Field("runs", description="folder in which run folders are created")


class Seeds(Section):
    """One seed for each use of randomness; null: `seed`."""

    data: int | None = Field(None, ge=0, description="split of the data")
    init: int | None = Field(None, ge=0, description="randomly initialised weights: adapters and heads")
    order: int | None = Field(None, ge=0, description="order of the batches")
    sampling: int | None = Field(None, ge=0, description="sampling during training")
    evaluation: int | None = Field(None, ge=0, description="sampling in evaluations, and resampling for intervals")


class Recipe(Section):
    """A run."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # `name: 2024`, `variables: {size: 135}`

    name: FileName = Field(
        "run",
        description="name of the run and its folder; default: the recipe's folder and file name",
    )
    variables: dict[str, str] = Field(
        default_factory=dict,
        description="values for ${name} elsewhere in the recipe; ${env:NAME} reads the environment",
    )
    seed: int = Field(0, ge=0, description="seed for everything that `seeds` does not set")
    seeds: Seeds = Field(Seeds(), description="one seed for each use of randomness")
    policy: Policy = Field(description="the model that is trained")
    reference: Reference = Field(Reference(), description="the model that the policy is compared with")
    source: Source = Field(description="source of the training batches")
    feedback: FeedbackOrName | None = Field(
        None, description="what scores the policy's own completions: {name: RewardModel, model: runs/reward}"
    )
    cost: FeedbackOrName | None = Field(
        None, description="a second feedback, of what is to be kept low, for constrained objectives"
    )
    objective: typing.Annotated[tuple[Term, ...], BeforeValidator(named_sections)] = Field(
        min_length=1, description="one objective, or a list of terms: {name: DPO, beta: 0.1}"
    )
    train: Train = Field(description="the training loop")
    evaluate: Evaluate = Field(Evaluate(), description="evaluation on held-out data")
    track: Track = Field(Track(), description="tracking of metrics")

    def seed_of(self, what: str) -> int:
        """The seed for one use of randomness, by its name in `Seeds`."""
        given = getattr(self.seeds, what)
        return self.seed if given is None else given
