"""Every method of the installed peft is trained, saved and merged as it is measured, or refused: none is silently wrong."""

import importlib.util

import pytest
import torch
from _tiny import tiny_model
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from prefopt import Needs, PrefoptError
from prefopt.policy import load_policy, load_tokenizer
from prefopt.policy.adapters import merged
from prefopt.policy.logp_cache import base_weights
from prefopt.policy.methods import REFUSED, methods
from prefopt.recipe import Method
from prefopt.recipe import Policy as Spec

LINEAR = {"target_modules": ["q_proj", "up_proj", "down_proj"]}
SMALL = {
    "ADAMSS": {"r": 4, "num_subspaces": 2, **LINEAR},
    "C3A": {"block_size": 8, "init_weights": True, **LINEAR},
    "FOURIERFT": {"n_frequency": 10, "init_weights": True, **LINEAR},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {},
    "LOHA": {"r": 2, **LINEAR},
    "LORA": {"r": 2, "use_rslora": True, **LINEAR},
    "MISS": {"r": 4, **LINEAR},
    "OFT": {"r": 2, "oft_block_size": 0, **LINEAR},
    "PSOFT": {"r": 4, **LINEAR},
    "ROAD": {"group_size": 8, **LINEAR},
    "SHIRA": {"r": 2, **LINEAR},
    "TRAINABLE_TOKENS": {"token_indices": [3, 5, 7, 9, 11, 17], "target_modules": ["embed_tokens"]},
    "WAVEFT": {"n_frequency": 16, **LINEAR},
}
"""Settings for a model as small as that of the tests; of the others, these layers."""

TRAINED = sorted(methods().keys() - REFUSED.keys())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "model")


def spec_of(base, name, **more):
    return Spec(model=str(base), adapter=Method(method=name, **SMALL.get(name, LINEAR), **more))


WEAK = {"HIRA", "PVERA"}
"""Methods that scale weights down, or the model's, so that they must move far to be seen."""


def moved(model, far=0.1):
    """With every trained weight another than at the start."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight += far * torch.randn(weight.shape, generator=draw)
    return model.eval()


def logps(policy, batch):
    with torch.no_grad():
        return policy(batch, Needs()).logps


def own_logps(model, batch):
    """By the model's own forward, one row at a time."""
    found = torch.zeros(batch.mask.shape)
    for b, prompt in enumerate(batch.prompt_ids):
        for k in range(batch.mask.shape[1]):
            length = int(batch.mask[b, k].sum())
            row = torch.tensor([[*prompt, *batch.completion_ids[b, k, :length].tolist()]])
            with torch.no_grad():
                scores = model(input_ids=row).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
            found[b, k, :length] = scores.gather(-1, row[0, len(prompt) :, None])[:, 0]
    return found * batch.mask


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", TRAINED)
def test_a_method_is_trained_saved_and_merged_as_it_is_measured(name, base, make_batch, tmp_path):
    if name == "ADAMSS" and importlib.util.find_spec("sklearn") is None:
        with pytest.raises(PrefoptError, match="scikit-learn"):
            load_policy(spec_of(base, name), load_tokenizer(Spec(model=str(base))), seed=0)
        return
    spec, batch = spec_of(base, name), make_batch(tokens=8)
    plain = load_policy(Spec(model=str(base)), load_tokenizer(spec), seed=0).eval()
    policy = load_policy(spec, plain.tokenizer, seed=0).eval()
    reference = logps(plain, batch)
    same(logps(policy, batch), reference)  # it starts as its base
    policy.train()
    policy(batch, Needs()).logps.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters()), "nothing learns"
    policy.zero_grad()
    changed = logps(moved(policy, 1.0 if name in WEAK else 0.1), batch)
    assert (changed - reference).abs().max() > 1e-3
    same(changed, own_logps(policy.model, batch))  # also by the chunked head and shared prompts
    with policy.without_adapter():
        same(logps(policy, batch), reference)
    known = dict(plain.causal.named_parameters())
    found = dict(base_weights(policy))
    assert found.keys() == known.keys(), "the fingerprint of the reference must not depend on the adapter"
    assert all(torch.equal(found[key], known[key]) for key in known)
    policy.save(tmp_path / "saved")
    again = load_policy(Spec(model=str(tmp_path / "saved")), plain.tokenizer, seed=9).eval()
    same(logps(again, batch), changed)  # merged, as a later stage starts from it
    same(own_logps(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved").eval(), batch), changed)
    whole = merged(policy.model)
    whole.save_pretrained(tmp_path / "whole")
    same(own_logps(AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval(), batch), changed)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_method_that_cannot_be_trained_is_refused_with_a_reason(name, base):
    with pytest.raises(PrefoptError, match=r"cannot be trained here: .+LoRA can"):
        load_policy(Spec(model=str(base), adapter=Method(method=name)), load_tokenizer(Spec(model=str(base))), seed=0)


def test_a_start_that_is_not_the_base_is_refused(base):
    spec = spec_of(base, "LORA", init_lora_weights=False)
    with pytest.raises(PrefoptError, match="it does not start as its base"):
        load_policy(spec, load_tokenizer(spec), seed=0)
    spec = spec_of(base, "LORA", init_lora_weights="pissa")  # which takes a part of the weights out of the base
    with pytest.raises(PrefoptError, match="switched off it does not start as its base"):
        load_policy(spec, load_tokenizer(spec), seed=0)
