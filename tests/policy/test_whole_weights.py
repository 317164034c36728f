"""Every weight of a policy comes from its files, and every id of its tokenizer has a row: what does not is refused."""

import json
import shutil

import pytest
import torch
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from prefopt import PrefoptError, load_recipe
from prefopt.policy import check_policy, load_policy, load_tokenizer
from prefopt.recipe import Policy as Spec
from prefopt.runs.planning import plan


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("whole") / "model")


def changed(model, folder, change):
    """A copy of the folder with its tensors changed."""
    shutil.copytree(model, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return Spec(model=str(folder))


def loaded(spec):
    return load_policy(spec, load_tokenizer(spec), seed=0)


LOST = {
    "no head": ("lm_head.weight", lambda w: {k: v for k, v in w.items() if "lm_head" not in k}),
    "no embedding": ("embed_tokens", lambda w: {k: v for k, v in w.items() if "embed_tokens" not in k}),
    "a layer lost": (r"layers\.1\..*and \d more", lambda w: {k: v for k, v in w.items() if "layers.1." not in k}),
    "compiled": (r"take '_orig_mod\.' off", lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}),
    "wrapped twice": (r"take 'module\.inner\.' off", lambda w: {f"module.inner.{k}": v for k, v in w.items()}),
    "misnamed": ("q_projection", lambda w: {k.replace("q_proj", "q_projection"): v for k, v in w.items()}),
    "none that fits": ("tensor", lambda w: {"tensor": torch.ones(2, 2)}),
}


@pytest.mark.parametrize("what", LOST)
def test_weights_that_would_start_at_random_are_refused(what, model, tmp_path):
    words, change = LOST[what]
    with pytest.raises(PrefoptError, match=rf"(?s)are not whole.*at random.*{words}|are not whole.*{words}.*at random"):
        loaded(changed(model, tmp_path / "m", change))


def test_a_shard_that_is_not_there_is_named(model, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PrefoptError, match="model-00002-of-00002"):
        loaded(Spec(model=str(folder)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value, model, tmp_path):
    def spoil(weights):
        weights["model.norm.weight"][3] = value
        return weights

    with pytest.raises(PrefoptError, match=r"NaN or infinite numbers, first in model\.norm\.weight"):
        loaded(changed(model, tmp_path / "m", spoil))


def test_weights_of_another_dtype_keep_their_values(model, tmp_path):
    spec = changed(model, tmp_path / "m", lambda w: {k: v.bfloat16() for k, v in w.items()})
    before, after = loaded(Spec(model=str(model))).causal.state_dict(), loaded(spec).causal.state_dict()
    for name, weight in before.items():
        assert torch.equal(after[name], weight.bfloat16().float())


def no_writer(kind, folder, model):
    """A model that does not write, with the tokenizer of one that does."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    if kind == "reward model":
        made = LlamaForSequenceClassification.from_pretrained(model, num_labels=1)
    elif kind == "encoder":
        made = BertForMaskedLM(BertConfig(**sizes, intermediate_size=16))
    elif kind == "encoder and decoder":
        small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        made = T5ForConditionalGeneration(T5Config(vocab_size=sizes["vocab_size"], **small))
    elif kind == "encoder said to be causal":
        made = BertLMHeadModel(BertConfig(**sizes, intermediate_size=16))
    else:
        made = RobertaForCausalLM(RobertaConfig(**sizes, intermediate_size=16))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Spec(model=str(folder))


@pytest.mark.parametrize("kind", ["reward model", "encoder", "encoder and decoder"])
def test_what_does_not_write_is_refused_by_its_configuration(kind, model, tmp_path):
    spec = no_writer(kind, tmp_path, model)
    with pytest.raises(PrefoptError, match=r"does not write text by itself: name a causal language model"):
        check_policy(spec, scorer=False)
    check_policy(spec, scorer=True)  # a reward model can start from it


@pytest.mark.parametrize("kind", ["encoder said to be causal", "another"])
def test_what_reads_in_both_directions_is_refused_when_loaded(kind, model, tmp_path):
    with pytest.raises(PrefoptError, match="reads in both directions"):
        loaded(no_writer(kind, tmp_path, model))


def test_an_encoder_made_a_decoder_writes(model, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokenizer = AutoTokenizer.from_pretrained(model)
    BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), is_decoder=True, **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert type(loaded(Spec(model=str(tmp_path))).causal) is BertLMHeadModel


@pytest.mark.parametrize("method", ["fp8", "gptq", "bitsandbytes"])
def test_quantised_weights_are_refused(method, model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(PrefoptError, match=rf"quantised \({method}\).*name the model that it was quantised from"):
        check_policy(Spec(model=str(tmp_path / "m")), scorer=False)


def with_vocabulary(model, folder, change):
    """The model's tokenizer with other ids or further tokens."""
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = change(content["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return Spec(model=str(model), tokenizer=str(folder))


def test_a_tokenizer_with_more_tokens_than_rows_is_refused_before_loading(model, tmp_path):
    spec = with_vocabulary(model, tmp_path / "more", lambda v: v | {"further": len(v)})
    with pytest.raises(
        PrefoptError, match=r"has 60 rows, .* knows 61 tokens: 'further' is token 60.*resize_token_embed"
    ):
        check_policy(spec, scorer=False)
    with pytest.raises(PrefoptError, match="has 60 rows"):
        load_policy(spec, load_tokenizer(spec), seed=0)


@pytest.mark.parametrize("pair", [("w0", "w1"), ("w3", "w56")])
def test_a_tokenizer_with_other_ids_is_refused_before_loading(pair, model, tmp_path):
    one, two = pair
    spec = with_vocabulary(model, tmp_path / "other", lambda v: v | {one: v[two], two: v[one]})
    with pytest.raises(PrefoptError, match=r"has another vocabulary than policy\.tokenizer"):
        check_policy(spec, scorer=False)


def test_a_run_is_refused_while_planning(model, tmp_path):
    spec = with_vocabulary(model, tmp_path / "more", lambda v: v | {"further": len(v)})
    recipe = tiny_recipe(tmp_path, model, tiny_pairs(tmp_path / "d.jsonl"))
    with pytest.raises(PrefoptError, match="has 60 rows"):
        plan(load_recipe(recipe, [f"policy.tokenizer={spec.tokenizer}"]))


def test_a_reserved_token_with_a_name_is_the_same_token(model, tmp_path):
    """A base model's spare tokens are given names by the tokenizers of its chats."""
    own = AutoTokenizer.from_pretrained(model)
    own.save_pretrained(tmp_path / "own")
    shutil.copytree(model, tmp_path / "m")
    spare = json.dumps(json.loads((tmp_path / "own" / "tokenizer.json").read_text())).replace("<pad>", "<|im_start|>")
    (tmp_path / "own" / "tokenizer.json").write_text(spare)
    names = (tmp_path / "own" / "tokenizer_config.json").read_text().replace("<pad>", "<|im_start|>")
    (tmp_path / "own" / "tokenizer_config.json").write_text(names)
    check_policy(Spec(model=str(tmp_path / "m"), tokenizer=str(tmp_path / "own")), scorer=False)


def test_pickled_weights_run_no_code(model, tmp_path):
    """transformers reads `.bin` files without pickled objects: what is in one is not executed."""
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(loaded(Spec(model=str(folder))).causal.lm_head.weight, weights["lm_head.weight"])

    class Harmless:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "executed",))

    torch.save(weights | {"x": Harmless()}, folder / "pytorch_model.bin")
    with pytest.raises(PrefoptError, match="cannot load the model"):
        loaded(Spec(model=str(folder)))
    assert not (tmp_path / "executed").exists()
