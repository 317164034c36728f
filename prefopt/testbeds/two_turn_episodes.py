"""The bandit of two turns as an environment: the real `Rollouts` and episodes around a policy that is a table.

As in `bandit_online`, only the language model and its sampler are replaced: here a tokenizer reads and writes actions as words, and
an environment answers them. What the policy reads is told apart by its ids, which are those of `two_turn`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prefopt import recipe
from prefopt.data import Example, tokenise
from prefopt.data.encoding import TextEncoder
from prefopt.data.ordering import Shuffled
from prefopt.environments import EnvironmentReward
from prefopt.policy.decode.drawing import chosen_tokens
from prefopt.policy.decode.ends import EndTokens
from prefopt.policy.decode.noise import row_keys
from prefopt.sources.acting import Acting, EpisodeWriter
from prefopt.sources.rollouts import Rollouts
from prefopt.sources.scoring import Scoring
from prefopt.sources.writers import Writer
from prefopt.sources.writing import Completer
from prefopt.testbeds.two_turn import ANSWER, SECOND, TwoTurnPolicy, World
from prefopt.types import Needs, Sampled, Turn

SAMPLING = recipe.Sampling(max_tokens=1)
PROMPT, END = SECOND + 100, "<end>"
"""The id of the one prompt, and a token that the tokenizer must have and nobody writes."""


class TwoTurns:
    """Answers the first action by chance, which the task's seed decides, and pays for both after the second.

    Args:
        world: how it answers and what it pays.
    """

    def __init__(self, world: World):
        self.world = world

    def reset(self, row: Mapping[str, Any], seed: int) -> None:
        """The prompt says all."""
        self.luck = Random(seed).random()
        self.before: tuple[int, int] | None = None

    def step(self, text: str, *, truncated: bool) -> Turn:
        """Answer `a2` with so many words `x0` or `x1`, and end at `b0`."""
        action = int(text[1])
        if self.before is not None:
            return Turn(reward=self.world.rewards[*self.before, action].item(), done=True)
        answer = int((self.world.chance[action].cumsum(0) < self.luck).sum())
        self.before = action, answer
        return Turn(f" x{answer}" * self.world.answers[answer])


class TurnSampler:
    """The `Sampler`: behind the prompt it draws a first action, behind an answer a second one."""

    @torch.no_grad()
    def __call__(
        self,
        model: TwoTurnPolicy,
        prompt_ids: Sequence[Sequence[int]],
        completions: int,
        settings: recipe.Sampling,
        seeds: Tensor,
    ) -> Sampled:
        """Draw one action of each row.

        Args:
            model: the tables.
            prompt_ids: B rows, all of them in their first turn or all in their second.
            completions: K, of each.
            settings: temperature, top_p, top_k.
            seeds: [B] int64.
        """
        last, offset = [row[-1] for row in prompt_ids], 0
        logits = model.first.logits.expand(len(last), -1)
        if last[0] != PROMPT:
            before = [row[1] * len(model.answers) + row[2] - ANSWER for row in prompt_ids]
            logits, offset = model.second.logits[before], SECOND
        logits = logits.repeat_interleave(completions, 0)
        actions, _ = chosen_tokens(logits / (settings.temperature or 1.0), settings, row_keys(seeds, completions), 0)
        logps = logits.log_softmax(-1).gather(-1, actions[:, None])
        ids = offset + actions.view(len(last), completions, 1)
        return Sampled(ids, torch.ones_like(ids, dtype=torch.bool), logps.view(ids.shape))


def words_of(world: World) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the actions and answers, by the ids that they have in `two_turn`."""
    actions, kinds, seconds = world.rewards.shape
    ids = {f"a{i}": i for i in range(actions)} | {f"x{i}": ANSWER + i for i in range(kinds)}
    ids |= {f"b{i}": SECOND + i for i in range(seconds)} | {"go": PROMPT, END: PROMPT + 1}
    core = Tokenizer(models.WordLevel(ids, unk_token=END))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END)


def make_episodes(world: World, policy: TwoTurnPolicy, prompts: int, completions: int, seed: int = 0) -> Rollouts:
    """The project's source of samples, of episodes in `TwoTurns`.

    Args:
        world: what answers.
        policy: who writes.
        prompts: of a batch. All are alike, and each is a task, so that its episodes share their luck.
        completions: K.
        seed: of all noise.
    """
    tokenizer, accelerator, sampler = words_of(world), Accelerator(cpu=True), TurnSampler()
    acting = Acting(partial(TwoTurns, world), "TwoTurns", max_turns=2, max_tokens=2 + max(world.answers), timeout=None)
    actions, _, seconds = world.rewards.shape
    stop = frozenset({*range(actions), *range(SECOND, SECOND + seconds)})  # every action ends its turn
    ends = EndTokens(frozenset({PROMPT + 1}), stop)
    episodes = EpisodeWriter(acting, sampler, TextEncoder.of(tokenizer), ends)
    rows, _ = tokenise([Example("go")] * prompts, tokenizer)
    return Rollouts(
        rows,
        Shuffled(prompts, seed),
        [Writer("policy", policy, completions, True, SAMPLING)],
        Completer(sampler, tokenizer, ends, accelerator, episodes),
        Scoring({"scores": EnvironmentReward()}, accelerator),
        Needs(rollouts=True),
        recipe.Rollouts(completions=completions, sampling=SAMPLING),
        prompts,
        seed,
    )
