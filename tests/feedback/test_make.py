"""From a recipe's section to a feedback; everything that can be is refused before a model is loaded."""

import pytest
import torch
from accelerate import Accelerator

from prefopt import PrefoptError, recipe
from prefopt.feedback import (
    FEEDBACKS,
    TRANSFORMS,
    Clip,
    Ensemble,
    Normalise,
    RewardModel,
    Rule,
    check_feedback,
    make_feedback,
    reward_models,
)

GIVEN = ["the film was", "a room is"], [["good", "bad ."], ["cold", "a b c d e"]], [{}, {}]

OWN = """
from dataclasses import dataclass, field
from typing import Any

LIMIT = 3


def words(prompts, completions, rows):
    return [[len(text.split()) for text in texts] for texts in completions]


def halved(scores, prompts, completions, rows):
    return scores / 2


@dataclass
class Letters:
    letter: str
    times: float = 1.0
    accelerator: Any = None

    def __call__(self, prompts, completions, rows):
        return [[self.times * text.count(self.letter) for text in texts] for texts in completions]


@dataclass
class Counting:
    calls: int = field(default=0, init=False)

    def __call__(self, prompts, completions, rows):
        self.calls += 1
        return [[self.calls] * len(texts) for texts in completions]

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def single(text):
    return len(text)


@dataclass
class First:
    members: tuple

    def __call__(self, prompts, completions, rows):
        return self.members[0](prompts, completions, rows)


class Whole(First):
    @property
    def parts(self):
        return self.members


class Asking:
    def __init__(self, accelerator, policy, scale=1):
        self.accelerator, self.policy, self.scale = accelerator, policy, scale

    def __call__(self, prompts, completions, rows):
        return [[self.scale * self.policy for _ in texts] for texts in completions]


@dataclass
class Silent:
    loud: bool = False
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path}/own.py"


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def section(**content):
    return recipe.Feedback.model_validate(content)


def test_functions_and_classes_of_ones_own(own, accelerator):
    rule = make_feedback(section(name=f"{own}:words"), accelerator)
    assert rule(*GIVEN).scores.tolist() == [[1, 2], [1, 5]]
    assert rule.name == f"{own}:words" and isinstance(rule.feedback, Rule)
    letters = make_feedback(section(name=f"{own}:Letters", letter="o", times="2"), accelerator)
    assert letters(*GIVEN).scores.tolist() == [[4, 0], [2, 0]]
    assert letters.feedback.accelerator is accelerator
    assert make_feedback(section(name="Rule", path=f"{own}:words"), accelerator).feedback == rule.feedback


def test_a_constructor_gets_what_it_asks_for(own, accelerator):
    asking = section(name=f"{own}:Asking", scale=3)
    made = make_feedback(asking, accelerator, policy=2)  # type: ignore[arg-type]
    assert made(*GIVEN).scores.unique().tolist() == [6]
    assert made.feedback.accelerator is accelerator
    check_feedback(asking)  # the policy is not there yet, so it is not made
    with pytest.raises(PrefoptError, match=r"has no field 'scael'\. Did you mean 'scale'"):
        check_feedback(section(name=f"{own}:Asking", scael=3))


def test_transforms_in_their_order(own, accelerator):
    transforms = [f"{own}:halved", {"name": "Clip", "high": "1"}]
    made = make_feedback(section(name=f"{own}:words", transforms=transforms, timeout=60), accelerator)
    assert made(*GIVEN).scores.tolist() == [[0.5, 1], [0.5, 1]]
    assert made.transforms[1] == Clip(high=1.0) and made.timeout == 60
    assert make_feedback(section(name=f"{own}:words", transforms="Normalise"), accelerator).transforms == (Normalise(),)


def test_reward_models_and_ensembles(own, accelerator, scorer_folder):
    scorer = {
        "name": "RewardModel",
        "model": str(scorer_folder),
        "max_prompt_tokens": 8,
        "transforms": "ReferenceNormalise",
    }
    spec = section(name="Ensemble", members=[scorer, f"{own}:words"], combine="min", timeout=60)
    made = make_feedback(spec, accelerator)
    assert isinstance(made.feedback, Ensemble) and made.unfitted
    inner = made.feedback.members[0].feedback
    assert isinstance(inner, RewardModel) and inner.accelerator is accelerator and inner.max_prompt_tokens == 8
    assert "scorer" in vars(inner), "loaded before it is called"
    made.fit(*GIVEN)
    raw = inner(*GIVEN).scores
    scaled = (raw - raw.mean()) / raw.std(correction=0)
    expected = torch.minimum(scaled, torch.tensor([[1.0, 2], [1, 5]]))
    torch.testing.assert_close(made(*GIVEN).scores, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"name": "RewardModle"}, "unknown feedback 'RewardModle'. Did you mean 'RewardModel'? Known: Rule"),
        ({"name": "RewardModel"}, "where: RewardModel needs 'model'"),
        ({"name": "RewardModel", "model": "/gone"}, "where: no model at /gone"),
        ({"name": "RewardModel", "model": "{lm}"}, "where: {lm} is no reward model"),
        ({"name": "RewardModel", "model": "{rm}", "average": "{lm}"}, "{lm} is no reward model"),
        ({"name": "RewardModel", "modle": "x"}, "RewardModel has no field 'modle'. Did you mean 'model'?"),
        ({"name": "RewardModel", "model": "{rm}", "accelerator": "x"}, "no field 'accelerator'"),
        ({"name": "RewardModel", "model": "{rm}", "batch_size": 0}, "field 'batch_size' must be greater than 0, got 0"),
        ({"name": "RewardModel", "model": "{rm}", "dtype": "float"}, "field 'dtype' must be 'float32'"),
        ({"name": "RewardModel", "model": 5}, "field 'model' must be a valid string"),
        ({"name": "Ensemble"}, "Ensemble needs 'members'"),
        ({"name": "Ensemble", "members": ["{own}:words"]}, "at least two members, not 1"),
        ({"name": "Ensemble", "members": ["{own}:words"] * 2, "lam": -1}, "field 'lam' must be greater"),
        ({"name": "Ensemble", "members": ["{own}:words"] * 2, "combine": "max"}, "must be mean, min or lcb, not 'max'"),
        ({"name": "Ensemble", "members": ["{own}:words", "{own}:word"]}, "where.members.1: {own} has no 'word'"),
        ({"name": "Rule", "path": "{own}:words", "members": ["{own}:words"]}, "Rule has no field 'members'"),
        ({"name": "{own}:wrods"}, "where: {own} has no 'wrods'. Did you mean 'words'?"),
        ({"name": "{own}:words", "limit": 3}, "{own}:words is a function, which has no fields (limit)"),
        ({"name": "{own}:LIMIT"}, "{own}:LIMIT cannot be called: an int is no function"),
        (
            {"name": "{own}:single"},
            "{own}:single is called with (prompts, completions, rows), and its parameters are (text)",
        ),
        ({"name": "{own}:Letters"}, "Letters needs 'letter'"),
        ({"name": "{own}:Letters", "leter": "x"}, "has no field 'leter'. Did you mean 'letter'?"),
        ({"name": "{own}:Silent"}, "{own}:Silent cannot be called"),
        (
            {"name": "{own}:words", "transforms": "Clpi"},
            "where.transforms.0: unknown transform 'Clpi'. Did you mean 'Clip'?",
        ),
        (
            {"name": "{own}:words", "transforms": ["Clip"]},
            "where.transforms.0: Clip cannot be made: give low, high or both",
        ),
        (
            {"name": "{own}:words", "transforms": [{"name": "Clip", "lo": 1}]},
            "Clip has no field 'lo'. Did you mean 'low'?",
        ),
        (
            {"name": "{own}:words", "transforms": [{"name": "LengthPenalty", "weight": 1}]},
            "LengthPenalty needs 'limit'",
        ),
        (
            {
                "name": "{own}:words",
                "transforms": [{"name": "LengthPenalty", "weight": 1, "limit": 1, "tokenizer": "/gone"}],
            },
            "where: no model at /gone",
        ),
        (
            {"name": "{own}:words", "transforms": [{"name": "RepetitionPenalty", "n": 0}]},
            "field 'n' must be greater than 0",
        ),
        ({"name": "{own}:words", "transforms": [{"name": "Normalise", "count": 1}]}, "Normalise has no field 'count'"),
        ({"name": "{own}:words", "transforms": [{"name": "ReferenceNormalise", "gain": 1}]}, "give gain and bias"),
        ({"name": "{own}:words", "transforms": [{"name": "MissingEOS"}]}, "give either penalty or score"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_is_refused_before_a_model_is_loaded(content, words, own, lm_folder, scorer_folder, monkeypatch):
    names = {"{own}": own, "{lm}": str(lm_folder), "{rm}": str(scorer_folder)}

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        for name, path in names.items():
            value = value.replace(name, path) if isinstance(value, str) else value
        return value

    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.from_pretrained", None)
    with pytest.raises(PrefoptError) as caught:
        check_feedback(section(**filled(content)), "where")
    assert filled(words) in str(caught.value) and "where" in str(caught.value)


def test_what_measures_must_not_move(own):
    def check(**content):
        check_feedback(section(name=f"{own}:words", **content), "evaluate.gold", fixed=True)

    check(transforms=[{"name": "Clip", "low": 0}, {"name": "ReferenceNormalise", "gain": 2, "bias": 0}])
    for transform in ("Normalise", "ReferenceNormalise"):
        with pytest.raises(PrefoptError, match=f"{transform} has numbers that move"):
            check(transforms=transform)
    member = {"name": f"{own}:words", "transforms": "Normalise"}
    both = section(name="Ensemble", members=[member, member])
    with pytest.raises(PrefoptError, match="Normalise has numbers that move"):
        check_feedback(both, "evaluate.gold", fixed=True)
    with pytest.raises(PrefoptError, match="Counting has numbers that move"):
        check_feedback(section(name=f"{own}:Counting"), "evaluate.gold", fixed=True)
    check_feedback(section(name=f"{own}:Counting"))


def test_running_numbers_of_ones_own_are_kept(own, accelerator):
    one, other = (make_feedback(section(name=f"{own}:Counting"), accelerator) for _ in range(2))
    one(*GIVEN)
    other.load_state_dict(one.state_dict())
    assert other(*GIVEN).scores.unique().tolist() == [2]


def test_a_timeout_names_the_section(tmp_path, accelerator):
    (tmp_path / "slow.py").write_text("import time\n\n\ndef sleeps(*_):\n    time.sleep(5)\n")
    made = make_feedback(section(name=f"{tmp_path}/slow.py:sleeps", timeout=0.05), accelerator)
    with pytest.raises(PrefoptError, match=r"slow\.py:sleeps was not back after 0\.05 seconds"):
        made(*GIVEN)


def test_the_policy_as_its_own_judge_does_not_measure():
    judge = section(name="Judge", model="self", rubric="pairwise", mode="pairwise")
    check_feedback(judge)
    with pytest.raises(
        PrefoptError, match=r"^evaluate\.judge: Judge of `model: self` is the policy .*name a model of its own$"
    ):
        check_feedback(judge, "evaluate.judge", fixed=True)


def test_every_name_is_that_of_its_class():
    assert all(name == cls.__name__ and cls.__doc__ for name, cls in (FEEDBACKS | TRANSFORMS).items())


def test_a_composite_of_ones_own_is_loaded_fitted_saved_and_refused_as_a_measure(own, accelerator, scorer_folder):
    scorer = {"name": "RewardModel", "model": str(scorer_folder), "transforms": "ReferenceNormalise"}
    members = [{"name": f"{own}:Whole", "members": [scorer]}, f"{own}:Counting"]
    spec = section(name=f"{own}:Whole", members=members)
    with pytest.raises(PrefoptError, match="ReferenceNormalise has numbers that move"):
        check_feedback(spec, fixed=True)
    made, again = make_feedback(spec, accelerator), make_feedback(spec, accelerator)
    assert made.unfitted and list(reward_models(made)) == [str(scorer_folder)]
    made.fit(*GIVEN)
    assert not made.unfitted and made(*GIVEN).scores.double().std(correction=0).item() == pytest.approx(1, rel=1e-4)
    again.load_state_dict(made.state_dict())
    assert again(*GIVEN).scores.equal(made(*GIVEN).scores)
    with pytest.raises(PrefoptError, match=r"where: .*First is given members .* a property `parts`"):
        check_feedback(section(name=f"{own}:First", members=members), "where")
