"""Metrics of one's own, of several values or of all samples, and the reward that is learnt from, on held-out prompts."""

import numpy as np
import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

import prefopt
from prefopt import PrefoptError, load_recipe, run
from prefopt.runs import inspecting
from prefopt.runs.folder import RunFolder
from prefopt.runs.held_out_metrics import held_out_metrics
from prefopt.runs.planning import plan

QUIET = Console(quiet=True)
CODE = """
def style(prompts, completions, rows):
    return {
        "short": [[float(len(text.split()) < 3) for text in texts] for texts in completions],
        "first": [[None if not text else float("w1" in text) for text in texts] for texts in completions],
    }

def words(prompts, completions, rows):
    assert len(prompts) == len(completions) == len(rows) and all("ended" in row for row in rows)
    return sum(len(text.split()) for texts in completions for text in texts) / len(completions)

def reward(prompts, completions, rows):
    return [[float(len(text.split())) for text in texts] for texts in completions]

def many(prompts, completions, rows):
    return [1.0]

def single(prompts, completions, rows):
    return [[1.0]]
"""
METRICS = "{style: {name: m.py:style, values: [short, first]}, words: {name: m.py:words, over: corpus}}"
ONLINE = {
    "objective": "{name: GRPO}",
    "feedback": "{name: m.py:reward, transforms: [Normalise, {name: Clip, low: -1, high: 1}]}",
    "train": "{steps: 2, batch_size: 4, lr: 1e-3, threads: 1}",
    "evaluate": "{prompts: 5, completions: 2, gold: m.py:reward, sampling: {max_tokens: 4}}",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    tiny_model(home / "lm")
    tiny_pairs(home / "pairs.jsonl", rows=60)
    (home / "m.py").write_text(CODE)
    return home


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)


def recipe_of(home, folder, *overrides, **sections):
    source = "{data: pairs.jsonl, rollouts: {completions: 2, sampling: {max_tokens: 4}}}"
    more = {"source": source} | ONLINE | sections if "feedback" in sections else sections
    return load_recipe(tiny_recipe(folder, home / "lm", home / "pairs.jsonl", **more), overrides)


def test_several_values_and_numbers_of_all_samples_have_intervals_and_changes(home, tmp_path):
    evaluate = f"{{prompts: 5, completions: 2, sampling: {{max_tokens: 4}}, metrics: {METRICS}}}"
    settings = recipe_of(home, tmp_path, evaluate=evaluate)
    result = run(settings, folder=tmp_path / "run", console=QUIET)
    planned = plan(settings)
    assert sorted(held_out_metrics(settings, False, planned.data.test)) == sorted({**result.after, **result.numbers})
    kept = RunFolder(result.folder).evaluation("test", 4)
    texts = [sample["completion"] for sample in kept.samples]
    short = [float(len(text.split()) < 3) for text in texts]
    assert [sample["style_short"] for sample in kept.samples] == short
    assert result.after["style_short"].value == pytest.approx(np.mean(short))
    assert result.after["words"].value == pytest.approx(sum(len(text.split()) for text in texts) / 5)
    for name in ("style_first", "style_short", "words", "distinct_1", "distinct_2"):
        one, change = result.after[name], result.change[name]
        assert one.prompts == change.prompts == 5, name
        assert not (one.low > one.value or one.value > one.high), name  # NaN where all samples are alike
        assert change.value == pytest.approx(one.value - result.before[name].value)
    lines = list(RunFolder(result.folder).history())
    assert {"test/words", "test/words/low", "test/style_short"} <= lines[0].keys()
    assert "style" not in result.after and {"style_first_missing", "style_short_missing"} <= result.numbers.keys()


