"""The only training loop. It names no algorithm: what it minimises is a list of terms."""

import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from prefopt import recipe
from prefopt.objectives.terms import Term, counts, merged_needs, names, targets_of, total
from prefopt.policy.parallel import deal, forward
from prefopt.support.errors import PrefoptError
from prefopt.support.profile import timed
from prefopt.support.seeds import generator, seed_for
from prefopt.training.checkpoints import save_batch
from prefopt.training.optimisers import make_optimizer, make_schedule, parameter_groups
from prefopt.types import Adaptive, Batch, Model, Monitor, Moving, Needs, Outputs, Source, Targets

Metrics = dict[str, float]


@dataclass
class Step:
    """What one logical batch did.

    Attributes:
        number: of the batch, from 1.
        metrics: averaged over its prompts, minibatches and passes.
        tokens: completion and prompt tokens that the policy was trained on.
        seconds: since the batch was asked for.
        batch: a number that tells whether two runs saw the same rows at this step, whatever their objectives.
    """

    number: int
    metrics: Metrics
    tokens: int
    seconds: float
    batch: int


class Trainer:
    """Logical batches in, updates out.

    A logical batch is gone through `passes` times in minibatches, each one optimiser step; a minibatch is forwarded in
    micro-batches, shared among the processes. The update is the same for every micro-batch size and number of processes, to
    rounding: denominators are counted over the whole minibatch before any backward pass, and a loss whose rows are coupled is
    taken on the gathered outputs, its gradient then carried back micro-batch by micro-batch (gradient caching,
    arXiv 2101.06983).

    Args:
        model: an `nn.Module` that is a `Model`.
        terms: what to minimise; those without a source share the batches of `source`.
        source: logical batches, the same on every process.
        settings: the recipe's `train`.
        steps: how many logical batches the schedule is for.
        accelerator: devices, precision, processes; its own accumulation stays at 1.
        reference: what objectives that need one are given.
        seed: of what is random in training: the order of minibatches, draws in `targets`.
        folder: where the batch goes that made the loss non-finite.
        monitor: what else to measure on every logical batch before its updates.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: Sequence[Term],
        source: Source,
        settings: recipe.Train,
        steps: int,
        accelerator: Accelerator,
        reference: Model | None = None,
        seed: int = 0,
        folder: Path | None = None,
        monitor: Monitor | None = None,
    ):
        self.terms = list(terms)
        self.source = source
        self.settings = settings
        self.steps = steps
        self.accelerator = accelerator
        self.reference = reference
        self.seed = seed
        self.folder = folder
        self.monitor = monitor
        self.done = 0
        self.asked_before = False  # whether a batch went through the policy once more, before its updates
        self.tokens = 0  # trained on so far, and the seconds that it took
        self.seconds = 0.0
        optimizer = make_optimizer(parameter_groups(model, settings), settings)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        updates = math.ceil(settings.batch_size / (settings.minibatch_size or settings.batch_size)) * settings.passes
        self.schedule = make_schedule(self.optimizer, settings, steps * updates)
        self._own = {index: iter(term.source) for index, term in enumerate(self.terms) if term.source is not None}

    def __iter__(self) -> Iterator[Step]:
        """Train, one logical batch at a time, until `steps` are done."""
        self.model.train()
        batches = iter(self.source)
        while self.done < self.steps:
            start = time.perf_counter()
            with timed("data"):
                batch = next(batches).to(self.accelerator.device)
            metrics = self._learn(batch)
            self.done += 1
            if isinstance(self.reference, Moving):
                self.reference.follow(self.accelerator.unwrap_model(self.model), self.done)
            tokens, seconds = _tokens(batch) * self.settings.passes, time.perf_counter() - start
            self.tokens += tokens
            self.seconds += seconds
            yield Step(self.done, metrics, tokens, seconds, _rows(batch))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside weights and optimiser: places in the sources, running numbers, the schedule."""
        return {
            "done": self.done,
            "spent": (self.tokens, self.seconds),
            "source": self.source.state_dict(),
            "own": {index: self.terms[index].source.state_dict() for index in self._own},  # type: ignore[union-attr]
            "objectives": [vars(term.objective) for term in self.terms],
            "schedule": self.schedule.state_dict(),
            "reference": self.reference.state_dict() if isinstance(self.reference, Moving) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.done = state["done"]
        self.tokens, self.seconds = state["spent"]
        self.source.load_state_dict(state["source"])
        for index in self._own:
            source = self.terms[index].source
            assert source is not None
            source.load_state_dict(state["own"][index])
            self._own[index] = iter(source)
        self.terms = [
            replace(term, objective=replace(term.objective, **fields))  # type: ignore[type-var]
            for term, fields in zip(self.terms, state["objectives"], strict=True)
        ]
        self.schedule.load_state_dict(state["schedule"])
        if isinstance(self.reference, Moving):
            self.reference.load_state_dict(state["reference"])

    def _learn(self, batch: Batch) -> Metrics:
        """All passes over one logical batch."""
        shared = [term for term in self.terms if term.source is None]
        live = self._live(shared, batch)
        targets, watched = self._targets(shared, batch, "shared", self.monitor, live)
        collected: list[tuple[int, Metrics]] = []
        for number in range(self.settings.passes):
            for rows in self._minibatches(len(batch), self.settings.minibatch_size, number):
                part = batch if rows is None else batch.rows(rows)
                sliced = targets if rows is None else [target.select(rows) for target in targets]
                collected.append((len(part), self._update(shared, part, sliced, live)))
        metrics = _averaged(collected)
        for target in targets:
            metrics |= target.metrics
        metrics |= watched
        self.terms = [
            replace(term, objective=term.objective.adapted(metrics)) if isinstance(term.objective, Adaptive) else term
            for term in self.terms
        ]
        return metrics

    def _minibatches(self, rows: int, size: int | None, number: int) -> Iterator[Tensor | None]:
        """Row numbers of each minibatch, shuffled anew in every pass; None for the batch as it is."""
        if size is None or size >= self.settings.batch_size:
            yield None
            return
        order = torch.randperm(rows, generator=generator(self.seed, "minibatches", self.done, number))
        # As many as of a full batch: rollouts that lost a few prompts must not end in an update on one of them.
        updates = math.ceil(self.settings.batch_size / size)
        yield from order.to(self.accelerator.device).tensor_split(min(updates, rows))

    def _live(self, terms: Sequence[Term], batch: Batch) -> Outputs | None:
        """What the policy says before the only update on a batch, with its graph: it need not be asked again in the update.

        None where it is not asked before, and where the batch goes through the model in pieces, whose graphs would all be held.
        """
        settings = self.settings
        once = settings.passes == 1 and (settings.minibatch_size or math.inf) >= settings.batch_size
        if not terms or not once or not (merged_needs(terms).old or self.monitor is not None):
            return None
        if deal(batch, settings.micro_batch_size, self.accelerator, settings.micro_tokens).split:
            return None
        with timed("forward"):
            outputs: Outputs = self.model(batch, _watched(merged_needs(terms), self.monitor))
        return outputs

    def _targets(
        self,
        terms: Sequence[Term],
        batch: Batch,
        name: str,
        monitor: Monitor | None = None,
        live: Outputs | None = None,
    ) -> tuple[list[Targets], Metrics]:
        """What the terms keep of the models before the update, and what is watched."""
        if not terms:
            return [], {}
        needs = merged_needs(terms)
        old = reference = None
        if live is not None:
            old = live.detach()
        elif needs.old or monitor is not None:
            self.asked_before = True
            with timed("forward"):
                old = self._forward(self.model, batch, _watched(needs, monitor))
        if self.reference is not None and (needs.reference or monitor is not None):
            reference = self._forward(self.reference, batch, needs)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # draws in `targets` are the same on every process and after a resume
            torch.manual_seed(seed_for(self.seed, "targets", self.done, name))
            targets = [targets_of(term, batch, old, reference) for term in terms]
        if monitor is None:
            return targets, {}
        assert old is not None
        return targets, dict(monitor(batch, old, reference))

    def _forward(self, model: Model, batch: Batch, needs: Needs) -> Outputs:
        """What a model says about a whole batch, without gradient."""
        settings = self.settings
        return forward(model, batch, needs, settings.micro_batch_size, self.accelerator, settings.micro_tokens)

    def _update(self, terms: Sequence[Term], batch: Batch, targets: Sequence[Targets], live: Outputs | None) -> Metrics:
        """One optimiser step on a minibatch, and on one batch from each term that has a source of its own."""
        work: list[tuple[Sequence[Term], Batch, Sequence[Targets], Outputs | None]] = []
        for index, batches in self._own.items():
            own = [self.terms[index]]
            with timed("data"):
                extra = next(batches).to(self.accelerator.device)
            self.tokens += _tokens(extra)
            work.append((own, extra, self._targets(own, extra, f"term {index}")[0], None))
        # Last, because processes exchange gradients in the last pass, and only this one uses a critic.
        work += [(terms, batch, targets, live)] if terms else []
        labels = dict(zip(map(id, self.terms), names(self.terms), strict=True))
        metrics: Metrics = {"loss": 0.0}
        for number, (group, rows, prepared, outputs) in enumerate(work):
            found = self._backward(group, rows, prepared, outputs, last=number == len(work) - 1)
            metrics["loss"] += (loss := found.pop("loss"))
            label = labels[id(group[0])]
            if len(group) == 1 and len(self.terms) > 1:  # where several share a batch, `total` tells them apart
                found[f"loss/{label}"] = loss / group[0].weight if group[0].weight else math.nan
            metrics |= {f"{label}/{name}" if name in metrics else name: value for name, value in found.items()}
        with timed("optimiser"):
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm or math.inf)
        metrics["grad_norm"] = float(norm) if norm is not None else math.nan
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            self._stop(batch, metrics)
        metrics["lr"] = self.schedule.get_last_lr()[0]
        with timed("optimiser"):
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        return metrics

    def _backward(
        self, terms: Sequence[Term], batch: Batch, targets: Sequence[Targets], live: Outputs | None, last: bool
    ) -> Metrics:
        """Add the gradient of these terms on a whole minibatch; return its metrics, averaged over prompts."""
        needs, denominators = merged_needs(terms), counts(terms, batch)
        dealt = deal(batch, self.settings.micro_batch_size, self.accelerator, self.settings.micro_tokens)
        cached = (
            self._cached_gradient(terms, batch, targets, denominators) if needs.whole_batch and dealt.split else None
        )
        found: list[dict[str, Tensor]] = []
        for number, piece in enumerate(dealt.pieces):
            rows = batch.rows(piece.rows) if dealt.split else batch
            with self._synchronised(last and number == len(dealt.pieces) - 1):
                with timed("forward"):
                    outputs = self.model(rows, needs) if live is None else live
                if cached is None:
                    part = [target.select(piece.rows) for target in targets] if dealt.split else targets
                    loss, metrics = total(terms, rows, outputs, part, denominators)
                    found.append(metrics)
                else:
                    loss = _surrogate(outputs, cached[0].rows(piece.rows))
                # Processes average their gradients; the loss is a sum over all of them.
                with timed("backward"):
                    self.accelerator.backward(loss * (0.0 if piece.filler else self.accelerator.num_processes))
        by_row = cached[1] if cached else dealt.gather_each(found) if dealt.split else found[0]
        return {"padding": dealt.padding} | {
            name: values.double().sum().item() if name.split("/")[0] == "loss" else values.double().nanmean().item()
            for name, values in by_row.items()
        }

    def _cached_gradient(
        self, terms: Sequence[Term], batch: Batch, targets: Sequence[Targets], denominators: Sequence[int]
    ) -> tuple[Outputs, dict[str, Tensor]]:
        """The gradient of the loss of the whole minibatch with respect to every field of the outputs, and its metrics."""
        with timed("forward"):
            outputs = self._forward(self.model, batch, merged_needs(terms))
        leaves = {name: value.detach().requires_grad_() for name, value in outputs.fields().items()}
        loss, metrics = total(terms, batch, outputs.with_fields(leaves), targets, denominators)
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        known = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        }
        return outputs.with_fields(known), metrics

    def _synchronised(self, last: bool) -> Any:
        """Processes exchange gradients in the last backward pass of an optimiser step only."""
        return torch.enable_grad() if last else self.accelerator.no_sync(self.model)

    def _stop(self, batch: Batch, metrics: Metrics) -> None:
        where = ""
        if self.folder is not None and self.accelerator.is_main_process:
            where = f" The batch is in {save_batch(batch, self.folder / f'nonfinite-step-{self.done + 1}')}."
        raise PrefoptError(
            f"step {self.done + 1}: the loss is {metrics['loss']} and the gradient's norm {metrics['grad_norm']}: stopped before "
            f"the weights were touched.{where} Usual causes: train.lr too high, bf16 or fp16 weights, an objective that overflows "
            "(`prefopt check` tries extreme log-ratios)."
        )


