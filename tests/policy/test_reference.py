import copy
import math

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from prefopt import Needs, PrefoptError, evaluate_loss
from prefopt.objectives import DPO
from prefopt.policy import load_policy, make_reference
from prefopt.recipe import Adapter, Reference
from prefopt.recipe import Policy as Spec
from prefopt.types import Moving

KINDS = {"full": None, "LoRA": Adapter(r=2, alpha=4)}


@pytest.fixture
def setup(lm_folder, tokenizer):
    def make(kind, **reference):
        spec = Spec(model=str(lm_folder), dtype="float64", adapter=KINDS[kind])
        policy = load_policy(spec, tokenizer, seed=0)
        return policy, make_reference(policy, Reference(**reference), spec)

    return make


def train(policy, batch):
    optimiser = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimiser.zero_grad()
        (-policy(batch, Needs()).mean()).sum().backward()
        optimiser.step()


@pytest.mark.parametrize("kind", KINDS)
def test_dpo_starts_at_ln_2(kind, setup, make_batch):
    policy, reference = setup(kind)
    batch = make_batch(4)
    outputs = policy.train()(batch, Needs())
    loss = evaluate_loss(DPO(), batch, outputs, reference(batch, Needs()))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in policy.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_stays_while_the_policy_trains(kind, setup, make_batch):
    policy, reference = setup(kind)
    batch = make_batch()
    with torch.no_grad():
        start = policy(batch, Needs()).logps
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    train(policy, batch)
    found = reference(batch, Needs()).logps
    assert torch.equal(found, start)
    assert not found.requires_grad
    moved = policy(batch, Needs()).logps
    assert (moved - start).abs().max() > 1e-3
    assert moved.requires_grad
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == trainable


def test_adapter_off_between_forward_and_backward(setup, make_batch, gradients):
    policy, reference = setup("LoRA")
    batch = make_batch()
    train(policy, batch)
    plain = gradients(policy, policy(batch, Needs()).sum().sum())
    outputs = policy(batch, Needs())  # its chunks are computed again in the backward pass
    reference(batch, Needs())
    assert torch.equal(gradients(policy, outputs.sum().sum()), plain)


def test_a_merged_adapter_is_part_of_the_reference(lm_folder, setup, tokenizer, make_batch, tmp_path):
    first, base = setup("LoRA")
    batch = make_batch()
    train(first, batch)
    first.save(tmp_path / "run" / "policy")
    for adapter in KINDS.values():
        spec = Spec(model=str(tmp_path / "run"), dtype="float64", adapter=adapter)
        second = load_policy(spec, tokenizer, seed=1)
        found = make_reference(second, Reference(), spec)(batch, Needs()).logps
        with torch.no_grad():
            torch.testing.assert_close(found, first(batch, Needs()).logps, rtol=0, atol=1e-9)
        assert (found - base(batch, Needs()).logps).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_another_model(kind, tiny, setup, tokenizer, make_batch, tmp_path):
    torch.manual_seed(7)
    other = AutoModelForCausalLM.from_config(transformers.Qwen2Config(**tiny | {"attention_dropout": 0.5}))
    other.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    policy, reference = setup(kind, model=str(tmp_path))
    batch = make_batch()
    expected = load_policy(Spec(model=str(tmp_path), dtype="float64"), tokenizer, 0)(batch, Needs()).logps
    assert torch.equal(reference(batch, Needs()).logps, expected)
    assert not reference.policy.has_adapter
    assert not any(p.requires_grad for p in reference.policy.parameters())
    assert (expected - policy(batch, Needs()).logps).abs().max() > 0.1


def test_dtype_of_the_copy(setup, make_batch):
    policy, reference = setup("full", dtype="bfloat16")
    assert {p.dtype for p in reference.policy.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in policy.parameters()} == {torch.float64}
    assert reference(make_batch(), Needs()).logps.dtype == torch.float32


@pytest.mark.parametrize("wrong", ["ids", "size"])
def test_another_vocabulary_is_refused(wrong, tiny, setup, tokenizer, tmp_path):
    size = len(tokenizer) - (5 if wrong == "size" else 0)
    AutoModelForCausalLM.from_config(transformers.LlamaConfig(**tiny | {"vocab_size": size})).save_pretrained(tmp_path)
    if wrong == "ids":
        words = sorted(tokenizer.get_vocab())
        model = tokenizer.backend_tokenizer.model.__class__({w: i for i, w in enumerate(words)}, unk_token="<unk>")
        PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer)(model)).save_pretrained(tmp_path)
    with pytest.raises(PrefoptError, match="another vocabulary" if wrong == "ids" else "has 25 rows"):
        setup("full", model=str(tmp_path))


def test_a_missing_reference_says_how_to_get_one(setup):
    with pytest.raises(PrefoptError, match="save_pretrained"):
        setup("full", model="/not/there")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", [0.6, 1.0])
def test_a_following_reference_mixes_weights(kind, mix, setup, make_batch):
    policy, reference = setup(kind, every=2, mix=mix)
    before = {name: p.clone() for name, p in reference.policy.model.named_parameters()}
    train(policy, make_batch())
    reference.follow(policy, 1)
    assert all(torch.equal(p, before[name]) for name, p in reference.policy.model.named_parameters())
    reference.follow(policy, 2)
    full = policy.model
    if kind == "LoRA":
        full = copy.deepcopy(policy.model).merge_and_unload()
    moved = dict(full.named_parameters())
    for name, p in reference.policy.model.named_parameters():
        torch.testing.assert_close(p, mix * moved[name] + (1 - mix) * before[name], rtol=0, atol=1e-12)
    assert any(not torch.equal(p, before[name]) for name, p in reference.policy.model.named_parameters())
    if mix == 1:
        batch = make_batch(seed=1)
        said = reference(batch, Needs()).logps
        torch.testing.assert_close(said, policy.eval()(batch, Needs()).logps.detach(), rtol=0, atol=1e-9)


def test_a_following_reference_returns_to_its_place(setup, make_batch):
    policy, reference = setup("full", every=1)
    start = copy.deepcopy(reference.state_dict())
    train(policy, make_batch())
    reference.follow(policy, 1)
    moved = reference(make_batch(), Needs()).logps
    reference.load_state_dict(start)
    assert not torch.equal(reference(make_batch(), Needs()).logps, moved)
    assert isinstance(reference, Moving)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_kl_to_the_reference_grows_as_the_policy_trains(kind, setup, make_batch):
    policy, reference = setup(kind)
    policy.attach_reference(reference.policy)
    batch, needs = make_batch(), Needs(reference=True, statistics=frozenset({"kl_ref_policy"}))
    assert policy(batch, needs).statistics["kl_ref_policy"].abs().max() < 1e-12
    assert not reference(batch, needs).statistics, "the reference is the same whatever the policy does"
    train(policy, batch)
    assert (policy(batch, needs).statistics["kl_ref_policy"][batch.mask] > 0).all()
