"""The nouns: what moves between sources, models, objectives and the trainer.

Shapes: B prompts, K completions of each, T completion tokens. Everything here is frozen, and nothing here computes more
than a sum.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, Self, get_args, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

Message = Mapping[str, Any]
"""One turn of a conversation: `role` and `content`."""

Prompt = str | Sequence[Message]
"""Plain text, or the conversation so far."""

Completion = str | Sequence[Message]
"""The text of one turn; or several turns as messages, those of tools and users among them."""

Unit = Literal["prompt", "completion", "token"]
"""What a loss is averaged over."""

StopReason = Literal["eos", "stop", "length", "turns", "error"]
"""Why a completion ended: an end token of the model, a text of `sampling.stop`, its length, its number of turns, or an
environment that failed."""

STOP_REASONS: tuple[StopReason, ...] = get_args(StopReason)
"""In order; the column `stop_reason` holds places in this list."""

Axis = Literal["prompt", "completion", "token"]
"""What each entry of a column belongs to: the column is [B, ...], [B, K, ...] or [B, K, T]."""

AXES: Mapping[str, Axis] = {
    "sampler_logps": "token",
    "cost": "completion",
    "gold": "completion",
    "origin": "completion",
    "trained": "completion",
    "ended": "completion",
    "stop_reason": "completion",
}
"""The axes of the columns that prefopt itself writes. Any other column is of the prompt unless its axis is stated."""

_BatchAxis = Axis | Literal["pair"]
"""The axes of a batch's fields: those of columns, and [B, K, K]."""


def axis_of(name: str, axes: Mapping[str, Axis]) -> Axis:
    """The axis of a column: the one that is stated, else that of `AXES`, else "prompt"."""
    return axes.get(name, AXES.get(name, "prompt"))


ORIGINS = ("dataset", "policy", "reference", "mixture", "greedy", "mismatched")
"""Where a completion came from; the column `origin` holds places in this list."""


