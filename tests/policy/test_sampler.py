from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from transformers import AutoModelForCausalLM, GenerationConfig

from prefopt import Batch, Needs
from prefopt.policy import Policy, Reference, TransformersSampler, load_policy
from prefopt.policy.decode.ends import end_tokens
from prefopt.policy.decode.noise import BLOCK, GOLDEN, gumbel, mix, row_keys, sampled_tokens
from prefopt.policy.decode.sampler import Mixture, is_stateful
from prefopt.recipe import Adapter, Sampling
from prefopt.recipe import Policy as Spec
from prefopt.support.errors import PrefoptError

PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12, 13), (5, 6), (8,)]
SEEDS = torch.tensor([11, 22, 33, 44, 55])


def texts(sampled):
    return [
        [ids[mask].tolist() for ids, mask in zip(row, masks, strict=True)]
        for row, masks in zip(sampled.completion_ids, sampled.mask, strict=True)
    ]


@pytest.fixture
def draw(llama):
    def run(prompts=PROMPTS, completions=3, seeds=SEEDS, batch_size=128, model=llama, **settings):
        settings = Sampling(**{"max_tokens": 8} | settings)
        return TransformersSampler(batch_size)(model, prompts, completions, settings, seeds)

    return run


def test_hash_is_splitmix64():
    """The first numbers of splitmix64 from seed 1234567, as published with its reference implementation."""
    state = torch.tensor(1234567) + torch.arange(1, 6) * GOLDEN
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [x % 2**64 for x in mix(state).tolist()] == expected


def test_noise_is_gumbel_and_independent():
    numbers = torch.arange(-100, 400)
    noise = np.stack([gumbel(torch.arange(40), position, numbers).numpy() for position in range(10)])  # [10, 40, 500]
    assert stats.kstest(noise.ravel(), "gumbel_r").pvalue > 0.01
    for axis in range(3):  # neighbours in position, key and token
        a = np.moveaxis(noise, axis, 0)
        assert abs(np.corrcoef(a[1:].ravel(), a[:-1].ravel())[0, 1]) < 0.01
    assert len(np.unique(noise)) == noise.size


