import dataclasses
import logging

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from prefopt import Batch, Needs, Outputs, PrefoptError, evaluate_loss
from prefopt.objectives import DPO, SFT
from prefopt.policy import Policy, head

STATISTICS = Needs(statistics=frozenset({"entropy", "log_sum_squares"}))
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
ARCHITECTURES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": 3},
    "Gemma2": {"head_dim": 8, "sliding_window": 3, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 3, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "GPT2": GPT2,
    "GPTNeoX": {},
    "Phi": {},
    "Granite": {"logits_scaling": 3.0},
    "Olmo2": {},
    "Mixtral": {"num_local_experts": 4, "sliding_window": 3, "experts_implementation": "eager"},
    "Cohere": {"logit_scale": 0.3},
}


@pytest.fixture
def make_policy(tiny):
    def make(name):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**tiny | ARCHITECTURES[name])
        return Policy(AutoModelForCausalLM.from_config(config).double().eval())

    return make


class Sine(LlamaForCausalLM):
    """Transforms its logits as no architecture does."""

    def forward(self, *args, **kwargs):
        return CausalLMOutputWithPast(logits=3 * super().forward(*args, **kwargs).logits.sin())


class Headless(LlamaForCausalLM):
    """Does not say where its head is."""

    def get_output_embeddings(self):
        return None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_models_own_logits(name, make_policy, make_batch, plain_logps, gradients):
    policy, batch = make_policy(name), make_batch(holes=True, absent=[(1, 1)])
    with torch.no_grad():
        expected = plain_logps(policy.model, batch)
    logps = policy(batch, Needs()).logps
    assert policy._head is not None, "the chunked head should serve this architecture"
    # Gemma 2's attention is eager: its softmax is in fp32 and its sums depend on the length of the row.
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-5 if name == "Gemma2" else 1e-9)
    assert (logps[~batch.mask] == 0).all()

    weights = torch.randn(logps.shape, dtype=torch.float64)
    found = gradients(policy, (logps * weights).sum())
    if name == "Gemma2":  # its eager attention gives NaN on padding in float64
        return
    policy._head = None  # the model's own logits, a row for each completion
    plain = gradients(policy, (policy(batch, Needs()).logps * weights).sum())
    assert plain.norm() > 1
    assert (found - plain).norm() < 1e-6 * plain.norm()  # several architectures normalise in fp32


def test_gradient_equals_the_plain_one(llama, make_batch, plain_logps, gradients):
    batch = make_batch(holes=True, absent=[(1, 1)])
    weights = torch.randn(batch.mask.shape, dtype=torch.float64)
    found = gradients(llama, (llama(batch, Needs()).logps * weights).sum())
    plain = gradients(llama, (plain_logps(llama.model, batch) * weights).sum())
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-7 * plain.abs().max().item())


@pytest.mark.parametrize("cls", [Sine, Headless])
def test_unknown_architecture_falls_back_and_says_so(cls, tiny, make_batch, plain_logps, caplog):
    torch.manual_seed(0)
    policy, batch = Policy(cls(transformers.LlamaConfig(**tiny)).double().eval()), make_batch(holes=True)
    with caplog.at_level(logging.WARNING, "prefopt"):
        logps = policy(batch, STATISTICS).logps
        policy(batch, Needs())
    torch.testing.assert_close(logps, plain_logps(policy.model, batch), rtol=0, atol=1e-9)
    assert logps.requires_grad
    (record,) = caplog.records  # once
    assert cls.__name__ in record.message
    assert "its own LM head" in record.message


def test_a_long_batch_with_a_column_of_tokens_is_verified(llama, make_batch):
    batch = make_batch()
    batch = dataclasses.replace(batch, columns={"sampler_logps": torch.zeros(batch.mask.shape)}).padded(40)
    assert llama(batch, Needs()).logps.shape == batch.mask.shape


def test_nothing_to_verify_on_is_not_verified(tiny, make_batch, plain_logps):
    """A first micro-batch whose completions are all absent must not settle how the head works."""
    torch.manual_seed(0)
    policy = Policy(Sine(transformers.LlamaConfig(**tiny)).double().eval())
    empty = make_batch(1, 2, absent=[(0, 0), (0, 1)])
    outputs = policy(empty, STATISTICS)
    assert outputs.logps.shape == empty.mask.shape
    assert (outputs.logps == 0).all()
    assert outputs.logps.requires_grad  # so that every process has a backward pass
    batch = make_batch()
    torch.testing.assert_close(policy(batch, Needs()).logps, plain_logps(policy.model, batch), rtol=0, atol=1e-9)


def test_a_long_batch_with_columns_of_tokens_is_verified_too(llama):
    mask = torch.ones(1, 2, 40, dtype=torch.bool)
    batch = Batch(
        ((5, 6),), torch.full(mask.shape, 7), mask, columns={"sampler_logps": -mask.float()}, rewards=mask.float()
    )
    assert llama(batch, Needs()).logps.shape == mask.shape