@dataclass(frozen=True)
class Batch:
    """B prompts with K completions each: the one shape of every method.

    Attributes:
        prompt_ids: B token sequences, ragged.
        completion_ids: [B, K, T] int64, right-padded.
        mask: [B, K, T] bool; True on tokens the policy wrote, EOS included. An absent completion is all False.
        scores: [B, K], of whole completions; larger is better. A bare preference is (+.5, −.5), a label is +.5 or −.5.
        preference: [B, K, K]; P(y_i beats y_j), for soft or multi-rater labels.
        columns: anything else, by name: [B, ...] for each prompt, [B, K, ...] for each completion, [B, K, T] for each token.
        axes: which of these a column is. Columns that are not named here have the axis in `AXES`, or else are of the prompt;
            it is never guessed from the shape.
        rewards: [B, K, T], what belongs to a token: the reward of a turn or a step, at its last token; 0 elsewhere. It comes
            on top of `scores`.
        named_scores: [B, K] each; several scores kept apart (helpful, safe, format), for objectives that combine them.
        version: [B, K] int64; after how many updates of the policy a completion was written, −1 for one that the policy had
            no part in. None for recorded data.

    Raises:
        ValueError: a field whose shape or dtype contradicts the others, by name.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    completion_ids: Tensor
    mask: Tensor
    scores: Tensor | None = None
    preference: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)
    rewards: Tensor | None = None
    named_scores: Mapping[str, Tensor] = field(default_factory=dict)
    version: Tensor | None = None

    def __post_init__(self) -> None:
        if self.completion_ids.ndim != 3:
            raise ValueError(f"completion_ids must be [B, K, T], got {list(self.completion_ids.shape)}")
        prompts, completions, tokens = self.completion_ids.shape
        if len(self.prompt_ids) != prompts:
            raise ValueError(f"{len(self.prompt_ids)} prompts for {prompts} rows of completions")
        if self.mask.dtype != torch.bool or self.mask.shape != self.completion_ids.shape:
            raise ValueError(
                f"mask must be bool {list(self.completion_ids.shape)} like completion_ids, "
                f"got {self.mask.dtype} {list(self.mask.shape)}"
            )
        for name, tensor, shape in (
            ("scores", self.scores, (prompts, completions)),
            ("preference", self.preference, (prompts, completions, completions)),
            ("rewards", self.rewards, (prompts, completions, tokens)),
            ("version", self.version, (prompts, completions)),
            *(
                (f"named_scores[{name!r}]", scores, (prompts, completions))
                for name, scores in self.named_scores.items()
            ),
        ):
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        shapes: Mapping[Axis, tuple[int, ...]] = {
            "prompt": (prompts,),
            "completion": (prompts, completions),
            "token": (prompts, completions, tokens),
        }
        for name, axis in self.axes.items():
            if axis not in shapes:
                raise ValueError(f"the axis of column {name!r} must be one of {', '.join(shapes)}, got {axis!r}")
        for name, column in self.columns.items():
            expected = shapes[self.axis(name)]
            if column.shape[: len(expected)] != expected:
                raise ValueError(
                    f"column {name!r}, whose axis is {self.axis(name)!r}, must start with {list(expected)}, "
                    f"got {list(column.shape)}"
                )

    def __len__(self) -> int:
        return self.completion_ids.shape[0]

    @property
    def present(self) -> Tensor:
        """[B, K] bool; False where a prompt has fewer than K completions."""
        return self.mask.any(-1)

    @property
    def lengths(self) -> Tensor:
        """[B, K] int64, places of each completion up to the last token that the policy wrote."""
        return lengths_of(self.mask)

    def axis(self, column: str) -> Axis:
        """What the entries of a column belong to."""
        return axis_of(column, self.axes)

    def rows(self, index: Tensor | slice) -> Self:
        """These prompts alone, in this order; `index` is [b] int64 or a slice."""
        numbers = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index].tolist()
        index = torch.tensor(numbers, dtype=torch.long, device=self.mask.device)
        return self._by_axis(lambda tensor, _: tensor[index], tuple(self.prompt_ids[i] for i in numbers))

    def first(self, completions: int) -> Self:
        """The first few completions of every prompt; all other fields are cut alike."""
        if completions == self.completion_ids.shape[1]:
            return self

        def cut(tensor: Tensor, axis: _BatchAxis) -> Tensor:
            if axis == "prompt":
                return tensor
            return tensor[:, :completions, :completions] if axis == "pair" else tensor[:, :completions]

        return self._by_axis(cut)

    def extended(self, completions: int) -> Self:
        """With as many absent completions after the present ones: 0 in every field, ½ in `preference`."""

        def extend(tensor: Tensor, axis: _BatchAxis) -> Tensor:
            if axis == "prompt":
                return tensor
            if axis == "pair":
                return pad(tensor, (0, completions, 0, completions), value=0.5)
            return pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, completions))

        return self._by_axis(extend)

    def padded(self, tokens: int) -> Self:
        """With as many further places for tokens at the end, outside the mask: 0 in every field."""
        return self._by_axis(lambda tensor, axis: pad(tensor, (0, tokens)) if axis == "token" else tensor)

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        return _map_tensors(self, lambda tensor: tensor.to(device))

    def _by_axis(
        self, change: Callable[[Tensor, _BatchAxis], Tensor], prompt_ids: tuple[tuple[int, ...], ...] | None = None
    ) -> Self:
        """The batch with `change` applied to every tensor, given its axis."""

        def changed(tensor: Tensor | None, axis: _BatchAxis) -> Tensor | None:
            return None if tensor is None else change(tensor, axis)

        return dataclasses.replace(
            self,
            prompt_ids=self.prompt_ids if prompt_ids is None else prompt_ids,
            completion_ids=change(self.completion_ids, "token"),
            mask=change(self.mask, "token"),
            scores=changed(self.scores, "completion"),
            preference=changed(self.preference, "pair"),
            columns={name: change(column, self.axis(name)) for name, column in self.columns.items()},
            rewards=changed(self.rewards, "token"),
            named_scores={name: change(scores, "completion") for name, scores in self.named_scores.items()},
            version=changed(self.version, "completion"),
        )


@dataclass(frozen=True)
class Outputs:
    """What a model says about a batch. `values[t]` and `logps[t]` both see only the tokens before t.

    Attributes:
        mask: [B, K, T] bool, the batch's.
        logps: [B, K, T] log-probabilities of the tokens, at the sampling temperature; 0 outside the mask.
        values: [B, K, T] from a value head or a critic.
        rewards: [B, K] from a scorer.
        statistics: [B, K, T] full-vocabulary numbers, those that `Needs.statistics` named.
    """

    mask: Tensor
    logps: Tensor | None = None
    values: Tensor | None = None
    rewards: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def sum(self) -> Tensor:
        """[B, K] log-probability of each completion."""
        return self._logps().masked_fill(~self.mask, 0).sum(-1)

    def mean(self) -> Tensor:
        """[B, K] mean log-probability of a token; 0 for an absent completion."""
        return self.sum() / self.mask.sum(-1).clamp(min=1)

    def _logps(self) -> Tensor:
        if self.logps is None:
            raise ValueError("these outputs hold no log-probabilities: the model is a scorer, not a language model")
        return self.logps

    def fields(self) -> dict[str, Tensor]:
        """Every tensor that a loss may have a gradient for, by name: `logps`, `values`, `rewards` and the statistics."""
        named = {name: getattr(self, name) for name in _OUTPUT_FIELDS}
        return {name: value for name, value in named.items() if value is not None} | dict(self.statistics)

    def with_fields(self, fields: Mapping[str, Tensor]) -> Self:
        """The same with other tensors for these fields; a name that is no attribute is a statistic."""
        own: dict[str, Any] = {name: value for name, value in fields.items() if name in _OUTPUT_FIELDS}
        statistics = {name: value for name, value in fields.items() if name not in own}
        return dataclasses.replace(self, statistics={**self.statistics, **statistics}, **own)

    def rows(self, index: Tensor | slice) -> Self:
        """The outputs of these prompts alone, in this order."""
        return _map_tensors(self, lambda tensor: tensor[index])

    def first(self, completions: int) -> Self:
        """The outputs of the first few completions of every prompt."""
        return _map_tensors(self, lambda tensor: tensor[:, :completions])

    def detach(self) -> Self:
        """The same numbers, without their history."""
        return _map_tensors(self, Tensor.detach)


_OUTPUT_FIELDS = ("logps", "values", "rewards")


@dataclass(frozen=True)
class Needs:
    """What an objective must be given; a recipe that cannot is refused before any model is loaded.

    Attributes:
        completions: exact K, or None for any, absent ones allowed. 1 with `ordered` means the best one: a batch that holds
            more, for the sake of another term, is cut to it.
        ordered: completions come best first.
        scores: `batch.scores` is there.
        preference: `batch.preference` is there.
        columns: these `batch.columns` are there.
        reference: `targets` gets the reference's outputs.
        old: `targets` gets the policy's outputs from before the update.
        rollouts: completions come from the current policy.
        values: outputs carry `values`.
        rewards: outputs carry `rewards`: the model is a scorer.
        statistics: outputs carry these of "entropy", "log_sum_squares", "kl_policy_ref", "kl_ref_policy".
        watched: outputs carry these statistics as well, without a gradient: they are logged and not learnt from.
        whole_batch: rows are coupled: `loss` sees the logical batch whole, never sliced.
        one_update: there is no ratio to the policy that wrote the batch, so it is good for one update only.
        per: the unit whose count divides the summed loss.
        axes: of `columns` that are not of the prompt, {"helpful": "completion"}: then they are ordered and cut together with
            the completions. Columns in `AXES` need not be named.
        named_scores: these `batch.named_scores` are there; they come from feedback.
    """

    completions: int | None = None
    ordered: bool = False
    scores: bool = False
    preference: bool = False
    columns: tuple[str, ...] = ()
    reference: bool = False
    old: bool = False
    rollouts: bool = False
    values: bool = False
    rewards: bool = False
    statistics: frozenset[str] = frozenset()
    watched: frozenset[str] = frozenset()
    whole_batch: bool = False
    one_update: bool = False
    per: Unit = "prompt"
    axes: Mapping[str, Axis] = field(default_factory=dict, hash=False)
    named_scores: tuple[str, ...] = ()

    def count(self, batch: Batch) -> int:
        """The number of `per` units in a batch: the denominator of its summed loss."""
        if self.per == "prompt":
            return len(batch)
        return int((batch.present if self.per == "completion" else batch.mask).sum())

    def view(self, batch: Batch) -> Batch:
        """The part of a shared batch that this objective reads."""
        return batch.first(1) if self.completions == 1 and self.ordered else batch


@dataclass(frozen=True)
class Targets:
    """What `Objective.targets` computed once for a logical batch.

    Attributes:
        rows: tensors with leading dimension B, sliced together with the batch.
        metrics: numbers over the whole logical batch.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def select(self, index: Tensor | slice) -> Self:
        """The targets of these prompts alone, in this order."""
        return dataclasses.replace(self, rows={name: row[index] for name, row in self.rows.items()})


