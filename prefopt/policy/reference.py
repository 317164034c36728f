"""The reference: the model that the policy is compared with and kept close to."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.policy.adapters import merged
from prefopt.policy.head import DIVERGENCES
from prefopt.policy.loading import check_vocabulary, load_policy
from prefopt.policy.logp_cache import LogpCache, is_recorded
from prefopt.policy.policy import Policy
from prefopt.support.errors import PrefoptError
from prefopt.support.profile import timed
from prefopt.support.threads import phase
from prefopt.types import Batch, Needs, Outputs


@dataclass(frozen=True)
class Reference:
    """A fixed reference: a policy without its adapter, whose weights never change.

    Under LoRA this is the policy itself, at no cost in memory; otherwise a frozen copy or another model.

    Attributes:
        policy: the model.
        cache: serves log-probs of recorded completions from disk; None computes all of them.
    """

    policy: Policy
    cache: LogpCache | None = None

    def __call__(self, batch: Batch, needs: Needs) -> Outputs:
        """Its outputs, without gradient. Values are left out, and divergences too: the policy computes those."""
        own = replace(needs, statistics=needs.statistics - DIVERGENCES.keys(), values=False)
        with timed("reference"):
            if self.cache is None or own.statistics or not is_recorded(batch):
                return self._compute(batch, own)
            return self.cache(batch, lambda missing: self._compute(missing, own))

    def _compute(self, batch: Batch, needs: Needs) -> Outputs:
        with phase("scoring"), torch.no_grad(), self.policy.without_adapter():
            return self.policy(batch, needs)


@dataclass(frozen=True)
class Following:
    """A reference that moves towards the policy: ref ← mix·θ + (1 − mix)·ref, every so many steps.

    TR-DPO (Gorbatovski et al., arXiv 2404.09656v2, eq. 4 and 5): mix = .6 is its soft update, mix = 1 its hard one. Under LoRA
    it follows the weights with the adapter merged into them.
    """

    policy: Policy
    every: int
    mix: float

    def __call__(self, batch: Batch, needs: Needs) -> Outputs:
        """Its present outputs, without gradient."""
        return Reference(self.policy)(batch, needs)

    @torch.no_grad()
    def follow(self, model: Policy, step: int) -> None:
        """Move towards the policy, if the step is a multiple of `every`."""
        if step % self.every:
            return
        theirs = dict(_merged(model).named_parameters())  # each tied weight once
        for name, own in self.policy.model.named_parameters():
            own.lerp_(theirs[name].to(own), self.mix)

    def state_dict(self) -> dict[str, Any]:
        """Its weights."""
        return self.policy.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to these weights."""
        self.policy.model.load_state_dict(state)


def make_reference(policy: Policy, spec: recipe.Reference, policy_spec: recipe.Policy) -> Reference | Following:
    """The reference that a recipe describes, to be made before the first step.

    Raises:
        PrefoptError: another model cannot be loaded, or does not share the policy's vocabulary.
    """
    if spec.model is not None:
        changed = {"model": spec.model, "adapter": None, "tokenizer": None, "gradient_checkpointing": False}
        other = policy_spec.model_copy(update=changed | ({"dtype": spec.dtype} if spec.dtype else {}))
        tokenizer = _shared(policy.tokenizer)
        model = load_policy(other, tokenizer, seed=0)
        check_vocabulary(model.causal, other, tokenizer, "the reference")
        return _fixed(_frozen(model).to(policy.device), spec)
    if spec.every is not None:
        twin = Policy(_merged(policy, copied=True), policy.tokenizer)
        return Following(
            _frozen(twin.to(dtype=getattr(torch, spec.dtype)) if spec.dtype else twin), spec.every, spec.mix
        )
    if policy.has_adapter:
        return _fixed(policy, spec)
    # A new `Policy`, which verifies its head by itself, with the same tokenizer.
    twin = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    return _fixed(_frozen(twin.to(dtype=getattr(torch, spec.dtype)) if spec.dtype else twin), spec)


def _fixed(policy: Policy, spec: recipe.Reference) -> Reference:
    """A fixed reference; with a cache, except in float64, because entries are float32."""
    exact = next(policy.causal.parameters()).dtype == torch.float64
    return Reference(policy, LogpCache(policy) if spec.cache and not exact else None)


def _merged(policy: Policy, copied: bool = False) -> Any:
    """The model with its adapter merged into the weights; a copy where that would change the policy, or where `copied`."""
    if not isinstance(policy.model, PeftModel):
        return copy.deepcopy(policy.model) if copied else policy.model
    return merged(copy.deepcopy(policy.model))


def _frozen(policy: Policy) -> Policy:
    return policy.requires_grad_(False).eval()


def _shared(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise PrefoptError("reference.model needs a policy with a tokenizer: both read the same token ids")
    return tokenizer
