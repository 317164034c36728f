"""Loading the models and tokenizers that a recipe names, and checking that they belong together."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from prefopt import recipe
from prefopt.policy.adapters import adapted
from prefopt.policy.critic import Critic, ValueHead
from prefopt.policy.finding import adapter_config, base_of, find_model, loaded, model_config, pinned, quantisation
from prefopt.policy.methods import adapter_settings
from prefopt.policy.policy import CRITIC, Policy
from prefopt.policy.pretrained import Loader, load_weights
from prefopt.policy.quantised import check_quantised
from prefopt.policy.saving import end_ids
from prefopt.policy.scorer_loading import check_reads_steps, is_scorers_adapter
from prefopt.support.downloads import is_awaited
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given

log = logging.getLogger(__name__)

TOKENIZER = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
"""Files of tokenizers (transformers 5.23)."""

NO_WRITERS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM", "MultipleChoice")
"""Parts of the names of architectures that are no causal language models."""


def load_tokenizer(spec: recipe.Policy) -> PreTrainedTokenizerBase:
    """The policy's tokenizer; of an adapter without one, its base's.

    Raises:
        PrefoptError: there is none, or it cannot be loaded.
    """
    name = spec.tokenizer or find_model(spec.model)
    if isinstance(name, Given):
        return _given_tokenizer(name)
    name = pinned(name)
    if spec.tokenizer is None:
        name = _with_tokenizer(name)
    tokenizer: PreTrainedTokenizerBase = loaded(name, "tokenizer", lambda: _tried(name, spec.remote_code))
    # transformers 5.23 makes an empty tokenizer where a folder has a config.json and no files of a tokenizer.
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise PrefoptError(
            f"{name} has no tokenizer: save one there (tokenizer.save_pretrained), or name one in policy.tokenizer"
        )
    return tokenizer


def _tried(name: str, remote_code: bool) -> PreTrainedTokenizerBase:
    """A tokenizer that has tokenised something: what is wrong in its settings only shows then."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=remote_code)
    tokenizer.decode(tokenizer("a")["input_ids"])
    return tokenizer


def _with_tokenizer(name: str) -> str:
    """The model itself, or the first one below an adapter that brings a tokenizer."""
    adapter = adapter_config(name)
    if adapter is None:
        return name
    flags = ("missing_entries", "connection_errors", "gated_repo")
    quiet = {f"_raise_exceptions_for_{flag}": False for flag in flags}
    own = [file for file in (cached_file(name, part, **quiet) for part in TOKENIZER) if file]
    # By its folder: of a hub id, transformers would ask for a config.json, which an adapter has not.
    return str(Path(own[0]).parent) if own else _with_tokenizer(base_of(name, adapter))


def _given_tokenizer(name: Given) -> PreTrainedTokenizerBase:
    if not isinstance(name.object, PreTrainedTokenizerBase):
        raise PrefoptError(f"{name} brings no tokenizer: give one in policy.tokenizer, by name or loaded")
    return name.object


def no_writer(config: PretrainedConfig) -> str | None:
    """The architecture of a model that is no causal language model; None where it may be one."""
    return next(
        (a for a in config.architectures or () if config.is_encoder_decoder or re.search("|".join(NO_WRITERS), a)), None
    )


def check_policy(spec: recipe.Policy, scorer: bool, steps: bool = False) -> None:
    """Refuse, by configurations alone, what cannot be trained as a recipe says.

    Args:
        spec: the model, its adapter and its tokenizer.
        scorer: whether it is trained as a reward model, which encoders can be, too.
        steps: whether it is trained to score steps, which encoders cannot.

    Raises:
        PrefoptError: a model of another kind, weights that are quantised on disk or cannot be, a tokenizer of another vocabulary.
    """
    if spec.adapter is not None:
        adapter_settings(spec.adapter, "SEQ_CLS" if scorer else "CAUSAL_LM")
    check_quantised(spec)
    name = find_model(spec.model)
    if isinstance(name, Given) or is_awaited(name):
        return
    config = model_config(name, spec.remote_code)
    if (other := no_writer(config)) and not scorer:
        raise PrefoptError(
            f"policy.model: {name} is a {other}, which does not write text by itself: name a causal language model "
            "(…ForCausalLM), or train it as a reward model with a reward objective such as BradleyTerry"
        )
    if steps:
        check_reads_steps(name, spec.remote_code)
    if method := quantisation(config):
        raise PrefoptError(
            f"policy.model: the weights of {name} are quantised ({method}), and what is trained on them "
            "could not be saved as it is measured: name the model that it was quantised from, and write policy.quantization: nf4 "
            "to train an adapter on it in 4 bits"
        )
    if spec.tokenizer is None and adapter_config(name) is not None:
        return  # with an adapter the embeddings may grow; the loaded model is compared
    tokenizer, rows = load_tokenizer(spec), getattr(config.get_text_config(), "vocab_size", None)
    if adapter_config(name) is None and isinstance(rows, int):
        _refuse_more_tokens(name, rows, tokenizer, spec)
    if spec.tokenizer is not None:
        _compare_vocabularies(f"policy.tokenizer {spec.tokenizer}", name, spec, tokenizer)