def test_dropout_of_a_model_in_training_does_not_look_like_an_unknown_head(tiny, make_batch, caplog):
    policy = Policy(AutoModelForCausalLM.from_config(transformers.GPT2Config(**tiny | GPT2)).train())
    policy(make_batch(), Needs())
    assert policy._head is not None
    assert policy.training
    assert not caplog.records


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_chunks_change_nothing(rows, llama, make_batch, gradients, monkeypatch):
    batch = make_batch(columns={"temperature": torch.tensor([0.5, 1.0, 2.0])})

    def run():
        outputs = llama(batch, STATISTICS)
        fields = torch.stack([outputs.logps, *(outputs.statistics[n] for n in sorted(outputs.statistics))])
        return fields, gradients(llama, (fields * torch.arange(1, 4)[:, None, None, None]).sum())

    expected, plain = run()
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", rows * 30 + 7)
    found, chunked = run()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(chunked, plain, rtol=1e-10, atol=1e-10 * plain.abs().max().item())


def test_no_logits_are_kept_for_backward(make_llama, make_batch, monkeypatch):
    vocabulary, rows = 4096, 4
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", rows * vocabulary)
    policy, batch = Policy(make_llama(vocab_size=vocabulary)), make_batch(4, 4, 8)
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept, alive = [], []
    policy.causal.lm_head.register_forward_hook(lambda *args: alive.append(len(args[-1])))

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    policy(batch, Needs())  # verified
    alive.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = policy(batch, STATISTICS)
    assert int(batch.mask.sum()) > 10 * rows
    assert max(kept) < rows * vocabulary, "the logits of a chunk are kept"
    assert max(alive) == rows, "more logits than a chunk at a time"
    outputs.sum().sum().backward()
    assert max(alive) == rows


def test_statistics_are_their_formulas(llama, make_batch, plain_logps):
    temperature = torch.tensor([0.5, 1.0, 2.0])
    batch = make_batch(holes=True, absent=[(1, 1)], columns={"temperature": temperature})
    formulas = {
        "entropy": lambda scores: -sum(p * p.log() for p in scores.exp()),
        "log_sum_squares": lambda scores: sum(p**2 for p in scores.exp()).log(),
    }
    with torch.no_grad():
        outputs = llama(batch, STATISTICS)
        for name, formula in formulas.items():
            expected = plain_logps(llama.model, batch, formula, temperature)
            torch.testing.assert_close(outputs.statistics[name], expected, rtol=0, atol=1e-9)
            assert (outputs.statistics[name][~batch.mask] == 0).all()
        torch.testing.assert_close(
            outputs.logps, plain_logps(llama.model, batch, temperature=temperature), rtol=0, atol=1e-9
        )
        plain = llama(dataclasses.replace(batch, columns={}), Needs()).logps
    assert not torch.allclose(outputs.logps[0], plain[0], atol=1e-2)
    torch.testing.assert_close(outputs.logps[1], plain[1], rtol=0, atol=1e-12)


def test_divergences_are_those_of_whole_vocabularies(make_llama, make_batch):
    batch = make_batch(holes=True, absent=[(1, 1)], columns={"temperature": torch.tensor([0.5, 1.0, 2.0])})
    policy, other = Policy(make_llama(0)), Policy(make_llama(1))
    policy.attach_reference(other)
    found = policy(batch, Needs(statistics=frozenset(head.DIVERGENCES))).statistics

    def distributions(model):
        for b, prompt in enumerate(batch.prompt_ids):
            for k, t in batch.mask[b].nonzero().tolist():
                ids = torch.tensor([[*prompt, *batch.completion_ids[b, k, :t].tolist()]])
                yield (b, k, t), (model(input_ids=ids).logits[0, -1] / batch.columns["temperature"][b]).softmax(-1)

    with torch.no_grad():
        for (place, p), (_, q) in zip(distributions(policy.model), distributions(other.model), strict=True):
            assert found["kl_policy_ref"][place].item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-9)
            assert found["kl_ref_policy"][place].item() == pytest.approx((q * (q / p).log()).sum().item(), abs=1e-9)
    assert found["kl_ref_policy"].requires_grad
    assert not [name for name, _ in policy.named_parameters() if "reference" in name]


