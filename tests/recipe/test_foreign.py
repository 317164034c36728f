"""A name of TRL, transformers, OpenRLHF or verl is answered with ours, and no setting of TRL is without an answer."""

import dataclasses
import warnings

import pytest

from prefopt.objectives import load_objective
from prefopt.recipe import Recipe, describe, foreign, other_name, other_names, recipe_from
from prefopt.runs.label import LabelRecipe
from prefopt.support.errors import PrefoptError

KNOWN = {field.key for field in describe(Recipe)}
ENTRIES = [entry for table in (*foreign.TABLES.values(), foreign.NONE, *other_names.OTHERS.values()) for entry in table]


def refusal(**changes):
    tree = {"policy": {"model": "m"}, "source": {"data": "x.jsonl"}, "objective": "DPO", "train": {"steps": 3}}
    with pytest.raises(PrefoptError) as refused:
        recipe_from(tree | changes)
    return str(refused.value)


def trl_settings():
    """Every field of TRL's configurations and of its scripts' arguments."""
    with warnings.catch_warnings():  # TRL 1.16 sets options that transformers 5.23 has renamed
        warnings.simplefilter("ignore")
        import trl

        classes = [getattr(trl, name) for name in dir(trl) if name.endswith(("Config", "Arguments"))]
    return {field.name for cls in classes if dataclasses.is_dataclass(cls) for field in dataclasses.fields(cls)}


def test_every_setting_of_trl_has_an_answer():
    same = {key.rpartition(".")[2] for key in KNOWN}
    answered = {name for entry in ENTRIES for name in entry.names.split()}
    settings = trl_settings()
    assert len(settings) > 200 and {"loss_type", "num_generations", "learning_rate"} <= settings
    assert settings - answered - same == set()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.names.split()[0])
def test_an_answer_names_keys_that_there_are(entry):
    fields = {field for cls in foreign_classes() for field in cls.__dataclass_fields__}
    for key in entry.keys.split():
        section, _, field = key.partition(".")
        assert key in KNOWN or (section == "objective" and field in fields), key
    assert entry.keys or entry.note, "a setting without a counterpart says why"


def foreign_classes():
    from prefopt.objectives import CATALOGUE

    return CATALOGUE.values()


def test_no_name_has_two_answers_in_one_library():
    for library in ([e for t in foreign.TABLES.values() for e in t] + list(foreign.NONE), *other_names.OTHERS.values()):
        names = [name for entry in library for name in entry.names.split()]
        assert len(names) == len(set(names)), [name for name in names if names.count(name) > 1]


@pytest.mark.parametrize("losses", foreign.LOSSES.values(), ids=foreign.LOSSES)
def test_every_loss_type_is_an_objective(losses):
    for ours in filter(None, losses.values()):
        name, _, field = ours.strip("{}").removeprefix("name: ").partition(", ")
        load_objective(name, **({field.partition(":")[0]: 0.25} if field else {}))


@pytest.mark.parametrize("config", foreign.LOSSES)
def test_every_loss_type_that_trl_documents_is_listed(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl

        if config == "CPOConfig":
            from trl.experimental.cpo import CPOConfig as cls  # noqa: N813
        else:
            cls = getattr(trl, config)
    documented = cls.__doc__.partition("loss_type (")[2]
    assert documented
    for value in foreign.LOSSES[config]:
        assert f"'{value}'" in documented or f'"{value}"' in documented, value


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"train": {"steps": 3, "learning_rate": 1e-6}}, "`learning_rate` of transformers and TRL is `train.lr` here"),
        ({"learning_rate": 1e-6}, "unknown key `learning_rate`. `learning_rate` of transformers and TRL is `train.lr`"),
        ({"train": {"steps": 3, "per_device_train_batch_size": 4}}, "× gradient_accumulation_steps × processes"),
        ({"lora_r": 8}, "`policy.adapter.r` here"),
        ({"train": {"steps": 3, "loss_type": "ipo"}}, "`objective: {name: IPOMean, tau: BETA}` here"),
        ({"train": {"steps": 3, "packing": True}}, "`packing` of transformers and TRL has no counterpart here"),
        ({"train": {"steps": 3, "ppo_epochs": 4}}, "`ppo_epochs` of verl is `train.passes` here"),
        ({"train": {"steps": 3, "n_samples_per_prompt": 4}}, "of OpenRLHF is `source.rollouts.completions` here"),
        ({"train": {"steps": 3, "stepps": 3}}, "unknown key `train.stepps`. Did you mean 'steps'?"),
    ],
)
def test_a_name_of_another_library_is_answered_with_ours(changes, answer):
    assert answer in refusal(**changes)


def test_a_foreign_field_of_an_objective_is_answered_too():
    with pytest.raises(PrefoptError, match="loss_type: hinge` of TRL is `objective: Hinge or SLiC` here"):
        load_objective("DPO", loss_type="hinge")
    with pytest.raises(PrefoptError, match=r"DPO has no field 'betta'. Did you mean 'beta'\? It has: beta\.$"):
        load_objective("DPO", betta=0.2)


def test_another_kind_of_recipe_is_not_sent_to_keys_that_it_lacks():
    labels = {field.key for field in describe(LabelRecipe)}
    assert other_name("learning_rate", 1, labels) == ""
    assert "`feedback`" in other_name("reward_funcs", 1, labels)
