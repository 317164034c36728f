"""Kuhn poker as what a policy acts in, against an opponent that is a model of the same run, and how far it is from unbeatable."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any
from weakref import WeakKeyDictionary

import torch

from prefopt.support.errors import PrefoptError
from prefopt.types import Completion, Prompt, Turn, Verdict

from .kuhn import ACTIONS, ROLES, History, deal, exploitability, over, play_of, winnings, words


class KuhnPoker:
    """A hand of Kuhn poker; the row's column `role` says who the policy is, and the seed which cards are dealt.

        environment: {name: "prefopt.testbeds.games.self_play:KuhnPoker", opponent: policy, max_turns: 2}

    The policy reads its own card and what its opponent does, never the other card: both are the same model in a recipe of
    self-play, each with its own text. The reward is what the policy wins, −2 to 2; a turn that is no action loses the 2.

    The completions of a prompt have the same role and the same cards, so the mean of a group is a baseline for its role, as role-
    conditioned advantages have it (Liu et al., arXiv 2506.24119, §3.3, where it is a running mean of all cards).

    Args:
        models: of the run by name: the policy, and the reference; none while a recipe is checked.
        opponent: policy, as it is now; or reference, which follows the policy where `reference.every` says so.
    """

    stop: Sequence[str] = ACTIONS
    logs: Sequence[str] = ("illegal",)

    def __init__(self, models: Mapping[str, Any], opponent: str = "policy"):
        if models and models.get(opponent) is None:
            raise PrefoptError(f"KuhnPoker: the run has no {opponent} to play against; it has {', '.join(models)}")
        self.opponent = models.get(opponent)

    def reset(self, row: Mapping[str, Any], seed: int) -> str:
        """Deal; the card of the policy, and what the opponent did if it was first."""
        self.cards, self.random = deal(seed), Random(f"opponent {seed}")
        self.role = ROLES.index(row["role"])
        self.history: History = ()
        return " ".join((self.cards[self.role], *self._answered()))

    def step(self, text: str, *, truncated: bool) -> Turn:
        """Take an action, and let the opponent answer."""
        action = text.strip()
        if truncated or action not in ACTIONS:
            return Turn(reward=-2.0, done=True, info={"illegal": 1.0})
        self.history = (*self.history, action)
        said = " ".join(self._answered())
        if not over(self.history):
            return Turn(said)
        won = winnings(self.cards, self.history)
        return Turn(said, won if self.role == 0 else -won, True, {"illegal": 0.0})

    def _answered(self) -> History:
        """What the opponent did; nothing where it is not its turn."""
        turn = len(self.history) % 2
        if over(self.history) or turn == self.role:
            return ()
        bets = self.random.random() < bet_probability(self.opponent, words(self.cards[turn], self.history))
        self.history = (*self.history, ACTIONS[bets])
        return self.history[-1:]


@torch.no_grad()
def bet_probability(policy: Any, text: str) -> float:
    """How likely a policy is to write `bet` after a text, where it writes an action.

    There are twelve such texts, and thousands of hands with the same weights: each is read once for them.
    """
    policy = getattr(policy, "policy", policy)  # of a reference
    # Not by the weights' version counters, which fused optimisers leave as they are.
    weights = tuple(float(weight.sum()) for weight in policy.causal.parameters())
    read_with, known = _read.setdefault(policy.causal, (weights, {}))
    if read_with != weights:
        known = {}
        _read[policy.causal] = weights, known
    if text not in known:
        ids, actions = (policy.tokenizer(given)["input_ids"] for given in (text, " ".join(ACTIONS)))
        logits = policy.causal(torch.tensor([ids], device=policy.device)).logits[0, -1, actions]
        known[text] = float(logits.softmax(-1)[1])
    return known[text]


_read: WeakKeyDictionary[Any, tuple[tuple[float, ...], dict[str, float]]] = WeakKeyDictionary()
"""What models said of texts, and with which weights, by their sums."""


class Exploitability:
    """What a best response wins from the policy, in antes; the same for every completion, as it is of the policy.

    metrics: {exploitability: "prefopt.testbeds.games.self_play:Exploitability"}
    """

    def __init__(self, policy: Any):
        self.policy = policy

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """[B, K]."""
        lost = exploitability(play_of(lambda text: bet_probability(self.policy, text)))
        return Verdict(torch.tensor([[lost] * len(group) for group in completions]))
