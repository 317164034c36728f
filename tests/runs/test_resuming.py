"""What a run may go on with: other memory, other trackers and mended code, said and recorded; never other data or models."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from _tiny import tiny_model
from transformers import AutoModelForCausalLM

import prefopt
from prefopt import PrefoptError, load_recipe, recipe
from prefopt.runs.folder import RunFolder

RULE = "def score(prompts, completions, rows):\n    return [[float(len(t)) for t in row] for row in completions]\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """PPO with a rule of one's own, checkpoints at 2 and 4 of 5 steps, in a folder beside all that it was made of."""
    home = tmp_path_factory.mktemp("home")
    (home / "rule.py").write_text(RULE)
    rows = [{"prompt": f"w{i % 7} w{i % 5}", "answer": f"w{i}"} for i in range(40)]
    (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "name": "tiny",
        "policy": {"model": str(tiny_model(home / "lm"))},
        "source": {"data": "./prompts.jsonl", "rollouts": {"completions": 2, "sampling": {"max_tokens": 4}}},
        "feedback": {"name": "./rule.py:score"},
        "objective": "PPO",
        "train": {"steps": 5, "batch_size": 8, "minibatch_size": 4, "lr": 1e-3, "checkpoint_every": 2},
        "evaluate": {"prompts": 2, "sampling": {"max_tokens": 4}},
    }
    (home / "recipe.yaml").write_text(json.dumps(content))
    prefopt.run(load_recipe(home / "recipe.yaml"), folder=home / "run")
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Path:
    """The same, as a kill after the last checkpoint leaves it; the recipe names the copies."""
    copy = shutil.copytree(finished, tmp_path / "home")
    for file in (copy / "recipe.yaml", copy / "run" / "recipe.yaml"):
        file.write_text(file.read_text().replace(str(finished), str(copy)))
    manifest = copy / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(finished), str(copy)))
    for name in ("summary.json", "trained.json", "evaluations/test-step-000005.json"):
        (copy / "run" / name).unlink()
    return copy


def resume(home: Path, *overrides: str):
    return prefopt.run(load_recipe(home / "recipe.yaml", overrides), folder=home / "run", resume=True)


def manifest(home: Path) -> dict:
    return json.loads((home / "run" / "manifest.json").read_text())


def lines(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in RunFolder(folder).history()]


def summary(folder: Path) -> dict:
    content = json.loads((folder / "summary.json").read_text())
    del content["costs"]["seconds"]
    return content


def test_killed_after_its_last_checkpoint_a_run_ends_with_the_same_numbers_and_costs(finished, home):
    resume(home)
    assert summary(home / "run") == summary(finished / "run")
    assert lines(home / "run") == lines(finished / "run")


IMMATERIAL = [
    "train.micro_batch_size=2", "train.micro_tokens=64", "train.checkpoint_every=1", "train.keep_checkpoints=3",
    "policy.gradient_checkpointing=true", "evaluate.batch_size=4", "evaluate.every=2", "source.rollouts.batch_size=2",
    "track.every=2", "track.folder=elsewhere", "reference.cache=false", "feedback.timeout=60", "name=other",
    "train.threads=1",
]  # fmt: skip


def test_what_is_immaterial_may_change_and_is_recorded(home, finished):
    resume(home, *IMMATERIAL)
    after = (summary(folder / "run")["after"] for folder in (home, finished))
    mine, whole = ({name: e["value"] for name, e in one.items() if isinstance(e, dict)} for one in after)
    assert mine == pytest.approx(whole, rel=1e-4, abs=1e-5)
    (record,) = manifest(home)["resumed"]
    assert record["recipe"].keys() == {change.partition("=")[0] for change in IMMATERIAL}
    assert record["recipe"]["train.micro_batch_size"] == [16, 2]
    assert RunFolder(home / "run").recipe().train.micro_batch_size == 2


@pytest.mark.parametrize("change", [*IMMATERIAL, "track.wandb={}", "evaluate.server=x", "variables={a: b}"])
def test_each_immaterial_key_alone_is_no_difference(finished, change):
    begun, now = load_recipe(finished / "recipe.yaml"), load_recipe(finished / "recipe.yaml", [change])
    assert recipe.material_differences(begun, now, recipe.OF_RUNS) == {}
    assert recipe.differences(begun.model_dump(mode="json"), now.model_dump(mode="json"))


@pytest.mark.parametrize(
    "change",
    ["train.lr=0.1", "seed=1", "objective.beta=0.5", "train.batch_size=4", "evaluate.rows=3", "feedback.name=./rule.py:x",
     "train.minibatch_size=8", "source.rollouts.completions=3", "policy.dtype=bfloat16", "train.precision=bf16"],
)  # fmt: skip
def test_what_is_material_may_not_change(finished, change):
    begun, now = load_recipe(finished / "recipe.yaml"), load_recipe(finished / "recipe.yaml", [change])
    assert recipe.material_differences(begun, now, recipe.OF_RUNS)


def test_a_resume_with_another_recipe_is_refused_and_changes_nothing(home):
    before = (home / "run" / "recipe.yaml").read_text()
    with pytest.raises(
        PrefoptError,
        match=r"another recipe; it differs in train\.lr\. To go on as it began: prefopt run .*/run --resume$",
    ):
        resume(home, "train.lr=0.1")
    assert (home / "run" / "recipe.yaml").read_text() == before


