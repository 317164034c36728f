"""Recipes of published experiments: each can be checked without a network, reads rows as the hub has them, and trains."""

import json
import math
import socket
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, LlamaConfig

from prefopt import load_recipe, run
from prefopt.cli import main
from prefopt.data import load_examples

FOLDER = Path(__file__).parents[2] / "recipes"
DATA_SETS = {
    "ultrafeedback": "HuggingFaceH4/ultrafeedback_binarized",
    "hh": "Anthropic/hh-rlhf",
    "tldr": "trl-lib/tldr-preference",
}
OTHERS = {"ultrafeedback/sft": "HuggingFaceH4/ultrachat_200k"} | {
    f"tldr/{stage}": "trl-lib/tldr" for stage in ("sft", "ppo", "rlaif")
}
"""Data sets of recipes that do not take their folder's."""

RECIPES = sorted(file for folder in DATA_SETS for file in (FOLDER / folder).glob("*.yaml"))
WORDS = ("the", "a", "film", "food", "view", "room", "is", "was", "seems", "very", "not", "good")
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {{ eos_token }}{% endfor %}"


def named(file):
    return f"{file.parent.name}/{file.stem}"


def data_set(file):
    return OTHERS.get(named(file), DATA_SETS[file.parent.name])


def talk(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def rows(name):
    """Rows of a data set in the columns that its card gives it."""
    for number, word in enumerate(WORDS):
        ask, good, bad = f"{word} room ?", f"{word} view is good .", f"{word} food was bad ."
        chosen, rejected = talk(ask, good), talk(ask, bad)
        dialogue = f"\n\nHuman: {word} was ?\n\nAssistant: not .\n\nHuman: {ask}\n\nAssistant:"
        post = f"SUBREDDIT: r/{word}\n\nTITLE: {word}\n\nPOST: {ask}\n\nTL;DR:"
        yield {
            "HuggingFaceH4/ultrachat_200k": {
                "prompt": ask,
                "prompt_id": str(number),
                "messages": talk(ask, good, "and ?", bad),
            },
            "HuggingFaceH4/ultrafeedback_binarized": {
                "prompt": ask,
                "prompt_id": str(number),
                "chosen": chosen,
                "rejected": rejected,
                "messages": chosen,
                "score_chosen": 8.0,
                "score_rejected": 8.0 if number == 5 else 4.5,
            },
            "Anthropic/hh-rlhf": {"chosen": f"{dialogue} {good}", "rejected": f"{dialogue} {bad}"},
            "trl-lib/tldr": {"prompt": post, "completion": f" {good}"},
            "trl-lib/tldr-preference": {"prompt": post, "chosen": f" {good}", "rejected": f" {bad}"},
        }[name]


def written(name, folder):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(name)))
    return file


@pytest.fixture
def no_network(monkeypatch):
    """No connection can be made, and no library has been told so."""

    def refuse(*arguments):
        raise AssertionError(f"something asked the network: {arguments}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)


def dry_run(capsys, *arguments):
    main(["run", *map(str, arguments), "--dry-run"])
    return capsys.readouterr().out


@pytest.mark.parametrize("file", RECIPES, ids=named)
def test_is_checked_without_a_network(file, no_network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where there are no runs
    printed = dry_run(capsys, file)
    settings = load_recipe(file)
    assert f"#   data set {data_set(file)}" in printed
    assert f"#   model {settings.policy.model[-1]}" in printed
    assert f"batch: {settings.train.batch_size} prompts" in printed and "activations" in printed
    (tmp_path / "again.yaml").write_text(printed)
    assert load_recipe(tmp_path / "again.yaml") == settings.model_copy(update={"name": settings.name})


@pytest.mark.parametrize("file", RECIPES, ids=named)
def test_says_what_it_is_of(file):
    head = file.read_text().partition("\n\n")[0]
    assert "# Source: " in head
    assert "arXiv" in head or "trlx" in head


@pytest.fixture
def chat_folder(tmp_path, lm_folder, tokenizer):
    """The tiny model with a chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(lm_folder).save_pretrained(tmp_path / "lm")
    talker = AutoTokenizer.from_pretrained(lm_folder)
    talker.chat_template = CHAT
    talker.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.fixture
def scorer_folder(tmp_path, chat_folder, tiny):
    """A tiny reward model with the same tokenizer."""
    from transformers import AutoTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForSequenceClassification.from_config(LlamaConfig(**tiny, num_labels=1)).save_pretrained(
            tmp_path / "rm"
        )
    AutoTokenizer.from_pretrained(chat_folder).save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


@pytest.mark.parametrize("file", RECIPES, ids=named)
def test_trains_two_steps(file, tmp_path, chat_folder, scorer_folder, lm_folder):
    settings, data = load_recipe(file), written(data_set(file), tmp_path)
    small = [f"policy.model={chat_folder}", "policy.tokenizer=null", "source.split=[1,0,0]"]
    for part in ("source", *(f"source.{p}" for p in ("validation", "test") if getattr(settings.source, p))):
        small += [f"{part}.data={data}", f"{part}.hub_split=null"]
    small += ["train.epochs=null", "train.steps=2", "train.batch_size=4", "train.threads=1", "evaluate.rows=4"]
    small += ["evaluate.prompts=2", "evaluate.sampling.max_tokens=4"]
    if settings.train.minibatch_size:
        small += ["train.minibatch_size=2"]
    if settings.source.embeddings:
        small += [f"source.embeddings.model={lm_folder}"]
    if settings.source.rollouts:
        assert settings.feedback is not None
        giving = scorer_folder if settings.feedback.name == "RewardModel" else chat_folder
        small += ["source.rollouts.sampling.max_tokens=4", f"feedback.model={giving}"]
        if giving == chat_folder:  # the tiny model cannot read as much as prefopt's rubric, and knows no numbers
            small += ["feedback.rubric={question: '{{ completion }}', labels: [good, not]}", "feedback.mode=pointwise"]
    if settings.policy.critic.model:
        small += [f"policy.critic.model={scorer_folder}"]
    run(load_recipe(file, small), folder=tmp_path / "run", console=Console(quiet=True))
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in steps)


def test_hh_is_cut_where_the_answers_begin(tmp_path):
    data, adapt = written("Anthropic/hh-rlhf", tmp_path), load_recipe(FOLDER / "hh" / "sft.yaml").source.adapt
    first = load_examples(data, adapt=adapt)[0]
    assert first.prompt.endswith("\n\nHuman: the room ?\n\nAssistant:")
    # As characters the two dialogues have "the " in common, too, which is not part of what was asked.
    assert first.completions == (" the view is good .", " the food was bad .")
    with data.open("a") as file:
        for chosen, rejected in (
            ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: b"),  # two prompts
            ("\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: b"),  # no answer
            ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"),  # goes on
        ):
            file.write(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n")
    assert len(load_examples(data, adapt=adapt)) == 12


def test_ultrafeedback_keeps_pairs_of_equal_score(tmp_path):
    examples = load_examples(written("HuggingFaceH4/ultrafeedback_binarized", tmp_path))
    assert examples[5].scores == (8.0, 8.0) and examples[0].scores == (8.0, 4.5)
    assert examples[0].prompt == tuple(talk("the room ?"))
    assert [load_recipe(FOLDER / "ultrafeedback" / f"{n}.yaml").source.ties for n in ("dpo", "rpo")] == ["keep", "keep"]
