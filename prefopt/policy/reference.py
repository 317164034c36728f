"""The reference: what the policy is held near to."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.errors import PrefoptError
from prefopt.policy.load import load_policy, load_tokenizer
from prefopt.policy.policy import Policy
from prefopt.types import Batch, Model, Needs, Outputs


@dataclass(frozen=True)
class Reference:
    """A policy without its adapter, if it has one: weights that never change.

    Under LoRA this is the policy itself, at no cost in memory; otherwise a frozen copy or another model.
    """

    policy: Policy

    def __call__(self, batch: Batch, needs: Needs) -> Outputs:
        """What it says, without gradient."""
        with torch.no_grad(), self.policy.without_adapter():
            return self.policy(batch, needs)


def make_reference(policy: Policy, spec: recipe.Reference, policy_spec: recipe.Policy) -> Model:
    """The reference that a recipe describes, to be made before the first step.

    Raises:
        PrefoptError: another model cannot be loaded, or does not share the policy's vocabulary.
    """
    if spec.model is not None:
        changed = {"model": spec.model, "adapter": None, "tokenizer": None, "gradient_checkpointing": False}
        other = policy_spec.model_copy(update=changed | ({"dtype": spec.dtype} if spec.dtype else {}))
        tokenizer = _shared(policy.tokenizer)
        model = load_policy(other, tokenizer, seed=0)
        _check_vocabulary(model, other, tokenizer)
        return Reference(_frozen(model).to(policy.device))
    if policy.has_adapter:
        return Reference(policy)
    # The tokenizer is not copied, and the copy finds out for itself how its head works.
    twin = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    return Reference(_frozen(twin.to(dtype=getattr(torch, spec.dtype)) if spec.dtype else twin))


def _check_vocabulary(reference: Policy, spec: recipe.Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    """The same ids must mean the same tokens; the rows of two embeddings may still differ, padded as they often are."""
    name = " or ".join(spec.model)
    embedding: Any = reference.causal.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if rows < len(tokenizer):
        raise PrefoptError(f"the reference {name} knows {rows} tokens, the policy's tokenizer {len(tokenizer)}")
    try:
        own = load_tokenizer(spec)
    except PrefoptError:  # saved without one: nothing more to compare
        return
    theirs, ours = own.get_vocab(), tokenizer.get_vocab()
    if odd := [token for token, number in ours.items() if number < len(own) and theirs.get(token) != number]:
        raise PrefoptError(
            f"the reference {name} has another vocabulary than the policy: {odd[0]!r} is token {theirs.get(odd[0])} there "
            f"and {ours[odd[0]]} here, so its log-probs would be of other texts"
        )


def _frozen(policy: Policy) -> Policy:
    return policy.requires_grad_(False).eval()


def _shared(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise PrefoptError("reference.model needs a policy with a tokenizer: both read the same token ids")
    return tokenizer
