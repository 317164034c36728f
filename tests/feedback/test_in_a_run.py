"""Feedback in whole runs: a reward model as gold, and recipes that ask for what they would not use."""

import json

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt import PrefoptError, load_recipe, run
from prefopt.feedback import RewardModel
from prefopt.policy import load_policy
from prefopt.recipe import Policy
from prefopt.runs.inspecting import evaluate, trained
from prefopt.support.fingerprints import fingerprint_weights


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model, data, a recipe, and the run of a reward model."""
    home = tmp_path_factory.mktemp("gold")
    model, data = tiny_model(home / "lm"), tiny_pairs(home / "pairs.jsonl")
    file = tiny_recipe(home, model, data, train="{steps: 2, batch_size: 8, lr: 1e-2, threads: 1}")
    run(load_recipe(file, ["objective=BradleyTerry"]), folder=home / "reward")
    return home


def test_a_reward_model_measures_samples(home):
    gold = f"evaluate.gold={{name: RewardModel, model: {home}/reward, transforms: [{{name: Clip, low: -0.01}}]}}"
    result = run(load_recipe(home / "recipe.yaml", [gold, "evaluate.completions=4"]), folder=home / "dpo")
    kept = json.loads((home / "dpo" / "evaluations" / "test-step-000002.json").read_text())
    samples = [sample for sample in kept["samples"] if sample["gold"] is not None]
    assert len(samples) > 5
    alone = RewardModel(f"{home}/reward")(
        [s["prompt"] for s in samples], [[s["completion"]] for s in samples], [{}] * len(samples)
    ).scores[:, 0]
    assert [s["gold"] for s in samples] == pytest.approx(alone.clamp(min=-0.01).tolist(), abs=1e-5)
    assert result.after["gold"].value == pytest.approx(sum(s["gold"] for s in samples) / len(samples))
    assert kept["numbers"]["gold_missing"] == 1 - len(samples) / len(kept["samples"])
    again = evaluate(trained(home / "dpo"), Console(quiet=True))
    assert again.estimates()["gold"].value == pytest.approx(result.after["gold"].value, abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["evaluate.gold={name: RewardModel, model: {home}/lm}"], "evaluate.gold: .*/lm is no reward model"),
        (
            ["evaluate.gold={name: RewardModel, model: {home}/reward, transforms: Normalise}"],
            "Normalise has numbers that move",
        ),
        (["evaluate.gold=RewardModle"], "evaluate.gold: unknown feedback 'RewardModle'. Did you mean 'RewardModel'"),
        (["feedback={name: RewardModel, model: {home}/gone}"], "feedback: no model at .*/gone"),
        (
            ["feedback={name: RewardModel, model: {home}/reward}"],
            "`feedback` is given, and the run learns from recorded",
        ),
        (["cost={name: RewardModel, model: {home}/reward}"], "`cost` is given, and the run learns from recorded"),
    ],
)
def test_recipes_that_cannot_be_are_refused_before_the_policy_is_loaded(home, overrides, words, monkeypatch):
    monkeypatch.setattr("prefopt.runs.preparing.load_policy", None)
    settings = load_recipe(home / "recipe.yaml", [text.replace("{home}", str(home)) for text in overrides])
    with pytest.raises(PrefoptError, match=words):
        run(settings, folder=home / "never")
    assert not (home / "never").exists()


def test_a_reward_model_that_teaches_is_in_the_manifest(home):
    online = [
        "source.rollouts={completions: 2, sampling: {max_tokens: 4}}",
        f"feedback={{name: RewardModel, model: {home}/reward, transforms: ReferenceNormalise}}",
        "objective={name: RLOO, beta: 0.1}",
    ]
    folder = run(load_recipe(home / "recipe.yaml", online), folder=home / "rloo", console=Console(quiet=True)).folder
    others = json.loads((folder / "manifest.json").read_text())["others"]
    reward = RewardModel(f"{home}/reward")
    assert others == {
        "reference": fingerprint_weights(load_policy(Policy(model=f"{home}/lm"), reward._tokenizer, 0)),
        f"scores: {home}/reward": fingerprint_weights(reward.scorer),
    }


def test_a_run_says_how_many_completions_its_reward_model_did_not_read_whole(home):
    settings = [
        "source.rollouts={completions: 2, sampling: {max_tokens: 4}}",
        "objective={name: RLOO, beta: 0.1}",
        "evaluate.prompts=0",
    ]
    counted = {}
    for most in (1, 4096):
        feedback = f"feedback={{name: RewardModel, model: {home}/reward, max_completion_tokens: {most}}}"
        result = run(load_recipe(home / "recipe.yaml", [*settings, feedback]), folder=home / f"at-most-{most}")
        lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "rollouts/dropped" in line]
        names = ("feedback_cut", "feedback_control", "feedback_unknown", "dropped")
        counted[most] = [[line[f"rollouts/{name}"] for name in names] for line in steps]
    assert [line[0] for line in counted[4096]] == [0, 0]
    assert counted[4096][0][1] == counted[1][0][1]  # the first batch is the same
    # The policy's words are the reward model's, but for <unk>, which it may write itself; of one token less is read.
    assert counted[1][0][2] <= counted[4096][0][2] and 0 < counted[4096][0][2] < 16
    # Of 8 × 2 completions all are cut that have a word: it and EOS are two tokens. The others have no verdict.
    for cut, control, _, dropped in counted[1]:
        assert max(1, 16 - dropped) <= cut <= 16 and control < 4
    assert len(counted[1]) == 2
