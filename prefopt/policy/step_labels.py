"""Process reward models from elsewhere: token classifiers with two labels, as TRL's former PRMTrainer trains them."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForTokenClassification, PreTrainedModel

from prefopt import recipe
from prefopt.policy.finding import adapter_config, model_config
from prefopt.policy.pretrained import Loader
from prefopt.policy.scorer import Reading
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given

READING = Reading(steps="logit", separator="\n")
"""As PRMTrainer trains: a label at the last token of the line break behind each step."""

HEADS = ("score", "classifier")


def labels_steps(name: str, remote_code: bool = False) -> bool:
    """Whether a folder or hub id is a token classifier; loads no weights.

    Args:
        name: as `find_model` returns it.
        remote_code: whether its repository may run code.

    Raises:
        PrefoptError: its configuration cannot be read, or it is an adapter of a token classifier.
    """
    if isinstance(name, Given):
        return False
    if (adapter := adapter_config(name)) is not None:
        if adapter.task_type == "TOKEN_CLS":
            raise PrefoptError(
                f"{name} is an adapter of a token classifier: merge it first (peft's `merge_and_unload`), and save the whole model"
            )
        return False
    architectures = model_config(name, remote_code).architectures or ()
    return any("TokenClassification" in architecture for architecture in architectures)


def check_labels(name: str, remote_code: bool = False) -> None:
    """Refuse a token classifier that does not label steps as wrong (0) and right (1).

    Raises:
        PrefoptError: it has another number of labels.
    """
    labels = model_config(name, remote_code).num_labels
    if labels != 2:
        raise PrefoptError(
            f"{name} is a token classifier with {labels} labels; a process reward model has two, wrong (0) and right (1)"
        )


def load_step_labels(name: str, spec: recipe.Policy, weights: Loader) -> PreTrainedModel:
    """A token classifier as a scorer of steps, with one head in place of two: z is the logit of right less that of wrong.

    So σ(z) is the softmax of both for the label 1.

    Args:
        name: what messages call it.
        spec: which one.
        weights: how they are loaded.

    Raises:
        PrefoptError: its weights are not whole, or it has no linear head.
    """
    model: Any = weights(AutoModelForTokenClassification, spec)
    head = next((one for attribute in HEADS if (one := getattr(model, attribute, None)) is not None), None)
    if not isinstance(head, nn.Linear):
        raise PrefoptError(
            f"{name} is a token classifier without a linear head, which would give two logits for a step"
        )
    difference = nn.Linear(head.in_features, 1).to(head.weight)
    with torch.no_grad():
        wrong, right = head.weight
        difference.weight.copy_(right - wrong)
        difference.bias.copy_(torch.zeros(()) if head.bias is None else head.bias[1] - head.bias[0])
    model.score = difference
    whole: PreTrainedModel = model
    return whole