@dataclass(frozen=True)
class Loss:
    """What `Objective.loss` returns.

    Attributes:
        total: [B] un-normalised sums. The loss of a step is sum(total) / number of `needs.per` units.
        metrics: each [B], without gradient; averaged over prompts. NaN means that it does not apply to the prompt.
    """

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass whose fields are its hyperparameters and its running numbers.

    `targets` runs once per logical batch, without gradient, and sees that batch whole on every process: advantages,
    whitening, reference log-ratios, random draws. `loss` runs per minibatch and is pure: no device, configuration, logging,
    randomness or distributed call.
    """

    @property
    def needs(self) -> Needs:
        """What it must be given: an attribute of the class, or a property where it depends on the fields."""
        ...

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """What `loss` will need, from what the models said before the update."""
        ...

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """The loss of these rows, given `targets` of these rows."""
        ...


@runtime_checkable
class Adaptive(Objective, Protocol):
    """An objective with running numbers: BCO's δ, a KL controller, a Lagrange multiplier."""

    def adapted(self, metrics: Mapping[str, float]) -> Self:
        """Itself with the numbers moved on; called once per logical batch, with metrics reduced over all processes."""
        ...


class Model(Protocol):
    """A policy, a scorer, a reference, a tabular bandit: anything that can say something about a batch."""

    def __call__(self, batch: Batch, needs: Needs) -> Outputs:
        """What `needs` asks for, of every completion in the batch."""
        ...


