"""What a run says it was made of."""

import importlib
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from prefopt.data import Example, Split, Tokenised
from prefopt.policy import load_policy, load_scorer, load_tokenizer
from prefopt.recipe import Policy, load_recipe
from prefopt.runs.manifest import _base, changed_parts, described, fingerprint_plugins, git_state, manifest
from prefopt.runs.planning import Plan
from prefopt.runs.preparing import Models, Prepared
from prefopt.sources.recorded import Recorded
from prefopt.support.fingerprints import fingerprint_weights
from prefopt.training.devices import make_accelerator
from prefopt.types import Needs


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 2)


def test_content(tmp_path, model):
    (tmp_path / "r.yaml").write_text("policy: {model: m}\nsource: {data: d}\nobjective: DPO\ntrain: {steps: 1}\n")
    settings = load_recipe(tmp_path / "r.yaml", ["seed=3", "seeds.order=8"])
    model.bias.requires_grad_(False)
    plan = Plan(settings, "m", [], Needs(), Needs(), Split([], [], []), {}, 0)
    models, data = Models(None, model, None, None), {"train": [], "test": []}
    content = manifest(Prepared(plan, make_accelerator("auto"), data, models, [], Recorded([1], 1, 0), 0, {}))
    assert json.loads(json.dumps(content)) == content
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert content["model"] | {"fingerprint": ""} == {"name": "m", "parameters": 8, "trainable": 6, "fingerprint": ""}
    assert content["seeds"] == {"data": 3, "init": 3, "order": 8, "sampling": 3, "evaluation": 3}
    assert content["device"]["processes"] == 1 and content["data"]["train"]["rows"] == 0
    assert {"started", "command", "git", "plugins"} <= set(content)


@pytest.mark.parametrize("load", [load_policy, load_scorer])
def test_a_base_is_one_whatever_an_adapter_or_a_head_starts_with(lm_folder, load):
    spec = Policy(model=lm_folder, adapter={"r": 2})
    loaded = [load(spec, load_tokenizer(spec), seed) for seed in (0, 1)]
    assert len({fingerprint_weights(one) for one in loaded}) == 2
    (base,) = {_base(one)["base"] for one in loaded}
    whole = [load_scorer(Policy(model=lm_folder), load_tokenizer(spec), seed) for seed in (0, 1)]
    assert (
        len({_base(one)["base"] for one in whole}) == 1
        and _base(load_policy(Policy(model=lm_folder), load_tokenizer(spec), 0)) == {}
    )
    with torch.no_grad():
        next(p for name, p in loaded[1].named_parameters() if "base_layer" in name).add_(1)
    assert _base(loaded[1])["base"] != base


def test_weights(model):
    before = fingerprint_weights(model)
    assert before == fingerprint_weights(model)
    with torch.no_grad():
        model.weight[1, 2] += 1e-6
    after = fingerprint_weights(model)
    assert after != before
    assert fingerprint_weights(model.to(torch.bfloat16)) not in (before, after)


def test_settings_of_a_model_are_compared_where_both_manifests_know_them():
    begun = {"configurations": {"reference": {"rms_norm_eps": 1e-6, "head_dim": None}, "critic": {"a": 1}}}
    edited = {"configurations": {"reference": {"rms_norm_eps": 0.5, "head_dim": 8, "new": 1}}}
    assert changed_parts(begun, edited) == ["the configuration of reference (head_dim, rms_norm_eps)"]
    assert changed_parts(begun, begun) == changed_parts({}, edited) == changed_parts(begun, {}) == []


def test_rows():
    def row(ids: tuple[int, ...], scores: tuple[float, ...]) -> Tokenised:
        return Tokenised((1,), (ids,), scores, None, Example("q", ("a",)), 0, None)

    rows = [row((1, 2), (0.5,)), row((3,), (0.5,))]
    prints = {described(r)["fingerprint"] for r in (rows, rows[::-1], rows[:1], [rows[0], row((3,), (-0.5,))])}
    assert len(prints) == 4 and described(rows)["fingerprint"] in prints


def test_an_edited_plugin_is_another_one(tmp_path):
    file = tmp_path / "losses.py"
    file.write_text("a")
    tree = {
        "objective": [{"name": f"{file}:Hinge", "beta": 0.1}],
        "evaluate": {"gold": "math:pi"},
        "source": {"data": ["x"]},
    }
    before = fingerprint_plugins(tree)
    assert list(before) == [f"{file}:Hinge"]
    file.write_text("b")
    assert fingerprint_plugins(tree) != before


def test_an_edit_of_what_a_plugin_imports_is_one_of_the_plugin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "parts").mkdir()
    names = ["kept_constants.py", "parts/lengths.py", "unused.py", "site-packages/installed.py"]
    (tmp_path / "site-packages").mkdir()
    for name in names:
        (tmp_path / name).write_text("K = 1\n")
    file = tmp_path / "rules.py"
    file.write_text("from kept_constants import K\nimport parts.lengths\n")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    for module in ("rules", "installed"):
        importlib.import_module(module)
    before = fingerprint_plugins([f"{file}:score"])
    helpers = [str(tmp_path / name) for name in names[:2]]
    assert list(before) == [f"{file}:score", *helpers]
    (tmp_path / names[1]).write_text("K = 2\n")
    after = fingerprint_plugins([f"{file}:score"])
    assert [name for name in before if before[name] != after[name]] == [helpers[1]]
    for module in ("rules", "kept_constants", "parts", "parts.lengths", "installed"):
        del sys.modules[module]


def test_git(tmp_path):
    assert git_state(tmp_path) is None
    for command in (
        ["init", "-q"],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "--allow-empty", "-m", "m"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    state = git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and state["changed"] is False
    (tmp_path / "f").touch()
    subprocess.run(["git", "add", "f"], cwd=tmp_path, check=True)
    assert git_state(tmp_path) == {**state, "changed": True}
