"""The section of a recipe about the training loop."""

import typing
from typing import Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from prefopt.recipe.names import Callback, Named, WithFields, named_section, named_sections
from prefopt.recipe.schema.threads import THREADS, ThreadsOrMost
from prefopt.recipe.section import Section
from prefopt.support.domains import Decay, Factor
from prefopt.support.errors import nearest
from prefopt.support.given import Given

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Arithmetic of models; auto is bf16 on devices that have it, and otherwise fp32."""

SCHEDULES = (
    *("linear", "cosine", "constant", "wsd", "constant_with_warmup", "warmup_stable_decay", "cosine_with_min_lr"),
    *("cosine_warmup_with_min_lr", "cosine_with_restarts", "polynomial", "inverse_sqrt"),
)
"""Schedules by name: those of transformers but the ones that are told of losses, and two shorter names."""

OPTIMIZERS = ("adamw", "sgd", "rmsprop", "adafactor", "muon", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")
"""Optimisers by name."""


def _known(what: str, known: tuple[str, ...], otherwise: str) -> AfterValidator:
    """A name is one of these, or a path."""

    def check(name: str) -> str:
        if ":" not in name and not isinstance(name, Given) and name not in known:
            raise ValueError(f"unknown {what} {name!r}.{nearest(name, known)} Known: {', '.join(known)}. {otherwise}")
        return name

    return AfterValidator(check)


class Schedule(WithFields):
    """How the learning rate goes; keys other than the name are its fields."""

    name: typing.Annotated[
        Named, _known("schedule", SCHEDULES, "Your own is a function of (step, steps): `file.py:function`")
    ] = Field(
        description="linear, cosine, constant, wsd, cosine_with_min_lr, inverse_sqrt, polynomial or another of transformers' "
        "get_scheduler, each after a linear warm-up; or `file.py:function` of (step, steps), which gives the factor of lr"
    )


class Optimizer(WithFields):
    """The optimiser; keys other than the name are fields of its constructor."""

    name: typing.Annotated[
        Named, _known("optimizer", OPTIMIZERS, "Any other is a class by its path: `torch.optim:NAdam`, `file.py:Class`")
    ] = Field(
        description="adamw, sgd, rmsprop, adafactor, muon, adamw_8bit, paged_adamw or paged_adamw_8bit (GPUs alone), or a class of "
        "torch.optim's kind: `package.module:Class`"
    )


class Shard(Section):
    """How weights are divided among processes; in short, the name alone."""

    name: Literal["fsdp2"] = Field("fsdp2", description="fsdp2: torch's fully_shard, layer by layer")
    offload: bool = Field(
        False,
        description="what a process holds is in its CPU's memory, where the optimiser works, and on the GPU while a layer computes",
    )
    gather: Literal["layer", "model"] = Field(
        "layer",
        description="what is whole at a time while completions are drawn; layer: one layer, beside embedding and head; model: all, "
        "which is faster",
    )


class KeepBest(Section):
    """Which policy of a run is its result; in short, the metric's name alone."""

    metric: str = Field(
        description="held-out metric that validation rows are measured by: gold, accuracy, nll, one's own"
    )
    better: Literal["higher", "lower"] | None = Field(
        None, description="which values are better; null: as is known of built-in metrics, higher for one's own"
    )


def _by_metric(value: typing.Any) -> typing.Any:
    return {"metric": value} if isinstance(value, str) else value


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
        "null: 4,096 on CPUs and no limit on GPUs. Where rollouts are trained on once, a batch that is split goes through the "
        "policy once more before its update",
    )
    lr: Factor = Field(1e-6, ge=0, description="peak learning rate")
    critic_lr: Factor | None = Field(None, gt=0, description="peak learning rate of the critic's weights; null: lr")
    schedule: typing.Annotated[Schedule, BeforeValidator(named_section)] = Field(
        Schedule(name="linear"), description="how the learning rate falls after the warm-up, to 0 by linear and cosine"
    )
    warmup: float = Field(
        0.1, ge=0, description="optimiser steps of linear warm-up; below 1: a fraction of all optimiser steps"
    )
    optimizer: typing.Annotated[Optimizer, BeforeValidator(named_section)] = Field(
        Optimizer(name="adamw"), description="the optimiser"
    )
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.999),
        description="decay rates of the two averages of adamw (paged and of 8 bits, and of muon, too), each from 0 to below 1",
    )
    eps: Factor = Field(
        1e-8, gt=0, description="added to the denominator of adamw (paged and of 8 bits, too), rmsprop and muon's adamw"
    )
    weight_decay: Factor = Field(0.0, ge=0, description="weight decay; decoupled in adamw")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: no clipping")
    precision: Precision = Field(
        "auto",
        description="arithmetic; auto: bf16 on devices that support it, otherwise fp32; fp16, for GPUs without it, scales the loss",
    )
    shard: typing.Annotated[Shard | None, BeforeValidator(named_section)] = Field(
        None,
        description="fsdp2 divides weights, gradients and the optimiser's numbers among processes; affects memory and speed only; "
        "null: every process holds all",
    )
    threads: ThreadsOrMost | None = Field(None, description=THREADS)
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
    keep_best: typing.Annotated[KeepBest | None, BeforeValidator(_by_metric)] = Field(
        None,
        description="a metric: the policy of the best evaluation on validation rows (evaluate.every) is the result; null: the last",
    )
    patience: int | None = Field(
        None, gt=0, description="evaluations without a better keep_best after which the run stops; null: it does not"
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
        if self.patience is not None and self.keep_best is None:
            raise ValueError("patience waits for a better value of a metric: name it in train.keep_best")
        return self
