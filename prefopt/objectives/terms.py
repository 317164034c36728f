"""What a run minimises: Σ_terms weight · Σ total / count, over objectives that may share a batch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.support.errors import PrefoptError
from prefopt.types import Axis, Batch, Needs, Objective, Outputs, Source, StepRewards, Targets, axis_of

MetricKey = tuple[str | None, str]
"""Whose metric it is, and its name: the label of a term (`names`), or None for the run itself."""

RUN_METRICS = frozenset(
    (
        *("loss", "grad_norm", "lr", "padding", "weights_moved", "loss_scale", "overflow"),
        *("step", "tokens", "seconds", "batch"),
    )
)
"""Names of the run's own numbers, which no term's metric may take."""


@dataclass(frozen=True)
class Term:
    """One objective of a run.

    Attributes:
        objective: what to minimise.
        weight: its factor in the sum.
        source: its own batches, one for each optimiser step; None shares the run's.
    """

    objective: Objective
    weight: float = 1.0
    source: Source | None = None

    @property
    def name(self) -> str:
        """The objective's class name."""
        return type(self.objective).__name__


def merged_needs(terms: Sequence[Term]) -> Needs:
    """What a batch must hold to serve all these terms.

    Raises:
        PrefoptError: two terms want different numbers of completions, or data of one and models of the other kind.
    """
    needs = [term.objective.needs for term in terms]
    best_only = [n for n in needs if n.completions == 1 and n.ordered]
    exact = {n.completions for n in needs if n.completions is not None and n not in best_only}
    if len(exact) > 1:
        wants = ", ".join(f"{t.name}: {t.objective.needs.completions or 'any'}" for t in terms)
        raise PrefoptError(f"terms that share a batch need the same number of completions; got {wants}")
    if not exact and len(best_only) == len(needs):
        exact = {1}
    return Needs(
        completions=exact.pop() if exact else None,
        ordered=any(n.ordered for n in needs),
        scores=any(n.scores for n in needs),
        preference=any(n.preference for n in needs),
        columns=tuple(dict.fromkeys(c for n in needs for c in n.columns)),
        reference=any(n.reference for n in needs),
        old=any(n.old for n in needs),
        rollouts=any(n.rollouts for n in needs),
        values=any(n.values for n in needs),
        rewards=any(n.rewards for n in needs),
        statistics=frozenset().union(*(n.statistics for n in needs)),
        whole_batch=any(n.whole_batch for n in needs),
        one_update=any(n.one_update for n in needs),
        axes=_merged_axes(terms),
        named_scores=tuple(dict.fromkeys(name for n in needs for name in n.named_scores)),
        contrast=any(n.contrast for n in needs),
        signs=any(n.signs for n in needs),
        step_rewards=_merged_steps(needs),
    )


def _merged_steps(needs: Sequence[Needs]) -> StepRewards | None:
    kinds = {n.step_rewards for n in needs} - {None}
    if len(kinds) > 1:
        raise PrefoptError(
            "one term learns rewards of steps, whose sum is the completion's, and another the log-odds that steps are right; one "
            "scorer gives only one of them: train two"
        )
    return kinds.pop() if kinds else None


def _merged_axes(terms: Sequence[Term]) -> dict[str, Axis]:
    axes: dict[str, Axis] = {}
    for term in terms:
        for name in term.objective.needs.columns:
            axis = axis_of(name, term.objective.needs.axes)
            if axes.setdefault(name, axis) != axis:
                raise PrefoptError(
                    f"terms that share a batch read the column {name!r} in two ways: {term.name} as one of the {axis}, another "
                    f"as one of the {axes[name]}; state the same in both `Needs.axes`"
                )
    return {name: axis for name, axis in axes.items() if axis != axis_of(name, {})}


def view(term: Term, batch: Batch, outputs: Outputs | None) -> tuple[Batch, Outputs | None]:
    """The part of a shared batch, and of what a model said about it, that a term reads."""
    seen = term.objective.needs.view(batch)
    if outputs is None or seen is batch:
        return seen, outputs
    return seen, outputs.first(seen.completion_ids.shape[1])


