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
from accelerate.utils import gather_object
from torch import Tensor, nn

from prefopt import recipe
from prefopt.objectives.terms import (
    MetricKey,
    Term,
    averaged,
    counts,
    merged_needs,
    names,
    own_metrics,
    plain_names,
    targets_of,
    total,
)
from prefopt.policy.compat import is_sharded
from prefopt.policy.parallel import forward, shard
from prefopt.support.errors import DivergenceError
from prefopt.support.out_of_memory import OTHERWISE, TRAINING, advising
from prefopt.support.profile import timed
from prefopt.support.seeds import generator, seed_for
from prefopt.support.sending import sent
from prefopt.support.threads import phase
from prefopt.training.checkpoints import save_batch
from prefopt.training.devices import tokens_at_once
from prefopt.training.metrics import Metrics, on_host
from prefopt.training.noise import Noisy, has_noise, without_noise
from prefopt.training.optimisers import LowPrecisionWeights, make_optimizer, parameter_groups
from prefopt.training.overflow import FP16_ENDS, LossScale, has_finite_squares
from prefopt.training.schedules import make_schedule
from prefopt.types import Adaptive, Batch, Model, Monitor, Moving, Needs, Outputs, Source, Targets


@dataclass
class Step:
    """What one logical batch did.

    Attributes:
        number: of the batch, from 1.
        metrics: averaged over its prompts, minibatches and passes; of several terms, named by `plain_names`.
        tokens: completion and prompt tokens that the policy was trained on.
        seconds: since the batch was asked for.
        batch: a number that tells whether two runs saw the same rows at this step, whatever their objectives.
    """

    number: int
    metrics: dict[str, float]
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
        self.terms = [replace(term) for term in terms]  # of one that is there twice, two: labels go by identity
        self._at_start = [term.objective for term in terms]
        self.source = source
        self.settings = settings
        self.steps = steps
        self.accelerator = accelerator
        self.reference = reference
        self.seed = seed
        self.folder = folder
        self.monitor = monitor
        self.done = 0
        self._last: Batch | None = None  # the batch of the last step
        self.asked_before = False  # whether a batch went through the policy once more, before its updates
        self.tokens = 0  # trained on so far, and the seconds that it took
        self.seconds = 0.0
        self.loss_scale = LossScale(model, accelerator)
        # Sharded weights exchange their gradients themselves, in every backward pass, and need no wrapper for that.
        self.model = accelerator.prepare_model(model, evaluation_mode=is_sharded(model.parameters()))
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(parameter_groups(model, settings), settings))
        self._low, self._noise = LowPrecisionWeights.of(self.model), has_noise(model)
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
                batch = next(batches).to("cpu")
            with advising(f"step {self.done + 1}", TRAINING, OTHERWISE):
                metrics = self._learn(batch)
            self.done, self._last = self.done + 1, batch
            if isinstance(self.reference, Moving):
                self.reference.follow(self.accelerator.unwrap_model(self.model), self.done)
            tokens, seconds = _tokens(batch) * self.settings.passes, time.perf_counter() - start
            self.tokens += tokens
            self.seconds += seconds
            yield Step(self.done, metrics, tokens, seconds, _rows(batch))

    def check_finite(self) -> None:
        """Refuse what an update left of the model where it computes no numbers; the next step's loss, if any, comes too late.

        Each process looks at the weights that it holds: whether their squares are finite, since a normalising layer turns states
        that are too large into zeros. All look at what the model computes for one row of the last batch.

        Raises:
            DivergenceError: says so.
        """
        model = self.accelerator.unwrap_model(self.model)
        finite = all(gather_object([all(has_finite_squares(w) for w in model.parameters() if w.requires_grad)]))
        if finite and self._last is not None and len(self._last):
            row = self._last.rows(slice(1))
            training = model.training
            model.eval()  # dropout would draw, and so change what follows
            with torch.no_grad(), self.accelerator.autocast():
                fields = model(row, Needs(rewards=merged_needs(self.terms).rewards)).fields()
            model.train(training)
            finite = all(bool(values.isfinite().all()) for values in fields.values())
        if not finite:
            raise DivergenceError(
                f"training diverged: after the update of step {self.done} the model computes no finite numbers, and is neither "
                f"saved nor measured. Usual causes: train.lr too high (it is {self.settings.lr:g}), no train.clip_norm or "
                "train.warmup; with a smaller one, begin anew in another folder"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside weights and optimiser: places in the sources, running numbers, the schedule."""
        return {
            "done": self.done,
            "spent": (self.tokens, self.seconds),
            "asked_before": self.asked_before,
            "source": self.source.state_dict(),
            "own": {index: self.terms[index].source.state_dict() for index in self._own},  # type: ignore[union-attr]
            "objectives": [
                {name: value for name, value in vars(term.objective).items() if value is not vars(start)[name]}
                if isinstance(start, Adaptive)
                else {}
                for term, start in zip(self.terms, self._at_start, strict=True)
            ],
            "schedule": self.schedule.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
            "reference": self.reference.state_dict() if isinstance(self.reference, Moving) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.done = state["done"]
        self.tokens, self.seconds = state["spent"]
        self.asked_before = state.get("asked_before", self.asked_before)  # older checkpoints lack it
        self.source.load_state_dict(state["source"])
        for index in self._own:
            source = self.terms[index].source
            assert source is not None
            source.load_state_dict(state["own"][index])
            self._own[index] = iter(source)
        self.terms = [
            replace(term, objective=replace(term.objective, **fields))  # type: ignore[type-var]
            if isinstance(term.objective, Adaptive)  # older checkpoints have the fields of all
            else term
            for term, fields in zip(self.terms, state["objectives"], strict=True)
        ]
        # Stepped to its place, it gives the rate of its own length, which may be another than the checkpoint's.
        place = state["schedule"]["last_epoch"]
        self.schedule.load_state_dict({**state["schedule"], "last_epoch": place - 1})
        self.schedule.step()
        self.loss_scale.load_state_dict(state.get("loss_scale", {}))  # older checkpoints lack it
        if isinstance(self.reference, Moving):
            self.reference.load_state_dict(state["reference"])

    def _learn(self, batch: Batch) -> dict[str, float]:
        """All passes over one logical batch. One without rows trains the terms that have a source of their own, if any."""
        shared = [term for term in self.terms if term.source is None and len(batch)]
        outputs = self._outputs_of_the_update(shared, batch)
        targets, monitored = self._targets(shared, batch, "shared", self.monitor, outputs)
        collected: list[tuple[int, Metrics]] = []
        for number in range(self.settings.passes):
            for rows in self._minibatches(len(batch), self.settings.minibatch_size, number):
                part = batch if rows is None else batch.rows(rows)
                sliced = targets if rows is None else self._selected(targets, rows)
                with phase("training"):
                    collected.append((max(len(part), 1), self._update(shared, part, sliced, outputs)))
        metrics = averaged(collected)
        for label, target in zip(self._labels(shared), targets, strict=True):
            metrics |= {(label, name): value for name, value in target.metrics.items()}
        metrics |= {(None, name): value for name, value in monitored.items()}
        self.terms = [
            replace(term, objective=term.objective.adapted(own_metrics(metrics, label)))
            if isinstance(term.objective, Adaptive) and (len(batch) or term.source is not None)
            else term
            for term, label in zip(self.terms, names(self.terms), strict=True)
        ]
        return plain_names(metrics, names(self.terms))

    def _labels(self, terms: Sequence[Term]) -> list[str]:
        """What tells these among all terms of the run."""
        labels = dict(zip(map(id, self.terms), names(self.terms), strict=True))
        return [labels[id(term)] for term in terms]

    def _minibatches(self, rows: int, size: int | None, number: int) -> Iterator[Tensor | None]:
        """Row numbers of each minibatch, shuffled anew in every pass; None for the batch as it is."""
        if size is None or size >= self.settings.batch_size:
            yield None
            return
        # As many as of a full batch: rollouts that lost a few prompts must not end in an update on one of them.
        updates = math.ceil(self.settings.batch_size / size)
        if not rows:
            yield from [None] * updates
            return
        order = torch.randperm(rows, generator=generator(self.seed, "minibatches", self.done, number))
        yield from order.tensor_split(min(updates, rows))

    def _selected(self, targets: Sequence[Targets], rows: Tensor) -> list[Targets]:
        """The targets of these rows."""
        there = sent(rows, self.accelerator.device)
        return [target.select(there) for target in targets]

    def _outputs_of_the_update(self, terms: Sequence[Term], batch: Batch) -> Outputs | None:
        """The policy's outputs before the only update on a batch, with their graph, so that the update need not ask for them again.

        None where they are not wanted before the update, or are not those of the update (`Noisy`), or where the batch is split,
        since the graphs of all its micro-batches would be held at once.
        """
        settings = self.settings
        once = settings.passes == 1 and (settings.minibatch_size or math.inf) >= settings.batch_size
        if self._noise or not terms or not once or not (merged_needs(terms).old or self.monitor is not None):
            return None
        if shard(batch, settings.micro_batch_size, self.accelerator, tokens_at_once(settings)).split:
            return None
        with timed("forward"), phase("training"):
            outputs: Outputs = self.model(batch, _monitored(merged_needs(terms), self.monitor))
        return outputs

    def _targets(
        self,
        terms: Sequence[Term],
        batch: Batch,
        name: str,
        monitor: Monitor | None = None,
        outputs: Outputs | None = None,
    ) -> tuple[list[Targets], dict[str, float]]:
        """The targets of these terms, and the monitor's numbers. `outputs` are the policy's if they are known already."""
        if not terms:
            return [], {}
        needs = merged_needs(terms)
        old = reference = None
        if outputs is not None:
            old = outputs.detach()
        elif needs.old or monitor is not None:
            self.asked_before = True
            with timed("forward"), without_noise(self.model):
                old = self._forward(self.model, batch, _monitored(needs, monitor))
        if self.reference is not None and (needs.reference or monitor is not None):
            reference = self._forward(self.reference, batch, needs)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # draws in `targets` are the same on every process and after a resume
            torch.manual_seed(seed_for(self.seed, "targets", self.done, name))
            there = batch.to(self.accelerator.device)
            with timed("targets"):
                targets = [targets_of(term, there, old, reference) for term in terms]
        if monitor is None:
            return targets, {}
        assert old is not None
        return targets, dict(monitor(there, old, reference))

    @property
    def _learning_model(self) -> Model:
        """The model as an update asks it."""
        updates = self.schedule.last_epoch
        return Noisy(self.model, seed_for(self.seed, "dropout", updates)) if self._noise else self.model

    def _forward(self, model: Model, batch: Batch, needs: Needs) -> Outputs:
        """What a model says about a whole batch, without gradient."""
        settings = self.settings
        return forward(model, batch, needs, settings.micro_batch_size, self.accelerator, tokens_at_once(settings))

    def _update(
        self, terms: Sequence[Term], batch: Batch, targets: Sequence[Targets], outputs: Outputs | None
    ) -> Metrics:
        """One optimiser step on a minibatch, and on one batch from each term that has a source of its own."""
        work: list[tuple[Sequence[Term], Batch, Sequence[Targets], Outputs | None]] = []
        for index, batches in self._own.items():
            own = [self.terms[index]]
            with timed("data"):
                extra = next(batches).to("cpu")
            self.tokens += _tokens(extra)
            work.append((own, extra, self._targets(own, extra, f"term {index}")[0], None))
        # Last, because processes exchange gradients in the last pass, and only this one uses a critic.
        work += [(terms, batch, targets, outputs)] if terms else []
        found: dict[MetricKey, Tensor | float] = {(None, "loss"): 0.0}
        if not work:  # nothing to learn: the weights stay, and the schedule goes on
            return self._skipped()
        for number, (group, rows, prepared, known) in enumerate(work):
            of_group = self._backward(group, rows, prepared, known, last=number == len(work) - 1)
            found[None, "loss"] += (loss := of_group.pop((None, "loss")))
            label = self._labels(group)[0]
            if len(group) == 1 and len(self.terms) > 1:  # where several share a batch, `total` tells them apart
                of_group[None, f"loss/{label}"] = loss / group[0].weight if group[0].weight else math.nan
            if group is not terms:  # a batch of the term's own: its padding is not the run's, and its targets are new
                of_group[label, "padding"] = of_group.pop((None, "padding"))
                of_group |= {(label, name): value for name, value in prepared[0].metrics.items()}
            found |= of_group
        with timed("optimiser"):
            gradient = self.loss_scale.clip(self.model, self.optimizer, self.settings.clip_norm)
        metrics = on_host(found | {(None, name): value for name, value in gradient.items()})
        left_out = gradient.get("overflow") == 1
        if not (math.isfinite(metrics[None, "loss"]) and (left_out or math.isfinite(metrics[None, "grad_norm"]))):
            self._stop(batch, metrics)
        metrics[None, "lr"] = float(self.schedule.get_last_lr()[0])
        before = self._low.copy()
        with timed("optimiser"):
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        if before:
            metrics[None, "weights_moved"] = self._low.moved_since(before)
        return metrics

    def _skipped(self) -> Metrics:
        """The metrics of an update that is left out."""
        lr = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()  # of no gradients, which changes nothing
        self.schedule.step()
        return {(None, "loss"): math.nan, (None, "grad_norm"): math.nan, (None, "lr"): lr}

    def _backward(
        self, terms: Sequence[Term], batch: Batch, targets: Sequence[Targets], outputs: Outputs | None, *, last: bool
    ) -> dict[MetricKey, Tensor | float]:
        """Add the gradient of these terms on a whole minibatch; return its metrics, averaged over prompts, still on the device."""
        needs, denominators, labels = merged_needs(terms), counts(terms, batch), self._labels(terms)
        shards = shard(batch, self.settings.micro_batch_size, self.accelerator, tokens_at_once(self.settings))
        cached = (
            self._cached_gradient(terms, batch, targets, denominators) if needs.whole_batch and shards.split else None
        )
        by_micro_batch: list[dict[MetricKey, Tensor]] = []
        for number, micro in enumerate(shards.micro_batches):
            rows = batch.rows(micro.rows) if shards.split else batch
            with self._synchronised(last and number == len(shards.micro_batches) - 1):
                with timed("forward"):
                    of_rows = self._learning_model(rows, needs) if outputs is None else outputs
                if cached is None:
                    part = self._selected(targets, micro.rows) if shards.split else targets
                    there = rows.to(self.accelerator.device)
                    with timed("loss"):
                        loss, metrics = total(terms, there, of_rows, part, denominators, labels)
                    by_micro_batch.append(metrics)
                else:
                    loss = _surrogate(of_rows, cached[0].rows(sent(micro.rows, self.accelerator.device)))
                # Processes average their gradients; the loss is a sum over all of them.
                with timed("backward"):
                    weight = 0.0 if micro.filler else self.accelerator.num_processes
                    self.accelerator.backward(self.loss_scale.scaled(loss * weight))
        by_row = cached[1] if cached else shards.gather_each(by_micro_batch) if shards.split else by_micro_batch[0]
        # Of its own metrics the run has each row's share of a sum; those of terms are means over prompts.
        sums = {key: v.double().sum() if key[0] is None else v.double().nanmean() for key, v in by_row.items()}
        return {(None, "padding"): shards.padding, **sums}

    def _cached_gradient(
        self, terms: Sequence[Term], batch: Batch, targets: Sequence[Targets], denominators: Sequence[int]
    ) -> tuple[Outputs, dict[MetricKey, Tensor]]:
        """The gradient of the loss of the whole minibatch with respect to every field of the outputs, and its metrics."""
        with timed("forward"):
            outputs = self._forward(self._learning_model, batch, merged_needs(terms))
        leaves = {name: value.detach().requires_grad_() for name, value in outputs.fields().items()}
        there = batch.to(self.accelerator.device)
        loss, metrics = total(terms, there, outputs.with_fields(leaves), targets, denominators, self._labels(terms))
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        known = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        }
        return outputs.with_fields(known), metrics

    def _synchronised(self, last: bool) -> Any:
        """Processes exchange gradients in the last backward pass of an optimiser step only, unless weights are sharded."""
        return torch.enable_grad() if last else self.accelerator.no_sync(self.model)

    def _stop(self, batch: Batch, metrics: Metrics) -> None:
        where = ""
        if self.folder is not None and self.accelerator.is_main_process:
            where = f" The batch is in {save_batch(batch, self.folder / f'nonfinite-step-{self.done + 1}')}."
        raise DivergenceError(
            f"step {self.done + 1}: the loss is {metrics[None, 'loss']} and the gradient's norm {metrics[None, 'grad_norm']}: "
            f"stopped before the weights were touched.{where} Usual causes: train.lr too high, bf16 or fp16 weights, an objective "
            f"that overflows (`prefopt check` tries extreme log-ratios){FP16_ENDS if self.loss_scale.used else ''}."
        )


def _monitored(needs: Needs, monitor: Monitor | None) -> Needs:
    """The same, and the statistics that the monitor reads."""
    return needs if monitor is None else replace(needs, watched=monitor.needs.statistics)


def _surrogate(outputs: Outputs, gradient: Outputs) -> Tensor:
    """A scalar whose gradient is the chain rule: Σ outputs · ∂loss/∂outputs."""
    known = gradient.fields()
    return torch.stack([(value * known[name]).sum() for name, value in outputs.fields().items()]).sum()


def _tokens(batch: Batch) -> int:
    """Tokens of the batch that go through the model: each prompt once, and its completions."""
    return sum(map(len, batch.prompt_ids)) + int(batch.lengths.sum())


def _rows(batch: Batch) -> int:
    """A checksum of the rows' numbers in the data, in order; 0 where the source gives none."""
    rows = batch.columns.get("row")
    return 0 if rows is None else zlib.crc32(repr(rows.tolist()).encode())