@runtime_checkable
class Moving(Model, Protocol):
    """A reference that moves: an EMA, a periodic copy, the last iterate of self-play."""

    def follow(self, model: Any, step: int) -> None:
        """Move, perhaps, now that the policy has made this step; called between logical batches."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return there."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What a feedback thinks of B prompts with K completions each.

    Attributes:
        scores: [B, K]; NaN = no verdict, and that completion becomes absent.
        preference: [B, K, K]; P(y_i beats y_j), from feedback that compares.
        notes: what is worth keeping beside each prompt: rationales, costs.
        steps: for each prompt and completion, a number for each of its turns or steps, as many as there are; they come on top
            of `scores`, and a source puts each on the last token of its turn (`Batch.rewards`).
        named: [B, K] each; several scores kept apart, which become `Batch.named_scores`. NaN where there is none.
    """

    scores: Tensor
    preference: Tensor | None = None
    notes: Sequence[Mapping[str, Any]] = ()
    steps: Sequence[Sequence[Sequence[float]]] | None = None
    named: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Feedback(Protocol):
    """A rule, a reward model, a judge, an ensemble: prompts and completions to scores."""

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """B prompts, K completions of each, and the other columns of their rows."""
        ...


@dataclass(frozen=True)
class Sampled:
    """Completions a sampler drew.

    Attributes:
        completion_ids: [B, K, T] int64, right-padded.
        mask: [B, K, T] bool, EOS included.
        logps: [B, K, T] the sampler's own log-probs at its temperature, before top-p and top-k; None where it has none.
    """

    completion_ids: Tensor
    mask: Tensor
    logps: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """[B, K] int64, places of each completion up to its last token."""
        return lengths_of(self.mask)


def lengths_of(mask: Tensor) -> Tensor:
    """[...] int64, places up to the last True of a mask [..., T], whatever holes it has; 0 where there is none."""
    places = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (mask * places).amax(-1) if len(places) else mask.sum(-1)


