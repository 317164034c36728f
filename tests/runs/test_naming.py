"""What a recipe names and that is not there, as it is told before torch is imported."""

import pytest

from prefopt import feedback
from prefopt.data import dialects
from prefopt.data.loading import _READERS
from prefopt.policy.decode.making import KNOWN
from prefopt.policy.finding import find_model
from prefopt.recipe import DATA_FILES, DIALECTS, FEEDBACKS, SAMPLERS, TRANSFORMS, load_recipe
from prefopt.runs.naming import refuse_unknown_names
from prefopt.support.errors import PrefoptError


def test_the_names_in_the_schema_are_those_that_can_be_made():
    assert tuple(feedback.FEEDBACKS) == FEEDBACKS
    assert tuple(feedback.TRANSFORMS) == TRANSFORMS
    assert tuple(KNOWN) == SAMPLERS
    assert tuple(dialects.DIALECTS) == DIALECTS
    assert set(_READERS) == set(DATA_FILES)


@pytest.mark.parametrize("name", ["pocket/dpo", "pocket/ppo", "pocket/rlaif/rewardppo", "pocket/rpo", "tldr/ppo"])
def test_recipes_that_name_what_there_is_pass(name):
    refuse_unknown_names(load_recipe(name))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.model=nowhere/at/all", "no model at nowhere/at/all"),
        ("policy.critic.model=nowhere/at/all", "no model at nowhere/at/all"),
        ("source.data=nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("source.test.data=nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("feedback=RewardModl", "feedback: unknown feedback 'RewardModl'. Did you mean 'RewardModel'?"),
        ("feedback={name: Ensemble, members: [Ruule]}", "feedback.members.0: unknown feedback 'Ruule'"),
        ("feedback={name: RewardModel, transforms: [Clipp]}", "feedback.transforms.0: unknown transform 'Clipp'"),
        ("evaluate.gold=nowhere.py:f", "evaluate.gold: no file nowhere.py"),
        ("objective=nowhere.py:Mine", "objective: no file nowhere.py"),
        ("evaluate.sampler=vlm", "evaluate.sampler: unknown sampler 'vlm'. Did you mean 'vllm'?"),
        ("source.rollouts.sampler=vlm", "source.rollouts.sampler: unknown sampler 'vlm'"),
        ("evaluate.metrics={praise: nowhere.py:f}", "evaluate.metrics.praise: no file nowhere.py"),
        ("evaluate.sets={hard: {data: nowhere.jsonl}}", "nowhere.jsonl: no such file"),
        ("source.data=nowhere.py:rows", "source.data: no file nowhere.py"),
        ("objective.betta=1", "PPO has no field 'betta'. Did you mean 'beta'?"),
    ],
)
def test_what_is_not_there_is_refused(override, message):
    with pytest.raises(PrefoptError) as refused:
        refuse_unknown_names(load_recipe("pocket/ppo", [override]))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "source.arguments={n: 100, sampler: uniform, judge: {name: mine}, policy: {model: a b}, file: gone.py:f}",
        "feedback={name: prefopt.testbeds.pocket:gold, sampler: mine, judge: {name: mine}}",
        "evaluate.metrics={praise: {name: prefopt.testbeds.pocket:gold, gold: {name: mine}}}",
    ],
)
def test_fields_of_ones_own_functions_and_classes_mean_what_they_like(override):
    refuse_unknown_names(load_recipe("pocket/ppo", [override]))


def test_a_model_that_is_misspelt_is_told_with_the_nearest_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "pocket-sft").mkdir(parents=True)
    for refuse in (
        lambda name: find_model([name]),
        lambda name: refuse_unknown_names(load_recipe("pocket/dpo", [f"policy.model={name}"])),
    ):
        with pytest.raises(PrefoptError, match=r"no model at ./runs/pocket-stf: .* Did you mean 'runs/pocket-sft'\?"):
            refuse("./runs/pocket-stf")
