"""Adapters from elsewhere are read as peft reads them; what cannot be read, or saved as it is measured, is refused."""

import copy
import json
import shutil
import warnings

import pytest
import torch
from _tiny import tiny_model
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from prefopt import PrefoptError, TransformersSampler
from prefopt.policy import find_model, load_policy, load_scorer, load_tokenizer
from prefopt.policy.loading import load_backbone
from prefopt.recipe import Adapter, Sampling
from prefopt.recipe import Policy as Spec

IDS = torch.tensor([[3, 17, 5, 40, 8]])
CAUSAL = {"task_type": "CAUSAL_LM"}
KINDS = {
    "LoRA": LoraConfig(r=2, target_modules=["q_proj"], **CAUSAL),
    "no task": LoraConfig(r=2, target_modules=["q_proj"]),
    "rsLoRA": LoraConfig(r=2, use_rslora=True, target_modules=["q_proj"], **CAUSAL),
    "DoRA": LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "up_proj"], **CAUSAL),
    "ranks of layers": LoraConfig(r=2, rank_pattern={"v_proj": 3}, target_modules=["q_proj", "v_proj"], **CAUSAL),
    "biases": LoraConfig(r=2, bias="all", target_modules=["q_proj"], **CAUSAL),
    "head": LoraConfig(r=2, target_modules=["q_proj", "lm_head"], **CAUSAL),
    "embedding": LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], **CAUSAL),
    "both": LoraConfig(r=2, target_modules=["lm_head", "embed_tokens"], **CAUSAL),
    "whole head": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], **CAUSAL),
    "whole both": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"], **CAUSAL),
    "rows of tokens": LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1, 4, 17], **CAUSAL),
    "IA3": IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[], **CAUSAL),
    "LoHa": LoHaConfig(r=2, target_modules=["q_proj"], **CAUSAL),
    "OFT": OFTConfig(r=2, oft_block_size=0, target_modules=["q_proj"], **CAUSAL),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:(Model has `tie_word|Setting `save_embedding|`fan_in|.*tied):UserWarning"
)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path_factory):
    """A model, and the same with one weight for embedding and head."""
    folder = tiny_model(tmp_path_factory.mktemp("base") / "model")
    if request.param:
        model = AutoModelForCausalLM.from_pretrained(folder)
        config = copy.deepcopy(model.config)
        config.tie_word_embeddings = True
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def adapter(base, folder, config, tokenizer=True, model=None):
    """A folder as peft writes it, and the logits of its model."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        adapted = get_peft_model(model or AutoModelForCausalLM.from_pretrained(base), copy.deepcopy(config))
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight += 0.3 * torch.randn_like(weight)
        adapted.save_pretrained(folder)
        if tokenizer:
            AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        with torch.no_grad():
            return adapted.eval()(input_ids=IDS).logits


def read(folder, **changes):
    spec = Spec(model=str(folder), **changes)
    return load_policy(spec, load_tokenizer(spec), seed=0)


@torch.no_grad()
def logits(policy):
    return policy.model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_read_as_peft_reads_it_and_saved_whole(kind, base, tmp_path):
    expected = adapter(base, tmp_path / "a", KINDS[kind])
    plain = AutoModelForCausalLM.from_pretrained(base).eval()(input_ids=IDS).logits
    assert (plain - expected).abs().max() > 2e-4
    policy = read(tmp_path / "a")
    torch.testing.assert_close(logits(policy), expected, rtol=1e-5, atol=1e-5)
    policy.save(tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(whole(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_any_other_is_saved_so_that_transformers_reads_it(kind, base, tmp_path):
    adapter(base, tmp_path / "a", KINDS[kind])
    policy = read(tmp_path / "a", adapter=Adapter(r=2, alpha=5))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if weight.requires_grad and "lora_B" in name:
                weight += 0.1
    policy.save(tmp_path / "b")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()(input_ids=IDS).logits
    torch.testing.assert_close(found, logits(policy), rtol=1e-5, atol=1e-5)
    below = tmp_path / "b" / "adapter_config.json"
    if below.is_file():  # on the model that all have on disk, not on a folder that is an adapter itself
        assert json.loads(below.read_text())["base_model_name_or_path"] == str(base)


def test_three_adapters_on_one_another_are_one(base, tmp_path):
    adapter(base, tmp_path / "0", KINDS["LoRA"])
    for number, targets in enumerate((("v_proj", "q_proj"), "all-linear", ("lm_head",))):
        policy = read(tmp_path / str(number), adapter=Adapter(r=number + 1, alpha=3, targets=targets))
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                if "lora_B" in name:
                    weight += 0.1
        policy.save(tmp_path / str(number + 1))
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "3").eval()
    torch.testing.assert_close(found(input_ids=IDS).logits, logits(policy), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_adapter_on_an_adapter_in_16_bits_is_refused(dtype, base, tmp_path):
    adapter(base, tmp_path / "a", KINDS["LoRA"])
    with pytest.raises(PrefoptError, match=r"prefopt export .*/a FOLDER.*policy\.dtype to float32"):
        read(tmp_path / "a", adapter=Adapter(r=2), dtype=dtype)
    read(tmp_path / "a", dtype=dtype)  # to be measured, or trained whole


@pytest.mark.parametrize(
    "config", [PromptTuningConfig(num_virtual_tokens=2, **CAUSAL), PrefixTuningConfig(num_virtual_tokens=2, **CAUSAL)]
)
def test_what_is_no_change_of_weights_is_refused(config, base, tmp_path):
    adapter(base, tmp_path / "a", config)
    with pytest.raises(PrefoptError, match=r"of the kind PRE?[OF]\w+, which .* cannot be merged.*LoRA"):
        read(tmp_path / "a")


def test_an_adapter_that_repeats_layers_is_refused(base, tmp_path):
    repeated = LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[(0, 2), (1, 2)], **CAUSAL)
    adapter(base, tmp_path / "a", repeated)
    with pytest.raises(PrefoptError, match=r"repeats layers of its base .*cannot be merged"):
        read(tmp_path / "a")


RENAMED = {
    "none that fits": lambda k: k.replace("model.layers", "transformer.h"),
    "one layer": lambda k: k.replace("layers.1", "layers.7"),
    "a prefix": lambda k: f"module.{k}",
}


@pytest.mark.parametrize("how", RENAMED)
def test_an_adapter_of_another_model_is_refused(how, base, tmp_path):
    adapter(base, tmp_path, KINDS["LoRA"])
    file = tmp_path / "adapter_model.safetensors"
    save_file({RENAMED[how](key): value for key, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(PrefoptError, match=r"has no weights .*q_proj.lora_A.*which this model has no place for"):
        read(tmp_path)


def test_an_adapter_with_further_weights_is_refused(base, tmp_path):
    adapter(base, tmp_path, KINDS["LoRA"])
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    save_file(
        weights | {"base_model.model.model.layers.9.q_proj.lora_A.weight": torch.ones(2, 16)}, file, {"format": "pt"}
    )
    with pytest.raises(PrefoptError, match=r"fits in part only, and holds model\.layers\.9"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "says"), [("r", 8, "size mismatch"), ("base_model_name_or_path", None, "does not say")]
)
def test_a_configuration_that_is_not_the_weights(field, value, says, base, tmp_path):
    adapter(base, tmp_path, KINDS["LoRA"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(PrefoptError, match=says):
        read(tmp_path)


def test_an_adapter_whose_base_is_not_there_names_both(base, tmp_path):
    adapter(base, tmp_path, KINDS["LoRA"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/no/where"}))
    with pytest.raises(PrefoptError, match=rf"^{tmp_path} is an adapter of /no/where: no model at /no/where"):
        read(tmp_path)


def test_an_adapter_without_weights_is_refused(base, tmp_path):
    adapter(base, tmp_path, KINDS["LoRA"])
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(PrefoptError, match=r"has no weights: copy adapter_model\.safetensors"):
        read(tmp_path)


def test_tokens_that_were_added_before_the_adapter_was_trained_are_read(base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>", "</tool>"]})
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    expected = adapter(base, tmp_path / "a", KINDS["whole both"], tokenizer=False, model=model)
    tokenizer.save_pretrained(tmp_path / "a")
    policy = read(tmp_path / "a")
    assert policy.causal.get_input_embeddings().weight.shape[0] == len(policy.tokenizer) == 62
    torch.testing.assert_close(logits(policy), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(base, tmp_path):
    adapter(base, tmp_path / "a", KINDS["LoRA"], tokenizer=False)
    assert (
        load_tokenizer(Spec(model=str(tmp_path / "a"))).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    )


def test_an_adapter_by_hub_id_is_found_in_the_cache(base, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--somebody--sft" / "snapshots" / ("a" * 40)
    expected = adapter(base, snapshot, KINDS["LoRA"])
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    assert find_model(["somebody/sft"]) == "somebody/sft"
    torch.testing.assert_close(logits(read("somebody/sft")), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [None, Adapter(r=2)])
@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": False, "temperature": 0.9, "top_p": 0.6}], ids=["plain", "warned of"]
)
def test_a_saved_policy_ends_where_evaluations_ended(lora, settings, base, tmp_path, caplog):
    """The tokenizer's EOS is another token than the base's generation settings name, as in chats on base models."""
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    own = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**own, "eos_token_id": 7, **settings}))
    policy = read(folder, adapter=lora)
    policy.save(tmp_path / "saved")
    ends = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert ends.eos_token_id == [58, 7]  # the tokenizer's first
    assert all(getattr(ends, name) == value for name, value in settings.items())
    assert ("GenerationConfig.from_pretrained(folder)" in caplog.text) == (lora is not None)
    again = read(tmp_path / "saved")
    assert again.causal.generation_config.eos_token_id == [58, 7]
    prompts = [[3, 17], [5, 40, 8], [30], [12, 12]]
    sampler, sampling = TransformersSampler(), Sampling(max_tokens=30, temperature=0)
    drawn = sampler(again, prompts, 1, sampling, torch.arange(4))
    for prompt, ids, mask in zip(prompts, drawn.completion_ids[:, 0], drawn.mask[:, 0], strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
            written = model.generate(
                torch.tensor([prompt]),
                generation_config=ends,
                max_new_tokens=30,
                do_sample=False,
                temperature=None,
                top_p=None,
            )
        assert written[0, len(prompt) :].tolist() == ids[mask].tolist()


def test_a_policys_adapter_is_no_reward_model(base, tmp_path):
    adapter(base, tmp_path / "a", KINDS["LoRA"])
    spec = Spec(model=str(tmp_path / "a"))
    with pytest.raises(PrefoptError, match="is no reward model"):
        load_scorer(spec, load_tokenizer(spec), seed=0, trained=True)
    scorer = load_scorer(spec, load_tokenizer(spec), seed=0)  # one can be trained from it
    states = scorer.model.model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(
        states, read(tmp_path / "a").causal.model(input_ids=IDS).last_hidden_state, rtol=0, atol=1e-6
    )


def test_a_critic_and_embeddings_can_be_made_of_an_adapter(base, tmp_path):
    adapter(base, tmp_path / "a", KINDS["LoRA"])
    backbone = load_backbone(Spec(model=str(tmp_path / "a")), head=False).eval()
    expected = read(tmp_path / "a").causal.model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(backbone(input_ids=IDS).last_hidden_state, expected, rtol=0, atol=1e-6)
