"""The reference: what the policy is held near to."""

import copy
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.errors import PrefoptError
from prefopt.policy.load import load_policy
from prefopt.policy.policy import Policy
from prefopt.types import Batch, Model, Needs, Outputs


@dataclass(frozen=True)
class AdapterOff:
    """The policy with its adapter switched off: its weights at step 0, at no cost in memory."""

    policy: Policy

    def __call__(self, batch: Batch, needs: Needs) -> Outputs:
        """What the policy said before training; without gradient."""
        with torch.no_grad(), self.policy.without_adapter():
            return self.policy(batch, needs)


@dataclass(frozen=True)
class Frozen:
    """A model of its own whose weights never change."""

    policy: Policy

    def __call__(self, batch: Batch, needs: Needs) -> Outputs:
        """What the model says; without gradient."""
        with torch.no_grad():
            return self.policy(batch, needs)


def make_reference(policy: Policy, spec: recipe.Reference, policy_spec: recipe.Policy) -> Model:
    """The reference that a recipe describes, to be made before the first step.

    Raises:
        PrefoptError: another model cannot be loaded, or does not share the policy's vocabulary.
    """
    if spec.model is not None:
        changed = {"model": spec.model, "adapter": None, "tokenizer": None, "gradient_checkpointing": False}
        other = policy_spec.model_copy(update=changed | ({"dtype": spec.dtype} if spec.dtype else {}))
        return Frozen(_frozen(load_policy(other, _shared(policy.tokenizer), seed=0)).to(policy.device))
    if policy.has_adapter:
        return AdapterOff(policy)
    # The tokenizer is not copied, and the copy finds out for itself how its head works.
    twin = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    return Frozen(_frozen(twin.to(dtype=getattr(torch, spec.dtype)) if spec.dtype else twin))


def _frozen(policy: Policy) -> Policy:
    return policy.requires_grad_(False).eval()


def _shared(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise PrefoptError("reference.model needs a policy with a tokenizer: both read the same token ids")
    return tokenizer
