"""Sections of a recipe about drawing completions."""

from pydantic import Field

from prefopt.recipe.names import Named, Names
from prefopt.recipe.section import Section

SAMPLERS = ("transformers", "vllm")
"""The samplers that come with prefopt, by name."""


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
