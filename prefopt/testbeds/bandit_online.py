"""Bandits for online objectives: the real `Rollouts`, writers, feedback and `Trainer` around a policy that is a table.

Only the language model, its sampler and its tokenizer are replaced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from prefopt import recipe
from prefopt.data import Tokenised
from prefopt.data.example import Example
from prefopt.data.ordering import Shuffled
from prefopt.data.selecting import Ties
from prefopt.objectives.terms import Term
from prefopt.policy.decode.drawing import chosen_tokens
from prefopt.policy.decode.ends import EndTokens
from prefopt.policy.decode.noise import row_keys
from prefopt.policy.decode.sampler import Mixture
from prefopt.sources.rollouts import Rollouts
from prefopt.sources.scoring import Scoring
from prefopt.sources.writers import TRAINED, Writer
from prefopt.sources.writing import Completer
from prefopt.testbeds.bandit import Bandit, Frozen, contexts_of
from prefopt.training.loop import Trainer
from prefopt.types import Feedback, Needs, Objective, Prompt, Sampled, Sampler, Verdict

SAMPLING = recipe.Sampling(max_tokens=1)


class TableSampler:
    """The `Sampler` of bandits: one action a completion, with the noise of `TransformersSampler`."""

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        prompt_ids: Sequence[Sequence[int]],
        completions: int,
        settings: recipe.Sampling,
        seeds: Tensor,
    ) -> Sampled:
        """Draw `completions` actions in each context.

        Args:
            model: a policy, a frozen one, or a `Mixture` of the two.
            prompt_ids: B contexts.
            completions: K.
            settings: temperature (0 is greedy), top_p, top_k.
            seeds: [B] int64.
        """
        scores = _scores(model, contexts_of(prompt_ids)) / (settings.temperature or 1.0)
        scores = scores.repeat_interleave(completions, 0)
        actions, _ = chosen_tokens(scores, settings, row_keys(seeds, completions), 0)
        logps = scores.log_softmax(-1).gather(-1, actions[:, None])
        ids = actions.view(len(prompt_ids), completions, 1)
        return Sampled(ids, torch.ones_like(ids, dtype=torch.bool), logps.view(ids.shape))


def _scores(model: Bandit | Frozen | Mixture, contexts: Tensor) -> Tensor:
    """[B, A] logits."""
    if isinstance(model, Mixture):
        parts: Sequence[tuple[float, Any]] = ((1 - model.share, model.policy), (model.share, model.reference))
        return torch.stack([share * _scores(part, contexts) for share, part in parts if share]).sum(0)
    return (model.policy if isinstance(model, Frozen) else model).scores(contexts)


class Numerals:
    """Stands in for a tokenizer: the text of an action is its number."""

    def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
        """The actions that a text names, as `input_ids`."""
        return {"input_ids": [int(word) for word in text.split() if word.isdecimal()]}

    def decode(self, ids: Sequence[int], **_: bool) -> str:
        """The text of a completion; there are no special tokens and no spaces to be kept."""
        return " ".join(map(str, ids))


@dataclass(frozen=True)
class Payoff:
    """A feedback that looks scores up: rewards, or costs.

    Attributes:
        table: [C, A].
    """

    table: Tensor

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """[B, K]."""
        contexts, actions = _read(prompts, completions)
        return Verdict(self.table[contexts[:, None], actions])


@dataclass(frozen=True)
class Duel:
    """A feedback that compares; a completion's score is its mean probability to beat those of its prompt, itself included.

    Attributes:
        table: [C, A, A], P(row beats column).
    """

    table: Tensor

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Scores [B, K] and preference [B, K, K]."""
        contexts, actions = _read(prompts, completions)
        preference = self.table[contexts[:, None, None], actions[:, :, None], actions[:, None, :]]
        return Verdict(preference.mean(-1), preference)


