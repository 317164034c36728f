"""`owner/name@revision`: a model of the hub as it was at a commit, from the hub's cache and without a network."""

import json
import shutil

import pytest
import torch
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from transformers import AutoModelForCausalLM

from prefopt import PrefoptError, load_recipe, run
from prefopt.data import load_examples
from prefopt.policy import commit_of, find_model, load_policy, load_tokenizer
from prefopt.policy.finding import pinned
from prefopt.recipe import Policy as Spec
from prefopt.support.downloads import noting_downloads

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache with two commits of somebody/lm: `v1` is the old one, `main` the new one."""
    place = tmp_path / "hub" / "models--somebody--lm"
    tiny_model(place / "snapshots" / OLD)
    shutil.copytree(place / "snapshots" / OLD, place / "snapshots" / NEW)
    model = AutoModelForCausalLM.from_pretrained(place / "snapshots" / NEW)
    with torch.no_grad():
        model.model.embed_tokens.weight += 1
    model.save_pretrained(place / "snapshots" / NEW)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(NEW)
    (place / "refs" / "v1").write_text(OLD)
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return place / "snapshots"


@pytest.mark.parametrize(("revision", "commit"), [("v1", OLD), ("main", NEW), (OLD, OLD), (NEW, NEW)])
def test_a_revision_is_its_snapshot(hub, revision, commit):
    assert find_model([f"somebody/lm@{revision}"]) == str(hub / commit)
    spec = Spec(model=f"somebody/lm@{revision}")
    policy = load_policy(spec, load_tokenizer(spec), seed=0)
    own = AutoModelForCausalLM.from_pretrained(hub / commit).get_input_embeddings().weight
    assert torch.equal(policy.causal.get_input_embeddings().weight, own)


def test_the_commit_of_what_is_in_the_cache_is_known(hub, tmp_path):
    assert commit_of("somebody/lm") == NEW == commit_of(str(hub / NEW))
    assert commit_of(find_model(["somebody/lm@v1"])) == OLD
    assert commit_of("nobody/lm") is None and commit_of(str(tmp_path)) is None


def test_a_run_notes_the_commit_and_saves_an_adapter_of_that_snapshot(hub, tmp_path):
    file = tiny_recipe(tmp_path, "somebody/lm@v1", tiny_pairs(tmp_path / "pairs.jsonl"))
    folder = run(load_recipe(file, ["policy.adapter={r: 2}", "evaluate.prompts=0"]), folder=tmp_path / "run").folder
    noted = json.loads((folder / "manifest.json").read_text())["model"]
    assert (noted["name"], noted["commit"]) == (str(hub / OLD), OLD)
    config = json.loads((folder / "policy" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(hub / OLD)


def test_a_revision_that_is_not_there_is_refused_and_in_a_dry_run_noted(hub):
    with pytest.raises(PrefoptError, match=r"no model somebody/lm at revision 'v2': it is not in the hub's cache"):
        find_model(["somebody/lm@v2"])
    with noting_downloads() as downloads:
        assert find_model(["somebody/lm@v2"]) == "somebody/lm@v2" and downloads.models == ["somebody/lm@v2"]
    assert find_model(["somebody/lm"]) == "somebody/lm" == pinned("somebody/lm")


def test_data_of_a_revision_are_asked_for_by_it(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, **arguments):
        asked.append((path, arguments))
        return datasets.DatasetDict({"train": datasets.Dataset.from_list([{"prompt": "p", "completion": " c"}])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_examples("lab/pairs@v1", {"name": "small"})) == 1
    assert asked == [("lab/pairs", {"name": "small", "revision": "v1"})]
    with pytest.raises(PrefoptError, match="name one revision"):
        load_examples("lab/pairs@v1", {"revision": "v2"})
