"""Exported weights are the model that was measured: transformers reads them alone, and the sentence says how far they are."""

import json
import subprocess
import sys

import pytest
import torch
from _saved import KINDS, TASKS, measured, numbers, readers, saved
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    LlamaForSequenceClassification,
)

import prefopt
from prefopt import PrefoptError
from prefopt.cli import main
from prefopt.policy import Policy, load_policy, reading_of
from prefopt.policy.adapters import merged
from prefopt.policy.critic import ValueHead
from prefopt.policy.scorer import FILE as MARK
from prefopt.recipe import Adapter
from prefopt.recipe import Policy as Spec
from prefopt.runs import exporting

OTHERS = [
    ("GPT-2", "LoRA", "policy"),
    ("Gemma 2", "DoRA", "scorer"),
    ("OPT", "LoRA on LoRA", "scorer"),
    ("Falcon", "modules_to_save", "policy"),
    ("Qwen3 MoE", "LoRA", "policy"),
]
CELLS = [("Llama, tied", kind, task) for kind in KINDS for task in TASKS]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "model", chat=True)


def adapter(base, folder, **config):
    """A LoRA adapter of peft's, moved away from its start."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(**{"r": 2, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"} | config),
    )
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape, generator=draw)
    model.save_pretrained(folder)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "kind", "task"), [*CELLS, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in OTHERS)]
)
def test_transformers_reads_what_was_measured(name, kind, task, padded_tokenizer, make_batch, tmp_path):
    model, folder = saved(name, kind, task, tmp_path, padded_tokenizer)
    batch = make_batch(tokens=12)
    batch.completion_ids[batch.mask & (batch.completion_ids == padded_tokenizer.pad_token_id)] = 5
    expected = measured(model, task, batch)
    exported = prefopt.export(folder, tmp_path / "out")
    assert exported.difference < 1e-5 and exported.scorer == (task == "scorer")
    assert exported.compared == (4 if exported.scorer else 64)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    (reader,) = readers(task, tmp_path / "out")
    assert reader.dtype == torch.float32
    torch.testing.assert_close(numbers(reader.eval(), task, batch), expected, rtol=1e-5, atol=1e-5)


READ_ALONE = """
import json, sys, torch
sys.modules["peft"] = sys.modules["prefopt"] = None  # neither can be imported
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
ids, logits = torch.tensor([[5, 9, 7, 20, 0]]), []
for folder, auto in zip(sys.argv[1:], (AutoModelForCausalLM, AutoModelForSequenceClassification)):
    AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits.append(auto.from_pretrained(folder).eval()(input_ids=ids).logits[0].tolist())
print(json.dumps(logits))
"""


@pytest.mark.slow
def test_a_process_without_peft_and_prefopt_reads_the_same(padded_tokenizer, tmp_path):
    expected, folders = [], []
    for task in TASKS:
        model, folder = saved("Llama, tied", "DoRA", task, tmp_path / task, padded_tokenizer)
        folders.append(prefopt.export(folder, tmp_path / task / "out").folder)
        with torch.no_grad():
            expected.append(model.model(input_ids=torch.tensor([[5, 9, 7, 20, 0]])).logits[0])
    done = subprocess.run(
        [sys.executable, "-c", READ_ALONE, *map(str, folders)], capture_output=True, text=True, check=True, timeout=120
    )
    for found, wanted in zip(json.loads(done.stdout.splitlines()[-1]), expected, strict=True):
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_16_bits_are_the_float32_sum_rounded_once(dtype, base, tmp_path):
    exact = prefopt.export(adapter(base, tmp_path / "a"), tmp_path / "exact")
    rounded = prefopt.export(tmp_path / "a", tmp_path / "rounded", dtype)
    whole = weights(tmp_path / "exact")
    for key, weight in weights(tmp_path / "rounded").items():
        torch.testing.assert_close(weight, whole[key].to(getattr(torch, dtype)), rtol=0, atol=0)
    assert exact.difference < 1e-5 < rounded.difference < 0.05
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "rounded").dtype == getattr(torch, dtype)
    assert f"in {dtype}: read again" in str(rounded) and "as it was measured, in float32" in str(rounded)
    assert f"by at most {rounded.difference:.1g} in the log-probs of 64 tokens" in str(rounded)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run that trained a LoRA policy on a base in bfloat16, which is float32 on disk."""
    home = tmp_path_factory.mktemp("run")
    policy = f"{{model: {base}, dtype: bfloat16, adapter: {{r: 2, alpha: 4}}}}"
    more = {"policy": policy, "train": "{steps: 3, batch_size: 8, lr: 0.1, threads: 1}", "evaluate": "{prompts: 0}"}
    file = tiny_recipe(home, base, tiny_pairs(home / "pairs.jsonl"), **more)
    return prefopt.run(file, folder=home / "run").folder


