"""A scorer of steps: the number of a token is the model's own of the text that ends there, and completions are sums over steps."""

import dataclasses

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from prefopt import Needs, PrefoptError
from prefopt.policy import Reading, Scorer, load_scorer, load_tokenizer, reading_of
from prefopt.policy.loading import check_policy
from prefopt.recipe import Adapter
from prefopt.recipe import Policy as Spec

REWARDS = Needs(rewards=True)
DECODERS = {"Llama": {}, "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2}, "GPTNeoX": {}}


@pytest.fixture
def make_scorer(tiny):
    def make(name, steps="reward"):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(
            **tiny | {"pad_token_id": 0, "num_labels": 1} | DECODERS.get(name, {})
        )
        model = AutoModelForSequenceClassification.from_config(config).double().eval()
        torch.nn.init.normal_((model.score if hasattr(model, "score") else model.classifier).weight)
        return Scorer(model, reading=Reading(steps=steps))

    return make


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_the_number_of_a_token_is_the_models_own_of_the_text_that_ends_there(name, holes, make_scorer, make_batch):
    scorer, batch = make_scorer(name), make_batch(4, 3, holes=holes, absent=[(1, 1)])
    with torch.no_grad():
        steps = scorer(batch, REWARDS).step_rewards
        for b, k, t in batch.mask.nonzero().tolist():
            row = torch.tensor([[*batch.prompt_ids[b], *batch.completion_ids[b, k, : t + 1].tolist()]])
            expected = scorer.model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, 0]
            torch.testing.assert_close(steps[b, k, t], expected, rtol=0, atol=1e-9)
    assert (steps[~batch.mask] == 0).all() and steps[batch.mask].std() > 0.1


def test_a_completions_reward_is_the_sum_over_its_steps(make_scorer, make_batch):
    """Of rewards, or of log-probabilities that a step is right; an absent completion has 0."""
    batch = make_batch(3, 2, holes=True, absent=[(1, 0)])
    outputs = {kind: make_scorer("Llama", kind)(batch, REWARDS) for kind in ("reward", "logit")}
    numbers = outputs["reward"].step_rewards
    assert torch.equal(numbers, outputs["logit"].step_rewards)
    for b, k in batch.present.nonzero().tolist():
        at = [t for t in range(6) if batch.mask[b, k, t] and (t == 5 or not batch.mask[b, k, t + 1])]
        assert len(at) == (1 if batch.mask[b, k].sum() < 3 and batch.lengths[b, k] < 3 else 2)
        torch.testing.assert_close(outputs["reward"].rewards[b, k], numbers[b, k, at].sum())
        torch.testing.assert_close(outputs["logit"].rewards[b, k], numbers[b, k, at].sigmoid().log().sum())
    assert outputs["reward"].rewards[1, 0] == 0


def test_steps_of_the_data_take_the_place_of_turns(make_scorer, make_batch):
    batch = make_batch(2, 2)
    ends = torch.zeros_like(batch.mask)
    ends[..., [0, 1]] = True
    outputs = make_scorer("Llama")(dataclasses.replace(batch, columns={"step_ends": ends}), REWARDS)
    torch.testing.assert_close(outputs.rewards, outputs.step_rewards[..., :2].sum(-1))


def test_padding_and_companions_change_nothing(make_scorer, make_batch):
    scorer, batch = make_scorer("Llama"), make_batch(4, 3, holes=True, absent=[(1, 1)])
    with torch.no_grad():
        together, wide = scorer(batch, REWARDS), scorer(batch.padded(4), REWARDS)
        torch.testing.assert_close(wide.step_rewards[..., :6], together.step_rewards, rtol=0, atol=1e-12)
        torch.testing.assert_close(wide.rewards, together.rewards, rtol=0, atol=1e-12)
        for row in range(4):
            alone = scorer(batch.rows(slice(row, row + 1)), REWARDS)
            torch.testing.assert_close(alone.step_rewards[0], together.step_rewards[row], rtol=0, atol=1e-12)


def test_no_completion_at_all(make_scorer, make_batch):
    outputs = make_scorer("Llama")(make_batch(1, 2, absent=[(0, 0), (0, 1)]), REWARDS)
    assert outputs.rewards.tolist() == [[0, 0]] and not outputs.step_rewards.any()


@pytest.mark.parametrize("adapter", [None, Adapter(r=2)], ids=["full", "lora"])
def test_a_saved_scorer_knows_what_it_is(adapter, lm_folder, tokenizer, make_batch, tmp_path):
    spec = Spec(model=str(lm_folder), dtype="float64", adapter=adapter)
    reading = Reading(20, 30, steps="logit", separator="\n")
    scorer, batch = load_scorer(spec, tokenizer, seed=5, reading=reading), make_batch()
    expected = scorer(batch, REWARDS)
    assert expected.step_rewards.abs().max() > 0
    scorer.save(tmp_path / "policy")
    assert reading_of(str(tmp_path / "policy")) == reading
    again = Spec(model=str(tmp_path / "policy"), dtype="float64")
    reloaded = load_scorer(again, load_tokenizer(again), seed=9, trained=True)
    torch.testing.assert_close(reloaded(batch, REWARDS).step_rewards, expected.step_rewards, rtol=0, atol=1e-6)
    whole = load_scorer(again, load_tokenizer(again), seed=9, reading=Reading(20, 30))  # trained on as another kind
    assert whole(batch, REWARDS).step_rewards is None


def test_an_encoder_is_refused_by_its_configuration(tiny, tokenizer, tmp_path, make_scorer, make_batch):
    make_scorer("Bert").model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(PrefoptError, match=r"is no decoder.*name a decoder.*BradleyTerry"):
        check_policy(Spec(model=str(tmp_path)), scorer=True, steps=True)
    with pytest.raises(PrefoptError, match="no decoder"):
        make_scorer("Bert")(make_batch(), REWARDS)
    check_policy(Spec(model=str(tmp_path)), scorer=True)