def _watched(needs: Needs, monitor: Monitor | None) -> Needs:
    """The same, and what is watched."""
    return needs if monitor is None else replace(needs, watched=monitor.needs.statistics)


def _surrogate(outputs: Outputs, gradient: Outputs) -> Tensor:
    """A scalar whose gradient is the chain rule: Σ outputs · ∂loss/∂outputs."""
    known = gradient.fields()
    return torch.stack([(value * known[name]).sum() for name, value in outputs.fields().items()]).sum()


def _tokens(batch: Batch) -> int:
    """Tokens of the batch: each prompt once, and its completions."""
    return sum(map(len, batch.prompt_ids)) + int(batch.mask.sum())


def _rows(batch: Batch) -> int:
    """A checksum of the rows' numbers in the data, in order; 0 where the source gives none."""
    rows = batch.columns.get("row")
    return 0 if rows is None else zlib.crc32(repr(rows.tolist()).encode())


def _averaged(collected: Sequence[tuple[int, Metrics]]) -> Metrics:
    """Means over minibatches, weighted by prompts; NaN where a metric applied nowhere."""
    names = dict.fromkeys(name for _, metrics in collected for name in metrics)
    averaged: Metrics = {}
    for name in names:
        known = [(rows, m[name]) for rows, m in collected if name in m and not math.isnan(m[name])]
        averaged[name] = sum(r * v for r, v in known) / sum(r for r, _ in known) if known else math.nan
    return averaged
