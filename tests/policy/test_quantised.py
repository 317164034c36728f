"""A policy in 4 bits is what transformers, peft and bitsandbytes make of it; it learns, and its folder is what was measured."""

import json

import pytest
import torch
from _tiny import tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from prefopt import Batch, Needs, PrefoptError, TransformersSampler
from prefopt.policy import check_policy, load_policy, load_scorer, load_tokenizer
from prefopt.policy.quantised import RECORD, is_quantised
from prefopt.recipe import Adapter, Quantization, Sampling
from prefopt.recipe import Policy as Spec

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.tensor([[3, 17, 5, 40, 8, 21, 2, 50]])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Wide enough that the kernel of CPUs with AVX512-BF16 would take its layers: 32 rows or a multiple."""
    pytest.importorskip("bitsandbytes")
    folder = tiny_model(tmp_path_factory.mktemp("base") / "model")
    config = AutoModelForCausalLM.from_pretrained(folder).config
    config.hidden_size, config.intermediate_size, config.num_attention_heads = 64, 96, 2
    config.num_key_value_heads, config.head_dim = 2, 32
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def spec(model, **more):
    return Spec(model=str(model), quantization="nf4", **{"adapter": Adapter(r=2), **more})


def loaded(given):
    return load_policy(given, load_tokenizer(given), seed=0)


def moved(policy):
    """With an adapter that does something."""
    with torch.no_grad():
        for number, (name, weight) in enumerate(policy.model.named_parameters()):
            if "lora_B" in name:
                weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    return policy


def config_of(double=True, kind="nf4"):
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)


@torch.no_grad()
def logits(model):
    """By ordinary layers' code: in training mode, bitsandbytes 0.50 does not round to bf16 on any CPU."""
    return model.train()(input_ids=IDS).logits


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("nf4", False), ("fp4", True)])
def test_logits_are_those_of_transformers_peft_and_bitsandbytes_alone(base, kind, double):
    quantization = Quantization(type=kind, double=double)
    own = moved(loaded(spec(base).model_copy(update={"quantization": quantization})))
    alone = AutoModelForCausalLM.from_pretrained(base, quantization_config=config_of(double, kind))
    whole = AutoModelForCausalLM.from_pretrained(base)
    with own.without_adapter():
        rounded = logits(own.model)
    assert torch.equal(rounded, logits(alone)) and not torch.allclose(rounded, logits(whole), atol=1e-3)
    alone = get_peft_model(alone, LoraConfig(r=2, lora_alpha=32, target_modules=LAYERS, task_type="CAUSAL_LM"))
    weights = own.model.state_dict()
    alone.load_state_dict({name: w for name, w in weights.items() if "lora_" in name}, strict=False)
    assert torch.equal(logits(own.model), logits(alone)) and not torch.equal(logits(alone), rounded)


