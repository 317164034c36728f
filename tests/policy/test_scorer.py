import dataclasses

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from prefopt import Needs, PrefoptError
from prefopt.policy import Scorer, load_policy, load_scorer, load_tokenizer
from prefopt.recipe import Adapter
from prefopt.recipe import Policy as Spec

REWARDS = Needs(rewards=True)
KINDS = {
    "Llama": {"pad_token_id": 0},  # as most do: padding is EOS
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0},
    "GPTNeoX": {"pad_token_id": 0},
    "Bert": {"pad_token_id": 1},
    "ModernBert": {"pad_token_id": 1},
}
DECODERS = ("Llama", "GPT2", "GPTNeoX")


@pytest.fixture
def make_scorer(tiny):
    def make(name):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**tiny | KINDS[name] | {"num_labels": 1})
        model = AutoModelForSequenceClassification.from_config(config).double().eval()
        torch.nn.init.normal_((model.score if hasattr(model, "score") else model.classifier).weight)
        return Scorer(model)

    return make


def ending_with_eos(batch):
    ids = batch.completion_ids.clone()
    last = batch.mask.int().cumsum(-1) * batch.mask
    ids[last == last.max(-1, keepdim=True).values.clamp(min=1)] = 0
    return dataclasses.replace(batch, completion_ids=ids)


@pytest.mark.parametrize("padding", [None, 0, 1], ids=["no padding", "padding is EOS", "padding of its own"])
@pytest.mark.parametrize("name", KINDS)
def test_reward_is_the_models_own_of_the_row_alone(name, padding, make_scorer, make_batch):
    scorer, batch = make_scorer(name), ending_with_eos(make_batch(4, 3, absent=[(1, 1)]))
    if padding is not None or name in DECODERS:
        scorer.model.config.pad_token_id = padding
    with torch.no_grad():
        rewards = scorer(batch, REWARDS).rewards
        for b, k in batch.present.nonzero().tolist():
            completion = batch.completion_ids[b, k][batch.mask[b, k]].tolist()
            assert completion[-1] == 0
            row = torch.tensor([[*batch.prompt_ids[b], *completion]])
            expected = scorer.model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, 0]
            torch.testing.assert_close(rewards[b, k], expected, rtol=0, atol=1e-9)
    assert rewards[1, 1] == 0
    assert rewards.dtype == torch.float64
    assert rewards.std() > 0.1


@pytest.mark.parametrize("name", KINDS)
def test_padding_and_companions_change_nothing(name, make_scorer, make_batch):
    scorer, batch = make_scorer(name), ending_with_eos(make_batch(4, 3, absent=[(1, 1)]))
    wide = dataclasses.replace(
        batch,
        completion_ids=torch.nn.functional.pad(batch.completion_ids, (0, 5), value=7),
        mask=torch.nn.functional.pad(batch.mask, (0, 5)),
    )
    with torch.no_grad():
        together = scorer(batch, REWARDS).rewards
        torch.testing.assert_close(scorer(wide, REWARDS).rewards, together, rtol=0, atol=1e-12)
        for row in range(4):
            alone = scorer(batch.rows(slice(row, row + 1)), REWARDS).rewards[0]
            torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-12)


def test_no_completion_at_all(make_scorer, make_batch):
    outputs = make_scorer("Llama")(make_batch(1, 2, absent=[(0, 0), (0, 1)]), REWARDS)
    assert outputs.rewards.tolist() == [[0, 0]]


def test_refuses_what_a_scorer_cannot_say(make_scorer, make_batch):
    with pytest.raises(PrefoptError, match="log-probs"):
        make_scorer("Llama")(make_batch(), Needs(reference=True))


def test_a_missing_head_is_drawn_from_the_seed_alone(lm_folder, tokenizer):
    spec = Spec(model=str(lm_folder))
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = load_scorer(spec, tokenizer, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = load_scorer(spec, tokenizer, seed=5), load_scorer(spec, tokenizer, seed=6)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, other.state_dict()[name]) == ("score" not in name)


@pytest.mark.parametrize("merged", [False, True])
def test_lora_scorer_trains_its_head_and_reloads(merged, lm_folder, tokenizer, make_batch, tmp_path):
    spec = Spec(model=str(lm_folder), dtype="float64", adapter=Adapter(r=2, alpha=4))
    scorer, batch = load_scorer(spec, tokenizer, seed=5), make_batch()
    start = scorer(batch, REWARDS).rewards
    trained = {name for name, p in scorer.named_parameters() if p.requires_grad}
    assert any("lora" in name for name in trained)
    assert any("score" in name for name in trained)
    assert all("lora" in name or "score" in name for name in trained)
    optimiser = torch.optim.SGD([p for p in scorer.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        scorer(batch, REWARDS).rewards.sum().backward()
        optimiser.step()
    moved = scorer(batch, REWARDS).rewards
    assert (moved - start).abs().min() > 1e-3
    scorer.save(tmp_path / "scorer" / "policy")
    again = Spec(model=str(tmp_path / "scorer"), dtype="float64", adapter=Adapter(r=2) if merged else None)
    reloaded = load_scorer(again, load_tokenizer(again), seed=9)
    torch.testing.assert_close(reloaded(batch, REWARDS).rewards, moved, rtol=0, atol=1e-6)


def test_a_classifier_of_more_classes_is_refused(tiny, tokenizer, tmp_path):
    config = transformers.LlamaConfig(**tiny, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(PrefoptError, match="3 outputs"):
        load_scorer(Spec(model=str(tmp_path)), tokenizer, seed=0)


def test_a_scorer_is_no_policy(lm_folder, tokenizer, make_batch):
    with pytest.raises(PrefoptError, match="scorer"):
        load_policy(Spec(model=str(lm_folder)), tokenizer, seed=0)(make_batch(), REWARDS)


@pytest.mark.parametrize("name", DECODERS)
def test_packed_rows_teach_the_same(name, make_scorer, make_batch, gradients):
    """A prompt that is read once for its completions, against a row for each."""
    batch = ending_with_eos(make_batch(4, 3, absent=[(1, 1)]))
    taught = []
    for packs in (True, False):
        scorer = make_scorer(name)
        scorer(batch, REWARDS)
        assert (
            scorer._prefix_sharing.packs and scorer._prefix_sharing.shares
        )  # else plain rows would be compared with themselves
        scorer._prefix_sharing.shares = packs
        rewards = scorer(batch, REWARDS).rewards
        taught.append(gradients(scorer, (rewards * torch.arange(12.0).view(4, 3)).sum()))
    assert (taught[0] - taught[1]).norm() < 1e-6 * taught[1].norm()  # norms are taken in fp32
