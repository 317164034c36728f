"""What a reference has said of recorded data is not computed again, by whomever, and is what it would say."""

import dataclasses
import json

import pytest
import torch
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import Batch, Needs, load_recipe, run
from prefopt.policy import Reference, load_policy, make_reference
from prefopt.policy.logp_cache import entry_keys
from prefopt.recipe import Adapter
from prefopt.recipe import Policy as Spec
from prefopt.recipe import Reference as ReferenceSpec
from prefopt.support.caches import cache_folder
from prefopt.support.disk_store import segments
from prefopt.types import ORIGINS

ROUNDING = {"rtol": 0, "atol": 5e-6}  # prompts that are computed with other companions
NEEDS = Needs(reference=True)
KINDS = {"full": None, "LoRA": Adapter(r=2, alpha=4)}


@pytest.fixture
def make(lm_folder, tokenizer):
    """A new reference, as another run would make it, whose forward passes are counted: `reference.policy.passes`."""

    def build(kind="full", dtype="float32", change=0.0, **reference):
        spec = Spec(model=str(lm_folder), dtype=dtype, adapter=KINDS[kind])
        policy = load_policy(spec, tokenizer, seed=0)
        with torch.no_grad():
            policy.causal.lm_head.weight[0, 0] += change
        made = make_reference(policy, ReferenceSpec(**reference), spec)
        made.policy.passes = 0

        def count(module, inputs):
            module.passes += int(inputs[0].present.sum())

        made.policy.register_forward_pre_hook(count)
        return made

    return build


def live(reference, batch):
    """What it says without a cache."""
    passes = reference.policy.passes
    said = Reference(reference.policy)(batch, NEEDS).logps
    reference.policy.passes = passes
    return said


def padded(batch, more):
    wide = torch.nn.functional.pad(batch.completion_ids, (0, more), value=7)  # what is behind the mask does not matter
    return dataclasses.replace(batch, completion_ids=wide, mask=torch.nn.functional.pad(batch.mask, (0, more)))


def test_the_second_time_nothing_is_computed(make, make_batch):
    batch = make_batch(4, completions=3, absent=[(1, 2), (2, 0)], holes=True)
    first, second = make(), make()
    said = first(batch, NEEDS)
    assert torch.equal(said.logps, live(first, batch))
    assert first.policy.passes == batch.present.sum() == 10
    found = second(batch, NEEDS)
    assert second.policy.passes == 0 and (second.cache.served, second.cache.computed) == (10, 0)
    assert torch.equal(found.logps, said.logps) and torch.equal(found.mask, batch.mask)


def test_batches_padding_and_the_number_of_completions_have_no_say(make, make_batch):
    batch = make_batch(5, completions=3, holes=True)
    make()(batch, NEEDS)
    reference = make()
    few = batch.rows(torch.tensor([3, 0]))
    narrow = Batch(few.prompt_ids, few.completion_ids[:, 2:], few.mask[:, 2:])
    for other in (few, narrow, few.first(1), padded(few, 4)):
        torch.testing.assert_close(reference(other, NEEDS).logps, live(reference, other), **ROUNDING)
    assert reference.policy.passes == 0


def test_only_what_is_missing_is_computed(make, make_batch):
    batch = make_batch(6, completions=3)
    make()(batch.rows(slice(0, 3)).first(2), NEEDS)
    reference = make()
    said = reference(batch, NEEDS)
    torch.testing.assert_close(said.logps, live(reference, batch), **ROUNDING)
    assert reference.policy.passes == 18 - 6 == reference.cache.computed


def test_two_runs_at_once_read_each_other(make, make_batch):
    batch = make_batch(4)
    first, second = make(), make()
    for row in range(4):
        one, other = (first, second) if row % 2 else (second, first)
        one(batch.rows(slice(row, row + 1)), NEEDS)
        other(batch.rows(slice(0, row + 1)), NEEDS)
    assert first.policy.passes + second.policy.passes == 8


def test_whose_base_is_the_same_shares(make, make_batch):
    batch = make_batch()
    make("full")(batch, NEEDS)
    adapted = make("LoRA")
    with torch.no_grad():
        for name, weight in adapted.policy.named_parameters():
            if "lora_" in name:
                weight.fill_(0.3)
    torch.testing.assert_close(adapted(batch, NEEDS).logps, live(adapted, batch), **ROUNDING)
    assert adapted.policy.passes == 0


@pytest.mark.parametrize("other", [{"change": 1e-6}, {"dtype": "bfloat16"}], ids=["weights", "dtype"])
def test_another_model_does_not(other, make, make_batch):
    batch = make_batch()
    make()(batch, NEEDS)
    different = make(**other)
    different(batch, NEEDS)
    assert different.cache.served == 0
    again = make(**other)
    torch.testing.assert_close(again(batch, NEEDS).logps, live(different, batch), **ROUNDING)
    assert again.policy.passes == 0