def targets_of(term: Term, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
    """The objective's targets for the part of the logical batch that it reads, without gradient."""
    with torch.no_grad():
        return term.objective.targets(
            view(term, batch, None)[0], view(term, batch, old)[1], view(term, batch, reference)[1]
        )


def counts(terms: Sequence[Term], batch: Batch) -> list[int]:
    """Each term's denominator on a logical minibatch; at least 1."""
    return [max(term.objective.needs.count(term.objective.needs.view(batch)), 1) for term in terms]


def total(
    terms: Sequence[Term],
    batch: Batch,
    policy: Outputs,
    targets: Sequence[Targets],
    counts: Sequence[int],
    labels: Sequence[str] | None = None,
) -> tuple[Tensor, dict[MetricKey, Tensor]]:
    """These rows' share of the loss, and their metrics.

    Args:
        terms: those that share the batch.
        batch: b rows of a logical minibatch, or all of them.
        policy: what the policy says about these rows.
        targets: each term's, for these rows.
        counts: each term's denominator, over the whole logical minibatch.
        labels: what tells the terms apart in the keys of metrics; their `names` if None.

    Returns:
        A scalar with gradient, and metrics of shape [b] without one. Those of the run, `loss` and with several terms `loss/LABEL`
        before its weight, are each row's share of a sum; those of a term are to be averaged over prompts.

    Raises:
        ValueError: an objective returned a total or a metric that is not [b].
    """
    rows = len(batch)
    policy = _trained(batch, policy)
    losses: list[Tensor] = []
    metrics: dict[MetricKey, Tensor] = {}
    for term, label, target, count in zip(terms, labels or names(terms), targets, counts, strict=True):
        seen, outputs = view(term, batch, policy)
        assert outputs is not None
        loss = term.objective.loss(seen, outputs, target)
        for what, value in {"total": loss.total, **loss.metrics}.items():
            if value.shape != (rows,):
                raise ValueError(
                    f"{term.name} returned {what} with shape {list(value.shape)}; expected one number a prompt, [{rows}]"
                )
        losses.append(term.weight * loss.total / count)
        if len(terms) > 1:
            metrics[None, f"loss/{label}"] = loss.total.detach() / count
        metrics |= {(label, name): value.detach() for name, value in loss.metrics.items()}
    by_row = torch.stack(losses).sum(0)
    return by_row.sum(), {(None, "loss"): by_row.detach(), **metrics}


def own_metrics(metrics: Mapping[MetricKey, float], label: str) -> dict[str, float]:
    """What a term's running numbers move by: its own metrics, and of the run those whose names it has not taken itself."""
    return {name: value for owner in (None, label) for (of, name), value in metrics.items() if of == owner}


def plain_names(metrics: Mapping[MetricKey, float], labels: Sequence[str]) -> dict[str, float]:
    """One name for each metric, as a run logs it; `labels` are of all terms, in their order.

    The run's own numbers keep their names. A term's metric does if neither the run nor an earlier term has that name;
    otherwise the term's label is put in front: `SFT/nll`.
    """
    named = {name: value for (label, name), value in metrics.items() if label is None}
    for label in labels:
        for name, value in ((name, value) for (of, name), value in metrics.items() if of == label):
            named[f"{label}/{name}" if name in named or name in RUN_METRICS else name] = value
    return named


def _trained(batch: Batch, policy: Outputs) -> Outputs:
    """Without a gradient for completions that are only there to be compared with."""
    trained = batch.columns.get("trained")
    if trained is None:
        return policy

    def only_trained(value: Tensor) -> Tensor:
        return torch.where(trained.view(*trained.shape, *(1,) * (value.ndim - 2)), value, value.detach())

    return policy.with_fields({name: only_trained(value) for name, value in policy.fields().items()})


def names(terms: Sequence[Term]) -> list[str]:
    """The objectives' names, numbered where two are the same."""
    plain = [term.name for term in terms]
    return [f"{name}-{plain[:i].count(name) + 1}" if name in plain[:i] else name for i, name in enumerate(plain)]


def evaluate_loss(
    objective: Objective, batch: Batch, policy: Outputs, reference: Outputs | None = None, old: Outputs | None = None
) -> Tensor:
    """The normalised scalar loss of a batch, for whoever wants an objective without a trainer.

    Args:
        objective: any.
        batch: the logical batch, whole.
        policy: what the policy says about it, with gradient if one is wanted.
        reference: the reference's outputs, where the objective needs them.
        old: the outputs from before the update, likewise.

    Raises:
        ValueError: the batch or the outputs lack what the objective needs.
    """
    missing = _missing(objective.needs, batch, policy, reference, old)
    if missing:
        raise ValueError(f"{type(objective).__name__} needs {'; '.join(missing)}")
    terms = [Term(objective)]
    return total(terms, batch, policy, [targets_of(terms[0], batch, old, reference)], counts(terms, batch))[0]


def _missing(needs: Needs, batch: Batch, policy: Outputs, reference: Outputs | None, old: Outputs | None) -> list[str]:
    completions = needs.view(batch).completion_ids.shape[1]
    checks = {
        f"{needs.completions} completions of each prompt, got {completions}": needs.completions in (None, completions),
        "batch.scores": not needs.scores or batch.scores is not None,
        "batch.preference": not needs.preference or batch.preference is not None,
        "the reference's outputs: pass reference=": not needs.reference or reference is not None,
        "the old policy's outputs: pass old=": not needs.old or old is not None,
        "policy.values": not needs.values or policy.values is not None,
        "policy.rewards: outputs of a scorer": not needs.rewards or policy.rewards is not None,
        "policy.step_rewards: outputs of a scorer of steps": not needs.step_rewards or policy.step_rewards is not None,
        **{f"batch.columns[{name!r}]": name in batch.columns for name in needs.columns},
        **{f"batch.named_scores[{name!r}]": name in batch.named_scores for name in needs.named_scores},
        **{f"policy.statistics[{name!r}]": name in policy.statistics for name in needs.statistics},
    }
    return [what for what, there in checks.items() if not there]


def averaged(collected: Sequence[tuple[int, Mapping[MetricKey, float]]]) -> dict[MetricKey, float]:
    """Means over minibatches, weighted by prompts; NaN where a metric applied nowhere."""
    keys = dict.fromkeys(key for _, metrics in collected for key in metrics)
    means: dict[MetricKey, float] = {}
    for key in keys:
        known = [(rows, m[key]) for rows, m in collected if key in m and not math.isnan(m[key])]
        means[key] = sum(r * v for r, v in known) / sum(r for r, _ in known) if known else math.nan
    return means
