"""Kuhn poker as an environment, against an opponent whose play is known; and the exploitability of a real model."""

from types import SimpleNamespace

import pytest
import torch

from prefopt.environments import check_environment
from prefopt.support.errors import PrefoptError
from prefopt.testbeds.games import Exploitability, KuhnPoker, kuhn, prompts, self_play
from prefopt.testbeds.games.language import FOLDER


@pytest.fixture
def hand(monkeypatch):
    """A hand against an opponent who bets with a king and folds or passes otherwise; and what it was asked."""
    asked = []

    def bets(policy, text):
        asked.append(text)
        return float("king" in text)

    monkeypatch.setattr(self_play, "bet_probability", bets)

    def start(role, cards):
        seed = next(seed for seed in range(100) if kuhn.deal(seed) == cards)
        env = KuhnPoker({"policy": object()})
        return env, env.reset({"role": role}, seed)

    return start, asked


def test_each_reads_its_own_card_alone(hand):
    start, asked = hand
    env, opening = start("first", ("queen", "king"))
    assert opening == "queen"
    assert env.step("pass", truncated=False) == ("bet", 0.0, False, {})
    assert asked == ["kuhn second king pass"]
    assert env.step("bet", truncated=False) == ("", -2.0, True, {"illegal": 0.0})
    assert start("second", ("king", "jack"))[1] == "jack bet" and asked[-1] == "kuhn first king"


def test_what_the_second_player_wins_the_first_loses(hand):
    start, _ = hand
    env, opening = start("second", ("jack", "queen"))
    assert opening == "queen pass"
    assert env.step("bet", truncated=False) == ("pass", 1.0, True, {"illegal": 0.0})  # the jack folds


@pytest.mark.parametrize(("text", "truncated"), [("king", False), ("bet", True), ("", False)])
def test_what_is_no_action_loses_the_most(hand, text, truncated):
    env, _ = hand[0]("first", ("queen", "king"))
    turn = env.step(text, truncated=truncated)
    assert (turn.reward, turn.done, turn.info) == (-2.0, True, {"illegal": 1.0})


def test_an_opponent_that_the_run_does_not_have_is_refused():
    KuhnPoker({})  # while a recipe is checked, there are no models
    with pytest.raises(PrefoptError, match="the run has no reference to play against"):
        KuhnPoker({"policy": object(), "reference": None}, opponent="reference")


def shipped():
    """What an environment needs of a policy, of the model that comes with the games."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    return SimpleNamespace(causal=model, tokenizer=tokenizer, device=torch.device("cpu"))


def test_the_shipped_model_plays_legally_and_at_random():
    policy = shipped()
    model, tokenizer = policy.causal, policy.tokenizer
    verdict = Exploitability(policy)(["kuhn first"], [["bet", "pass"]], [{}])
    assert verdict.scores.shape == (1, 2) and verdict.scores[0, 0].item() == pytest.approx(0.4583, abs=0.03)
    env = KuhnPoker({"policy": policy})
    check_environment(env, {"role": "first", "prompt": "kuhn first"})
    ids = tokenizer([kuhn.words("queen", ("pass", "bet"))], return_tensors="pt")["input_ids"]
    actions = tokenizer(" ".join(kuhn.ACTIONS))["input_ids"]
    assert model(ids).logits[0, -1].softmax(-1)[actions].sum() > 0.97


def test_an_opponent_is_the_policy_as_it_is_now_though_a_text_is_read_once():
    policy = shipped()
    before = self_play.bet_probability(policy, "kuhn first king")
    assert self_play.bet_probability(policy, "kuhn first king") == before
    weights = list(policy.causal.parameters())
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    torch.optim.AdamW(weights, fused=True).step()  # as the trainer does, and no version counter goes up
    assert self_play.bet_probability(policy, "kuhn first king") != before


def test_roles_take_turns_and_tasks_differ():
    rows = list(prompts(4, "kuhn"))
    assert [row["prompt"] for row in rows] == ["kuhn first", "kuhn second"] * 2
    assert len({row["task"] for row in rows}) == 4
    assert {row["task"] for row in rows}.isdisjoint(row["task"] for row in prompts(4, "kuhn", seed=1))
