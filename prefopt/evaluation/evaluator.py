"""What a model does on held-out data, with intervals that resample prompts."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from prefopt import recipe
from prefopt.data import Tokenised, collate
from prefopt.data.selecting import select_completions
from prefopt.data.texts import decode_completion
from prefopt.evaluation.calibration import brier, by_gap, calibration_error, pair_nll
from prefopt.evaluation.intervals import Observations, change, common, estimate
from prefopt.evaluation.metrics import metric_key
from prefopt.evaluation.win_rates import Contest, Sample, key, rates, wins
from prefopt.feedback import ask
from prefopt.objectives.maths import kl_estimate
from prefopt.policy import Policy, Scorer, TransformersSampler
from prefopt.policy.decode.sampler import end_tokens
from prefopt.policy.parallel import draw, forward
from prefopt.support.errors import PrefoptError
from prefopt.support.json_values import json_values
from prefopt.support.profile import timed
from prefopt.support.seeds import digested, seed_for
from prefopt.types import ORIGINS, Batch, Estimate, Feedback, Model, Needs, Outputs, Sampled

PAIR = Needs(completions=2, ordered=True)
BEST = Needs(completions=1, ordered=True)

TIE = 1e-4
"""Nats (or points of a scorer) within which neither is ahead: sums of log-probs in fp32 that should be equal differ by less."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        observations: of each metric, by prompt.
        numbers: metrics of all samples together, which have no interval by prompt.
        samples: one for each prompt and completion: prompt, completion, and what was measured of it.
        confidence: of the intervals.
        seed: of the resampling.
    """

    observations: Mapping[str, Observations]
    numbers: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    confidence: float = 0.95
    seed: int = 0

    def estimates(self) -> dict[str, Estimate]:
        """Each metric with its interval."""
        return {name: estimate(o, self.confidence, self.seed) for name, o in self.observations.items()}

    def to_json(self) -> str:
        """Everything, so that later runs can be compared with this one prompt by prompt."""
        observed = {
            name: {"values": o.values.tolist(), "weights": o.weights.tolist(), "groups": list(o.groups)}
            for name, o in self.observations.items()
        }
        samples = [{k: None if v != v else v for k, v in sample.items()} for sample in self.samples]  # JSON has no NaN
        content = {**vars(self), "observations": observed, "numbers": json_values(self.numbers), "samples": samples}
        return json.dumps(content, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        content = json.loads(text)
        observed = {
            name: Observations(np.array(o["values"]), np.array(o["weights"]), o["groups"])
            for name, o in content.pop("observations").items()
        }
        numbers = {name: math.nan if value is None else value for name, value in content.pop("numbers").items()}
        return cls(observed, numbers, **content)

    def change_since(self, before: "Evaluation") -> dict[str, Estimate]:
        """Paired differences of the metrics that both have, over the prompts on which both have them: a verdict may be missing."""
        paired = {
            name: common(before.observations[name], o)
            for name, o in self.observations.items()
            if name in before.observations
        }
        return {name: change(*both, self.confidence, self.seed) for name, both in paired.items() if both[0].groups}


class Evaluator:
    """Measures a model on the same held-out rows and prompts, with the same noise, each time it is called.

    A scorer is measured on pairs: which is ahead, also by how far apart the data's scores are, and how well its odds are
    calibrated. A policy is measured on pairs (log-ratios to the reference, in nats, without any objective's β, so that objectives
    can be compared), on its likelihood of the best completions, and on completions that it draws.

    Args:
        rows: held-out rows, tokenised by the model's tokenizer.
        settings: the recipe's `evaluate`.
        accelerator: knows the processes.
        reference: for log-ratios and KL; without one these are not measured.
        gold: scores samples.
        seed: of sampling and resampling.
        contest: compares samples with somebody else's.
        metrics: further measures of samples, by name.
    """

    def __init__(
        self,
        rows: Sequence[Tokenised],
        settings: recipe.Evaluate,
        accelerator: Accelerator,
        reference: Model | None = None,
        gold: Feedback | None = None,
        seed: int = 0,
        contest: Contest | None = None,
        metrics: Mapping[str, Feedback] = MappingProxyType({}),
    ):
        self.rows = list(rows[: settings.rows])
        self.prompts = list(islice(distinct_prompts(rows), settings.prompts))
        self.settings = settings
        self.accelerator = accelerator
        self.reference = reference
        self.gold = gold
        self.contest = contest
        self.metrics = metrics
        self.seed = seed
        self._reference_logps: Tensor | None = None  # [pairs, 2]; a reference does not move, so once is enough
        self._reference_samples: list[list[Sample]] = []

    @torch.no_grad()
    def __call__(self, model: Policy | Scorer) -> Evaluation:
        """Measure; the model is left in the mode it was in."""
        training = model.training
        model.eval()
        pairs = _selected(self.rows, PAIR)
        if isinstance(model, Scorer):
            evaluation = self._finished(*(self._scored_pairs(model, pairs) if pairs else ({}, {})))
        else:
            observations = self._pairs(model, pairs) if pairs else self._demonstrations(model)
            found: tuple[dict[str, Observations], dict[str, float], list[dict[str, Any]]] = ({}, {}, [])
            if self.prompts and model.tokenizer is not None:
                found = self._samples(model)
            evaluation = self._finished(observations | found[0], found[1], found[2])
        model.train(training)
        return evaluation

    def _finished(
        self,
        observations: dict[str, Observations],
        numbers: dict[str, float] | None = None,
        samples: Sequence[Any] = (),
    ) -> Evaluation:
        return Evaluation(
            observations, numbers or {}, samples, self.settings.confidence, seed_for(self.seed, "resampling")
        )

    def _outputs(self, model: Model, rows: Sequence[Tokenised], needs: Needs) -> tuple[Batch, Outputs]:
        """All rows at once; only [rows, K, T] numbers are kept."""
        batch = collate(rows)
        with timed("forward"):
            return batch, forward(model, batch, needs, self.settings.batch_size, self.accelerator)

    def _scored_pairs(
        self, model: Model, pairs: Sequence[Tokenised]
    ) -> tuple[dict[str, Observations], dict[str, float]]:
        """Which of the two is ahead, and how well σ(r_w − r_l) says how often it is."""
        _, outputs = self._outputs(model, pairs, Needs(rewards=True))
        assert outputs.rewards is not None
        rewards = outputs.rewards.double().cpu()
        margin, label = rewards[:, 0] - rewards[:, 1], _labels(pairs)
        numbers = {"ece": calibration_error(margin, label)}
        measured = {"pair_nll": pair_nll(margin, label), "brier": brier(margin, label)}
        if (gap := _gaps(pairs)) is not None:
            split, limits = by_gap(_ahead(rewards), gap)
            measured |= {f"accuracy_{name}_gap": values for name, values in split.items()}
            numbers |= dict(zip(("gap_small_to", "gap_medium_to"), limits, strict=False))
        observations = _pair_observations(rewards, pairs, "rewards")
        return observations | {name: _observations(value, pairs) for name, value in measured.items()}, numbers

    def _pairs(self, model: Model, pairs: Sequence[Tokenised]) -> dict[str, Observations]:
        batch, outputs = self._outputs(model, pairs, Needs())
        found = _likelihood(batch, outputs, pairs) | {
            "likelihood_accuracy": _observations(_ahead(outputs.sum()), pairs)
        }
        if self.reference is None:
            return found
        if self._reference_logps is None:
            said = forward(self.reference, batch, Needs(), self.settings.batch_size, self.accelerator)
            self._reference_logps = said.sum()
        return _pair_observations(outputs.sum() - self._reference_logps, pairs, "logratio") | found

    def _demonstrations(self, model: Model) -> dict[str, Observations]:
        best = _selected(self.rows, BEST)
        return _likelihood(*self._outputs(model, best, Needs()), best) if best else {}

    def _samples(self, model: Policy) -> tuple[dict[str, Observations], dict[str, float], list[dict[str, Any]]]:
        """What the policy writes after held-out prompts."""
        settings = self.settings.sampling
        sampled = self._draw(model)
        prompts = tuple(tuple(row.prompt_ids) for row in self.prompts)
        columns = {
            "temperature": torch.full((len(prompts),), settings.temperature or 1.0),
            "origin": torch.full(sampled.mask.shape[:2], ORIGINS.index("policy")),
        }
        batch = Batch(prompts, sampled.completion_ids, sampled.mask, columns=columns)
        measured: dict[str, Tensor] = {"length": batch.mask.sum(-1).double(), "ended": self._ended(model, sampled)}
        measured |= self._divergence(model, batch)
        texts = decoded(model, batch)
        told: list[list[dict[str, Any]]] = [[{} for _ in row] for row in texts]
        if self.contest is not None:
            won, told = self._compared(self.contest, model, texts, measured["ended"])
            measured |= won
        scored = self._scored(texts, measured["ended"])
        measured |= scored
        measured = {name: value.cpu() for name, value in measured.items()}
        observations = {name: _observations(value, self.prompts) for name, value in measured.items()}
        numbers = {f"distinct_{n}": distinct(texts, n) for n in (1, 2)}
        judged = [*scored, *(["win_rate"] if "win_rate" in measured else [])]
        numbers |= {f"{name}_missing": measured[name].isnan().double().mean().item() for name in judged}
        samples = [
            {
                "prompt": row.example.prompt,
                "completion": texts[b][k],
                **told[b][k],
                **{name: value[b, k].item() for name, value in measured.items()},
            }
            for b, row in enumerate(self.prompts)
            for k in range(self.settings.completions)
        ]
        return observations, numbers, samples

    def _scored(self, texts: Sequence[Sequence[str]], ended: Tensor) -> dict[str, Tensor]:
        """[B, K] of each feedback that measures samples: gold and the recipe's own metrics."""
        feedbacks = ({} if self.gold is None else {"gold": self.gold}) | dict(self.metrics)
        prompts = [row.example.prompt for row in self.prompts]
        # A feedback sees text, in which EOS is not to be seen.
        rows = [
            {**row.example.columns, "ended": ends}
            for row, ends in zip(self.prompts, ended.bool().tolist(), strict=True)
        ]
        verdicts = {
            name: ask(feedback, metric_key(name), prompts, texts, rows, self.accelerator)
            for name, feedback in feedbacks.items()
        }
        return {name: verdict.scores.double() for name, verdict in verdicts.items()}

    def _ended(self, model: Policy, sampled: Sampled) -> Tensor:
        """[B, K]: 1 where a sample came to an end token."""
        last = (sampled.mask.sum(-1, keepdim=True) - 1).clamp(min=0)
        ends = torch.tensor(end_tokens(model, self.settings.sampling.stop))
        return torch.isin(sampled.completion_ids.gather(-1, last).squeeze(-1), ends).double()

    def _compared(
        self, contest: Contest, model: Policy, texts: Sequence[Sequence[str]], ended: Tensor
    ) -> tuple[dict[str, Tensor], list[list[dict[str, Any]]]]:
        """Who wins, [B, K], and the text that each sample met."""
        mine = _paired(texts, ended)
        if contest.others is not None:
            theirs = [list(contest.others.get(key(row.example.prompt), ())) for row in self.prompts]
        else:
            theirs = self._of_reference(model)
        won = wins(contest.judge, self.prompts, mine, theirs, self.accelerator)
        met = [[other[k % len(other)].text if other else "" for k in range(won.shape[1])] for other in theirs]
        longer = [
            [len(o.text) - len(t) for o, t in zip(own, other, strict=True)]
            for own, other in zip(mine, met, strict=True)
        ]
        return rates(won, torch.tensor(longer)), [[{"against": text} for text in row] for row in met]

    def _of_reference(self, model: Policy) -> list[list[Sample]]:
        """The reference's own samples; a reference does not move, so once is enough."""
        if not self._reference_samples:
            assert self.reference is not None
            drawn = self._draw(self.reference, "reference")
            batch = Batch(tuple(tuple(row.prompt_ids) for row in self.prompts), drawn.completion_ids, drawn.mask)
            self._reference_samples = _paired(decoded(model, batch), self._ended(model, drawn))
        return self._reference_samples

    def _divergence(self, model: Policy, batch: Batch) -> dict[str, Tensor]:
        """KL(π ‖ π_ref) estimated on the policy's own samples: k1 is unbiased, k3 is too and never negative.

        Schulman, "Approximating KL divergence" (2020), summed over tokens. Greedy or truncated samples are not the policy's
        own, so none is estimated on them.
        """
        settings = self.settings.sampling
        if self.reference is None or settings.temperature == 0 or settings.top_p < 1 or settings.top_k:
            return {}
        size = self.settings.batch_size
        with timed("forward"):
            mine = forward(model, batch, Needs(), size, self.accelerator)
        other = forward(self.reference, batch, Needs(), size, self.accelerator)
        assert mine.logps is not None and other.logps is not None
        ratio = (mine.logps - other.logps).double()  # 0 outside the mask
        return {"kl": kl_estimate(ratio, "k1").sum(-1), "kl_k3": kl_estimate(ratio, "k3").sum(-1)}

    def _draw(self, model: Any, name: str = "evaluation") -> Sampled:
        """Samples of the policy, or with noise of another name."""
        settings, prompts = self.settings, [row.prompt_ids for row in self.prompts]
        seeds = torch.tensor([seed_for(self.seed, name, str(prompt)) for prompt in prompts])
        sampler = TransformersSampler(settings.batch_size * 4, self.accelerator.autocast)
        return draw(sampler, model, prompts, settings.completions, settings.sampling, seeds, self.accelerator)


