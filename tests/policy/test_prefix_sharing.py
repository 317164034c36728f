"""A prompt computed once says of its completions what a row for each says, or the fall-back is taken and logged."""

import dataclasses
import logging

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

from prefopt import Batch, Needs
from prefopt.policy import Policy
from prefopt.policy.critic import Critic, ValueHead
from prefopt.policy.rows import attention, flex
from prefopt.policy.rows.attention import NAME, Segments
from prefopt.policy.rows.layout import tree_mask
from prefopt.policy.rows.prefix_sharing import PrefixSharing

GEMMA = {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8}
KINDS = ["sliding_attention", "full_attention"]
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
EXACT = {
    "Llama": {},
    "Qwen2": {},
    "Qwen2 sliding": {"use_sliding_window": True, "sliding_window": 5, "layer_types": KINDS},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": 5},
    "Gemma2": GEMMA | {"layer_types": KINDS},
    "Gemma3Text": GEMMA | {"layer_types": KINDS},
    "GPT2": GPT2,
    "GPTNeoX": {},
    "Phi": {},
    "Granite": {"logits_scaling": 3.0},
    "Olmo2": {},
    "Mixtral": {"num_local_experts": 4, "sliding_window": 5, "experts_implementation": "eager"},
}
OTHER = {
    "GPTNeo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 5},
    "Bloom": {"n_layer": 2, "n_head": 2},
    "Mamba": {"state_size": 4, "expand": 2},
}
"""GPT-Neo looks back over places in the row; Bloom knows distances, not positions; Mamba has no attention to mask."""
CAPPED = ["Gemma2"]
"""Eager attention, which caps its scores: it takes a mask, and does not go by segments."""
UNCOMPILED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
"""Dynamo hides this warning of its own, which an error cannot be."""
NO_DROPOUT = {"GPT2": {"attn_pdrop": 0.0}}
WIDE = {"hidden_size": 16, "initializer_range": 0.2}


@pytest.fixture
def make_model(tiny):
    def make(name, dtype=torch.float32, lora=False, **changes):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name.split()[0]}Config")(**tiny | WIDE | (EXACT | OTHER)[name] | changes)
        model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
        if not lora:
            return model
        targets = {"GPT2": ["c_attn"], "GPTNeoX": ["query_key_value"]}.get(name, ["q_proj", "v_proj"])
        spec = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=name == "GPT2")
        model = get_peft_model(model, spec)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.2)
        return model.eval()

    return make


def groups(completions: int = 3, prompt: int = 12) -> Batch:
    """Four prompts with a common start, long enough to be worth sharing, of unequal length; one completion is absent.

    In some, an environment wrote the first token or some in between.
    """
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 9, (4, completions), generator=draw)
    lengths[2, 1] = 0
    mask = torch.arange(8) < lengths[..., None]
    ids = torch.randint(1, 30, mask.shape, generator=draw) * mask
    mask[0, 0, 0] = False  # a tool began
    mask[3, :, 1:4] &= torch.arange(1, 4) >= lengths[3][:, None] - 1  # it answered, and the policy had the last word
    prompts = [torch.randint(1, 30, (prompt + 3 * row,), generator=draw).tolist() for row in range(4)]
    return Batch(tuple(map(tuple, prompts)), ids, mask)


def everything(policy: Policy, batch: Batch, needs: Needs, gradients) -> tuple[torch.Tensor, torch.Tensor]:
    """All fields of the outputs, and the gradient of a random sum of them."""
    outputs = policy(batch, needs)
    fields = [outputs.logps, *outputs.statistics.values()] + ([outputs.values] if needs.values else [])
    stacked = torch.stack(fields)
    weights = torch.randn(stacked.shape, generator=torch.Generator().manual_seed(0)).to(stacked)
    return stacked.detach(), gradients(policy, (stacked * weights).sum())


def compare(policy: Policy, batch: Batch, needs: Needs, gradients, tolerance: float = 1e-5) -> None:
    shared = everything(policy, batch, needs, gradients)
    for sharing in {policy._prefix_sharing, getattr(policy.critic, "_prefix_sharing", policy._prefix_sharing)}:
        assert sharing.shares
        assert sharing._compared > 0, "nothing was shared"
        sharing.shares = False
    plain = everything(policy, batch, needs, gradients)
    torch.testing.assert_close(shared[0], plain[0], rtol=0, atol=tolerance)
    assert (shared[1] - plain[1]).norm() < 1e-4 * plain[1].norm()


@UNCOMPILED
@pytest.mark.parametrize("name", ["Qwen2 sliding", "Qwen3", "Gemma2", "Gemma3Text", "GPT2", "GPTNeoX", "Phi"])
def test_exact_in_blocks(name, make_model, gradients, in_blocks):
    """As rows are packed on GPUs; Gemma 2 caps its scores, and shares prompts by masks."""
    policy = Policy(make_model(name, **NO_DROPOUT.get(name, {})))
    compare(policy, groups(), Needs(), gradients)
    assert policy._prefix_sharing.packs
    assert (policy.causal.config._attn_implementation == flex.NAME) == (name not in CAPPED)