@pytest.mark.parametrize("damaged", ["checkpoints/*/model.safetensors", "evaluations/test-step-000000.json"])
def test_a_resume_that_cannot_be_leaves_its_folder_as_it_was(home, damaged):
    """Only a run that goes on is recorded in its manifest."""
    for file in (home / "run").glob(damaged):
        file.write_text("{")
    before = {file: file.read_bytes() for file in (home / "run").rglob("*") if file.is_file()}
    with pytest.raises(PrefoptError, match="is damaged"):
        resume(home, "train.micro_batch_size=1")
    assert {
        file: file.read_bytes() for file in (home / "run").rglob("*") if file.name != ".lock" and file.is_file()
    } == {file: content for file, content in before.items() if file.name != ".lock"}


def edited_prompts(home: Path) -> None:
    file = home / "prompts.jsonl"
    file.write_text(re.sub(r"w3 w3", "w3 w2", file.read_text()))


def edited_answers(home: Path) -> None:
    file = home / "prompts.jsonl"
    file.write_text(file.read_text().replace('"w17"', '"w16"'))


def other_weights(home: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(home / "lm")
    model.model.layers[0].mlp.up_proj.weight.data += 1e-3
    model.save_pretrained(home / "lm")


def other_settings(file: str, **changes):
    def edit(home: Path) -> None:
        settings = home / "lm" / file
        settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (edited_prompts, "rows"),
        (edited_answers, "rows"),
        (other_weights, "the weights of policy.model"),
        (other_settings("config.json", rms_norm_eps=0.5), r"the configuration of policy.model \(rms_norm_eps\)"),
        (
            other_settings("generation_config.json", eos_token_id=[3, 58]),
            r"the configuration of policy.model \(generation.eos_token_id\)",
        ),
    ],
)
def test_other_data_or_weights_than_at_the_beginning_are_refused(home, edit, what):
    before = {file: file.read_bytes() for file in (home / "run").rglob("*") if file.is_file()}
    edit(home)
    with pytest.raises(PrefoptError, match=rf"since the run began, .*{what}.* changed .*bring back"):
        resume(home)
    assert {file: file.read_bytes() for file in (home / "run").rglob("*") if file.is_file()} == before


def test_a_users_file_may_be_mended_which_is_said_and_recorded(home, capsys):
    (home / "rule.py").write_text(RULE + "# mended\n")
    resume(home)
    assert "rule.py:score was edited" in capsys.readouterr().err.replace("\n", "")
    (record,) = manifest(home)["resumed"]
    assert any(key.startswith("plugins.") for key in record)


@pytest.mark.parametrize("listed", [True, False])
def test_an_edit_of_what_a_users_file_imports_is_said_where_the_beginning_lists_it(home, capsys, monkeypatch, listed):
    helper = home / "lengths.py"
    helper.write_text("K = 1\n")
    spec = importlib.util.spec_from_file_location("lengths", helper)
    monkeypatch.setitem(sys.modules, "lengths", importlib.util.module_from_spec(spec))
    if listed:
        content = manifest(home)
        content["plugins"][str(helper)] = "what it was"
        (home / "run" / "manifest.json").write_text(json.dumps(content))
    resume(home)
    assert (f"{helper} was edited" in capsys.readouterr().err.replace("\n", "")) == listed
    (record,) = manifest(home)["resumed"]
    assert (f"plugins.{helper}" in record) == listed


def test_a_run_that_has_no_numbers_yet_begins_anew_with_what_is_there(home):
    for name in ("evaluations", "checkpoints"):
        shutil.rmtree(home / "run" / name)
    (home / "run" / "metrics.jsonl").unlink()
    edited_prompts(home)
    result = resume(home)
    assert result.after and "resumed" not in manifest(home)


def test_trained_already_a_resume_wants_the_test_rows_of_the_beginning(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "home")
    for file in (copy / "recipe.yaml", copy / "run" / "recipe.yaml"):
        file.write_text(file.read_text().replace(str(finished), str(copy)))
    for name in ("summary.json", "evaluations/test-step-000005.json"):
        (copy / "run" / name).unlink()
    text = (copy / "prompts.jsonl").read_text()
    (copy / "prompts.jsonl").write_text(text.replace("w", "w1"))
    with pytest.raises(PrefoptError, match="the test rows are not those that the run began with"):
        resume(copy)
    (copy / "prompts.jsonl").write_text(text)
    resume(copy)
    assert summary(copy / "run") == summary(finished / "run")


@pytest.mark.parametrize("name", ["evaluations/test-step-000000.json", "summary.json"])
def test_what_was_removed_is_measured_again_at_the_step_where_it_belongs(home, finished, name):
    if name == "summary.json":
        resume(home)
    else:
        (home / "run" / name).unlink()
    if name == "summary.json":
        (home / "run" / name).write_text('{"steps": ')
        with pytest.raises(PrefoptError, match=r"summary.json is damaged .*remove it: `prefopt run .* --resume`"):
            resume(home)
        (home / "run" / name).unlink()
    resume(home)
    assert summary(home / "run") == summary(finished / "run")


@pytest.mark.parametrize("content", ['{"vers', "[1, 2]", "", "\x00\x00"])
def test_a_damaged_manifest_is_named_and_the_run_goes_on_without_it(home, finished, content):
    (home / "run" / "manifest.json").write_text(content)
    with pytest.raises(PrefoptError, match=r"manifest.json is damaged .*or remove it"):
        resume(home)
    (home / "run" / "manifest.json").unlink()
    resume(home)
    assert summary(home / "run") == summary(finished / "run")
