"""A study's question is checked before its first run: what decides must be measured."""

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import PrefoptError, run_study
from prefopt.study import Study
from prefopt.study.question import check_question, plan_study
from prefopt.support.terminal import Terminal

QUIET = Terminal(quiet=True)
CODE = "def gold(prompts, completions, rows):\n    return [[1.0] * len(c) for c in completions]\n"
ARMS = {"A": {}, "B": {"objective": "IPO"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "m.py").write_text(
        "def gold(prompts, completions, rows):\n    return [[1.0] * len(c) for c in completions]\n"
    )
    return tiny_recipe(home, tiny_model(home / "lm"), tiny_pairs(home / "pairs.jsonl"))


def study(base, **more):
    return Study(**{"recipe": str(base), "arms": ARMS, "seeds": 1} | more)


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({}, "accuracy"),
        ({"evaluate.metrics": {"polite": "m.py:gold"}}, "polite"),
        ({"evaluate.judge": "m.py:gold", "evaluate.metrics": {"polite": "m.py:gold"}}, "win_rate"),
        ({"evaluate.judge": "m.py:gold", "evaluate.gold": "m.py:gold"}, "gold"),
        ({"objective": "BradleyTerry", "evaluate.gold": "m.py:gold"}, "accuracy"),
    ],
)
def test_the_usual_metric_is_the_first_that_the_arms_measure(base, tmp_path, changes, metric):
    arms = {"A": {}, "B": {"train.lr": 0.1}}
    assert plan_study(study(base, arms=arms, common=changes), tmp_path).study.primary_metric == metric
    assert plan_study(study(base, common=changes, metric="nll"), tmp_path).study.primary_metric == "nll"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metric": "gold"}, r"metric is gold, which arm A will not measure\. It is measured by evaluate"),
        ({"metric": "acuracy"}, r"no such metric\. Did you mean 'accuracy'\?.*evaluate\.metrics: {acuracy: "),
        ({"metric": "win_rate"}, r"It is measured by evaluate\.judge"),
        ({"metric": "accuracy_at_kl", "common": {"evaluate.sampling.temperature": 0}}, "will not measure kl"),
        ({"measure": ["brier"]}, r"measure is brier, which no arm will measure"),
        (
            {"tune": {"trials": 1, "fields": {"train.lr": [0.1]}, "metric": "gold"}},
            r"tune\.metric is gold, which arm A will not measure",
        ),
        (
            {
                "metric": "hard/accuracy",
                "common": {"evaluate.sets": {"hard": {"data": "pairs.jsonl"}}},
                "tune": {"trials": 1, "fields": {"train.lr": [0.1]}},
            },
            r"tuning would select by hard/accuracy, on a set .* such as accuracy",
        ),
    ],
)  # fmt: skip
def test_a_question_that_runs_will_not_answer_is_refused_before_the_first(base, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(base.parent)
    with pytest.raises(PrefoptError, match=message):
        run_study(study(base, **more), tmp_path / "s", console=QUIET)
    assert not (tmp_path / "s").exists()


def test_an_arm_that_does_not_measure_what_the_others_do_is_named(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base.parent)
    arms = {"A": {"evaluate.gold": "m.py:gold"}, "B": {}}
    with pytest.raises(PrefoptError, match="arm B will not measure"):
        run_study(study(base, arms=arms, metric="gold"), tmp_path / "s", console=QUIET)


def test_arms_that_cannot_be_looked_at_yet_are_not_asked(base):
    check_question(study(base, metric="gold", measure=["brier"]), {})
