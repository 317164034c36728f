import json
import shutil
import traceback

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel, MixtralConfig

from prefopt import Needs, PrefoptError
from prefopt.policy import find_model, load_policy, load_scorer, load_tokenizer, loading
from prefopt.policy.pretrained import without_dropout
from prefopt.recipe import Adapter
from prefopt.recipe import Policy as Spec
from prefopt.support.fingerprints import fingerprint_weights

LORA = Adapter(r=2, alpha=4)


def train(policy, batch, steps=2):
    """A few steps of something, so that every trainable weight moves."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        (-policy(batch, Needs()).mean()).sum().backward()
        optimiser.step()


def logps(policy, batch):
    with torch.no_grad():
        return policy(batch, Needs()).logps


@pytest.fixture
def spec(lm_folder):
    return Spec(model=str(lm_folder), dtype="float64")


class TestFindModel:
    def test_folder_and_run_folder(self, lm_folder, tmp_path, monkeypatch):
        assert find_model([str(lm_folder)]) == str(lm_folder)
        run = tmp_path / "runs" / "sft"
        shutil.copytree(lm_folder, run / "policy")
        assert find_model([str(run)]) == str(run / "policy")
        assert find_model(["/not/there", str(run)]) == str(run / "policy")
        monkeypatch.chdir(tmp_path)
        assert find_model(["runs/sft"]) == str(run / "policy")  # absolute: an adapter remembers it

    def test_the_first_on_disk_before_the_hub(self, lm_folder):
        assert find_model(["some/model", str(lm_folder)]) == str(lm_folder)

    @pytest.mark.parametrize("name", ["/not/there", "./there", "../there", "not/a/model", "~/nothing-here"])
    def test_missing_says_how_to_get_one_and_loads_nothing(self, name, monkeypatch, tokenizer):
        monkeypatch.setattr(loading, "AutoModelForCausalLM", None)
        monkeypatch.setattr(loading, "AutoTokenizer", None)
        for function in (
            lambda: find_model([name]),
            lambda: load_tokenizer(Spec(model=name)),
            lambda: load_policy(Spec(model=name), tokenizer, seed=0),
        ):
            with pytest.raises(PrefoptError) as caught:
                function()
            assert name in str(caught.value)
            assert "save_pretrained" in str(caught.value)
            assert "${pocket}" in str(caught.value)

    def test_a_hub_id_that_cannot_be_had(self, tokenizer):
        with pytest.raises(PrefoptError, match=r"(?s)nobody/nothing.*save_pretrained"):
            load_policy(Spec(model="nobody/nothing"), tokenizer, seed=0)


@pytest.mark.parametrize("damage", ["weights", "config", "architecture", "remote code"])
def test_a_broken_folder_is_an_error_for_people(damage, lm_folder, tokenizer, tmp_path):
    folder = tmp_path / "lm"
    shutil.copytree(lm_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"not weights")
    elif damage == "config":
        (folder / "config.json").write_text("{")
    else:
        config |= {"model_type": "unheard-of"}
        if damage == "remote code":
            config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PrefoptError) as caught:
        load_policy(Spec(model=str(folder)), tokenizer, seed=0)
    message = str(caught.value)
    assert str(folder) in message
    assert "Traceback" not in message
    assert len(message.splitlines()) == 2
    assert ("policy.remote_code" in message) == (damage == "remote code")
    assert "".join(traceback.format_exception_only(caught.value)).count("\n") == 2


def test_adapter_with_no_such_targets(spec, tokenizer):
    wrong = spec.model_copy(update={"adapter": Adapter(targets=("nothing",))})
    with pytest.raises(PrefoptError, match=r"policy\.adapter"):
        load_policy(wrong, tokenizer, seed=0)


def test_policy_survives_its_folder(spec, tokenizer, make_batch, tmp_path):
    policy, batch = load_policy(spec, tokenizer, seed=0), make_batch()
    train(policy, batch)
    policy.save(tmp_path / "run" / "policy")
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
    again = spec.model_copy(update={"model": (str(tmp_path / "run"),)})
    own = load_tokenizer(again)
    assert own.get_vocab() == tokenizer.get_vocab()
    torch.testing.assert_close(logps(load_policy(again, own, 0), batch), logps(policy, batch), rtol=0, atol=1e-12)


def test_adapters_stack(spec, tokenizer, make_batch, tmp_path):
    """base ← adapter ← adapter ← full fine-tuning; each link starts where the last one ended."""
    batch, folder = make_batch(), str(spec.model[0])
    expected = logps(load_policy(spec, tokenizer, 0), batch)
    for name, adapter in (("first", LORA), ("second", LORA), ("third", None)):
        policy = load_policy(spec.model_copy(update={"model": (folder,), "adapter": adapter}), tokenizer, seed=1)
        torch.testing.assert_close(logps(policy, batch), expected, rtol=0, atol=1e-9)
        trainable = {n for n, p in policy.named_parameters() if p.requires_grad}
        assert trainable, f"{name}: nothing to train"
        assert all(("lora" in n) == (adapter is not None) for n in trainable)
        train(policy, batch)
        moved = logps(policy, batch)
        assert (moved - expected).abs().max() > 1e-3
        policy.save(tmp_path / name / "policy")
        folder, expected = str(tmp_path / name), moved
        assert (tmp_path / name / "policy" / "adapter_config.json").is_file() == (adapter is not None)


def test_a_lost_base_says_so(spec, tokenizer, lm_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(lm_folder, base)
    load_policy(Spec(model=str(base), adapter=LORA), tokenizer, 0).save(tmp_path / "run" / "policy")
    shutil.rmtree(base)
    with pytest.raises(PrefoptError, match=r"no model at .*base"):
        load_policy(Spec(model=str(tmp_path / "run")), tokenizer, 0)


def test_a_fresh_adapter_changes_nothing_and_is_drawn_from_the_seed(spec, tokenizer, make_batch):
    batch, lora = make_batch(), spec.model_copy(update={"adapter": LORA})
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = load_policy(lora, tokenizer, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = load_policy(lora, tokenizer, seed=3), load_policy(lora, tokenizer, seed=4)
    torch.testing.assert_close(logps(first, batch), logps(load_policy(spec, tokenizer, 0), batch), rtol=0, atol=0)
    drawn = [name for name in first.state_dict() if "lora_A" in name]
    assert drawn
    for name in drawn:
        assert torch.equal(first.state_dict()[name], again.state_dict()[name])
        assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize("name", ["GPT2", "Phi", "OPT", "Bert"])
def test_no_dropout_anywhere(name, tiny, tokenizer, make_batch, tmp_path):
    sizes = {
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
        "Phi": {"attention_dropout": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
        "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.1, "layerdrop": 0.5, "pad_token_id": 1},
        "Bert": {"hidden_dropout_prob": 0.1, "classifier_dropout": 0.1, "num_labels": 1, "pad_token_id": 1},
    }[name]
    config = getattr(transformers, f"{name}Config")(**tiny | sizes)
    if name == "Bert":
        made = transformers.AutoModelForSequenceClassification.from_config(config)
        function, needs, field = load_scorer, Needs(rewards=True), "rewards"
    else:
        made, function, needs, field = AutoModelForCausalLM.from_config(config), load_policy, Needs(), "logps"
    made.save_pretrained(tmp_path)
    model, batch = function(Spec(model=str(tmp_path)), tokenizer, seed=0), make_batch()
    with torch.no_grad():
        quiet = getattr(model.eval()(batch, needs), field)
        for _ in range(3):
            assert torch.equal(getattr(model.train()(batch, needs), field), quiet)


def test_dropout_of_a_nested_configuration():
    config = transformers.LlavaConfig(text_config=transformers.LlamaConfig(attention_dropout=0.2))
    assert without_dropout(config).text_config.attention_dropout == 0


@pytest.mark.parametrize("adapter", [None, LORA])
def test_gradient_checkpointing_gives_the_same_gradients(adapter, spec, tokenizer, make_batch, gradients):
    batch, found, layers = make_batch(), [], []
    for checkpointing in (False, True):
        changed = {"adapter": adapter, "gradient_checkpointing": checkpointing}
        policy = load_policy(spec.model_copy(update=changed), tokenizer, seed=0).train()
        if adapter:  # B starts at 0, and so would A's gradient
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.constant_(parameter, 0.1)
        passes = []
        policy.causal.model.layers[0].input_layernorm.register_forward_hook(lambda *_, p=passes: p.append(1))
        loss = policy(batch, Needs()).sum().sum()
        passes.clear()
        found.append(gradients(policy, loss))
        layers.append(len(passes))
    assert layers == [0, 1]  # computed again in the backward pass
    assert found[0].norm() > 0.1
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_dtype_is_the_recipes(lm_folder, tokenizer):
    for dtype in ("float32", "bfloat16"):
        policy = load_policy(Spec(model=str(lm_folder), dtype=dtype), tokenizer, seed=0)
        assert {p.dtype for p in policy.parameters()} == {getattr(torch, dtype)}


def test_weights_of_another_shape(lm_folder, tokenizer, tmp_path):
    folder = tmp_path / "lm"
    shutil.copytree(lm_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        PrefoptError, match=r"model\.norm\.weight is \[3\] in the files, and \[16\] of LlamaForCausalLM"
    ):
        load_policy(Spec(model=str(folder)), tokenizer, seed=0)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    """transformers makes a tokenizer for it all the same, which knows its special tokens alone."""
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with torch.random.fork_rng():
        BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(PrefoptError, match=r"has no tokenizer: save one there .* or name one in policy\.tokenizer"):
        load_tokenizer(Spec(model=str(tmp_path)))


def test_a_loaded_model_is_trained_as_a_copy(lm_folder, tokenizer, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(lm_folder)
    spec = Spec(model=loaded, tokenizer=tokenizer)  # type: ignore[arg-type]
    assert load_tokenizer(spec) is tokenizer and find_model(spec.model) is spec.model[0]
    policy = load_policy(spec, tokenizer, 0)
    assert fingerprint_weights(policy.model) == fingerprint_weights(loaded)
    with torch.no_grad():
        next(policy.model.parameters()).add_(1)
    assert fingerprint_weights(policy.model) != fingerprint_weights(loaded)
    adapted = load_policy(spec.model_copy(update={"adapter": LORA}), tokenizer, 0)
    adapted.save(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert fingerprint_weights(merged) == fingerprint_weights(loaded)  # an adapter starts without effect


def test_what_is_no_loaded_model(lm_folder, tokenizer):
    loaded = AutoModelForCausalLM.from_pretrained(lm_folder)
    with pytest.raises(PrefoptError, match=r"is no model of transformers"):
        find_model(Spec(model=torch.nn.Linear(1, 1)).model)  # type: ignore[arg-type]
    with pytest.raises(PrefoptError, match=r"brings no tokenizer: give one in policy\.tokenizer"):
        load_tokenizer(Spec(model=loaded))  # type: ignore[arg-type]
    with pytest.raises(PrefoptError, match="is of class LlamaForCausalLM, and AutoModelForSequenceClassification"):
        load_scorer(Spec(model=loaded), tokenizer, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("balanced", [True, False])
def test_a_loss_that_balances_experts_is_said_not_to_be_added(balanced, tiny, tokenizer, tmp_path, caplog):
    config = MixtralConfig(**tiny, num_local_experts=2, output_router_logits=balanced)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_policy(Spec(model=str(tmp_path)), tokenizer, 0)
    assert any("output_router_logits" in said for said in caplog.messages) == balanced
