"""docs/metrics.md explains every number that a run logs, and no number that no run logs."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt.feedback import FEEDBACKS, TRANSFORMS
from prefopt.objectives import CATALOGUE, GRPO
from prefopt.objectives.contract import make_case
from prefopt.recipe import Feedback, load_recipe
from prefopt.runs.run import run
from prefopt.sources.diagnostics import RolloutDiagnostics
from prefopt.sources.rollout_rows import ENDS
from prefopt.sources.scoring import MISREAD

DOCS = Path(__file__).parents[2] / "docs"
RUNS = {
    "dpo": "DPO",
    "sft": "SFT",
    "reward": "BradleyTerry",
    "steps": "StepReward",
    "two": "[{name: DPO}, {name: SFT, weight: 0.5}]",
}


def documented() -> dict[str, set[str]]:
    """The names in the tables of docs/metrics.md, by section."""
    training, held_out = (DOCS / "metrics.md").read_text().split("\n## On held-out data")
    training, online = training.split("\n### Online objectives")
    online, rollouts = online.split("\n### Rollouts")
    return {
        name: set(re.findall(r"`([^`]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))
        for name, text in {"training": training, "online": online, "rollouts": rollouts, "held-out": held_out}.items()
    }


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> dict[str, list[dict[str, float]]]:
    """The lines of metrics.jsonl of small runs."""
    home = tmp_path_factory.mktemp("docs")
    model, data = tiny_model(home / "model"), tiny_pairs(home / "pairs.jsonl")
    (home / "gold.py").write_text(
        "def words(prompts, texts, rows):\n    return [[len(t.split()) for t in row] for row in texts]\n"
    )
    pairs = [json.loads(line) for line in data.read_text().splitlines()]
    rated = [row | {"score_chosen": 1 + i % 7, "score_rejected": 0} for i, row in enumerate(pairs)]
    (home / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    steps = [
        {"prompt": row["prompt"], "completions": ["w1", "w2"], "labels": [True, i % 2]} for i, row in enumerate(pairs)
    ]
    (home / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    file = tiny_recipe(home, model, data, train="{steps: 2, batch_size: 8, threads: 1}")
    found = {}
    for name, objective in RUNS.items():
        overrides = [f"objective={objective}", f"evaluate.gold={home}/gold.py:words", "evaluate.every=1"]
        overrides += [f"evaluate.judge={home}/gold.py:words"]
        if name == "reward":  # gaps between scores, and rows enough for three kinds of them
            overrides += [
                f"source.data={home}/rated.jsonl",
                "source.split=[0.5, 0, 0.5]",
                f"source.validation.data={home}/rated.jsonl",
            ]
        if name == "steps":
            overrides += [f"source.data={home}/steps.jsonl", "source.split=[0.5, 0.2, 0.3]"]
        result = run(load_recipe(file, overrides), home / name)
        found[name] = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return found


def names(lines: list[dict[str, float]]) -> tuple[set[str], set[str]]:
    """Metrics of training, and of evaluation without their prefix and their interval."""
    keys = {key for line in lines for key in line} - {"step"}
    held_out = {key for key in keys if key.startswith(("test/", "validation/"))}
    return keys - held_out, {re.sub(r"^\w+?/|/(low|high)$", "", key) for key in held_out}


@pytest.mark.parametrize("name", RUNS)
def test_every_logged_metric_is_explained(logged, name):
    training, held_out = names(logged[name])
    known = documented()
    alone = {re.sub(r"^loss/\w+$", "loss/NAME", metric) for metric in training}
    assert alone - known["training"] == set()
    assert held_out - known["held-out"] == set()
    assert {"loss", "grad_norm"} <= training and {"accuracy", "step_accuracy"} & held_out


def test_nothing_is_explained_that_is_not_logged(logged):
    found = [names(lines) for lines in logged.values()]
    training = {re.sub(r"^loss/\w+$", "loss/NAME", m) for t, _ in found for m in t}
    held_out = set().union(*(h for _, h in found))
    assert documented() == {
        # Of weights of 16 bits and of arithmetic in fp16, which these runs do not have.
        "training": training | {"weights_moved", "loss_scale", "overflow"},
        "online": online_metrics(),
        "rollouts": {
            *rollout_metrics(),
            *(f"rollouts/{name}" for name in ("dropped", "skipped", "age")),  # the last with staleness
            *(f"rollouts/feedback_{name}" for name in MISREAD),
            *ENDS,
        },
        "held-out": held_out | {"reward"},  # of runs that learn from feedback, which these do not
    }


def rollout_metrics() -> set[str]:
    """What is watched of rollouts that have everything."""
    case = make_case(GRPO(beta=0.1, estimator="exact", tis=2.0))
    columns = case.batch.columns | dict.fromkeys(("gold", "cost"), case.batch.scores)
    statistics = case.old.statistics | {"entropy": case.old.logps}
    return set(
        RolloutDiagnostics()(
            dataclasses.replace(case.batch, columns=columns),
            dataclasses.replace(case.old, statistics=statistics),
            case.reference,
        )
    )


def online_metrics() -> set[str]:
    """What the online objectives of the catalogue log beside the names that all pairwise ones have."""
    found: set[str] = set()
    for cls in CATALOGUE.values():
        if cls().needs.rollouts:
            fields = {field.name for field in dataclasses.fields(cls)}
            whole = {"beta": 0.1, "tis": 2.0, "estimator": "k2", "placement": "loss"}
            case = make_case(cls(**{name: value for name, value in whole.items() if name in fields}))
            found |= case.targets().metrics.keys() | case.loss().metrics.keys()
    return {re.sub(r"^scores/\w+$", "scores/NAME", name) for name in found if not name.startswith("rewards/")}


@pytest.mark.parametrize("name", [*FEEDBACKS, *TRANSFORMS])
def test_every_feedback_and_shape_is_explained_with_all_its_fields(name):
    row = next(line for line in (DOCS / "feedback.md").read_text().splitlines() if line.startswith(f"| `{name}` |"))
    assert len(re.split(r"(?<!\\)\|", row)) == 6
    for field in dataclasses.fields((FEEDBACKS | TRANSFORMS)[name]):
        if not field.init or field.name in ("accelerator", "folder"):  # what a run gives, and a recipe does not
            continue
        default = field.default if field.default != () else []
        known = "null" if default is None else str(default).lower().removesuffix(".0")
        said = re.search(rf"`{field.name}(: ([^`]*))?`", row)
        assert said, field.name
        assert said[2] in (None, known), field.name


def test_the_examples_of_feedback_can_be_read():
    sections = re.findall(r"(?:^    \S.*\n(?:^     .*\n)*)", (DOCS / "feedback.md").read_text(), re.MULTILINE)
    read = [yaml.safe_load(s) for s in sections if s.lstrip().startswith(("feedback:", "evaluate:"))]
    assert len(read) >= 5
    for section in read:
        given = section.get("feedback") or section["evaluate"]["gold"]
        Feedback.model_validate({"name": given} if isinstance(given, str) else given)


def test_rows_of_the_tables_are_whole():
    for line in (DOCS / "metrics.md").read_text().splitlines():
        if line.startswith("|"):
            assert len(re.split(r"(?<!\\)\|", line)) == 6, line


def test_formulas_that_a_run_can_confirm(logged):
    first = next(line for line in logged["dpo"] if "loss" in line)
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert first["rewards/margin"] == pytest.approx(first["rewards/chosen"] - first["rewards/rejected"], abs=1e-6)
    start = logged["dpo"][0]
    assert start["test/accuracy"] == 0.5 and start["test/kl"] == pytest.approx(0, abs=1e-6)


def test_loss_is_the_weighted_sum_of_its_terms(logged):
    two = next(line for line in logged["two"] if "loss" in line)
    assert two["loss"] == pytest.approx(two["loss/DPO"] + 0.5 * two["loss/SFT"], rel=1e-5)
    assert two["loss/DPO"] == pytest.approx(math.log(2), rel=1e-5)


def test_ppo_page_has_all_the_details_and_names_what_exists():
    text = (DOCS / "ppo.md").read_text()
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == [str(n) for n in range(1, 22)]
    fields = {field.name for field in dataclasses.fields(CATALOGUE["PPO"])}
    assert set(re.findall(r"`PPO\.(\w+)`", text)) <= fields | {"targets", "loss", "adapted"}
    assert fields <= set(re.findall(r"`PPO\.(\w+)`", text)) | {"epsilon", "lam", "c_v"}
    for path, name in re.findall(r"`([\w/]+\.py):(\w+)`", text):
        assert re.search(rf"^(def|class) {name}\b", (DOCS.parent / "prefopt" / path).read_text(), re.MULTILINE), name
    online = {name for name, cls in CATALOGUE.items() if cls.__module__.startswith("prefopt.objectives.online")}
    assert online - {"NashMD", "XPO", "SPIN"} == set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
