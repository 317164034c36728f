"""Sharded weights do not work yet: every verb refuses them while it plans, before it loads a model or writes anything."""

from collections.abc import Callable
from pathlib import Path

import pytest
from _tiny import tiny_model, tiny_pairs
from rich.console import Console

from prefopt import load_recipe, run
from prefopt.runs import inspecting
from prefopt.runs.dry_run import dry_run
from prefopt.runs.label import LabelRecipe, label
from prefopt.study import Study, run_study
from prefopt.support.errors import PrefoptError
from prefopt.training.devices import refuse_environment

RECIPE = "policy: {{model: {model}}}\nsource: {{data: {data}}}\nobjective: DPO\ntrain: {{steps: 1, batch_size: 4}}\n"
ASKED = [
    {"ACCELERATE_USE_FSDP": "true"},
    {"ACCELERATE_USE_FSDP": "True"},
    {"ACCELERATE_USE_FSDP": "1"},
    {"ACCELERATE_USE_DEEPSPEED": "true"},
    {"ACCELERATE_USE_MEGATRON_LM": "true"},
    {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
    {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"},
    {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_SP_SIZE": "2"},
    {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"},
]
NOT_ASKED = [
    {},
    {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "False", "ACCELERATE_USE_MEGATRON_LM": ""},
    {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"},
    {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "1"},
    {"PARALLELISM_CONFIG_TP_SIZE": "2"},
]


@pytest.mark.parametrize("variables", ASKED, ids=str)
def test_every_way_to_ask_for_sharding_is_refused_by_its_variable(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PrefoptError, match=list(variables)[-1]):
        refuse_environment()


@pytest.mark.parametrize("variables", NOT_ASKED, ids=str)
def test_plain_data_parallelism_is_let_pass(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refuse_environment()


def _label(file: Path) -> None:
    settings = load_recipe(file)
    keys = {"source": {"data": settings.source.data}, "feedback": "builtins:len"}
    label(LabelRecipe.model_validate(keys), file.parent / "labels", Console(quiet=True))


VERBS: dict[str, Callable[[Path], object]] = {
    "run": lambda file: run(load_recipe(file), folder=file.parent / "run", console=Console(quiet=True)),
    "dry run": lambda file: dry_run(load_recipe(file)),
    "study": lambda file: run_study(
        Study(recipe=str(file), arms={"A": {}, "B": {}}), file.parent / "study", console=Console(quiet=True)
    ),
    "evaluate": lambda file: inspecting.evaluate(load_recipe(file), Console(quiet=True)),
    "sample": lambda file: inspecting.sample(load_recipe(file), ["w1"], 1, 1),
    "label": _label,
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_before_it_loads_or_writes(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl")
    (model / "model.safetensors").unlink()  # whoever loads it fails otherwise
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.format(model=model, data=data))
    before = sorted(tmp_path.rglob("*"))
    for name, value, message in (
        ("ACCELERATE_USE_FSDP", "true", r"FSDP is asked for \(ACCELERATE_USE_FSDP=true"),
        ("WORLD_SIZE", "abc", "WORLD_SIZE=abc in the environment must be a whole number"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            with pytest.raises(PrefoptError, match=message):
                VERBS[verb](file)
    assert sorted(tmp_path.rglob("*")) == before
