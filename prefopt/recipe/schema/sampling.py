"""Sections of a recipe about drawing completions, and about what a policy acts in."""

import typing

from pydantic import BeforeValidator, Field

from prefopt.recipe.names import Named, Names, WithFields, named_section
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
    max_tokens: int = Field(64, gt=0, description="most tokens of a completion; in an environment, of a turn")
    stop: Names = Field((), description="texts that end a completion, in addition to EOS; each must be a single token")


class Environment(WithFields):
    """What the policy acts in; keys other than these are the environment's fields."""

    name: Named = Field(description="of an environment (docs/agents.md), or your class, `file.py:Class`")
    max_turns: int = Field(8, gt=0, description="turns of the policy in an episode, at most")
    max_tokens: int = Field(
        512, gt=0, description="tokens of an episode, at most, those that the environment says among them"
    )
    timeout: float | None = Field(
        60.0, gt=0, description="seconds for one call of the environment, after which its episode has failed; null: any"
    )


Acting = typing.Annotated[Environment, BeforeValidator(named_section)]
"""An environment, which may be given by its name alone."""


def most_tokens(sampling: Sampling, environment: Environment | None) -> tuple[int, str]:
    """How many tokens a completion has, at most, and the key, within a section of samples, that says so."""
    if environment is None:
        return sampling.max_tokens, "sampling.max_tokens"
    return environment.max_tokens, "environment.max_tokens"


class Samples(Section):
    """Completions sampled from a policy, and the sampler."""

    completions: int = Field(4, gt=0, description="samples of each prompt")
    sampling: Sampling = Field(Sampling(), description="how completions are sampled")
    sampler: Named = Field("transformers", description="transformers, vllm, or `file.py:Class`")
    server: str | None = Field(None, description="address of a vLLM server (docs/vllm.md says how to start one)")
    batch_size: int = Field(128, gt=0, description="completions sampled at a time; affects memory and speed only")
    environment: Acting | None = Field(
        None,
        description="what the policy acts in, turn by turn, and which rewards it: a name or `file.py:Class`; null: none",
    )
