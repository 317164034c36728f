"""Embeddings of prompts: which tokens are read, how states are pooled, and that no prompt is embedded twice."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save
from transformers import AutoModel, BertConfig, BertModel, T5Config, T5EncoderModel, T5ForConditionalGeneration

from prefopt import recipe
from prefopt.data import Example, collate, tokenise
from prefopt.policy import load_tokenizer
from prefopt.policy.encoder import Encoder, embedded, load_encoder, plain_text
from prefopt.support.caches import cache_folder
from prefopt.support.disk_store import segments
from prefopt.support.errors import PrefoptError

PROMPTS = ["the film was", "a room", "the film was", "the view is very good", "food"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory, tokenizer):
    """A random BERT that reads words."""
    folder = tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=30,
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
            initializer_range=0.5,
        )
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tokenizer):
    return tokenise([Example(text, (" good",)) for text in PROMPTS], tokenizer)[0]


@pytest.fixture
def policy_spec(lm_folder):
    return recipe.Policy(model=(str(lm_folder),), dtype="float64")


@pytest.fixture
def encoder(encoder_folder, policy_spec):
    return load_encoder(recipe.Embeddings(model=(str(encoder_folder),), batch_size=2), policy_spec)


@pytest.fixture
def reads(encoder):
    """The prompts of each forward pass."""
    seen: list[list[tuple[int, ...]]] = []

    def note(module, arguments, more):
        ids, mask = more["input_ids"], more["attention_mask"].bool()
        seen.append([tuple(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True)])

    handle = encoder.model.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


def vectors(rows):
    return torch.stack([torch.tensor(row.columns["embeddings"]) for row in rows])


def test_mean_pooling_without_padding_by_hand(encoder, encoder_folder, rows, tokenizer, tmp_path):
    model = AutoModel.from_pretrained(encoder_folder).eval()
    found = vectors(embedded(rows, encoder, tmp_path))
    with torch.no_grad():
        for text, vector in zip(PROMPTS, found, strict=True):
            mean = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0)
            torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32


def test_each_distinct_prompt_is_read_once_and_shared(encoder, reads, rows, tokenizer, tmp_path):
    found = embedded(rows, encoder, tmp_path)
    assert sorted(ids for part in reads for ids in part) == sorted(
        tuple(ids) for ids in tokenizer(sorted(set(PROMPTS)))["input_ids"]
    )
    assert [len(part) for part in reads] == [2, 2]
    assert torch.equal(vectors(found)[0], vectors(found)[2])
    assert not torch.equal(vectors(found)[0], vectors(found)[1])
    assert [dataclasses.replace(row, example=old.example) for row, old in zip(found, rows, strict=True)] == list(rows)
    assert "embeddings" not in rows[0].columns
    assert torch.equal(collate(found, ["embeddings"]).columns["embeddings"], vectors(found))


def test_what_is_on_disk_is_not_embedded_again(encoder, reads, rows, tmp_path):
    first = vectors(embedded(rows, encoder, tmp_path))
    reads.clear()
    again = embedded(list(reversed(rows)), encoder, tmp_path)  # the same prompts in another order
    assert torch.equal(vectors(again), first.flip(0))
    assert torch.equal(vectors(embedded(rows[3:], encoder, tmp_path)), first[3:])  # and some of them
    assert reads == []


def test_another_data_set_embeds_only_its_new_prompts(encoder, reads, rows, tokenizer, tmp_path):
    first = vectors(embedded(rows, encoder, tmp_path))
    reads.clear()
    texts = ["the food was very good", PROMPTS[3], "the room", PROMPTS[0]]
    other = tokenise([Example(text, (" good",)) for text in texts], tokenizer)[0]
    found = vectors(embedded(other, encoder, tmp_path))
    new = {tuple(tokenizer(text)["input_ids"]) for text in (texts[0], texts[2])}
    assert sorted(ids for part in reads for ids in part) == sorted(new)
    assert torch.equal(found[1], first[3]) and torch.equal(found[3], first[0])
    torch.testing.assert_close(found[[0, 2]], encoder(encoder.ids([other[0], other[2]])), rtol=0, atol=1e-6)


def test_with_an_empty_cache_vectors_are_those_of_all_prompts_together(encoder, rows, tmp_path):
    """To the last bit, whatever order prompts are in: how batches are padded decides how sums are rounded."""
    distinct = sorted(set(encoder.ids(rows)))
    expected = dict(zip(distinct, encoder(distinct), strict=True))
    for ids, vector in zip(encoder.ids(rows), vectors(embedded(rows, encoder, tmp_path)), strict=True):
        assert torch.equal(vector, expected[ids])


PROCESS = """
import sys
from prefopt import recipe
from prefopt.data import Example, tokenise
from prefopt.policy import load_tokenizer
from prefopt.policy.encoder import embedded, load_encoder
name, folder, start = sys.argv[1:]
texts = [f"{a} {b}" for a in ("good", "the film", "a room") for b in ("was", "is", "very good")]
rows = tokenise([Example(t, (" good",)) for t in texts[int(start):int(start) + 6]], load_tokenizer(recipe.Policy(model=name)))[0]
encoder = load_encoder(recipe.Embeddings(model=(name,), batch_size=2), recipe.Policy(model=name))
embedded(rows, encoder, __import__("pathlib").Path(folder))
"""


@pytest.mark.slow
def test_two_processes_write_at_once(encoder, encoder_folder, reads, tokenizer, tmp_path):
    arguments = [sys.executable, "-c", PROCESS, str(encoder_folder), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    both = [subprocess.Popen([*arguments, start], env=environment, stderr=subprocess.PIPE) for start in ("0", "3")]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()[-2000:]
    (folder,) = tmp_path.iterdir()
    assert 1 <= len(segments(folder)) <= 2  # a process that came late found some or all of what it wanted
    texts = [f"{a} {b}" for a in ("good", "the film", "a room") for b in ("was", "is", "very good")]
    rows = tokenise([Example(text, (" good",)) for text in texts], tokenizer)[0]
    found = vectors(embedded(rows, encoder, tmp_path))
    assert reads == []
    torch.testing.assert_close(found, encoder(encoder.ids(rows)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", ["weight", "dtype", "config"])
def test_another_encoder_does_not_find_it(change, encoder, reads, rows, tmp_path):
    before = vectors(embedded(rows, encoder, tmp_path))
    reads.clear()
    if change == "weight":
        with torch.no_grad():
            encoder.model.encoder.layer[1].output.dense.weight[0, 0] += 1.0
    elif change == "dtype":
        encoder.model.to(torch.bfloat16)
    else:
        encoder.model.config.num_attention_heads = 3
    after = vectors(embedded(rows, encoder, tmp_path))
    assert sum(map(len, reads)) == 4
    assert (change == "config") == torch.equal(before, after)


def test_a_damaged_vector_is_embedded_again(encoder, reads, rows, tmp_path, caplog):
    first = vectors(embedded(rows, encoder, tmp_path))
    (folder,) = tmp_path.iterdir()
    (file,) = segments(folder)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    reads.clear()
    torch.testing.assert_close(vectors(embedded(rows, encoder, tmp_path)), first, rtol=0, atol=1e-6)
    assert sum(map(len, reads)) == 1 and "damaged" in caplog.text
    reads.clear()
    embedded(rows, encoder, tmp_path)
    assert reads == []


def test_files_of_an_earlier_version_are_not_read(encoder, reads, rows, tmp_path):
    """They held the vectors of one set of prompts, in an order of their own."""
    (tmp_path / "0123abcd.safetensors").write_bytes(save({"embeddings": torch.zeros(4, 12)}))
    assert vectors(embedded(rows, encoder, tmp_path)).any(-1).all()
    assert sum(map(len, reads)) == 4


def test_vectors_that_are_no_numbers_are_not_stored(encoder, rows, tmp_path):
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight.fill_(torch.nan)
    assert vectors(embedded(rows, encoder, tmp_path)).isnan().all()
    (folder,) = tmp_path.iterdir()
    assert not segments(folder)


def test_a_folder_that_cannot_be_written_to_is_done_without(encoder, rows, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert vectors(embedded(rows, encoder, tmp_path / "file" / "below")).shape == (5, 12)
    assert "nothing is written" in caplog.text


def test_the_policy_reads_its_own_tokens(policy_spec, rows, lm_folder, tmp_path):
    encoder = load_encoder(recipe.Embeddings(batch_size=3), policy_spec)
    found = vectors(embedded(rows, encoder, tmp_path))
    model = AutoModel.from_pretrained(lm_folder, dtype=torch.float64).eval()
    with torch.no_grad():
        for row, vector in zip(rows, found, strict=True):
            mean = model(torch.tensor([row.prompt_ids])).last_hidden_state[0].mean(0)
            torch.testing.assert_close(vector.double(), mean / mean.norm(), rtol=1e-6, atol=1e-7)
    with_adapter = policy_spec.model_copy(update={"adapter": recipe.Adapter(r=2)})
    assert load_encoder(recipe.Embeddings(), with_adapter).fingerprint() == encoder.fingerprint()


def test_loading_leaves_the_random_state_alone_and_gives_the_same_weights(encoder_folder, policy_spec):
    """A pooling layer that is not in the file starts at random; it must change neither the run nor the key."""
    model = BertModel.from_pretrained(encoder_folder, add_pooling_layer=False)
    folder = encoder_folder / "without-pooling"
    model.save_pretrained(folder)
    load_tokenizer(recipe.Policy(model=(str(encoder_folder),))).save_pretrained(folder)
    spec, found = recipe.Embeddings(model=(str(folder),)), set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.add(load_encoder(spec, policy_spec).fingerprint())
        assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == 1


def test_an_encoder_decoder_embeds_by_its_encoder(tmp_path, tokenizer, rows, policy_spec):
    config = T5Config(
        vocab_size=30, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    encoder = load_encoder(recipe.Embeddings(model=(str(tmp_path / "t5"),)), policy_spec)
    found = vectors(embedded(rows, encoder, tmp_path / "kept"))
    with torch.no_grad():
        model = T5EncoderModel.from_pretrained(tmp_path / "t5").eval()
        mean = model(torch.tensor([tokenizer(PROMPTS[3])["input_ids"]])).last_hidden_state[0].mean(0)
    torch.testing.assert_close(found[3], mean / mean.norm(), rtol=1e-5, atol=1e-6)


def test_long_texts_lose_their_end(encoder, rows):
    short = dataclasses.replace(encoder, max_tokens=2)
    assert short.ids(rows) == [ids[:2] for ids in encoder.ids(rows)]
    assert any(len(ids) > 2 for ids in encoder.ids(rows))


def test_a_conversation_is_read_as_what_was_said():
    turns = (
        {"role": "system", "content": "be kind"},
        {"role": "tool", "content": None},
        {"role": "user", "content": "hi"},
    )
    assert plain_text(turns) == "be kind\nhi"
    assert plain_text("as it is") == "as it is"


def test_an_empty_prompt_has_an_embedding(encoder):
    found = Encoder(encoder.model)([(), (3, 4)])
    assert found.shape == (2, 12) and found.isfinite().all()
    assert len(embedded([], encoder)) == 0


def test_the_folder_is_the_users_to_choose(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))
    assert cache_folder("embeddings") == tmp_path / "embeddings"
    monkeypatch.delenv("PREFOPT_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_folder("embeddings")) == "/home/somebody/.cache/prefopt/embeddings"


def test_a_model_that_is_not_there_is_refused(policy_spec):
    with pytest.raises(PrefoptError, match="no model at /nowhere"):
        load_encoder(recipe.Embeddings(model=("/nowhere",)), policy_spec)