@dataclass(frozen=True)
class Written:
    """One completion of T tokens as it was written.

    Token ids are what the policy drew or what it was given to read, never text that was tokenised again. The mask may have
    holes, so the length is that of `ids`, and not the number of True in `mask`.

    Attributes:
        ids: T token ids, those of an environment's answers among them.
        mask: T; True on tokens that the policy wrote, the end token included.
        logps: T log-probs of the sampler; None where it has none, or where nobody drew the tokens.
        turns: the positions of each turn of the policy, in order.
        stop: why it ended.
        version: how many updates the policy had had; None where it had no part in it.
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    logps: tuple[float, ...] | None
    turns: tuple[range, ...]
    stop: StopReason
    version: int | None = None

    @property
    def ended(self) -> bool:
        """Whether it came to an end by itself, by an end token or a text of `sampling.stop`."""
        return self.stop in ("eos", "stop")


class Sampler(Protocol):
    """Draws completions: transformers generation, or a server. `seeds` is [B] int64: the noise belongs to the row.

    A sampler may also have `sync` and `refuses`: see `Synchronised` and `Refusing`.
    """

    def __call__(
        self, model: Any, prompt_ids: Sequence[Sequence[int]], completions: int, settings: Any, seeds: Tensor
    ) -> Sampled:
        """K completions of each of B prompts."""
        ...


@runtime_checkable
class Synchronised(Protocol):
    """A sampler that draws from a copy of the weights, which must be brought up to date."""

    def sync(self, policy: Any, version: int | None) -> None:
        """Take over the weights; called on every process, once per update, before anything is drawn.

        Args:
            policy: what will be sampled from next.
            version: how many updates it has had; None if that is not known.
        """
        ...


@runtime_checkable
class Refusing(Protocol):
    """A class of samplers that cannot serve every recipe."""

    @classmethod
    def refuses(cls, recipe: Any) -> str | None:
        """Why it cannot serve this recipe, in a sentence for the user, or None; asked before anything is loaded."""
        ...


class Source(Protocol):
    """Logical batches, and a place among them that can be saved and restored. Every process sees the same ones."""

    def __iter__(self) -> Iterator[Batch]:
        """Logical batches from the place on; the place moves as they are taken."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a place."""
        ...


class Turn(NamedTuple):
    """What an environment answers to a turn of the policy.

    Attributes:
        text: what the policy reads next; one message of the environment, or several.
        reward: of the policy's turn, which goes to its last token.
        done: whether the episode is over.
        info: numbers to log.
    """

    text: str | Sequence[Message] = ""
    reward: float = 0.0
    done: bool = False
    info: Mapping[str, float] = {}


class Environment(Protocol):
    """What a policy acts in: one object for each completion, made by a factory that a recipe names.

    An environment may also have `stop`, `tools` and `close`: see `Stopping`, `Equipped` and `Closing`.
    """

    def reset(self, row: Mapping[str, Any], seed: int) -> str | Sequence[Message] | None:
        """Begin the task of a row; the K completions of a prompt share its seed. Returns what follows the prompt, if anything."""
        ...

    def step(self, text: str, *, truncated: bool) -> Turn:
        """Answer what the policy wrote; `truncated` says that the turn was cut by its length."""
        ...


@runtime_checkable
class Stopping(Protocol):
    """An environment in which certain texts end a turn of the policy."""

    stop: Sequence[str]


@runtime_checkable
class Equipped(Protocol):
    """An environment that offers tools: JSON schemas, as chat templates take them."""

    tools: Sequence[Mapping[str, Any]]


@runtime_checkable
class Closing(Protocol):
    """An environment that holds something which must be released."""

    def close(self) -> None:
        """Release it; called once, when the episode is over or has failed."""
        ...


class Monitor(Protocol):
    """Numbers about every logical batch, beside what objectives report."""

    needs: Needs

    def __call__(self, batch: Batch, old: Outputs, reference: Outputs | None) -> Mapping[str, float]:
        """Metrics, from what the policy said before the update, and the reference where the run has one."""
        ...


def _map_tensors(record: Any, function: Any) -> Any:
    """A frozen dataclass with `function` applied to its tensors and to those in its mappings."""

    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, Mapping):
            return {key: apply(item) for key, item in value.items()}
        return value

    return dataclasses.replace(record, **{f.name: apply(getattr(record, f.name)) for f in dataclasses.fields(record)})


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate.
        low: lower end of the percentile bootstrap interval; NaN where there are fewer than two prompts.
        high: upper end.
        prompts: how many were resampled.
    """

    value: float
    low: float
    high: float
    prompts: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
