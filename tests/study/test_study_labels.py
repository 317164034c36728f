"""Stages that label: a judge's opinions and what is learnt from them, as one study."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt import PrefoptError, load_label_recipe
from prefopt.study import Study, load_study, run_study
from prefopt.study.comparison.confounds import confounds
from prefopt.study.executors import perform
from prefopt.study.jobs import LabelJob, is_finished
from prefopt.study.plan import StudyPlan
from prefopt.study.preview import show_plan
from prefopt.study.run import check

RECIPES = Path(__file__).parents[2] / "recipes" / "pocket"
QUIET = Console(quiet=True)
RULES = '''
from pathlib import Path

HERE = Path(__file__).parent


def score(prompts, texts, rows):
    """The number of words; breaks at its third call until a file says that it is repaired."""
    asked = HERE / "asked"
    with asked.open("a") as file:
        file.write("".join(f"{prompt}\\n" for prompt in prompts))
    if len(asked.read_text().splitlines()) > 8 and not (HERE / "repaired").exists():
        raise RuntimeError("the judge is ill")
    return [[float(len(text.split())) for text in row] for row in texts]
'''


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    """A study of two arms, of which one learns from a stage's labels of the other's pairs."""
    (tmp_path / "rules.py").write_text(RULES)
    pairs = tiny_pairs(tmp_path / "pairs.jsonl")
    label = {"source": {"data": str(pairs)}, "feedback": f"{tmp_path}/rules.py:score", "prompts": 24, "batch_size": 4}
    return {
        "recipe": str(tiny_recipe(tmp_path, tiny_model(tmp_path / "lm"), pairs)),
        "common": {"train.steps": 2, "evaluate.prompts": 0, "source.split": [0.8, 0, 0.2]},
        "stages": {"labels": {"label": label}},
        "arms": {"given": {}, "labelled": {"source.data": "${stages.labels}/data.jsonl"}},
        "seeds": 1,
        "metric": "nll",
        "varies": ["source.data"],
    }


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_pocket_world_is_labelled_and_learnt_from_in_one_study(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"""
recipe: {RECIPES}/dpo.yaml
seeds: [2]
metric: nll
varies: [objective, source.data]
common: {{train.steps: 1, train.batch_size: 8, source.arguments.n: 24, source.split: [1, 0, 0], source.test.arguments.n: 4,
         evaluate.prompts: 0}}
stages:
  labels: {{label: {RECIPES}/rlaif/label.yaml, prompts: 24, feedback: "prefopt.testbeds.pocket:gold", per: seed}}
arms:
  people: {{}}
  AI: {{source.data: "${{stages.labels}}/data.jsonl"}}