def test_from_python_they_are_objects(home, tmp_path):
    def size(prompts, completions, rows):
        return len(prompts)

    evaluate = {"prompts": 4, "sampling": {"max_tokens": 4}}
    tree = {"policy": {"model": str(home / "lm")}, "source": {"data": "pairs.jsonl"}, "objective": "DPO"}
    tree |= {"train": {"steps": 0, "batch_size": 4}, "evaluate": evaluate}
    metrics = {"size": {"name": size, "over": "corpus"}}
    result = prefopt.run(tree, metrics=metrics, folder=tmp_path / "run", console=QUIET)
    assert result.after["size"].value == 4


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("{style: m.py:style}", r"returned a mapping \(short, first\).*`values: \[short, first\]`"),
        ("{style: {name: m.py:style, values: [short, fist]}}", "must return a mapping with the keys short, fist"),
        ("{r: {name: m.py:reward, values: [a]}}", "must return a mapping with the keys a.*returned list"),
        (
            "{m: m.py:many}",
            r"^evaluate\.metrics\.m: the metric m\.py:many must return one number for each completion.*\[1\.0\]",
        ),
        (
            "{m: m.py:single}",
            r"^evaluate\.metrics\.m: the metric m\.py:single returned scores of shape \[1, 1\] for 3 prompts",
        ),
        ("{many: {name: m.py:many, over: corpus}}", "m.py:many .*must return one number of all samples"),
    ],
)
def test_what_returns_something_else_is_told_what_to_do(home, tmp_path, metrics, message):
    evaluate = f"{{prompts: 3, sampling: {{max_tokens: 4}}, metrics: {metrics}}}"
    with pytest.raises(PrefoptError, match=message):
        run(recipe_of(home, tmp_path, evaluate=evaluate), folder=tmp_path / "run", console=QUIET)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("{a: {name: m.py:reward, over: corpse}}", "over"),
        ("{a: {name: m.py:reward, over: corpus, transforms: [Clip]}}", "leave out transforms, members and values"),
        ("{a: {name: m.py:style, values: [b], transforms: [Clip]}}", "leave out one"),
        ("{a_b: m.py:reward, a: {name: m.py:style, values: [b]}}", "two metrics would be called a_b"),
        ("{a: {name: m.py:style, values: [missing]}}", "built-in metric of this name a_missing"),
        ("{win: {name: m.py:style, values: [rate]}}", "built-in metric of this name win_rate"),
        ("{reward: m.py:reward}", "built-in metric of this name"),
        ("{a: {name: m.py:style, values: ['b/c']}}", "letters, digits and _ alone"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(home, tmp_path, metrics, message):
    with pytest.raises(PrefoptError, match=message):
        plan(recipe_of(home, tmp_path, evaluate=f"{{prompts: 3, metrics: {metrics}}}"))


def test_the_reward_that_is_learnt_from_is_measured_without_its_transforms(home, tmp_path):
    settings = recipe_of(home, tmp_path, feedback=ONLINE["feedback"])
    result = run(settings, folder=tmp_path / "run", console=QUIET)
    assert result.after["reward"] == result.after["gold"] and result.change["reward"] == result.change["gold"]
    planned = plan(settings)
    assert sorted(held_out_metrics(settings, False, planned.data.test)) == sorted({**result.after, **result.numbers})
    again = inspecting.evaluate(inspecting.trained(result.folder), QUIET)
    assert again.estimates()["reward"].value == pytest.approx(result.after["reward"].value)


def test_measuring_does_not_disturb_what_is_learnt(home, tmp_path):
    """Running numbers of transforms move by rollouts alone."""

    def trained_by(folder, *overrides):
        settings = recipe_of(home, tmp_path, *overrides, feedback=ONLINE["feedback"])
        run(settings, folder=folder, console=QUIET)
        names = ("loss", "rollouts/reward", "grad_norm")
        return [[line[name] for name in names] for line in RunFolder(folder).history() if "loss" in line]

    assert trained_by(tmp_path / "a") == trained_by(tmp_path / "b", "evaluate.prompts=0", "evaluate.gold=null")


@pytest.mark.parametrize(
    ("feedback", "measured"),
    [
        ("m.py:reward", True),
        ("{name: m.py:reward, transforms: [Normalise]}", True),
        ("{name: Ensemble, members: [m.py:reward, {name: m.py:reward, transforms: [Normalise]}]}", False),
        ("{name: Judge, rubric: {system: s, user: u}, mode: pairwise, model: self}", False),
    ],
)
def test_feedback_that_would_move_or_be_paid_again_is_not_measured(home, tmp_path, feedback, measured):
    settings = recipe_of(home, tmp_path, feedback=feedback)
    assert ("reward" in held_out_metrics(settings, False)) == measured