def test_precisions_are_apart(make, make_batch):
    batch, reference = make_batch(), make()
    exact = reference(batch, NEEDS).logps
    with torch.autocast("cpu", torch.bfloat16):
        rough = reference(batch, NEEDS).logps
        assert reference.cache.served == 0
        assert torch.equal(make()(batch, NEEDS).logps, rough)
    assert not torch.equal(exact, rough)
    assert torch.equal(make()(batch, NEEDS).logps, exact)


def test_temperatures_are_apart(make, make_batch):
    batch, reference = make_batch(), make()
    reference(batch, NEEDS)
    hot = dataclasses.replace(batch, columns={"temperature": torch.tensor([1.0, 2.0, 2.0])})
    said = reference(hot, NEEDS).logps
    assert reference.cache.served == 2  # of the row at 1
    torch.testing.assert_close(said, live(reference, hot), **ROUNDING)


def test_keys_tell_everything_apart():
    def key(prompt, ids, mask, prefix=b"", **columns):
        batch = Batch((prompt,), torch.tensor([[ids]]), torch.tensor([[mask]], dtype=torch.bool), columns=columns)
        keys, lengths = entry_keys(batch, prefix)
        return keys.tobytes(), lengths.item()

    plain = key((1, 2), [3, 4], [1, 1])
    assert plain == key((1, 2), [3, 4, 9], [1, 1, 0]) == key((1, 2), [3, 4], [1, 1], temperature=torch.ones(1))
    others = [
        key((1,), [2, 3, 4], [1, 1, 1]),
        key((1, 2, 3), [4, 0], [1, 0]),
        key((1, 2), [3, 4], [0, 1]),
        key((1, 2), [3, 4], [1, 0]),
        key((1, 2), [3, 5], [1, 1]),
        key((2, 2), [3, 4], [1, 1]),
        key((1, 2), [3, 4], [1, 1], b"other model"),
        key((1, 2), [3, 4], [1, 1], temperature=torch.full((1,), 0.5)),
    ]
    assert len({plain, *others}) == len(others) + 1
    assert plain[1] == 2


def test_who_keeps_nothing(make, make_batch):
    batch = make_batch()
    assert make(cache=False).cache is None
    assert make(dtype="float64").cache is None
    moving = make(every=2)
    moving(batch, NEEDS)
    reference = make()
    reference(batch, Needs(reference=True, statistics=frozenset({"entropy"})))
    written = torch.full((3, 2), ORIGINS.index("policy"))
    reference(dataclasses.replace(batch, columns={"origin": written}), NEEDS)
    assert not cache_folder("logps").exists()
    of_data = torch.tensor([[ORIGINS.index("dataset"), ORIGINS.index("mismatched")]] * 3)
    reference(dataclasses.replace(batch, columns={"origin": of_data}), Needs(statistics=frozenset({"kl_ref_policy"})))
    assert reference.cache.computed == 6  # the KL is the policy's to say, beside the live reference


def test_what_is_damaged_is_computed_again(make, make_batch, caplog):
    batch = make_batch()
    make()(batch, NEEDS)
    (folder,) = cache_folder("logps").iterdir()
    (file,) = segments(folder)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    reference = make()
    assert torch.equal(reference(batch, NEEDS).logps, live(reference, batch))
    assert (reference.cache.served, reference.cache.computed) == (5, 1)
    assert "is damaged" in caplog.text
    assert (
        make()(batch, NEEDS) is not None
        and json.loads((folder / "model.json").read_text())["class"] == "LlamaForCausalLM"
    )


def test_numbers_that_are_none_are_not_kept(make, make_batch):
    reference = make()
    with torch.no_grad():
        reference.policy.causal.lm_head.weight.fill_(torch.nan)
    assert reference(make_batch(), NEEDS).logps.isnan().any()
    assert not segments(next(cache_folder("logps").iterdir()))


def test_a_study_computes_its_reference_once(tmp_path, monkeypatch):
    """Another objective, β, seed, adapter and micro-batch: the second run asks the reference for nothing of the data."""
    model, data = tiny_model(tmp_path / "model"), tiny_pairs(tmp_path / "pairs.jsonl")
    file = tiny_recipe(tmp_path, model, data, train="{epochs: 1, batch_size: 8, lr: 1e-3, threads: 1}")
    asked, forward = [], Reference._compute

    def counted(self, batch, needs):
        if "origin" not in batch.columns:  # evaluation also asks of samples
            asked.append(int(batch.present.sum()))
        return forward(self, batch, needs)

    monkeypatch.setattr(Reference, "_compute", counted)

    def losses(name, *overrides):
        asked.clear()
        folder = run(load_recipe(file, overrides), folder=tmp_path / name).folder
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    first = losses("first")
    assert sum(asked) == 2 * (32 + 4)  # both completions of each pair: trained on, and tested on
    assert losses("same") == first
    assert asked == []
    other = "objective={name: IPO, tau: 0.3}", "seeds.order=7", "train.micro_batch_size=3", "policy.adapter={r: 2}"
    losses("other", *other)
    assert asked in ([], [2])  # the pair of 33 that the first order left over
    live = losses("live", "reference.cache=false")
    assert live == pytest.approx(first, abs=1e-6)
    assert sum(asked) == 2 * (32 + 4)