@pytest.mark.parametrize("way", ["packed", "masked"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", EXACT)
def test_exact(name, lora, way, make_model, gradients):
    policy = Policy(make_model(name, lora=lora))
    policy._prefix_sharing.packs = way == "packed"
    compare(policy, groups(), Needs(statistics=frozenset({"entropy"})), gradients)
    assert policy._head is not None
    assert policy._prefix_sharing.packs == (way == "packed")
    assert (policy.causal.config._attn_implementation == NAME) == (way == "packed" and name not in CAPPED)


def test_packed_rows_are_exact_under_gradient_checkpointing(make_model, gradients):
    """The backward pass attends once more, and by the same segments."""
    policy = Policy(make_model("Llama").train())
    policy.model.gradient_checkpointing_enable()
    compare(policy, groups(), Needs(), gradients)
    assert policy._prefix_sharing.packs


@pytest.mark.parametrize("completions", [1, 2, 4, 9])
def test_exact_for_every_number_of_completions(completions, make_model, gradients):
    policy, batch = Policy(make_model("Llama", torch.float64)), groups(max(completions, 2)).first(completions)
    compare(policy, batch, Needs(), gradients, 1e-9)


@pytest.mark.parametrize("way", ["packed", "masked"])
@pytest.mark.parametrize("common", [1, 2, 8])
def test_exact_where_completions_begin_alike(common, way, make_model, gradients):
    """Some are the beginning of others, or the same."""
    policy, batch = Policy(make_model("Llama", torch.float64)), groups()
    policy._prefix_sharing.packs = way == "packed"
    ids = batch.completion_ids.clone()
    ids[..., :common] = ids[:, :1, :common]
    compare(policy, dataclasses.replace(batch, completion_ids=ids * batch.mask), Needs(), gradients, 1e-9)
    assert policy._prefix_sharing.packs == (way == "packed")


def test_exact_where_long_completions_attend_in_blocks(make_model, gradients, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 3)
    for name in ("Llama", "Mistral"):
        policy = Policy(make_model(name, torch.float64))
        compare(policy, groups(), Needs(), gradients, 1e-9)
        assert policy._prefix_sharing.packs  # else masks would have been compared


def test_one_completion_each_needs_no_mask(make_model):
    policy = Policy(make_model("Llama"))
    policy._prefix_sharing.packs = False
    policy(groups(2).first(1), Needs())
    assert policy._prefix_sharing._compared == 0


@pytest.mark.parametrize("own", [False, True], ids=["head", "model"])
def test_values_are_exact(own, make_model, gradients):
    model = make_model("Qwen3")
    torch.manual_seed(2)
    critic = Critic(AutoModel.from_config(model.config).eval()) if own else ValueHead(16)
    torch.nn.init.normal_((critic.head if isinstance(critic, Critic) else critic).linear.weight)
    compare(Policy(model, critic=critic), groups(), Needs(values=True), gradients)


@pytest.mark.parametrize("name", OTHER)
def test_other_architectures_fall_back_and_say_so(name, make_model, gradients, plain_logps, caplog):
    policy, batch = Policy(make_model(name)), groups()
    with caplog.at_level(logging.WARNING, "prefopt"):
        logps = policy(batch, Needs()).logps
        policy(batch, Needs())
    assert not policy._prefix_sharing.shares
    assert len([record for record in caplog.records if "a row for each" in record.message]) == 1
    with torch.no_grad():
        torch.testing.assert_close(logps.double(), plain_logps(policy.model, batch), rtol=0, atol=1e-5)


def test_a_difference_that_shows_in_long_rows_only_is_found(make_model, monkeypatch, caplog):
    """A window that the mask does not know of must be noticed when rows grow beyond it."""
    sharing, backbone = PrefixSharing(), make_model("Mistral", sliding_window=40).model
    sharing.packs = False
    monkeypatch.setattr(
        "prefopt.policy.rows.prefix_sharing.tree_mask", lambda rows, dtype, window: tree_mask(rows, dtype)
    )
    with torch.no_grad():
        sharing(backbone, groups(prompt=8))
        assert sharing.shares
        sharing(backbone, groups(prompt=48))
    assert not sharing.shares
    assert "states differ" in caplog.text


def test_segments_that_are_not_exact_give_way_to_a_mask(make_model, monkeypatch):
    sharing, backbone = PrefixSharing(), make_model("Mistral", sliding_window=40).model
    exact = Segments.mask
    monkeypatch.setattr(Segments, "mask", lambda self, before, own, window, like: exact(self, before, own, None, like))
    with torch.no_grad():
        sharing(backbone, groups(prompt=8))
        assert sharing.packs
        sharing(backbone, groups(prompt=48))
    assert sharing.shares
    assert not sharing.packs


def test_a_second_model_of_the_kind_is_not_compared_again(make_model, monkeypatch):
    compared, compare_once = [], PrefixSharing._compare
    monkeypatch.setattr(PrefixSharing, "_compare", lambda *given: compared.append(given[2]) or compare_once(*given))
    for number, (changes, prompt) in enumerate([({}, 12), ({}, 12), ({"rms_norm_eps": 1e-3}, 12), ({}, 80)]):
        before = len(compared)
        Policy(make_model("Llama", **changes))(groups(prompt=prompt), Needs())
        assert (len(compared) > before) == (number != 1)


def test_dropout_is_no_difference(make_model):
    policy = Policy(make_model("GPT2").train())
    policy(groups(), Needs())
    assert policy._prefix_sharing.shares
    assert policy._prefix_sharing._compared > 0
    assert policy.model.training


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_shares(autocast, make_model):
    model = make_model("Llama", torch.float32 if autocast else torch.bfloat16)
    policy = Policy(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logps = policy(groups(), Needs()).logps
        assert policy._prefix_sharing._compared > 0
        assert policy._prefix_sharing.shares
        exact = Policy(make_model("Llama"))(groups(), Needs()).logps
    torch.testing.assert_close(logps, exact, rtol=0.05, atol=0.1)


def test_prompts_are_computed_once(make_model):
    policy, seen = Policy(make_model("Llama")), []
    policy(groups(), Needs())
    policy.causal.model.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    batch = groups()
    policy(batch, Needs())
    # What a tool wrote is read as well; the last token of a completion is predicted, and predicts nothing.
    read = (batch.lengths - 1)[batch.present]
    assert seen == [(1, sum(map(len, batch.prompt_ids)) + int(read.sum()))]
