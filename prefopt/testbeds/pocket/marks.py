"""Measures of the pocket LM, and of the best among its samples: `python -m prefopt.testbeds.pocket`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor

from prefopt.support.seeds import seed_for

from .language import FOLDER, LABELS, load, sample
from .requests import Topics, draw
from .reward import OFF_GRAMMAR, gold, rating


@dataclass(frozen=True)
class Mark:
    """A mean over prompts with the half-width of its 95% interval (Student's t, prompts as the unit)."""

    name: str
    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.name:<34}{self.mean:>8.3f} ± {self.half_width:.3f}"


def marks(prompts: int = 256, seed: int = 0, topics: Topics = "all", folder: str | Path = FOLDER) -> Iterator[Mark]:
    """Samples 64 completions of each of these held-out prompts, and judges the first two by the LM's own rating lines.

    Args:
        prompts: how many.
        seed: of prompts and samples.
        topics: all of them, or the training or the held-out ones.
        folder: of the model.
    """
    texts = [str(request) for request in draw(prompts, seed, "test", topics)]
    completions = sample(texts, 64, [seed_for("marks", seed, i) for i in range(prompts)], folder=folder)
    rewards = gold(texts, completions).scores
    yield _mark("on-grammar", (rewards > OFF_GRAMMAR).float().mean(1))
    yield _mark("words", torch.tensor([[float(len(c.split())) for c in group] for group in completions]).mean(1))
    yield _mark("distinct samples of a prompt", torch.tensor([len(set(group)) / 64 for group in completions]))
    yield _mark("gold reward", rewards.mean(1))
    yield _mark("gold reward, sd within a prompt", rewards.std(1))
    for n in (4, 16, 64):
        yield _mark(f"gold reward, best of {n}", rewards.unflatten(1, (-1, n)).amax(2).mean(1))
    yield from _judged(texts, completions, rewards, folder)


def judge(texts: Sequence[str], completions: Sequence[str], folder: str | Path = FOLDER) -> Tensor:
    """[N, 3] log-probabilities of good, fine and bad after `=>`, renormalised over the three."""
    from prefopt.feedback.judges import Question, TrainedPolicy, load_rubric

    rubric = load_rubric("prefopt.testbeds.pocket:judge.yaml")
    asked = [
        rubric.ask(text, {"completion": completion}, {}, rubric.labels, thought=False)
        for text, completion in zip(texts, completions, strict=True)
    ]
    answers = dict(TrainedPolicy(load(folder)).ask([Question(one.turns, labels=rubric.labels) for one in asked]))
    return torch.tensor([answers[i].logps for i in range(len(asked))]).log_softmax(-1)


def _judged(
    texts: Sequence[str], completions: Sequence[Sequence[str]], rewards: Tensor, folder: str | Path
) -> Iterator[Mark]:
    """How often the judge's margin log p(good) − log p(bad) orders two samples as the gold reward does."""
    logps = torch.stack([judge(texts, [group[k] for group in completions], folder) for k in (0, 1)], 1)  # [B, 2, 3]
    truth = torch.tensor([[LABELS.index(rating(r)) for r in pair] for pair in rewards[:, :2].tolist()])
    yield _mark("judge: label is right", (logps.argmax(-1) == truth).float().mean(1))
    margins = logps[..., 0] - logps[..., 2]
    right = ((margins[:, 0] - margins[:, 1]).sign() * (rewards[:, 0] - rewards[:, 1]).sign() + 1) / 2
    gap = (rewards[:, 0] - rewards[:, 1]).abs()
    yield _mark("judge: pairs", right[gap > 0])
    yield _mark("judge: pairs with a gap over .5", right[gap > 0.5])


def _mark(name: str, values: Tensor) -> Mark:
    n = len(values)
    error = float(values.std()) / math.sqrt(n)
    return Mark(name, float(values.mean()), float(stats.t.ppf(0.975, n - 1)) * error)