def _read(prompts: Sequence[Prompt], completions: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Contexts [B] and actions [B, K] from their texts."""
    return torch.tensor([int(str(p)) for p in prompts]), torch.tensor(
        [[int(text) for text in row] for row in completions]
    )


def context_rows(contexts: Sequence[int]) -> list[Tokenised]:
    """Prompts for rollouts, one for each of these contexts."""
    return [Tokenised((c,), (), None, None, Example(str(c)), row=i) for i, c in enumerate(contexts)]


def make_rollouts(
    writers: Sequence[Writer],
    feedback: Feedback | Mapping[str, Feedback],
    needs: Needs,
    contexts: Sequence[int] = (0,),
    batch_size: int | None = None,
    seed: int = 0,
    ties: Ties = "drop",
    staleness: int = 0,
    sampler: Sampler | None = None,
) -> Rollouts:
    """The project's source of samples, of bandits.

    Args:
        writers: who draws; the policy first.
        feedback: what fills the scores, or several by what they fill.
        needs: of the objectives.
        contexts: of the prompts.
        batch_size: prompts in a logical batch; None is all.
        seed: of order and noise.
        ties: of completions with equal scores, where an order is needed.
        staleness: how many batches ago the policy was that writes a batch.
        sampler: what draws; None is `TableSampler`.
    """
    rows = context_rows(contexts)
    policy = writers[0]
    accelerator = Accelerator(cpu=True)
    actions = EndTokens(frozenset(range(policy.model.probabilities.shape[-1])))  # every action ends its completion
    return Rollouts(
        rows,
        Shuffled(len(rows), seed),
        writers,
        Completer(sampler or TableSampler(), Numerals(), actions, accelerator),
        Scoring(feedback if isinstance(feedback, Mapping) else {"scores": feedback}, accelerator),
        needs,
        recipe.Rollouts(completions=policy.completions, sampling=policy.sampling, staleness=staleness),
        len(rows) if batch_size is None else batch_size,
        seed,
        ties,
    )


def make_writers(
    policy: Bandit, reference: Frozen, completions: int, others: Mapping[str, int], share: float = 0.5
) -> list[Writer]:
    """The policy, and further writers with their numbers of completions.

    Args:
        policy: what is trained.
        reference: what is sampled for "reference" and mixed in for "mixture".
        completions: of the policy, in each context.
        others: by origin.
        share: the reference's, in the mixture.
    """
    models: dict[str, Any] = {"reference": reference, "greedy": policy}
    models["mixture"] = Mixture(policy, reference, share)  # type: ignore[arg-type]  # tables in place of language models
    greedy = SAMPLING.model_copy(update={"temperature": 0.0})
    return [Writer("policy", policy, completions, True, SAMPLING)] + [
        Writer(origin, models[origin], number, TRAINED[origin], greedy if origin == "greedy" else SAMPLING)
        for origin, number in others.items()
    ]


def online_trainer(
    policy: Bandit,
    objective: Objective,
    source: Rollouts,
    reference: Frozen,
    steps: int,
    seed: int = 0,
    **settings: Any,
) -> Trainer:
    """The project's trainer on samples: Adam, its learning rate annealed to 0, unclipped.

    Args:
        policy: what is trained, in place.
        objective: what is minimised.
        source: of batches.
        reference: what the objective compares with; it is put beside the policy, too.
        steps: logical batches.
        seed: of what is random in training.
        settings: of the recipe's `train`, where they are to differ.
    """
    policy.attach_reference(reference)
    size = source.batch_size
    chosen: dict[str, Any] = {"lr": 0.05, "betas": (0.9, 0.99), "schedule": "linear", "warmup": 0, "clip_norm": None}
    chosen |= {"precision": "fp32", "batch_size": size, "micro_batch_size": size}
    spec = recipe.Train(steps=steps, **chosen | settings)
    return Trainer(policy, [Term(objective)], source, spec, steps, Accelerator(cpu=True), reference, seed)