def test_divergence_without_a_reference_is_refused(llama, make_batch):
    with pytest.raises(PrefoptError, match=r"policy\.attach_reference"):
        llama(make_batch(), Needs(statistics=frozenset({"kl_ref_policy"})))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_against_trl():
    utils = pytest.importorskip("trl.trainer.utils")
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 30, generator=draw, dtype=torch.float64)
    tokens = torch.randint(30, (7,), generator=draw)
    found = head.token_statistics(head.States(torch.nn.Identity(), logits, 30), tokens, names=["entropy"])
    torch.testing.assert_close(found["logps"], utils.selective_log_softmax(logits, tokens))
    torch.testing.assert_close(found["entropy"], utils.entropy_from_logits(logits))


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mistral", "Gemma3Text", "Mixtral"])
def test_padding_and_companions_change_nothing(name, make_policy, make_batch):
    policy, batch = make_policy(name), make_batch(4, 3, holes=True, absent=[(1, 1), (2, 0)])
    wide = dataclasses.replace(
        batch,
        completion_ids=torch.nn.functional.pad(batch.completion_ids, (0, 5), value=7),
        mask=torch.nn.functional.pad(batch.mask, (0, 5)),
    )
    with torch.no_grad():
        together = policy(batch, STATISTICS)
        padded = policy(wide, STATISTICS)
        for row in range(len(batch)):
            alone = policy(batch.rows(slice(row, row + 1)), STATISTICS)
            torch.testing.assert_close(alone.logps[0], together.logps[row], rtol=0, atol=1e-12)
            for key, value in alone.statistics.items():
                torch.testing.assert_close(value[0], together.statistics[key][row], rtol=0, atol=1e-12)
    torch.testing.assert_close(padded.logps[..., :6], together.logps, rtol=0, atol=1e-12)
    best, wider = (Outputs(b.mask, o.logps).first(2) for b, o in ((batch, together), (wide, padded)))
    for objective in (DPO(), SFT()):
        losses = [
            evaluate_loss(objective, b.first(2), o, Outputs(o.mask, o.logps / 2)).item()
            for b, o in ((batch, best), (wide, wider))
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert (padded.logps[..., 6:] == 0).all()


def test_text_of_a_tool_is_read_but_not_scored(llama, make_batch):
    batch = make_batch(holes=True)
    tool = batch.completion_ids.clone()
    tool[..., 1] = 2
    with torch.no_grad():
        before, after = (
            llama(batch, Needs()).logps,
            llama(dataclasses.replace(batch, completion_ids=tool), Needs()).logps,
        )
    hole = ~batch.mask[..., 1]
    assert hole.any()
    torch.testing.assert_close(before[..., 0], after[..., 0], rtol=0, atol=1e-12)
    assert (before[..., 1][hole] == 0).all()
    changed = hole & (batch.completion_ids[..., 1] != 2)
    assert ((before[..., 2] - after[..., 2])[changed].abs() > 1e-6).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_gives_fp32_log_probs(autocast, make_llama, make_batch, gradients):
    exact, batch = Policy(make_llama()), make_batch()
    policy = Policy(make_llama().to(torch.float32 if autocast else torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = policy(batch, STATISTICS)
    assert {outputs.logps.dtype, *(s.dtype for s in outputs.statistics.values())} == {torch.float32}
    assert policy._head is not None
    expected = exact(batch, Needs()).logps
    torch.testing.assert_close(outputs.logps.double(), expected, rtol=0.05, atol=0.3)
    assert (outputs.logps.exp() <= 1).all()
    a, b = gradients(policy, outputs.sum().sum()).double(), gradients(exact, expected.sum())
    assert torch.cosine_similarity(a, b, dim=0) > 0.98


def test_refuses_what_a_language_model_cannot_say(llama, make_batch):
    for needs, word in (
        (Needs(rewards=True), "scorer"),
        (Needs(values=True), "value head"),
        (Needs(statistics=frozenset({"entropi"})), "entropi"),
    ):
        with pytest.raises(PrefoptError, match=word):
            llama(make_batch(), needs)


def test_a_prompt_without_tokens_is_refused(llama, make_batch):
    with pytest.raises(ValueError, match="prompt without tokens"):
        llama(dataclasses.replace(make_batch(1), prompt_ids=((),)), Needs())


@pytest.mark.parametrize(("multiplier", "known"), [(1.0, True), (1.1, False)])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_chunked_head_is_told_from_rounding_in_bf16(multiplier, known, autocast, make_llama, make_batch, caplog):
    """Logits of about 30, as real models have, are multiples of ⅛ in bf16; a scale that is off by a tenth is no rounding."""
    model = make_llama(hidden_size=64, num_hidden_layers=4, initializer_range=0.2)
    with torch.no_grad():
        model.lm_head.weight.mul_(30 / model(torch.tensor([[5, 6, 7, 8]])).logits.abs().max())
    policy = Policy(model.to(torch.float32 if autocast else torch.bfloat16))
    policy.causal.config.logit_scale = multiplier  # what the head reads, and Llama does not
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        policy(make_batch(4), Needs())
    assert (policy._head is not None) == known, caplog.text