@pytest.mark.parametrize("vocabulary", [7, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
def test_two_levels_of_noise_draw_from_the_softmax(vocabulary):
    draw = torch.Generator().manual_seed(vocabulary)
    scores = 2 * torch.randn(vocabulary, generator=draw)
    scores[1::3] = -torch.inf
    count = 10_000
    tokens, normaliser = sampled_tokens(scores.expand(count, -1), row_keys(torch.arange(count), 1), 5)
    torch.testing.assert_close(normaliser, scores.logsumexp(-1).expand(count))
    expected = count * scores.double().softmax(-1).numpy()
    found = np.bincount(tokens.numpy(), minlength=vocabulary)
    assert found[scores.isinf().numpy()].sum() == 0
    often = expected > 10
    observed, awaited = np.append(found[often], found[~often].sum()), np.append(expected[often], expected[~often].sum())
    assert stats.chisquare(observed[awaited > 0], awaited[awaited > 0]).pvalue > 0.01


def test_improbable_tokens_keep_their_share():
    """2¹⁵ tokens that share 2⁻⁷ between them: 2⁻²² each, which single precision would round away if it were cumulated."""
    count, rows = 2**15, 2000
    scores = torch.zeros(1, count + 1)
    scores[0, 0] = np.log(2**22 - count)
    hits = sum(
        int((sampled_tokens(scores.expand(500, -1), torch.arange(500), p)[0] > 0).sum()) for p in range(rows // 500)
    )
    assert stats.binomtest(hits, rows, count / 2**22).pvalue > 0.01


def test_broken_scores_draw_some_token():
    tokens, _ = sampled_tokens(torch.full((2, BLOCK + 1), torch.nan), torch.arange(2), 0)
    assert ((tokens >= 0) & (tokens <= BLOCK)).all()


def test_two_models_with_the_same_noise_mostly_agree():
    """By as much as Gumbel noise lets them: they differ with probability 2·TV / (1 + TV) at most, once for each level."""
    draw = torch.Generator().manual_seed(0)
    first = 3 * torch.randn(2000, 2 * BLOCK, generator=draw)
    second = first + 0.1 * torch.randn(2000, 2 * BLOCK, generator=draw)
    keys = row_keys(torch.arange(2000), 1)
    differ = (sampled_tokens(first, keys, 0)[0] != sampled_tokens(second, keys, 0)[0]).double().mean()
    distance = (first.softmax(-1) - second.softmax(-1)).abs().sum(-1) / 2
    assert 0 < differ < 2 * (2 * distance / (1 + distance)).mean()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (0.7, 4, 1.0), (0.7, 0, 0.8), (2.0, 5, 0.9)]
)
def test_samples_follow_the_softmax(temperature, top_k, top_p, make_llama):
    count, prompt = 4000, (5, 3, 4)
    policy = Policy(make_llama(vocab_size=8, initializer_range=0.2), SimpleNamespace(eos_token_id=0))
    every = Batch((prompt,), torch.arange(8).view(1, 8, 1), torch.ones(1, 8, 1, dtype=torch.bool))
    with torch.no_grad():
        logps = policy(every, Needs()).sum()[0] / temperature
    allowed = torch.ones(8, dtype=torch.bool)
    if top_k:
        allowed &= logps >= logps.sort(descending=True).values[top_k - 1]
    ranked = logps.masked_fill(~allowed, -torch.inf).softmax(0).sort(descending=True)
    nucleus = ranked.values.cumsum(0) - ranked.values < top_p  # up to the token that passes it
    allowed &= torch.zeros(8, dtype=torch.bool).scatter(0, ranked.indices, nucleus)
    expected = logps.masked_fill(~allowed, -torch.inf).softmax(0)
    settings = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=1)
    seeds = torch.arange(20) * 1000  # 200 completions from each
    sampled = TransformersSampler(batch_size=2000)(policy, [prompt] * 20, count // 20, settings, seeds)
    found = sampled.completion_ids.flatten().bincount(minlength=8)
    assert (found[~allowed] == 0).all()
    assert 1 < allowed.sum() <= (top_k or 8)
    assert stats.chisquare(found[allowed].numpy(), (count * expected[allowed]).numpy()).pvalue > 0.01


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_completion_depends_on_its_row_alone(name, temperature, tiny, draw):
    torch.manual_seed(0)
    sizes = tiny | ({"n_embd": 16, "n_layer": 2, "n_head": 2} if name == "GPT2" else {})
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**sizes)).double()
    policy = Policy(model, SimpleNamespace(eos_token_id=0))
    together = texts(draw(model=policy, temperature=temperature))
    assert len({len(text) for row in together for text in row}) > 1 or temperature == 0
    for rows in (1, 2, 4):
        assert texts(draw(model=policy, temperature=temperature, batch_size=rows)) == together
    order = [3, 0, 4, 2, 1]
    moved = draw([PROMPTS[i] for i in order], seeds=SEEDS[order], model=policy, temperature=temperature)
    assert texts(moved) == [together[i] for i in order]
    for row, prompt in enumerate(PROMPTS):
        alone = texts(draw([prompt], seeds=SEEDS[row : row + 1], model=policy, temperature=temperature))[0]
        assert alone == together[row]
    fewer = texts(draw(completions=1, model=policy, temperature=temperature))
    assert fewer == [row[:1] for row in together]


def test_noise_is_a_function_of_seed_and_completion(draw):
    sampled = texts(draw())
    assert texts(draw()) == sampled
    torch.manual_seed(99)  # the global state has no say
    assert texts(draw()) == sampled
    assert all(len({tuple(text) for text in row}) == 3 for row in sampled)
    assert sampled[1] != sampled[4]  # one prompt, two seeds
    same = texts(draw([(8,), (8,)], seeds=torch.tensor([22, 22])))
    assert same[0] == same[1] == sampled[1]


