"""Measuring a model on held-out data, with intervals that resample prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from prefopt import recipe
from prefopt.data import Tokenised, collate
from prefopt.data.example import task_column
from prefopt.data.steps import LABELS
from prefopt.data.texts import decode_pieces
from prefopt.evaluation.breakdown import Measured, broken_down
from prefopt.evaluation.calibration import brier, by_gap, calibration_error, pair_nll
from prefopt.evaluation.corpus import CorpusMetric, Distinct
from prefopt.evaluation.evaluation import Evaluation
from prefopt.evaluation.held_out import best, distinct_prompts, gaps, pairs
from prefopt.evaluation.intervals import Halved, halved
from prefopt.evaluation.metrics import BUILT_IN
from prefopt.evaluation.of_episodes import of_episodes
from prefopt.evaluation.of_samples import SampleMetrics
from prefopt.evaluation.of_steps import labelled, of_steps
from prefopt.evaluation.win_rates import Contest, Sample, key_of, rates, wins
from prefopt.objectives.maths import kl_estimate
from prefopt.policy import Policy, Scorer, TransformersSampler
from prefopt.policy.parallel import forward
from prefopt.sources.acting import Acting
from prefopt.sources.scoring import said_of
from prefopt.sources.writing import Completer, batch_of_written, prompt_seen, shown_completion, told
from prefopt.support.errors import PrefoptError
from prefopt.support.out_of_memory import EVALUATION, advising
from prefopt.support.profile import timed
from prefopt.support.seeds import seed_for
from prefopt.types import ORIGINS, Batch, Feedback, Model, Needs, Outputs, Sampler, Written

TIE = 1e-4
"""Nats (or points of a scorer) within which neither is ahead: sums of log-probs in fp32 that should be equal differ by less."""


class Evaluator:
    """Measures a model on the same held-out rows and prompts, with the same noise, each time it is called.

    A scorer is measured on pairs: how often it ranks them as the data do, also by how far apart the data's scores are, and how well
    its probabilities are calibrated. A policy is measured on pairs (log-ratios to the reference, in nats, without any objective's
    β, so that objectives can be compared), on its likelihood of the best completions, and on completions that it draws.

    Args:
        rows: held-out rows, tokenised by the model's tokenizer.
        settings: the recipe's `evaluate`.
        accelerator: knows the processes.
        reference: for log-ratios and KL; without one these are not measured.
        gold: scores samples.
        seed: of sampling and resampling.
        contest: compares samples with those of the reference or of another run.
        metrics: further measures of samples, by name.
        sampler: draws samples; None is the transformers sampler.
        corpus: measures of all samples together, by name.
        acting: what samples are written in; what their environments give and log is measured, too.
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
        sampler: Sampler | None = None,
        corpus: Mapping[str, CorpusMetric] = MappingProxyType({}),
        acting: Acting | None = None,
    ):
        self.rows = list(rows[: settings.rows])
        self.prompts = list(islice(distinct_prompts(rows), settings.prompts))
        self.settings = settings
        self.accelerator = accelerator
        self.reference = reference
        self.contest = contest
        feedbacks = ({} if gold is None else {"gold": gold}) | dict(metrics)
        self.metrics = SampleMetrics(feedbacks, corpus, settings.metrics)
        self.seed = seed
        self.acting = acting
        self.sampler = sampler or TransformersSampler(settings.samples.batch_size, accelerator.autocast)
        self._reference_logps: Tensor | None = None  # [pairs, 2]; a reference does not move, so once is enough
        self._reference_samples: list[list[Sample]] = []

    @torch.no_grad()
    def __call__(self, model: Policy | Scorer) -> Evaluation:
        """Measure; the model is left in the mode it was in.

        Raises:
            PrefoptError: some rows can be measured, and another has several completions that nothing orders; or feedback failed.
        """
        with advising("evaluation", EVALUATION):
            return self._measured(model)

    def _measured(self, model: Policy | Scorer) -> Evaluation:
        training = model.training
        model.eval()
        in_pairs = pairs(self.rows)
        if isinstance(model, Scorer):
            measured, numbers = self._scored_pairs(model, in_pairs) if in_pairs else ({}, {})
            evaluation = self._evaluation(measured | self._scored_steps(model), numbers)
        else:
            measured = self._pairs(model, in_pairs) if in_pairs else self._demonstrations(model)
            if self.prompts and model.tokenizer is not None:
                of_samples, of_all, numbers, samples = self._samples(model)
                evaluation = self._evaluation(measured | of_samples, numbers, samples, of_all)
            else:
                evaluation = self._evaluation(measured)
        model.train(training)
        return evaluation

    def _evaluation(
        self,
        measured: Mapping[str, Measured],
        numbers: dict[str, float] | None = None,
        samples: Sequence[Any] = (),
        of_all: Mapping[str, Halved] = MappingProxyType({}),
    ) -> Evaluation:
        observations = broken_down(measured, self.settings.by)
        return Evaluation(observations, numbers or {}, samples, self.settings.confidence, self._resampling, of_all)

    @property
    def _resampling(self) -> int:
        return seed_for(self.seed, "resampling")

    def _outputs(
        self, model: Model, rows: Sequence[Tokenised], needs: Needs, columns: Sequence[str] = ()
    ) -> tuple[Batch, Outputs]:
        """All rows at once; only [rows, K, T] numbers are kept."""
        batch = collate(rows, columns)
        with timed("forward"):
            return batch, forward(model, batch, needs, self.settings.batch_size, self.accelerator)

    def _scored_pairs(self, model: Model, pairs: Sequence[Tokenised]) -> tuple[dict[str, Measured], dict[str, float]]:
        """How often the chosen one has the higher reward, and how well σ(r_w − r_l) predicts that."""
        _, outputs = self._outputs(model, pairs, Needs(rewards=True))
        assert outputs.rewards is not None
        rewards = outputs.rewards.double().cpu()
        if wrong := int((~rewards.isfinite()).any(-1).sum()):
            raise PrefoptError(
                f"the reward model's rewards are not finite in {wrong} of {len(pairs)} pairs, so nothing can be measured by them: "
                "its weights are damaged, or its training diverged (train.lr too high)"
            )
        margin, label = rewards[:, 0] - rewards[:, 1], _labels(pairs)
        numbers = {"ece": calibration_error(margin, label)}
        measured = {"pair_nll": pair_nll(margin, label), "brier": brier(margin, label)}
        if (gap := gaps(pairs)) is not None:
            split, limits = by_gap(_ahead(rewards), gap)
            measured |= {f"accuracy_{name}_gap": values for name, values in split.items()}
            numbers |= dict(zip(("gap_small_to", "gap_medium_to"), limits, strict=False))
        return _of_pairs(rewards, pairs, "rewards") | {
            n: Measured(value, pairs) for n, value in measured.items()
        }, numbers

    def _scored_steps(self, model: Scorer) -> dict[str, Measured]:
        """How well a scorer that learnt labels of steps knows those of held-out rows."""
        rows = labelled(self.rows) if model.reading.steps == "logit" else []
        return of_steps(*self._outputs(model, rows, Needs(rewards=True), (LABELS,)), rows) if rows else {}

    def _pairs(self, model: Model, pairs: Sequence[Tokenised]) -> dict[str, Measured]:
        batch, outputs = self._outputs(model, pairs, Needs())
        likelihood = _likelihood(batch, outputs, pairs)
        likelihood["likelihood_accuracy"] = Measured(_ahead(outputs.sum()), pairs)
        if self.reference is None:
            return likelihood
        if self._reference_logps is None:
            reference = forward(self.reference, batch, Needs(), self.settings.batch_size, self.accelerator)
            self._reference_logps = reference.sum()
        return _of_pairs(outputs.sum() - self._reference_logps, pairs, "logratio") | likelihood

    def _demonstrations(self, model: Model) -> dict[str, Measured]:
        answers = best(self.rows)
        return _likelihood(*self._outputs(model, answers, Needs()), answers) if answers else {}

    def _samples(
        self, model: Policy
    ) -> tuple[dict[str, Measured], dict[str, Halved], dict[str, float], list[dict[str, Any]]]:
        """What the policy writes after held-out prompts."""
        written, texts = self._write(model, model, "evaluation")
        ended = [[one.ended for one in row] for row in written]
        batch = self._batch_of(written)
        measured: dict[str, Tensor] = {
            "length": batch.mask.sum(-1).double(),
            "ended": torch.tensor(ended, dtype=torch.float64),
        }
        measured |= self._divergence(model, batch)
        measured |= of_episodes(written, {*BUILT_IN, *self.metrics.names})
        notes: list[list[dict[str, Any]]] = [[_told(one) for one in row] for row in written]
        if self.contest is not None:
            won, against = self._compared(self.contest, model, _paired(texts, ended))
            measured |= won
            notes = [[{**a, **b} for a, b in zip(*rows, strict=True)] for rows in zip(notes, against, strict=True)]
        shown = [
            [shown_completion(one.messages, text, row.example.prompt) for one, text in zip(*of_row, strict=True)]
            for row, *of_row in zip(self.prompts, written, texts, strict=True)
        ]
        asked = [
            prompt_seen(row.example.prompt, (one.opening for one in of))
            for row, of in zip(self.prompts, written, strict=True)
        ]
        scores = self.metrics(
            self.prompts, asked, shown, list(map(said_of, written)), self.accelerator, self._resampling
        )
        measured |= scores.of_each
        measured = {name: value.cpu() for name, value in measured.items()}
        numbers = scores.missing()
        if "return" in measured:
            numbers["return_missing"] = measured["return"].isnan().double().mean().item()
        if "win_rate" in measured:
            numbers["win_rate_missing"] = measured["win_rate"].isnan().double().mean().item()
        groups = [row.example.group for row in self.prompts]
        of_all = {f"distinct_{n}": halved(Distinct(texts, n), groups, self._resampling) for n in (1, 2)}
        rendered = [
            decode_pieces(model.tokenizer, next((one.prompt for one in of if one.prompt is not None), row.prompt_ids))
            for row, of in zip(self.prompts, written, strict=True)
        ]
        samples = [
            {
                "prompt": row.example.prompt,
                **task_column(row.example),
                "rendered": rendered[b],
                "completion": texts[b][k],
                **notes[b][k],
                **{name: value[b, k].item() for name, value in measured.items()},
            }
            for b, row in enumerate(self.prompts)
            for k in range(self.settings.completions)
        ]
        of_samples = {name: Measured(value, self.prompts) for name, value in measured.items()}
        return of_samples, of_all | scores.of_all, numbers, samples

    def _write(self, writer: Any, policy: Policy, noise: str) -> tuple[list[list[Written]], list[list[str]]]:
        """Samples of the policy or of the reference on the held-out prompts, and the same as text."""
        settings, prompts = self.settings, [f"{row.prompt_ids}{row.example.task}" for row in self.prompts]
        completer = Completer.of(self.sampler, policy, settings.sampling, self.accelerator, self.acting)
        seeds = torch.tensor([seed_for(self.seed, noise, prompt) for prompt in prompts])
        tasks = [seed_for(self.seed, "environment", prompt) for prompt in prompts]
        completer.sync(writer)
        written = completer.write(writer, self.prompts, settings.completions, settings.sampling, seeds, tasks=tasks)
        texts = [
            [completer.text(one, row.example.prompt) for one in of_row]
            for row, of_row in zip(self.prompts, written, strict=True)
        ]
        return written, texts

    def _batch_of(self, written: Sequence[Sequence[Written]]) -> Batch:
        """The samples, for models to read."""
        batch = batch_of_written(self.prompts, written)
        return replace(
            batch,
            columns={
                "temperature": torch.full((len(batch),), self.settings.sampling.temperature or 1.0),
                "origin": torch.full(batch.mask.shape[:2], ORIGINS.index("policy")),
            },
        )

    def _compared(
        self, contest: Contest, model: Policy, mine: Sequence[Sequence[Sample]]
    ) -> tuple[dict[str, Tensor], list[list[dict[str, Any]]]]:
        """Who wins, [B, K], and the text that each sample was compared with."""
        if contest.others is not None:
            theirs = [list(contest.others.get(key_of(row.example), ())) for row in self.prompts]
        else:
            theirs = self._of_reference(model)
        won = wins(contest.judge, self.prompts, mine, theirs, self.accelerator)
        against = [[other[k % len(other)].text if other else "" for k in range(won.shape[1])] for other in theirs]
        longer = [
            [len(own.text) - len(text) for own, text in zip(row, texts, strict=True)]
            for row, texts in zip(mine, against, strict=True)
        ]
        return rates(won, torch.tensor(longer)), [[{"against": text} for text in row] for row in against]

    def _of_reference(self, model: Policy) -> list[list[Sample]]:
        """The reference's own samples; a reference does not move, so once is enough."""
        if not self._reference_samples:
            assert self.reference is not None
            written, texts = self._write(self.reference, model, "reference")
            self._reference_samples = _paired(texts, [[one.ended for one in row] for row in written])
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