@pytest.mark.filterwarnings("ignore:.*16-bit")
@pytest.mark.parametrize("place", [".", "policy"])
def test_a_run_is_exported_with_the_base_that_it_measured(place, run, base, tmp_path):
    exported = prefopt.export(run / place, tmp_path / "out")
    held = load_file(run / "policy" / "adapter_model.safetensors")
    inside = "base_model.model.model.layers.0.self_attn.q_proj"
    change = 2 * held[f"{inside}.lora_B.weight"] @ held[f"{inside}.lora_A.weight"]  # alpha / r = 2
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = weights(base)[name].bfloat16().float() + change
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(weights(tmp_path / "out")[name], expected, rtol=0, atol=1e-6)
    # In float32 the weights are what was measured, so all of the difference is that of the run's own arithmetic.
    assert exported.measured_in == "bfloat16" and 1e-4 < exported.difference < 0.1
    assert exported.difference == pytest.approx(exported.arithmetic, abs=1e-5)
    assert str(exported).endswith(f"of random text; bfloat16 itself is up to {exported.arithmetic:.1g} from float32")


def test_what_stands_beside_the_weights_goes_with_them(base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    policy = load_policy(Spec(model=str(base), adapter=Adapter(r=2)), tokenizer, seed=0)
    policy.causal.generation_config.eos_token_id = [7]
    policy.critic = ValueHead(16, torch.float32)
    policy.save(tmp_path / "policy")
    prefopt.export(tmp_path / "policy", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template != None  # noqa: E711
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [tokenizer.eos_token_id, 7]
    critic = load_file(tmp_path / "out" / "critic.safetensors")
    assert critic.keys() == policy.critic.state_dict().keys()
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
    assert "writing" not in "".join(file.read_text() for file in (tmp_path / "out").glob("*.json"))


def test_a_reward_model_keeps_its_mark_and_one_of_others_has_none(padded_tokenizer, base, tmp_path):
    _, folder = saved("Llama", "LoRA", "scorer", tmp_path, padded_tokenizer)
    mark = json.loads((folder / MARK).read_text())
    (folder / MARK).write_text(json.dumps(mark | {"max_prompt_tokens": 9, "max_completion_tokens": 7}))
    prefopt.export(folder, tmp_path / "ours")
    assert reading_of(str(tmp_path / "ours")) == reading_of(str(folder))
    assert reading_of(str(tmp_path / "ours")).max_prompt_tokens == 9
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "theirs")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "theirs")
    prefopt.export(tmp_path / "theirs", tmp_path / "exported", "bfloat16")
    assert reading_of(str(tmp_path / "exported")) is None
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported").config.num_labels == 1


def untrained(base, folder):
    file = tiny_recipe(folder, base, tiny_pairs(folder / "pairs.jsonl"))
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text(file.read_text())
    return folder / "run"


