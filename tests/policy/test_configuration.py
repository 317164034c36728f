"""What a model computes by beside its weights, and not where it is from or how it is held."""

import json

import pytest
import torch
from _tiny import tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefopt.policy.configuration import configuration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("lm"))


def test_settings_and_ends_are_told_as_json_holds_them(folder):
    told = configuration(nn.ModuleDict({"policy": AutoModelForCausalLM.from_pretrained(folder)}))
    assert told["rms_norm_eps"] == 1e-6 and told["rope_parameters.rope_theta"] == 10000.0
    assert told["generation.eos_token_id"] == 58
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert configuration(nn.Linear(2, 2)) == {}


def test_where_a_model_is_from_and_how_it_is_held_is_no_difference(folder, tmp_path):
    before = configuration(AutoModelForCausalLM.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model(tmp_path), dtype=torch.bfloat16, attn_implementation="eager"
    )
    model.config.use_cache = False
    assert configuration(model) == before


def test_the_scale_of_an_adapter_is_told_whatever_the_order_of_its_modules(folder):
    settings = LoraConfig(r=2, lora_alpha=5, target_modules=["v_proj", "q_proj"])
    told = configuration(get_peft_model(AutoModelForCausalLM.from_pretrained(folder), settings))
    assert told["adapter.lora_alpha"] == 5 and told["adapter.target_modules"] == ["q_proj", "v_proj"]
    assert told["rms_norm_eps"] == 1e-6
    assert json.loads(json.dumps(told)) == told


def test_a_scorer_has_settings_and_no_ends(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    told = configuration(model)
    assert told["rms_norm_eps"] == 1e-6 and "generation.eos_token_id" not in told
