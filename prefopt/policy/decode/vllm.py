"""Drawing completions from a vLLM server."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from prefopt.policy.decode.drawing import DrawnTokens
from prefopt.policy.decode.ends import end_tokens
from prefopt.policy.decode.sampler import evaluating, own_weights, padded
from prefopt.policy.decode.vllm_server import REQUESTS, VLLMServer
from prefopt.policy.decode.vllm_weights import AdapterFiles, Transfer, transfer_to
from prefopt.policy.parallel import ROUNDING, gathered_objects
from prefopt.policy.policy import Policy
from prefopt.policy.reference import Following, Reference
from prefopt.policy.sharding import whole_weights
from prefopt.recipe import Adapter, Recipe, Sampling
from prefopt.support.errors import PrefoptError
from prefopt.types import Batch, Needs, Sampled

TOLERANCE = 0.1
"""Nats by which a server's log-probs may differ from the policy's, on average: bfloat16 is at .05 at most (experiments/vllm)."""

PROBE = Sampling(temperature=2.0, max_tokens=32)
"""What is compared. The temperature shows a server whose log-probs are not at it."""


class VLLMSampler:
    """The `Sampler` that asks a vLLM server, which has the policy's weights since the last `sync` (docs/vllm.md).

    Under LoRA the adapter alone goes over, and a reference that is the policy without its adapter is the server's own model;
    otherwise all weights do, and the server has one model's at a time. Every prompt is a request with a seed of its own: noise is
    a function of (seed, row, position), and another one than `TransformersSampler`'s. vLLM's kernels make no promise that a
    completion is the same whatever else is in flight, so that it may depend on its companions. Log-probs are of all tokens at the
    temperature; where top-p or top-k cut some off there are none.

    Args:
        server: its address.
        accelerator: knows the processes; the main one sends the weights.

    Raises:
        PrefoptError: there is no server.
    """

    remote: Literal[True] = True

    def __init__(self, server: str | None, accelerator: Accelerator):
        assert server is not None
        self.server = VLLMServer(server.rstrip("/"))
        self.accelerator = accelerator
        self.transfer: Transfer | None = None
        self.present: tuple[Any, int | None] = (None, None)  # whose weights the server has, and of which version
        self.name = self.server.base  # what it calls them

    @classmethod
    def refuses(cls, settings: Any) -> str | None:
        """A server has one model, and LoRA adapters over it."""
        if settings.policy is None:
            return None
        if settings.policy.quantization is not None:
            return (
                "a vLLM server has the base as it is on disk, and policy.quantization rounds it: take `transformers`, or leave "
                "policy.quantization out"
            )
        adapter = settings.policy.adapter
        if adapter is not None and (not isinstance(adapter, Adapter) or adapter.dora or adapter.modules_to_save):
            return (
                "a vLLM server takes LoRA adapters alone, without dora and modules_to_save: change policy.adapter, leave it out "
                "(all weights then go over), or take `transformers`"
            )
        if not isinstance(settings, Recipe):
            return None
        writers = settings.source.writers
        if "mixture" in writers:
            return "a vLLM server cannot mix two models, and source.writers has mixture: take `transformers`"
        if "reference" in writers and adapter is None:
            return (
                "a vLLM server has the policy's weights alone, and source.writers has reference: train an adapter "
                "(policy.adapter), with which the reference is the server's own model, or take `transformers`"
            )
        other = settings.reference.model is not None or settings.reference.every is not None
        judged = settings.evaluate.sampler == "vllm" and settings.evaluate.judge is not None
        if adapter is not None and other and ("reference" in writers or (judged and settings.evaluate.against is None)):
            return (
                "under policy.adapter a vLLM server has the policy's base beside it, and completions of another reference "
                "(reference.model, reference.every) are asked for: leave these out, or take `transformers`"
            )
        return None

    def sync(self, policy: Any, version: int | None) -> None:
        """Give the server the weights of a policy, or of a reference, unless it has this version of them.

        Raises:
            PrefoptError: they are no language model's, the server did not take them, or its log-probs are not theirs.
        """
        if version is not None and (policy, version) == self.present:
            return
        model = policy if isinstance(policy, Policy) else getattr(policy, "policy", None)
        if not isinstance(model, Policy) or not isinstance(policy, Policy | Reference | Following):
            raise PrefoptError("a vLLM server samples language models alone; take the sampler `transformers`")
        if _is_base(policy):
            self._compare(policy, self.server.base)
            return
        with whole_weights(model, accelerator=self.accelerator, trained=model.has_adapter):
            self.name = gathered_objects(self.accelerator, lambda: self._sent(model))[0]
        self.present = (policy, version)
        self._compare(policy, self.name)

    def _sent(self, policy: Policy) -> str:
        """What the server calls the policy, once it has its weights; only the main process's answer counts."""
        if not self.accelerator.is_main_process:
            return ""
        if self.transfer is None:
            self.transfer = transfer_to(self.server, policy, self.accelerator)
        if policy.has_adapter is not isinstance(self.transfer, AdapterFiles):
            raise PrefoptError(
                "a vLLM server has either adapters over its own model or other weights in its place, and two models of this run "
                "would need both; take the sampler `transformers`"
            )
        return self.transfer(policy)

    @torch.no_grad()
    def _compare(self, model: Any, name: str) -> None:
        """Refuse a server whose log-probs are another model's, or at another temperature."""
        policy = model if isinstance(model, Policy) else model.policy
        vocabulary = _vocabulary(policy)
        prompt = [7 * place % vocabulary for place in range(1, 9)]
        drawn = self._ask(name, prompt, 1, PROBE, 0, [], vocabulary)
        sampled = padded(drawn, 1)

        def distance(temperature: float) -> float:
            """The mean difference, in nats a token, from the policy's log-probs at a temperature."""
            columns = {"temperature": torch.tensor([temperature])}
            batch = Batch((tuple(prompt),), sampled.completion_ids, sampled.mask, columns=columns)
            with evaluating(policy), own_weights(model), self.accelerator.autocast():
                expected = policy(batch, Needs()).logps.cpu()
            assert sampled.logps is not None
            return (sampled.logps - expected).abs().mean().item()

        if (away := distance(PROBE.temperature)) <= TOLERANCE:
            return
        if distance(1.0) <= TOLERANCE:
            why = "they are not at the temperature: start it with --logprobs-mode processed_logprobs"
        else:
            why = (
                "it serves another model: start it with the one that policy.model names, and under an adapter without "
                "--hf-overrides (docs/vllm.md)"
            )
        raise PrefoptError(
            f"the vLLM server {self.server.address} gives log-probs that differ from the policy's by {away:.2g} nats a "
            f"token; {why}"
        )

    def __call__(
        self, model: Any, prompt_ids: Sequence[Sequence[int]], completions: int, settings: Sampling, seeds: Tensor
    ) -> Sampled:
        """Draw `completions` of each prompt, as `TransformersSampler` does, from the weights that `sync` gave to the server.

        Raises:
            PrefoptError: they are another model's, a prompt is too long for the server, or it gave no answer, or none that a model
                can have written.
        """
        name = self._name_of(model)
        policy = model if isinstance(model, Policy) else model.policy
        longest, positions = max(map(len, prompt_ids), default=0), self.server.positions
        if positions is not None and longest + settings.max_tokens > positions:
            raise PrefoptError(
                f"the vLLM server {self.server.address} reads {positions} tokens (--max-model-len), and a prompt of {longest} with "
                f"max_tokens {settings.max_tokens} are more: start it with more, or shorten them"
            )
        ends = end_tokens(policy, settings.stop)
        vocabulary = _vocabulary(policy)

        def ask(prompt: Sequence[int], seed: int) -> list[DrawnTokens]:
            return self._ask(name, prompt, completions, settings, seed, ends, vocabulary)

        with ThreadPoolExecutor(REQUESTS) as pool:
            drawn = [one for group in pool.map(ask, prompt_ids, seeds.tolist()) for one in group]
        return padded(drawn, completions)

    def _name_of(self, model: Any) -> str:
        if _is_base(model):
            return self.server.base
        if model is self.present[0]:
            return self.name
        raise PrefoptError("a vLLM server samples the policy alone; take the sampler `transformers` for other writers")

    def _ask(
        self,
        name: str,
        prompt: Sequence[int],
        completions: int,
        settings: Sampling,
        seed: int,
        ends: Sequence[int],
        vocabulary: int,
    ) -> list[DrawnTokens]:
        """The completions of one prompt."""
        body: dict[str, Any] = {
            "model": name,
            "prompt": list(prompt),
            "n": 1 if settings.temperature == 0 else completions,  # it refuses more, which would be the same
            "seed": seed % 2**31,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "logprobs": 0,  # that of the token itself
            "return_token_ids": True,
            "stop_token_ids": list(ends),
            # Its own defaults are the model's generation settings, which would draw from another distribution or end elsewhere.
            "ignore_eos": True,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        choices = self.server.complete(body)
        with self.server.asked_to("write completions"):
            drawn = _drawn(choices, body["n"], settings.max_tokens, vocabulary) * (completions // body["n"])
        if settings.top_p < 1 or settings.top_k:  # what it gives is then of the tokens that were left
            return [DrawnTokens(one.tokens) for one in drawn]
        return drawn


def _vocabulary(policy: Policy) -> int:
    embedding: Any = policy.causal.get_input_embeddings()
    return int(embedding.num_embeddings)


def _is_base(model: Any) -> bool:
    """Whether it is a policy with its adapter switched off."""
    return isinstance(model, Reference | Following) and model.policy.has_adapter


def _drawn(choices: Sequence[Mapping[str, Any]], completions: int, most: int, vocabulary: int) -> list[DrawnTokens]:
    """The completions of a server's answer to one prompt, each with a log-prob for each of its tokens.

    Raises:
        ValueError: another number of completions, tokens or log-probs than was asked for, or some that no model can have given.
    """
    if len(choices) != completions:
        raise ValueError(f"{len(choices)} completions, not {completions}")
    every = sorted(choices, key=lambda choice: choice["index"])
    drawn = [DrawnTokens(list(one["token_ids"]), list(one["logprobs"]["token_logprobs"])) for one in every]
    for one in drawn:
        logps = one.logps or []
        if not 1 <= len(one.tokens) <= most or len(logps) != len(one.tokens):
            raise ValueError(
                f"{len(one.tokens)} tokens with {len(logps)} log-probs, where 1 to {most} were to be written"
            )
        if foreign := [token for token in one.tokens if not 0 <= token < vocabulary]:
            raise ValueError(f"the token {foreign[0]}, which the policy, with {vocabulary} tokens, does not have")
        # vLLM writes −9999 where a log-prob is NaN or −∞, which would say that a token which was drawn cannot be.
        if wrong := [logp for logp in logps if logp is None or not -9999 < logp <= ROUNDING or math.isnan(logp)]:
            raise ValueError(f"a log-prob of {wrong[0]}, and every one is above -9999 and at most 0")
    return drawn
