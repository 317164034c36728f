"""Drawing completions from a causal LM. A prompt is read once for all its completions; rows that have ended leave the batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
)

from prefopt.policy.decode.conversation import Conversation, KeptConversation, Rereading, keeps_turns, row_seeds
from prefopt.policy.decode.drawing import DrawnTokens, draw_rows, truncation
from prefopt.policy.decode.ends import end_tokens
from prefopt.policy.decode.noise import RowNoise, row_keys
from prefopt.policy.decode.reading import Reading, reading_of
from prefopt.policy.decode.stops import StopTexts
from prefopt.policy.policy import Policy
from prefopt.policy.reference import Following, Reference
from prefopt.policy.sharding import asked_apart
from prefopt.recipe import Sampling
from prefopt.support.errors import PrefoptError
from prefopt.support.threads import phase
from prefopt.types import Sampled


@dataclass(frozen=True)
class Mixture:
    """The geometric mixture of two models, token by token: π(v) ∝ policy(v)^(1 − share) · reference(v)^share.

    The opponent of Nash-MD (Munos et al., arXiv 2312.00886v4). A mixture of whole sequences cannot be
    normalised in practice; like the paper's own experiments, this one is normalised at each token.
    """

    policy: Policy
    reference: Reference | Following
    share: float


TextModel = Policy | Reference | Following | Mixture
"""What can be sampled from."""


class TransformersSampler:
    """The `Sampler` that decodes with transformers' models and caches.

    Where a model has no cache of keys and values (state-space layers), `model.generate` does it, without log-probs.

    Args:
        batch_size: completions drawn at a time; memory only.
        autocast: the arithmetic, `accelerator.autocast` in a run.
    """

    def __init__(self, batch_size: int = 128, autocast: Callable[[], AbstractContextManager] = nullcontext):
        self.batch_size = batch_size
        self.autocast = autocast

    @torch.no_grad()
    def __call__(
        self, model: TextModel, prompt_ids: Sequence[Sequence[int]], completions: int, settings: Sampling, seeds: Tensor
    ) -> Sampled:
        """Draw `completions` of each prompt.

        Args:
            model: a policy with a tokenizer, a reference, or a mixture of the two.
            prompt_ids: B prompts as token ids.
            completions: K.
            settings: temperature (0 is greedy), top_p, top_k, max_tokens, stop.
            seeds: [B] int64; completion k of a prompt draws its noise from (seed, k).

        Returns:
            Completions [B, K, T], T the longest of them; the token that ends one is part of it. Log-probs [B, K, T] at the
            temperature, before top-p and top-k.
        """
        policy = _policy_of(model)
        keys = row_keys(seeds, completions).view(len(prompt_ids), completions)
        order = sorted(
            range(len(prompt_ids)), key=lambda i: len(prompt_ids[i])
        )  # rows of like length need the least padding
        completed: dict[tuple[int, int], DrawnTokens] = {}
        ends = end_tokens(policy, settings.stop)
        decode = _draw_by_generate if is_stateful(policy) else _draw_by_cache
        apart = asked_apart(policies_of(model), self.autocast, policy.device)
        with phase("decoding"), evaluating(policy), apart, self.autocast(), own_weights(model):
            for chunk, copies in _chunks(order, completions, self.batch_size):
                part = decode(model, [prompt_ids[i] for i in chunk], settings, keys[chunk][:, copies], ends)
                places = [(i, k) for i in chunk for k in range(copies.start, copies.stop)]
                completed |= zip(places, part, strict=True)
        return padded([completed[i, k] for i in range(len(prompt_ids)) for k in range(completions)], completions)

    def conversation(
        self,
        model: TextModel,
        prompt_ids: Sequence[Sequence[int]],
        completions: int,
        settings: Sampling,
        seeds: Tensor,
        stop: StopTexts,
    ) -> Conversation:
        """Completions of each prompt that are written in turns, B·K rows, prompt by prompt; the arguments are those of a call.

        What a model reads is kept from turn to turn where it has keys and values of full attention alone.
        """
        policy, seeds = _policy_of(model), row_seeds(seeds, completions)
        if isinstance(model, Mixture) or is_stateful(policy) or not keeps_turns(policy):
            prompts = [prompt for prompt in prompt_ids for _ in range(completions)]
            return Rereading(self, model, prompts, seeds, settings, stop)
        ends = end_tokens(policy, settings.stop)
        kept = KeptConversation(policy, prompt_ids, completions, seeds, settings, ends, stop)
        return _Evaluating(kept, policy, lambda: own_weights(model), self.autocast)


class _Evaluating:
    """A `Conversation` whose model is in evaluation mode, with its own weights and the sampler's arithmetic, while it writes."""

    def __init__(self, conversation: Conversation, policy: Policy, weights: Callable, autocast: Callable):
        self.conversation, self.policy, self.weights, self.autocast = conversation, policy, weights, autocast

    @torch.no_grad()
    def turn(
        self, rows: Sequence[int], read: Sequence[Sequence[int]], most: Sequence[int], turn: int
    ) -> list[DrawnTokens]:
        """Write a turn."""
        with phase("decoding"), evaluating(self.policy), self.autocast(), self.weights():
            return self.conversation.turn(rows, read, most, turn)