""")
    seen = io.StringIO()
    results = run_study(load_study(file), tmp_path / "s", console=Console(file=seen, width=200))
    labels = tmp_path / "s/stages/labels/seed-2"
    rows = lines(labels / "data.jsonl")
    assert len(rows) == 24 and all(len(row["scores"]) == 4 for row in rows)
    assert json.loads((labels / "manifest.json").read_text())["seed"] == 2
    of_ai = json.loads((results[1].folder / "manifest.json").read_text())["data"]["train"]
    assert of_ai["rows"] == 24 and (results[1].folder / "summary.json").exists()
    assert "[1/3] stage labels seed 2 · 24 prompts labelled" in seen.getvalue()
    assert (tmp_path / "s/logs/stage labels-seed-2.txt").exists()
    found = [c for c in confounds(results, "people", ["source.data"]) if "committed" not in c]
    assert "AI: its train rows are not those of people" in found and not [c for c in found if "source.data" in c]


def test_a_labelling_that_fails_is_told_and_goes_on_where_it_was(tiny: dict[str, Any], tmp_path: Path) -> None:
    planned, folder = Study(**tiny), tmp_path / "s"
    stage = folder / "stages" / "labels"
    given, labelled = run_study(planned, folder, console=QUIET)
    assert "the judge is ill" in (stage / "error.txt").read_text()
    assert "stages/labels is not finished" in (labelled.folder / "error.txt").read_text()
    assert (given.folder / "summary.json").exists()
    assert (stage / "manifest.json").exists() and not is_finished(stage)
    kept = (stage / "data.jsonl").read_text()
    assert len(kept.splitlines()) == 8
    (tmp_path / "repaired").touch()
    begun = len((tmp_path / "asked").read_text().splitlines())
    run_study(planned, folder, console=QUIET)
    assert (labelled.folder / "summary.json").exists() and is_finished(stage) and not (stage / "error.txt").exists()
    assert (stage / "error-before.txt").exists()
    data = (stage / "data.jsonl").read_text()
    assert data.startswith(kept) and len(data.splitlines()) == 24
    assert len((tmp_path / "asked").read_text().splitlines()) == begun + 16  # what was labelled is not asked again
    run_study(planned, folder, console=QUIET)
    assert (stage / "data.jsonl").read_text() == data


def test_a_changed_labelling_is_refused_and_what_it_may_cost_may_change(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "repaired").touch()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.yaml").write_text(Study(**tiny).to_yaml())

    def jobs(**change: Any) -> StudyPlan:
        return StudyPlan(Study(**tiny | {"stages": {"labels": tiny["stages"]["labels"] | change}}), tmp_path / "s")

    ((stage,),) = jobs().stages()
    assert perform(stage).error is None and stage.finished
    check(jobs(batch_size=2))
    with pytest.raises(PrefoptError, match="stages/labels was run with another recipe, which differs in prompts"):
        check(jobs(prompts=5))


def test_what_cannot_be_labelled_is_refused_before_anything_runs(tiny: dict[str, Any], tmp_path: Path) -> None:
    stage = tiny["stages"]["labels"]
    for change, message in (
        ({"policy": {"model": str(tmp_path / "nowhere")}}, "stage labels: "),
        ({"sharpnes": 2}, "stage labels: unknown key `sharpnes`. Did you mean 'sharpness'?"),
        ({"feedback": "Nope"}, "stage labels: feedback"),
    ):
        with pytest.raises(PrefoptError) as caught:
            run_study(Study(**tiny | {"stages": {"labels": stage | change}}), tmp_path / "s", console=QUIET)
        assert str(caught.value).startswith(message)
    assert not list((tmp_path / "s").rglob("recipe.yaml"))
    with pytest.raises(ValueError, match=r"either trains \(`recipe`\) or labels \(`label`\)"):
        Study(**tiny | {"stages": {"labels": stage | {"recipe": tiny["recipe"]}}})


def test_stages_of_labels_have_seeds_and_stages_before_them(tiny: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "label.yaml"
    recipe.write_text(json.dumps(tiny["stages"]["labels"]["label"]))
    stages = {
        "reward": {"objective": "BradleyTerry"},
        "label": {
            "label": str(recipe),
            "per": "seed",
            "feedback": {"name": "RewardModel", "model": "${stages.reward}"},
        },
        "labels": {"label": load_label_recipe(recipe), "per": "seed", "prompts": 3},
    }
    planned = StudyPlan(Study(**tiny | {"stages": stages, "seeds": [4, 7]}), tmp_path / "s")
    (reward,), judged, labels = planned.stages()
    assert [(type(job), job.seed, job.recipe.seed, job.folder.name) for job in judged] == [
        (LabelJob, seed, seed, f"seed-{seed}") for seed in (4, 7)
    ]
    assert all(job.after == (reward.folder,) for job in judged) and all(job.after == () for job in labels)
    assert {job.recipe.threads for job in (*judged, *labels) if isinstance(job, LabelJob)} == {1}
    # An arm waits for the stage that it names, and not for one whose name is the beginning of that name.
    assert [job.after for job in planned.arms() if job.name == "labelled"] == [(job.folder,) for job in labels]
    still = StudyPlan(Study(**tiny | {"stages": stages, "seeds": [4, 7], "randomness": ["order"]}), tmp_path / "s")
    assert [job.recipe.seed for job in still.stages()[1]] == [4, 4]


def test_the_plan_counts_labellings_and_does_not_guess_their_time(tiny: dict[str, Any], tmp_path: Path) -> None:
    seen = io.StringIO()
    show_plan(StudyPlan(Study(**tiny), tmp_path / "s"), 1, Console(file=seen, width=300), timed=True)
    assert "1 stages" in seen.getvalue() and "labelling is not in it" in seen.getvalue()
    assert not (tmp_path / "asked").exists()