def quantised(base, folder):
    tiny_model(folder / "base")
    adapter(folder / "base", folder / "a")
    config = json.loads((folder / "base" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "base" / "config.json").write_text(json.dumps(config))
    return folder / "a"


def encoder(base, folder):
    config = BertConfig(vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    BertForMaskedLM(config).save_pretrained(folder / "bert")
    return folder / "bert"


def classifier(base, folder):
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.num_labels = 3
    LlamaForSequenceClassification(config).save_pretrained(folder / "three")
    return folder / "three"


BEFORE_LOADING = {
    untrained: r"has no trained policy yet; finish the run: prefopt run .* --resume",
    quantised: r"base are quantised \(bitsandbytes\): .* rounded to their few values.* Serve the adapter beside its base",
    encoder: r"is a BertForMaskedLM: what can be exported is a causal language model",
    classifier: r"is a classifier with 3 outputs; a scorer has one",
    lambda base, folder: folder / "nothing": r"no model at .*nothing: give a folder",
}


@pytest.mark.parametrize("made", BEFORE_LOADING)
def test_what_cannot_be_exported_is_refused_before_it_is_loaded(made, base, tmp_path, monkeypatch):
    target = made(base, tmp_path)

    def explode(*arguments, **more):
        raise AssertionError("loaded too early")

    for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        monkeypatch.setattr(auto, "from_pretrained", explode)
    with pytest.raises(PrefoptError, match=BEFORE_LOADING[made]):
        prefopt.export(target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_an_adapter_that_peft_cannot_merge_is_refused(base, tmp_path):
    adapter(base, tmp_path / "a", alora_invocation_tokens=[3, 4])
    with pytest.raises(
        PrefoptError, match=r"a cannot be merged \(aLoRA does not support merging\.\): serve it beside its"
    ):
        prefopt.export(tmp_path / "a", tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("model.layers.0.mlp.down_proj.weight", 1e5, "float16 cannot hold the weights of"),
        ("lm_head.weight", 6e4, "overflows in torch.float16"),
    ],
)
def test_a_dtype_that_is_too_narrow_is_refused_and_leaves_nothing(name, value, says, tmp_path):
    folder = tiny_model(tmp_path / "model")
    held = weights(folder)
    held[name] = torch.full_like(held[name], value)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PrefoptError, match=rf"{says}.*export it in bfloat16"):
        prefopt.export(folder, tmp_path / "out", "float16")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    prefopt.export(folder, tmp_path / "out", "bfloat16")


def nudged(model):
    """One row of the head a little away from where it was."""
    with torch.no_grad():
        model.lm_head.weight[3] += 0.1
    return model


def test_a_library_that_merges_wrongly_is_caught(base, tmp_path, monkeypatch):
    adapter(base, tmp_path / "a")
    monkeypatch.setattr(exporting, "merged", lambda model: nudged(merged(model)))
    with pytest.raises(PrefoptError, match=r"the adapter .*/a, merged, would be another model: .* differ by 0\.\d+"):
        prefopt.export(tmp_path / "a", tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("dtype", exporting.DTYPES)
def test_a_library_that_saves_wrongly_is_caught(dtype, base, tmp_path, monkeypatch):
    save = Policy.save
    monkeypatch.setattr(Policy, "save", lambda self, folder: save(Policy(nudged(self.model), self.tokenizer), folder))
    with pytest.raises(PrefoptError, match=r"the exported .*/a would be another model"):
        prefopt.export(adapter(base, tmp_path / "a"), tmp_path / "out", dtype)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("made", [True, False], ids=["to an empty folder", "to nothing yet"])
def test_a_link_is_followed(made, base, tmp_path):
    if made:
        (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    assert prefopt.export(base, tmp_path / "out").folder == tmp_path / "out"
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "model.safetensors").is_file()


def test_nothing_is_overwritten(base, tmp_path, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for out in (tmp_path / "used", tmp_path / "used" / "notes.txt"):
        with pytest.raises(SystemExit, match="2"):
            main(["export", str(base), str(out)])
        assert "is there already, and nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "used" / "notes.txt").read_text() == "mine"
    with pytest.raises(PrefoptError, match="dtype 'int8': weights are exported in float32, bfloat16, float16"):
        prefopt.export(base, tmp_path / "out", "int8")


def test_the_command_says_how_far_the_export_is_from_what_was_measured(base, tmp_path, capsys):
    (tmp_path / "out").mkdir()  # empty, and so as good as new
    main(["export", str(adapter(base, tmp_path / "a")), str(tmp_path / "out"), "--dtype", "bfloat16"])
    printed = capsys.readouterr().out
    assert f"{tmp_path}/out holds the whole weights in bfloat16" in printed and "by at most 0.00" in printed
    policy = Policy(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert policy.model.dtype == torch.bfloat16 and not policy.has_adapter
