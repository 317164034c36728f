"""Runs on a base of 4 bits: they resume bit for bit, are evaluated and exported as measured; what they cannot do is refused."""

import shutil

import pytest
import torch
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefopt import PrefoptError, export, load_recipe, run
from prefopt.runs.dry_run import dry_run
from prefopt.runs.inspecting import evaluate, trained

ADAPTER = "adapter_model.safetensors"
POLICY = "{{model: {}, quantization: nf4, adapter: {{r: 2}}}}"


@pytest.fixture
def make(tmp_path):
    model, data = tiny_model(tmp_path / "m"), tiny_pairs(tmp_path / "pairs.jsonl")

    def made(*overrides):
        file = tiny_recipe(tmp_path, model, data, policy=POLICY.format(model))
        return load_recipe(file, overrides)

    return made


def test_a_run_resumes_bit_for_bit_and_its_export_is_what_was_measured(make, tmp_path):
    pytest.importorskip("bitsandbytes")
    whole = run(
        make("train.checkpoint_every=2", "train.keep_checkpoints=2", "evaluate.prompts=3"), folder=tmp_path / "run"
    )
    folder = tmp_path / "run"
    assert sorted(load_file(folder / "policy" / ADAPTER)) and not (folder / "policy" / "model.safetensors").exists()
    measured = evaluate(trained(folder), Console(quiet=True))
    for name in ("accuracy", "nll", "logratio_margin"):
        assert measured.estimates()[name].value == pytest.approx(whole.after[name].value, abs=1e-6)
    weights = load_file(folder / "policy" / ADAPTER)
    assert max(weight.abs().max() for name, weight in weights.items() if "lora_B" in name) > 0
    shutil.rmtree(folder / "policy")
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    for file in ("summary.json", "trained.json"):
        (folder / file).unlink()
    run(load_recipe(folder / "recipe.yaml"), folder=folder, resume=True)
    again = load_file(folder / "policy" / ADAPTER)
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    exported = export(folder, tmp_path / "whole")
    assert exported.difference < 1e-4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "whole").dtype == torch.float32


REFUSED = {
    "policy.adapter=null": "no optimiser can move: train an adapter on them",
    "train.shard=fsdp2": "not divided among processes",
    "reference.every=2": "would be rounded at every step",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_a_base_of_4_bits_does_not_do_is_refused_before_a_model_is_loaded(override, make, monkeypatch):
    monkeypatch.setattr("prefopt.policy.quantised.find_spec", lambda name: name)
    with pytest.raises(PrefoptError, match=rf"policy\.quantization.*{REFUSED[override]}"):
        dry_run(make(override))


def test_a_vllm_server_which_has_the_whole_base_is_refused(make, monkeypatch):
    monkeypatch.setattr("prefopt.policy.quantised.find_spec", lambda name: name)
    sampled = (
        "objective=GRPO",
        "feedback=prefopt.testbeds.pocket:gold",
        "source.rollouts={sampler: vllm, server: http://localhost:1}",
    )
    with pytest.raises(PrefoptError, match=r"source\.rollouts\.sampler is vllm: .* policy\.quantization rounds it"):
        dry_run(make(*sampled))


def test_to_train_on_from_an_adapter_on_4_bits_is_refused_and_told_how(make, tmp_path):
    pytest.importorskip("bitsandbytes")
    run(make("train.steps=1", "evaluate.prompts=0"), folder=tmp_path / "run")
    onward = make(f"policy.model={tmp_path / 'run'}", "policy.adapter=null")
    for refuse in (lambda: dry_run(onward), lambda: run(onward, folder=tmp_path / "next")):
        with pytest.raises(PrefoptError, match=r"is an adapter, which is merged .*prefopt export .* begin from FOLDER"):
            refuse()
    merged = make(f"policy.model={tmp_path / 'run'}", "policy.quantization=null", "train.steps=1", "evaluate.prompts=0")
    run(merged, folder=tmp_path / "next")  # with the rounded weights, whole
    assert (tmp_path / "next" / "policy" / "config.json").is_file()