def test_greedy_takes_the_likeliest(llama, draw):
    sampled = draw(completions=2, temperature=0.0)
    for prompt, (first, second) in zip(PROMPTS, texts(sampled), strict=True):
        assert first == second
        row = list(prompt)
        for token in first:
            assert llama.model(input_ids=torch.tensor([row])).logits[0, -1].argmax() == token
            row.append(token)


def test_end_is_kept_once_and_nothing_follows(llama, draw):
    llama.causal.generation_config = GenerationConfig(eos_token_id=[3, 4])
    assert end_tokens(llama) == [0, 3, 4]
    sampled = draw(completions=40, max_tokens=12)
    seen = set()
    for row in texts(sampled):
        for text in row:
            assert 1 <= len(text) <= 12
            assert not {0, 3, 4} & set(text[:-1])
            seen.add(text[-1] if text[-1] in (0, 3, 4) else None)
            assert text[-1] in (0, 3, 4) or len(text) == 12
    assert seen == {0, 3, 4, None}
    assert (sampled.mask.int().diff(dim=-1) <= 0).all()  # right-padded
    assert sampled.completion_ids[~sampled.mask].eq(0).all()


def test_a_tokenizer_without_eos_samples_to_the_end(make_llama, draw):
    policy = Policy(make_llama(eos_token_id=None), SimpleNamespace(eos_token_id=None))
    policy.causal.generation_config = GenerationConfig()
    assert draw(model=policy, completions=1, max_tokens=5).mask.sum() == 5 * len(PROMPTS)


def test_the_models_own_settings_stay_out(llama, draw):
    plain, greedy = texts(draw()), texts(draw(temperature=0.0))
    own = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_k=1,
        repetition_penalty=1.3,
        no_repeat_ngram_size=1,
        min_new_tokens=8,
        bad_words_ids=[[9]],
        max_length=4,
    )
    llama.causal.generation_config = own
    assert texts(draw()) == plain
    assert texts(draw(temperature=0.0)) == greedy
    assert llama.causal.generation_config is own


def test_the_policy_is_left_as_it_was(llama, draw, monkeypatch):
    llama.train()
    draw(completions=1)
    assert llama.training
    assert llama.model.training
    monkeypatch.setattr(llama.causal.model, "forward", lambda **_: 1 / 0)
    own = llama.causal.generation_config
    with pytest.raises(ZeroDivisionError):
        draw(completions=1)
    assert llama.training
    assert llama.causal.generation_config is own


def test_log_probs_are_the_policys_at_the_temperature_before_truncation(llama, draw):
    for settings in ({}, {"temperature": 0.7, "top_k": 3}, {"temperature": 0.0}):
        sampled = draw(**settings)
        temperature = torch.full((len(PROMPTS),), settings.get("temperature") or 1.0)
        batch = Batch(tuple(PROMPTS), sampled.completion_ids, sampled.mask, columns={"temperature": temperature})
        with torch.no_grad():
            expected = llama(batch, Needs()).logps
        torch.testing.assert_close(sampled.logps.double(), expected, atol=1e-5, rtol=0)


