"""A finished run has a model card, keeps one that is there, and goes to a hub that is new or empty."""

import os
import subprocess
import sys

import pytest
import yaml
from _hub import TOKEN, Hub
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from huggingface_hub import ModelCard

import prefopt
from prefopt import load_recipe
from prefopt.runs.card import NAME, card_of, write_card
from prefopt.runs.folder import RunFolder
from prefopt.support.errors import PrefoptError
from prefopt.support.wording import interval, number

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HOME")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps, with an adapter."""
    here = tmp_path_factory.mktemp("finished")
    recipe = tiny_recipe(here, tiny_model(here / "model"), tiny_pairs(here / "pairs.jsonl"))
    overrides = ["policy.adapter={r: 2}", "train.epochs=null", "train.steps=2", "evaluate.prompts=2", "seed=7"]
    prefopt.run(load_recipe(recipe, overrides), folder=here / "run")
    return here / "run"


@pytest.fixture
def hub():
    with Hub().running() as running:
        yield running


def pushed(hub, *arguments, token=TOKEN, **variables):
    """`prefopt push` in a process of its own, because huggingface_hub reads its environment when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": "/nowhere",
        **({"HF_TOKEN": token} if token else {}),
        **variables,
    }
    command = [sys.executable, "-m", "prefopt.cli", "push", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_card_says_what_was_done_and_what_came_of_it(finished):
    card, summary = ModelCard.load(finished / "policy" / NAME), RunFolder(finished).summary()
    data = card.data.to_dict()
    assert data["library_name"] == "peft" and data["license"] == "unknown" and data["pipeline_tag"] == "text-generation"
    assert {"prefopt", "dpo"} <= set(data["tags"]) and "base_model" not in data and "datasets" not in data
    estimate = summary["after"]["accuracy"]
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    assert f"| {number(value)} {interval(low, high)} |" in card.text and "| accuracy | 0.500 [" in card.text
    assert "(7), and say nothing of what another seed would give" in card.text
    assert "[arXiv 2305.18290](https://arxiv.org/abs/2305.18290)" in card.text and "beta = 0.1" in card.text
    shown = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("```")[0])
    whole = RunFolder(finished).recipe().model_dump(mode="json")
    assert shown | {key: whole[key] for key in ("policy", "source", "track")} == whole
    assert shown["policy"]["model"] == [f"{finished.parent.name}/model"] and str(finished.parent) not in card.text
    assert "31 rows to train on" in card.text and "2 steps of 8 prompts, adamw, learning rate" in card.text


def test_hub_ids_are_named_where_the_hub_looks_for_them(finished, tmp_path):
    recipe = (finished / "recipe.yaml").read_text()
    base = str(RunFolder(finished).recipe().policy.model[0])
    (tmp_path / "recipe.yaml").write_text(
        recipe.replace(base, "lab/base-1b").replace(str(finished.parent / "pairs.jsonl"), "lab/pairs")
    )
    (tmp_path / "summary.json").write_text((finished / "summary.json").read_text())
    data = card_of(RunFolder(tmp_path)).data.to_dict()
    assert (data["base_model"], data["datasets"], data["library_name"]) == (
        ["lab/base-1b"],
        ["lab/pairs"],
        "transformers",
    )


def test_an_export_has_a_card_and_a_card_that_is_there_stays(finished, tmp_path):
    prefopt.export(finished, tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / NAME).data.library_name == "transformers"
    (tmp_path / "out" / NAME).write_text("mine\n")
    write_card(RunFolder(finished), tmp_path / "out")
    assert (tmp_path / "out" / NAME).read_text() == "mine\n"


def test_a_run_goes_to_a_new_repository_and_to_no_other(finished, hub):
    done = pushed(hub, finished, "me/tiny", "--private")
    assert (done.returncode, done.stdout.strip()) == (0, f"{hub.url}/me/tiny"), done.stderr
    local = {file.name: file.read_bytes() for file in (finished / "policy").iterdir()}
    assert {name: content for name, content in hub.files["me/tiny"].items() if name != ".gitattributes"} == local
    assert {"README.md", "adapter_model.safetensors"} <= local.keys() and hub.private == {"me/tiny": True}
    again = pushed(hub, finished, "me/tiny")
    assert again.returncode == 2 and "me/tiny holds" in again.stderr and "nothing is overwritten" in again.stderr
    hub.files["me/begun"], hub.private["me/begun"] = {".gitattributes": b""}, False
    assert pushed(hub, finished / "policy", "me/begun").returncode == 0
    assert "adapter_model.safetensors" in hub.files["me/begun"]


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (("RUN", "me/x"), {"token": ""}, ["nobody is logged in", "hf auth login", "HF_TOKEN"]),
        (("RUN", "me/x"), {"token": "another"}, ["may not write to me/x", "401"]),
        (("RUN", "me/x"), {"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE is set"]),
        (("RUN", "me/x"), {"HF_ENDPOINT": "http://127.0.0.1:9"}, ["127.0.0.1:9 does not answer"]),
        (("RUN", "x"), {}, ["'x' does not say whose"]),
        (("RUN", "me/a b"), {}, ["no name of a repository"]),
        (("EMPTY", "me/x"), {}, ["holds no model"]),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is(finished, hub, tmp_path, arguments, settings, words):
    places = {"RUN": finished, "EMPTY": tmp_path}
    done = pushed(hub, *(places.get(word, word) for word in arguments), **settings)
    assert done.returncode == 2 and all(word in " ".join(done.stderr.split()) for word in words), done.stderr
    assert "Traceback" not in done.stderr and not hub.files


def test_a_run_that_is_not_over_is_not_pushed(finished, tmp_path):
    from prefopt.runs.pushing import push

    (tmp_path / "recipe.yaml").write_text((finished / "recipe.yaml").read_text())
    with pytest.raises(PrefoptError, match=r"is not over.*--resume"):
        push(tmp_path, "me/x")