def test_a_step_lowers_the_loss_also_after_an_evaluation_and_moves_the_adapter_alone(base):
    policy = loaded(spec(base, gradient_checkpointing=True))
    batch = Batch(
        ((3, 4), (5,)), torch.tensor([[[7, 8, 9], [9, 2, 3]], [[4, 4, 1], [1, 2, 7]]]), torch.ones(2, 2, 3) > 0
    )
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    with torch.no_grad(), policy.without_adapter():
        reference = policy.eval()(batch, Needs()).sum()
    losses, optimizer = [], torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(5):
        margin = policy.train()(batch, Needs()).sum() - reference
        losses.append(-torch.nn.functional.logsigmoid(margin[:, 0] - margin[:, 1]).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05
    second = [weight for name, weight in policy.model.named_parameters() if "lora_B" in name]
    assert len(second) == 14 and all(weight.grad.abs().max() > 0 for weight in second)
    with torch.no_grad(), policy.without_adapter():
        assert torch.equal(policy(batch, Needs()).sum(), reference)


def test_what_is_drawn_has_the_policys_log_probs(base):
    policy = moved(loaded(spec(base))).eval()
    drawn = TransformersSampler()(policy, [(5, 6, 7), (8,)], 3, Sampling(max_tokens=6), torch.tensor([1, 2]))
    batch = Batch(((5, 6, 7), (8,)), drawn.completion_ids, drawn.mask)
    with torch.no_grad():
        assert torch.allclose(policy(batch, Needs()).logps, drawn.logps, atol=1e-4)


def test_a_saved_folder_is_the_same_model_for_transformers_for_peft_and_for_prefopt(base, tmp_path):
    policy = moved(loaded(spec(base)))
    policy.save(tmp_path)
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "model.safetensors").exists()
    config = BitsAndBytesConfig.from_dict(json.loads((tmp_path / RECORD).read_text()))
    by_peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, quantization_config=config), tmp_path
    )
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    again = loaded(spec(tmp_path, adapter=None))
    for model in (by_peft, by_transformers, again.model):
        assert is_quantised(model) and torch.equal(logits(model), logits(policy.model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_read_without_quantisation_the_rounded_weights_have_ordinary_layers(base, tmp_path, dtype):
    policy = moved(loaded(spec(base, dtype=dtype)))
    policy.save(tmp_path)
    plain = loaded(Spec(model=str(tmp_path)))
    assert not is_quantised(plain.model) and not isinstance(plain.model, PeftModel)
    assert {weight.dtype for weight in plain.parameters()} == {torch.float32}
    tolerance = 1e-5 if dtype == "float32" else 0.1  # of what was multiplied in bf16
    assert torch.allclose(logits(plain.model), logits(policy.model).float(), atol=tolerance)
    plain.save(tmp_path / "whole")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(plain.model))


def test_layers_whose_weights_lie_the_other_way_are_dequantised_as_they_were(base, tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    load_tokenizer(Spec(model=str(base))).save_pretrained(tmp_path / "gpt2")
    policy = moved(loaded(spec(tmp_path / "gpt2")))
    policy.save(tmp_path / "adapter")
    plain = loaded(Spec(model=str(tmp_path / "adapter")))
    assert torch.allclose(logits(plain.model), logits(policy.model), atol=1e-5)
    plain.save(tmp_path / "whole")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(plain.model))


def test_a_reward_model_has_its_head_whole_and_serves_as_one(base, tmp_path):
    scorer = load_scorer(spec(base), load_tokenizer(spec(base)), seed=0)
    moved(scorer).save(tmp_path)
    head = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert head.shape == (1, 64) and head.dtype == torch.float32
    batch = Batch(((3, 4), (5,)), torch.tensor([[[7, 8, 9]], [[4, 4, 1]]]), torch.ones(2, 1, 3) > 0)
    served = load_scorer(Spec(model=str(tmp_path)), load_tokenizer(spec(base)), seed=1, trained=True)
    assert is_quantised(scorer.model) and not is_quantised(served.model)
    with torch.no_grad():
        rewards = [model.eval()(batch, Needs(rewards=True)).rewards for model in (scorer, served)]
    assert torch.allclose(*rewards, atol=1e-5) and rewards[0].abs().max() > 0.01


def test_another_adapter_on_one_is_refused_and_so_are_other_levels_and_a_damaged_record(base, tmp_path):
    loaded(spec(base)).save(tmp_path)
    with pytest.raises(
        PrefoptError, match=r"is an adapter, into whose base in 4 bits it would be merged.*prefopt export"
    ):
        check_policy(spec(tmp_path), scorer=False)
    fp4 = spec(tmp_path, adapter=None).model_copy(update={"quantization": Quantization(type="fp4")})
    for refuse in (lambda: check_policy(fp4, scorer=False), lambda: loaded(fp4)):
        with pytest.raises(
            PrefoptError, match=r"trained on a base of nf4, and the recipe has fp4: write `quantization: {t"
        ):
            refuse()
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(PrefoptError, match=rf"{RECORD} is damaged"):
        loaded(Spec(model=str(tmp_path)))


def test_a_base_that_holds_a_prior_adapter_unquantised_is_refused(base, tmp_path):
    given = Spec(model=str(base), adapter=Adapter(r=2))
    load_policy(given, load_tokenizer(given), seed=0).save(tmp_path / "lower")
    loaded(spec(base)).save(tmp_path / "upper")
    config = tmp_path / "upper" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(base), str(tmp_path / "lower")))
    save_file(
        load_file(tmp_path / "upper" / "adapter_model.safetensors"), tmp_path / "upper" / "adapter_model.safetensors"
    )
    with pytest.raises(PrefoptError, match="the one below it would be merged"):
        check_policy(spec(tmp_path / "upper", adapter=None), scorer=False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dtype": "float64"}, r"multiplied in 32 bits at most: write policy\.dtype: float32"),
        ({"adapter": {"method": "LOHA"}}, "only LoRA is trained on weights in 4 bits, not LOHA"),
    ],
    ids=["dtype", "method"],
)
def test_what_cannot_be_in_4_bits_is_refused_before_a_model_is_loaded(more, message, tmp_path, monkeypatch):
    model = tiny_model(tmp_path / "m")
    monkeypatch.setattr("prefopt.policy.quantised.find_spec", lambda name: name)
    with pytest.raises(PrefoptError, match=message):
        check_policy(Spec(model=str(model), **{"quantization": "nf4", "adapter": {}, **more}), scorer=False)


def test_without_bitsandbytes_what_installs_it_is_said(tmp_path, monkeypatch):
    model = tiny_model(tmp_path / "m")
    monkeypatch.setattr("prefopt.policy.quantised.find_spec", lambda name: None)
    for refuse in (lambda: check_policy(spec(model), scorer=False), lambda: loaded(spec(model))):
        with pytest.raises(PrefoptError, match=r"needs bitsandbytes: pip install 'prefopt-research\[bitsandbytes\]'"):
            refuse()
