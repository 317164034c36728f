"""The shipped LM, and what its data can show."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.support.sharing import sharing_files
from prefopt.testbeds import pocket
from prefopt.testbeds.pocket import language
from prefopt.testbeds.pocket.language import FOLDER, LABELS, MAX_TOKENS, load, sample, tokenizer, untrained, vocabulary
from prefopt.testbeds.pocket.marks import judge, marks
from prefopt.testbeds.pocket.requests import pool


@pytest.fixture(scope="module")
def shipped():
    return load()


@pytest.fixture(scope="module")
def figures():
    return {mark.name: mark for mark in marks(prompts=48)}


def test_what_is_shipped_is_small(shipped):
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) <= 5_000_000
    assert sum(p.numel() for p in shipped.parameters()) <= 2_000_000
    assert {file.suffix for file in FOLDER.iterdir()} <= {".json", ".safetensors"}


def test_shipped_tokenizer_and_shape_are_those_of_the_code(shipped):
    assert shipped.tokenizer.get_vocab() == {word: i for i, word in enumerate(vocabulary())} == tokenizer().get_vocab()
    shapes = {name: p.shape for name, p in shipped.causal.named_parameters()}
    assert shapes == {name: p.shape for name, p in untrained().named_parameters()}
    assert shipped.causal.config.eos_token_id == shipped.tokenizer.eos_token_id
    assert shipped.causal.config.pad_token_id == shipped.tokenizer.pad_token_id


def test_text_survives_the_tokenizer():
    words = tokenizer()
    for row in itertools.islice(pocket.corpus(400, seed=9), 400):
        prompt, whole = words(row["prompt"])["input_ids"], words(row["prompt"] + row["completion"])["input_ids"]
        assert whole[: len(prompt)] == prompt
        assert words.unk_token_id not in whole
        assert words.eos_token_id not in whole, "the data path appends it"
        assert words.decode(whole[len(prompt) :]) == row["completion"]
        assert words(words.decode(whole))["input_ids"] == whole
        assert len(whole) - len(prompt) < MAX_TOKENS


def test_joins_do_not_depend_on_spaces():
    words = tokenizer()
    expected = words("review of the film : it was good . => good")["input_ids"]
    assert words("review of the film :it was good.=>good")["input_ids"] == expected


def test_samples_belong_to_their_row():
    texts = [str(request) for request in pool("test")[:300:25]]
    seeds = list(range(12))
    together = sample(texts, 3, seeds)
    assert sample(texts[5:7], 3, seeds[5:7]) == together[5:7]
    assert sample(texts, 3, [s + 100 for s in seeds]) != together
    assert len({*sample(texts[:1], 20, [0], temperature=0)[0]}) == 1


def test_shipped_lm_is_good_but_not_perfect(figures):
    assert 0.75 <= figures["on-grammar"].mean <= 0.95
    assert figures["distinct samples of a prompt"].mean > 0.8
    assert figures["gold reward, sd within a prompt"].mean > 0.35


def test_there_is_head_room_with_steps_in_between(figures):
    mean, *best = (figures[f"gold reward{name}"].mean for name in ("", ", best of 4", ", best of 16", ", best of 64"))
    assert -0.35 < mean < 0
    assert mean + 0.25 < best[0] < best[1] - 0.1
    assert best[2] > 0.7


def test_shipped_lm_is_a_judge_with_faults():
    """Better than chance by far more than its error over 600 prompts, and far from perfect."""
    texts = [str(request) for request in pool("test")[:600]]
    completions = sample(texts, 2, list(range(600)))
    rewards = pocket.gold(texts, completions).scores
    logps = torch.stack([judge(texts, [pair[k] for pair in completions]) for k in (0, 1)], 1)  # [B, 2, 3]
    margin = logps[..., LABELS.index("good")] - logps[..., LABELS.index("bad")]
    gap = rewards[:, 0] - rewards[:, 1]
    right = ((margin[:, 0] - margin[:, 1]).sign() == gap.sign()).float()
    assert 0.57 < right[gap != 0].mean() < 0.9
    assert right[gap.abs() > 0.5].mean() > 0.62


def test_preferences_of_the_lm_itself():
    rows = list(pocket.preferences(200, seed=1))
    assert rows[:20] == list(pocket.preferences(20, seed=1))
    gaps = torch.tensor([row["gold"][0] - row["gold"][1] for row in rows])
    assert (gaps > 0).float().mean() > 0.75
    assert sum(row["chosen"] == row["rejected"] for row in rows) <= 4


def test_processes_of_a_study_draw_the_same_samples_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[int] = []
    draw = language._drawn

    def counted(*given: Any) -> list[list[str]]:
        draws.append(1)
        return draw(*given)

    monkeypatch.setattr(language, "_drawn", counted)
    prompts = ["review of the hotel :", "review of the film :"]

    def drawn(seed: int) -> list[list[str]]:
        language._sampled.cache_clear()  # as in another process
        return sample(prompts, 2, [seed, seed + 1])

    alone = drawn(7)
    with sharing_files(tmp_path):
        assert [drawn(7), drawn(7)] == [alone, alone]
        assert len(draws) == 2
        assert drawn(8) != alone
    assert len(draws) == 3