def _refuse_more_tokens(name: str, rows: int, tokenizer: PreTrainedTokenizerBase, spec: recipe.Policy) -> None:
    """Ids beyond the embedding have no vector, and would end a run when a text uses them."""
    most = max(tokenizer.get_vocab().values(), default=0)
    if most < rows:
        return
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    which = f"policy.tokenizer {spec.tokenizer}" if spec.tokenizer is not None else "the policy's tokenizer"
    raise PrefoptError(
        f"the embedding of {name} has {rows} rows, and {which} knows {most + 1} tokens: {beyond[0][1]!r} is token {beyond[0][0]}. "
        "Take the model's own tokenizer, or give the model more rows: model.resize_token_embeddings(len(tokenizer)), then "
        "save_pretrained of both in a new folder"
    )


def load_policy(
    spec: recipe.Policy, tokenizer: PreTrainedTokenizerBase, seed: int, *, weights: Loader = load_weights
) -> Policy:
    """A causal LM, with a fresh adapter where the recipe asks for one.

    Args:
        spec: which one.
        tokenizer: its tokenizer.
        seed: of what starts at random.
        weights: how they are loaded.

    Raises:
        PrefoptError: it cannot be loaded, is no causal LM, knows fewer tokens than the tokenizer, an adapter's targets are not in
            it, its end tokens are none, or the adapter could not be saved as it is measured.
    """
    whole: Any = weights(AutoModelForCausalLM, spec)
    model: Any = whole.get_base_model() if isinstance(whole, PeftModel) else whole
    name = find_model(spec.model)
    _refuse_more_tokens(name, model.get_input_embeddings().weight.shape[0], tokenizer, spec)
    end_ids(model, tokenizer)  # what no token can be is refused before it is asked for
    if type(model.config) in MODEL_FOR_MASKED_LM_MAPPING and not _reads_forwards(model.base_model):
        raise PrefoptError(
            f"{name} is a {type(model).__name__} that reads in both directions, and does not write text: name a causal "
            "language model"
        )
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        log.warning(
            "%s asks for a loss that balances its experts (output_router_logits), which no objective here has: it is not added",
            name,
        )
    return Policy(adapted(whole, spec, seed, "CAUSAL_LM"), tokenizer)


def load_critic(spec: recipe.Critic, policy: Policy, policy_spec: recipe.Policy) -> ValueHead | Critic:
    """The critic of a policy: a head on the policy's states, or a model that the recipe names with a new head.

    If the policy was saved with a critic of the same kind and size, that critic's weights are loaded.

    Raises:
        PrefoptError: the model cannot be loaded, reads in both directions, or does not share the policy's vocabulary.
    """
    critic = _new_critic(spec, policy, policy_spec)
    saved = Path(find_model(policy_spec.model)) / CRITIC
    state = load_file(saved) if saved.is_file() else {}
    if {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in critic.state_dict().items()}:
        critic.load_state_dict(state)
    return critic