@contextmanager
def evaluating(policy: Policy) -> Iterator[None]:
    """A policy in evaluation mode; afterwards in the mode that it was in."""
    was_training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(was_training)


def _policy_of(model: TextModel) -> Policy:
    return model if isinstance(model, Policy) else model.policy


def policies_of(model: TextModel) -> list[Policy]:
    """The distinct policies that are asked where this is sampled from."""
    parts = (model.policy, _policy_of(model.reference)) if isinstance(model, Mixture) else (_policy_of(model),)
    return list(dict.fromkeys(parts))


def own_weights(model: TextModel) -> AbstractContextManager:
    """A context in which the model has its own weights: a reference that is the policy without its adapter has it off."""
    return model.policy.without_adapter() if isinstance(model, Reference | Following) else nullcontext()


def prompts_together(rows: int, completions: int) -> int:
    """How many prompts are drawn at a time if each has so many completions and there are at most `rows` of them."""
    return max(1, rows // completions)


def _chunks(order: Sequence[int], completions: int, rows: int) -> Iterator[tuple[list[int], slice]]:
    """The prompts that are drawn together, and which of their completions: at most `rows` in all."""
    prompts, most = prompts_together(rows, completions), min(rows, completions)
    for start in range(0, len(order), prompts):
        for first in range(0, completions, most):
            yield list(order[start : start + prompts]), slice(first, min(first + most, completions))


class _MixtureReading:
    """Two models that read the same rows, and the geometric mixture of their next tokens."""

    def __init__(self, mixture: Mixture):
        models = ((1 - mixture.share, mixture.policy), (mixture.share, mixture.reference))
        self.parts = [(share, model, Reading(_policy_of(model))) for share, model in models]

    def start(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        return self._mixed(lambda part: part.start(prompts, copies))

    def keep(self, rows: Tensor) -> None:
        for _, _, part in self.parts:
            part.keep(rows)

    def step(self, tokens: Tensor) -> Tensor:
        return self._mixed(lambda part: part.step(tokens))

    def _mixed(self, read: Callable[[Reading], Tensor]) -> Tensor:
        # Not log-softmax of either: a share of 0 must not turn −∞ into NaN, and the normaliser cancels.
        weighted = []
        for share, model, part in self.parts:
            with own_weights(model):  # in turns, because the two may be one model
                logits = read(part)
            if share:
                weighted.append(share * logits)
        return torch.stack(weighted).sum(0)


def _draw_by_cache(
    model: TextModel, prompts: Sequence[Sequence[int]], settings: Sampling, keys: Tensor, ends: Sequence[int]
) -> list[DrawnTokens]:
    """Completions of each prompt, one for each of its keys, [P, K]; prompt by prompt."""
    reading = (
        _MixtureReading(model) if isinstance(model, Mixture) else reading_of(_policy_of(model), prompts, keys.shape[1])
    )
    logits = reading.start(prompts, keys.shape[1])
    return draw_rows(reading, logits, settings, keys.flatten(), ends)


def _draw_by_generate(
    model: TextModel, prompts: Sequence[Sequence[int]], settings: Sampling, keys: Tensor, ends: Sequence[int]
) -> list[DrawnTokens]:
    """The same by `model.generate`, which every architecture has."""
    if isinstance(model, Mixture):
        raise PrefoptError("a mixture of policy and reference cannot be sampled from models with state-space layers")
    policy = _policy_of(model)
    copied = [prompt for prompt in prompts for _ in range(keys.shape[1])]
    longest = max(map(len, copied))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in copied], device=policy.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in copied], device=policy.device)
    config = GenerationConfig(
        max_new_tokens=settings.max_tokens,
        do_sample=False,  # the noise does it
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
    )
    warmth = [TemperatureLogitsWarper(settings.temperature)] if settings.temperature not in (0, 1) else []
    noise = [*warmth, *truncation(settings), RowNoise(keys.flatten(), longest)] if settings.temperature else []
    causal: Any = policy.causal
    with _no_defaults(policy):
        output = causal.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList(noise),
            synced_gpus=False,  # sharded, processes keep together by `asked_apart`
        )
    return [DrawnTokens(_until_end(row, ends)) for row in output[:, longest:].tolist()]


@contextmanager
def _no_defaults(model: Policy) -> Iterator[None]:
    """Without the model's own generation settings: a repetition penalty, say, would draw from another distribution."""
    own, model.causal.generation_config = model.causal.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.causal.generation_config = own


def is_stateful(policy: Policy) -> bool:
    """Whether the model has layers whose state is no cache of keys and values."""
    return bool(getattr(policy.causal, "_is_stateful", False))


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Up to the first end token, which is kept: the policy wrote it."""
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]


def padded(drawn: Sequence[DrawnTokens], completions: int) -> Sampled:
    """B·K completions as [B, K, T]; log-probs where all have them."""
    longest = max((len(one.tokens) for one in drawn), default=1)

    def rows(values: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        padded = [list(row) + [0] * (longest - len(row)) for row in values]
        return torch.tensor(padded, dtype=dtype).view(-1, completions, longest)

    known = all(one.logps is not None for one in drawn)
    return Sampled(
        rows([one.tokens for one in drawn], torch.long),
        rows([[1] * len(one.tokens) for one in drawn], torch.bool),
        rows([one.logps or () for one in drawn], torch.float) if known else None,
    )