def _paired(texts: Sequence[Sequence[str]], ended: Tensor) -> list[list[Sample]]:
    """B × K samples, each with whether it ended."""
    return [
        [Sample(*one) for one in zip(row, said, strict=True)]
        for row, said in zip(texts, ended.bool().tolist(), strict=True)
    ]


def distinct(texts: Iterable[Iterable[str]], n: int) -> float:
    """Distinct n-grams of words as a share of all, over all texts together (Li et al., arXiv 1510.03055); NaN for none."""
    grams = [
        tuple(words[i : i + n])
        for row in texts
        for text in row
        for words in [text.split()]
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else float("nan")


def _likelihood(batch: Batch, outputs: Outputs, rows: Sequence[Tokenised]) -> dict[str, Observations]:
    """Of the best completions, which come first; every token weighs the same."""
    return {"nll": _observations(-outputs.sum()[:, 0], rows, weights=batch.mask[:, 0].sum(-1))}


def _pair_observations(reward: Tensor, pairs: Sequence[Tokenised], name: str) -> dict[str, Observations]:
    """Chosen and rejected apart: a margin can grow while both fall."""
    chosen, rejected = reward.unbind(-1)
    return {
        "accuracy": _observations(_ahead(reward), pairs),
        f"{name}_chosen": _observations(chosen, pairs),
        f"{name}_rejected": _observations(rejected, pairs),
        f"{name}_margin": _observations(chosen - rejected, pairs),
    }


def _labels(pairs: Sequence[Tokenised]) -> Tensor:
    """[N] P(the first beats the second) where the data have it, else 1: it was chosen."""
    return torch.tensor([1.0 if row.preference is None else row.preference[0][1] for row in pairs], dtype=torch.float64)


def _gaps(pairs: Sequence[Tokenised]) -> Tensor | None:
    """[N] differences of the data's scores; None where a pair has none."""
    scores = [row.scores for row in pairs]
    known = [(s[0], s[1]) for s in scores if s is not None and s[0] is not None and s[1] is not None]
    return torch.tensor([abs(a - b) for a, b in known], dtype=torch.float64) if len(known) == len(pairs) else None


def _ahead(reward: Tensor) -> Tensor:
    """[B]: 1 where the first is ahead, ½ on a tie."""
    ahead = reward[:, 0] - reward[:, 1]
    return (ahead.masked_fill(ahead.abs() <= TIE, 0).sign() + 1) / 2


def _observations(values: Tensor, rows: Sequence[Tokenised], weights: Tensor | None = None) -> Observations:
    """[n] or [n, K] values of n rows; those that are NaN are left out."""
    columns = 1 if values.ndim == 1 else values.shape[1]
    flat = values.double().cpu().flatten().numpy()
    heavy = np.ones_like(flat) if weights is None else weights.double().cpu().flatten().numpy()
    groups = [row.example.group for row in rows for _ in range(columns)]
    known = ~np.isnan(flat)
    return Observations(flat[known], heavy[known], [g for g, k in zip(groups, known, strict=True) if k])


def _selected(rows: Sequence[Tokenised], needs: Needs) -> Sequence[Tokenised]:
    """The rows as pairs, or as their best completions; none where the data do not have them."""
    try:
        return list(select_completions(rows, needs))
    except PrefoptError:
        return []


def distinct_prompts(rows: Sequence[Tokenised]) -> Iterator[Tokenised]:
    """The first row of each prompt, in the order of their last ones."""
    prompts = digested((repr(row.prompt_ids) for row in rows), len(rows))
    _, first = np.unique(prompts, return_index=True)
    _, last = np.unique(prompts[::-1], return_index=True)  # from the end
    for number in first[last.argsort()[::-1]]:
        yield rows[number]


def decoded(model: Policy, batch: Batch) -> list[list[str]]:
    """B × K completions as text, without special tokens."""
    assert model.tokenizer is not None
    return [
        [
            decode_completion(model.tokenizer, [t for t, m in zip(ids, mask, strict=True) if m])
            for ids, mask in zip(row, masks, strict=True)
        ]
        for row, masks in zip(batch.completion_ids.tolist(), batch.mask.tolist(), strict=True)
    ]
