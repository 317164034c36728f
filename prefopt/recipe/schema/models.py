"""Sections of a recipe about models: the policy, its adapter and critic, and the reference."""

import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from prefopt.recipe.names import Named, SomeNames
from prefopt.recipe.section import Section


class Adapter(Section):
    """LoRA (arXiv 2106.09685), through peft. The reference is then the model with the adapter switched off."""

    r: int = Field(16, gt=0, description="rank of the update")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / r")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the inputs of the adapter that an update leaves out, anew for each of its rows",
    )
    targets: str | tuple[str, ...] = Field("all-linear", description="modules to adapt: names, or all-linear")
    dora: bool = Field(
        False, description="train magnitudes and directions of the weights apart (DoRA, arXiv 2402.09353)"
    )
    modules_to_save: tuple[str, ...] = Field(
        (), description="modules to train whole and save with the adapter, such as lm_head and embed_tokens"
    )


class Method(Section):
    """Another method of peft's (docs/models.md); keys other than its name are fields of its configuration there."""

    model_config = ConfigDict(extra="allow")

    method: str = Field(
        "LORA",
        description="a method of peft by its name (docs/models.md); then all other keys are fields of its configuration there",
    )

    @property
    def fields(self) -> dict[str, Any]:
        """What peft's configuration of this method is given."""
        return dict(self.__pydantic_extra__ or {})


def _kind(value: Any) -> str:
    names_one = "method" in value if isinstance(value, Mapping) else isinstance(value, Method)
    return "(method)" if names_one else "(lora)"


AnyAdapter = typing.Annotated[
    typing.Annotated[Adapter, Tag("(lora)")] | typing.Annotated[Method, Tag("(method)")], Discriminator(_kind)
]
"""LoRA by its usual settings, or a method by its name."""


class Quantization(Section):
    """Weights of the model in 4 bits, under an adapter: QLoRA (arXiv 2305.14314), by bitsandbytes. In short, the type alone."""

    type: Literal["nf4", "fp4"] = Field(
        "nf4",
        description="the 16 levels of a block of 64 weights: nf4, quantiles of a normal distribution; fp4, floats of 4 bits",
    )
    double: bool = Field(True, description="quantise the largest weights of blocks, too: .37 bits less for each weight")


def _by_type(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class Critic(Section):
    """The critic, for objectives that need values (PPO)."""

    model: SomeNames | None = Field(
        None,
        description="folder, run folder (often a reward model's) or hub id; null: a linear head on the policy's states",
    )


class Policy(Section):
    """The model that is trained: a causal LM, or a scorer when the objective learns rewards."""

    model: SomeNames = Field(
        description="folder, run folder or hub id, also `owner/name@revision`; of a list, the first that is on disk"
    )
    tokenizer: Named | None = Field(None, description="folder or hub id; null: the model's own")
    adapter: AnyAdapter | None = Field(
        None, description="train an adapter: LoRA, or another `method` of peft; null: train all weights"
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="dtype of the weights; train.precision sets the dtype of the arithmetic"
    )
    quantization: typing.Annotated[Quantization | None, BeforeValidator(_by_type)] = Field(
        None,
        description="nf4 or fp4: hold the linear layers under `adapter` in 4 bits, and multiply in `dtype` (docs/models.md); null: "
        "in `dtype`",
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