def _told(one: Written) -> dict[str, Any]:
    """What is kept of a sample beside its text: why it ended, and of an episode its turns."""
    return {"stop": one.stop, **told(one)}


def _paired(texts: Sequence[Sequence[str]], ended: Sequence[Sequence[bool]]) -> list[list[Sample]]:
    """B × K samples, each with whether it ended."""
    return [list(map(Sample, row, of_row)) for row, of_row in zip(texts, ended, strict=True)]


def _likelihood(batch: Batch, outputs: Outputs, rows: Sequence[Tokenised]) -> dict[str, Measured]:
    """Of the best completions, which come first; every token weighs the same."""
    return {"nll": Measured(-outputs.sum()[:, 0], rows, weights=batch.mask[:, 0].sum(-1))}


def _of_pairs(reward: Tensor, pairs: Sequence[Tokenised], name: str) -> dict[str, Measured]:
    """Chosen and rejected are also reported apart, because a margin can grow while both fall."""
    chosen, rejected = reward.unbind(-1)
    return {
        "accuracy": Measured(_ahead(reward), pairs),
        f"{name}_chosen": Measured(chosen, pairs),
        f"{name}_rejected": Measured(rejected, pairs),
        f"{name}_margin": Measured(chosen - rejected, pairs),
    }


def _labels(pairs: Sequence[Tokenised]) -> Tensor:
    """[N] P(the first beats the second) where the data have it, else 1: it was chosen."""
    return torch.tensor([1.0 if row.preference is None else row.preference[0][1] for row in pairs], dtype=torch.float64)


def _ahead(reward: Tensor) -> Tensor:
    """[B]: 1 where the first is ahead, ½ on a tie."""
    ahead = reward[:, 0] - reward[:, 1]
    return (ahead.masked_fill(ahead.abs() <= TIE, 0).sign() + 1) / 2