def test_prompts_are_read_once_and_finished_rows_leave(llama, draw, monkeypatch):
    draw(completions=4, max_tokens=2)  # shared prompts are compared with copies once
    read, forward = [], llama.causal.model.forward

    def counted(**inputs):
        read.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    monkeypatch.setattr(llama.causal.model, "forward", counted)
    lengths = draw(completions=4, max_tokens=20).mask.sum(-1).flatten()
    assert read[0] == (len(PROMPTS), max(map(len, PROMPTS)))
    held = [rows for rows, _ in read[1:]]
    assert held == sorted(held, reverse=True)
    assert held[0] == 4 * len(PROMPTS) > held[-1]
    for position, rows in enumerate(held, 1):  # at most an eighth are finished and still there
        assert (lengths > position).sum() <= rows <= max((lengths > position).sum() / (1 - 1 / 8), 1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixtures_are_geometric_token_by_token(share, make_llama):
    policy, other = (
        Policy(make_llama(seed, vocab_size=8, initializer_range=0.2), SimpleNamespace(eos_token_id=0))
        for seed in (0, 1)
    )
    every = Batch(((5, 3),), torch.arange(8).view(1, 8, 1), torch.ones(1, 8, 1, dtype=torch.bool))
    with torch.no_grad():
        mine, theirs = (model(every, Needs()).sum()[0] for model in (policy, other))
    expected = ((1 - share) * mine + share * theirs).softmax(0)
    mixture = Mixture(policy, Reference(other), share)
    sampled = TransformersSampler(batch_size=2000)(
        mixture, [(5, 3)] * 20, 200, Sampling(max_tokens=1), torch.arange(20) * 1000
    )
    found = sampled.completion_ids.flatten().bincount(minlength=8)
    assert stats.chisquare(found.numpy(), (4000 * expected).numpy()).pvalue > 0.01
    assert torch.allclose(sampled.logps.exp().double(), expected[sampled.completion_ids], atol=1e-6)


def test_stop_ends_a_completion_and_must_be_one_token(llama, draw):
    stops = draw(completions=40, max_tokens=12, stop=("good", "bad"))
    ends = llama.tokenizer.convert_tokens_to_ids(["</s>", "good", "bad"])
    last = {text[-1] for row in texts(stops) for text in row if len(text) < 12}
    assert last == set(ends)
    assert not set(ends) & {token for row in texts(stops) for text in row for token in text[:-1]}
    with pytest.raises(PrefoptError, match="'not good' is 2 tokens"):
        draw(stop=("not good",))


def test_a_model_without_a_cache_of_keys_draws_by_generate(tokenizer, tiny):
    """Mamba's completions, too, depend on their row alone, and are what its own logits say with the row's noise."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=tiny["vocab_size"], hidden_size=16, state_size=4, num_hidden_layers=2, eos_token_id=0, pad_token_id=0
    )
    policy = Policy(AutoModelForCausalLM.from_config(config).double().eval(), tokenizer)
    assert is_stateful(policy)
    settings = Sampling(max_tokens=3)
    sampled = TransformersSampler()(policy, [(5, 6, 7)], 2, settings, SEEDS[:1])
    assert sampled.logps is None
    keys = row_keys(SEEDS[:1], 2)
    for k, text in enumerate(texts(sampled)[0]):
        row = [5, 6, 7]
        for position, token in enumerate(text):
            logits = policy.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
            assert sampled_tokens(logits[None], keys[k : k + 1], position)[0] == token
            row.append(token)


def test_an_adapter_is_switched_off_once_for_all_tokens(lm_folder, tokenizer, monkeypatch):
    """A reference under LoRA draws what the model draws without an adapter; a mixture switches for each."""
    spec = Spec(model=str(lm_folder), adapter=Adapter(r=2))
    policy, plain = load_policy(spec, tokenizer, 0), load_policy(Spec(model=str(lm_folder)), tokenizer, 0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_" in name:
                weight.fill_(0.5)
    switched, switch = [], type(policy.model).disable_adapter
    monkeypatch.setattr(type(policy.model), "disable_adapter", lambda model: switched.append(1) or switch(model))
    settings = Sampling(max_tokens=8)

    def draw(model):
        switched.clear()
        return texts(TransformersSampler()(model, PROMPTS, 3, settings, SEEDS))

    assert draw(Reference(policy)) == draw(plain) != draw(policy)
    assert draw(Mixture(policy, Reference(policy), 1.0)) == draw(plain)
    assert draw(Mixture(policy, Reference(policy), 0.0)) == draw(policy)
    draw(Reference(policy))
    assert len(switched) == 1