def _new_critic(spec: recipe.Critic, policy: Policy, policy_spec: recipe.Policy) -> ValueHead | Critic:
    if spec.model is None:
        return ValueHead(policy.causal.config.get_text_config().hidden_size, policy.causal.dtype)
    assert policy.tokenizer is not None
    own = policy_spec.model_copy(update={"model": spec.model, "adapter": None, "tokenizer": None, "quantization": None})
    backbone = _scorers_backbone(own) if is_scorers_adapter(find_model(spec.model)) else load_backbone(own, head=False)
    if not _reads_forwards(backbone):
        raise PrefoptError(
            f"the critic {find_model(spec.model)} reads in both directions, so its value of a token would have seen what follows: "
            "name a decoder in policy.critic.model, or leave it out for a head on the policy's own states"
        )
    check_vocabulary(backbone, own, policy.tokenizer, "the critic")
    return Critic(backbone).to(policy.device)


@torch.no_grad()
def _reads_forwards(backbone: PreTrainedModel) -> bool:
    """Whether the hidden state of a token does not depend on the tokens after it.

    A causal model computes both states by the same arithmetic, so they may differ by rounding alone. In a model that reads in both
    directions the difference can be small, above all before training (1e-3 in a random BERT), but in fp32 it is not rounding.
    """
    model: Any = backbone
    training = model.training
    follow = torch.tensor([[1, 2, 2, 2, 2, 2, 2, 2], [1, 3, 3, 3, 3, 3, 3, 3]], device=model.device)
    first, second = model.eval()(input_ids=follow).last_hidden_state[:, 0]
    model.train(training)
    rounding = 4 * torch.finfo(first.dtype).eps * max(first.abs().max().item(), 1.0)
    return bool((first - second).abs().max().item() <= rounding)


def _scorers_backbone(spec: recipe.Policy) -> PreTrainedModel:
    """The backbone of a reward model trained with LoRA, whose adapter can only be loaded on a classifier."""
    model: Any = load_weights(AutoModelForSequenceClassification, spec, num_labels=1)
    return model.base_model


def check_vocabulary(
    model: PreTrainedModel, spec: recipe.Policy, tokenizer: PreTrainedTokenizerBase, role: str
) -> None:
    """Check that ids mean the same tokens to a model as to a tokenizer; its embedding may have more rows, which are often padded.

    Raises:
        PrefoptError: they do not; names the model's role and the first token that differs.
    """
    name = " or ".join(spec.model)
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if rows < len(tokenizer):
        raise PrefoptError(f"{role} {name} knows {rows} tokens, the policy's tokenizer {len(tokenizer)}")
    _compare_vocabularies("the policy's tokenizer", f"{role} {name}", spec, tokenizer)


def _compare_vocabularies(ours_name: str, name: str, spec: recipe.Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer under which ids of a model's own tokenizer are other tokens.

    A token that was reserved, and has a name now, is the same token.
    """
    try:
        own = load_tokenizer(spec.model_copy(update={"tokenizer": None}))
    except PrefoptError:  # it has no tokenizer to compare
        return
    theirs, ours, reserved = own.get_vocab(), tokenizer.get_vocab(), own.added_tokens_decoder
    odd = [
        token
        for token, number in ours.items()
        if number < len(own)
        and theirs.get(token) != number
        and not (token not in theirs and number in reserved and str(reserved[number]) not in ours)
    ]
    if odd:
        there = f"token {theirs[odd[0]]}" if odd[0] in theirs else "no token"
        raise PrefoptError(
            f"{name} has another vocabulary than {ours_name}: {odd[0]!r} is {there} of the former and token "
            f"{ours[odd[0]]} of the latter, so the same ids would be different texts; give both one vocabulary, or take the "
            "model's own tokenizer"
        )


def load_backbone(spec: recipe.Policy, head: bool) -> PreTrainedModel:
    """A model without its head, for its hidden states, and without a fresh adapter; of an encoder–decoder, the encoder.

    Args:
        spec: which one.
        head: it is a causal LM, which an adapter may expect; otherwise anything.

    Raises:
        PrefoptError: it cannot be loaded.
    """
    own = adapter_config(find_model(spec.model))
    if own is not None and not head:  # its weights have the names that they have in a model with a head
        head = own.task_type == "CAUSAL_LM"
    with torch.random.fork_rng():  # a pooling layer that is not in the file starts at random, and is not used
        torch.manual_seed(0)
        model = load_weights(AutoModelForCausalLM if head else AutoModel, spec)
    backbone: Any = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    return backbone
