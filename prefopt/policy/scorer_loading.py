"""Finding and loading reward models, whose head must have been trained, or starts at random and is saved with the rest."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefopt import recipe
from prefopt.policy.adapters import adapted, adapter_weights
from prefopt.policy.finding import adapter_config, base_of, find_model, loaded, model_config
from prefopt.policy.pretrained import Loader, fresh_weights, load_weights
from prefopt.policy.scorer import Reading, Scorer, reading_of, reads_steps
from prefopt.policy.step_labels import READING, check_labels, labels_steps, load_step_labels
from prefopt.support.downloads import is_awaited
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given
from prefopt.support.seeds import seed_for

HOW_TO_TRAIN_A_SCORER = "`objective: BradleyTerry` trains one, and its run folder serves"


def is_scorers_adapter(name: str) -> bool:
    """Whether an adapter is one of a classifier: by its label, or, without one, by a head that it holds."""
    adapter = adapter_config(name)
    if adapter is None:
        return False
    task: str | None = adapter.task_type
    heads = {weight.partition(".")[0] for weight in adapter_weights(name)} if task is None else set()
    return task == "SEQ_CLS" or bool(heads & {"score", "classifier"})


def is_scorer(name: str, remote_code: bool = False) -> bool:
    """Whether a folder or hub id is a classifier, or an adapter of one; loads no weights.

    Args:
        name: as `find_model` returns it.
        remote_code: whether its repository may run code.

    Raises:
        PrefoptError: its configuration cannot be read.
    """
    adapter = adapter_config(name)
    if adapter is not None and adapter.task_type is not None:
        return is_scorers_adapter(name)
    architectures = model_config(name, remote_code).architectures or ()
    return is_scorers_adapter(name) or any("SequenceClassification" in architecture for architecture in architectures)


def find_scorer(names: Sequence[str], remote_code: bool = False) -> str:
    """The first of these models that is available, as `find_model`, which must be a trained scorer. Loads no weights.

    A causal LM can be loaded as a scorer too, with a random head: right for training a scorer, useless as a reward. A token
    classifier with two labels is a scorer of steps.

    Raises:
        PrefoptError: none is available, or it is neither a sequence classifier with one output nor a decoder that labels tokens as
            wrong or right.
    """
    name = find_model(names)
    if is_awaited(name):
        return name
    if labels_steps(name, remote_code):
        check_labels(name, remote_code)
        if not _is_decoder(name, remote_code):
            raise PrefoptError(
                f"{name} is a token classifier and no decoder, so that its label of a step has seen the steps that follow: name a "
                f"decoder, or {HOW_TO_TRAIN_A_SCORER}"
            )
        return name
    untrained = _untrained_head(name, remote_code)
    if untrained and adapter_config(name) is not None:
        raise PrefoptError(
            f"{name} is no reward model: neither its adapter nor its base model has weights for {', '.join(untrained)}; train "
            f"it with modules_to_save=['score'] in peft, or {HOW_TO_TRAIN_A_SCORER}"
        )
    if untrained:
        config = _config(name, remote_code)
        raise PrefoptError(
            f"{name} is no reward model: its architecture is {' or '.join(config.architectures or ()) or 'unknown'}, and a "
            f"reward model is a sequence classifier with one output; {HOW_TO_TRAIN_A_SCORER}"
        )
    return name


def _untrained_head(name: str, remote_code: bool) -> list[str]:
    """The weights of a scorer's head that a folder does not hold, nor the base model of its adapter; loads no weights.

    Raises:
        PrefoptError: it is a classifier with more than one output.
    """
    if isinstance(name, Given):
        return []
    if (adapter := adapter_config(name)) is not None:
        base, held = base_of(name, adapter), adapter_weights(name)
        return (
            [] if is_awaited(base) else [weight for weight in _untrained_head(base, remote_code) if weight not in held]
        )
    config = _config(name, remote_code)
    if any("SequenceClassification" in architecture for architecture in config.architectures or ()):
        if config.num_labels != 1:
            raise PrefoptError(f"{name} is a classifier with {config.num_labels} outputs; a scorer has one")
        return []
    model = _unloaded(name, config)
    return [weight for weight, _ in model.named_parameters() if not weight.startswith(f"{model.base_model_prefix}.")]


def check_reads_steps(name: str, remote_code: bool = False) -> None:
    """Refuse what could be no scorer of steps, by its configuration.

    Args:
        name: as `find_model` returns it.
        remote_code: whether its repository may run code.

    Raises:
        PrefoptError: an encoder, whose number for a token would have seen what follows.
    """
    adapter = adapter_config(name)
    base = name if adapter is None else base_of(name, adapter)
    if not is_awaited(base) and not _is_decoder(base, remote_code):
        raise PrefoptError(
            f"policy.model: {name} is no decoder, and its number for a step would have seen the steps that follow: name a decoder, "
            "or train on whole completions, e.g. with BradleyTerry"
        )


def _is_decoder(name: str, remote_code: bool) -> bool:
    """Whether a classifier of this architecture gives a number for each token that it has read; loads no weights."""
    return reads_steps(_unloaded(name, _config(name, remote_code)))


def _unloaded(name: str, config: PretrainedConfig) -> PreTrainedModel:
    """A scorer of this architecture, without weights."""
    config.num_labels = 1
    with torch.device("meta"):
        return loaded(name, "model", lambda: AutoModelForSequenceClassification.from_config(config))


def _config(name: str, remote_code: bool) -> PretrainedConfig:
    config: PretrainedConfig = loaded(
        name, "model", lambda: AutoConfig.from_pretrained(name, trust_remote_code=remote_code)
    )
    return config


def load_scorer(
    spec: recipe.Policy,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    trained: bool = False,
    reading: Reading | None = None,
    weights: Loader = load_weights,
) -> Scorer:
    """A sequence classifier with one output; a missing head starts at random, from the seed. Or, trained, one that labels steps.

    Args:
        spec: which one.
        tokenizer: its tokenizer.
        seed: of what starts at random.
        trained: refuse a model whose head, or another layer above its backbone, would start at random.
        reading: how it will be trained to read; None is as it was, where prefopt trained it.
        weights: how they are loaded.

    Raises:
        PrefoptError: it cannot be loaded, has more than one output, or is not trained.
    """
    name = find_scorer(spec.model, spec.remote_code) if trained else find_model(spec.model)
    if trained and labels_steps(name, spec.remote_code):
        return Scorer(load_step_labels(name, spec, weights), tokenizer, READING)
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "init"))
        model: Any = weights(AutoModelForSequenceClassification, spec, num_labels=1)
    fresh = fresh_weights(model)
    if trained and fresh:
        raise PrefoptError(
            f"{name} is no trained reward model: it has no weights for {', '.join(sorted(fresh))}, which would be random; "
            f"save it whole, or {HOW_TO_TRAIN_A_SCORER}"
        )
    before = reading_of(name)
    if trained and before is None and adapter_config(name) is not None and tokenizer.pad_token is not None:
        # TRL trains with the padding token of its tokenizer, and an adapter's folder holds no configuration of the model.
        text: Any = model.config.get_text_config()
        text.pad_token_id = tokenizer.pad_token_id
    before = before or Reading()
    whole = _trained_whole(model, fresh) if spec.adapter else {}
    reading = replace(reading, skips_padding=before.skips_padding) if reading else before
    return Scorer(adapted(model, spec, seed, "SEQ_CLS", **whole), tokenizer, reading)


def _trained_whole(model: PreTrainedModel, fresh: Collection[str]) -> dict[str, list[str] | None]:
    """The layers of a scorer that an adapter holds whole instead of adapting them: its head, and all that started at random.

    Raises:
        PrefoptError: a weight that started at random is in no layer of its own, so an adapter cannot hold it.
    """
    whole = {weight.rpartition(".")[0] for weight in fresh}
    if "" in whole:
        loose = sorted(weight for weight in fresh if "." not in weight)
        raise PrefoptError(
            f"policy.adapter: {', '.join(loose)} of {type(model).__name__} would start at random, and an adapter cannot save it; "
            "train this model without adapter"
        )
    # peft takes these for heads whenever a name ends so (`pre_classifier`), and holds them whole. Neither an adapter nor a further
    # layer that is held whole may stand inside one (`classifier.dense` of RoBERTa), or peft 0.21 cannot read what it saved.
    names = [name for name, _ in model.named_modules()]
    heads = {name for name in names if name.endswith(("classifier", "score"))}
    whole = {next((head for head in sorted(heads) if layer.startswith(f"{head}.")), layer) for layer in whole}
    inside = {name for name in names if any(f"{name}.".startswith(f"{outer}.") for outer in whole | heads)}
    return {"modules_to_save": sorted(whole) or None, "exclude_modules": sorted(inside) or None}
