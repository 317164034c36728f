"""Batches, and what models say about them: the shapes [B prompts, K completions, T tokens]."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from prefopt.support.sending import sent

Message = Mapping[str, Any]
"""One turn of a conversation: `role` and `content`."""

Prompt = str | Sequence[Message]
"""Plain text, or the conversation so far."""

Completion = str | Sequence[Message]
"""The text of one turn; or several turns as messages, those of tools and users among them."""

Axis = Literal["prompt", "completion", "token"]
"""What each entry of a column belongs to: the column is [B, ...], [B, K, ...] or [B, K, T]."""

AXES: Mapping[str, Axis] = {
    "sampler_logps": "token",
    "cost": "completion",
    "gold": "completion",
    "origin": "completion",
    "trained": "completion",
    "ended": "completion",
    "eos": "completion",
    "stop_reason": "completion",
    "step_ends": "token",
    "step_labels": "token",
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

    It is laid out, dealt and counted on the host. Models are given it there, and send what they compute with to their device;
    objectives are given it on the device.

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

    @property
    def step_ends(self) -> Tensor:
        """[B, K, T] bool, the last token of each step of a completion.

        Its steps are those of the column of this name, where the data have them; otherwise the turns of the policy, each a run of
        tokens in the mask.
        """
        ends = self.columns.get("step_ends")
        return self.mask & (~pad(self.mask[..., 1:], (0, 1)) if ends is None else ends.bool())

    @property
    def steps(self) -> Tensor:
        """[B, K, T] int64, the number of the step that a token belongs to, from 0; −1 outside the mask.

        What follows the end of the last step (EOS) belongs to it.
        """
        ends = self.step_ends
        before = ends.cumsum(-1) - ends.long()
        last = (ends.sum(-1, keepdim=True) - 1).clamp(min=0)
        return before.minimum(last).masked_fill(~self.mask, -1)

    def axis(self, column: str) -> Axis:
        """What the entries of a column belong to."""
        return axis_of(column, self.axes)

    def rows(self, index: Tensor | slice) -> Self:
        """These prompts alone, in this order; `index` is [b] int64 or a slice."""
        numbers = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index].tolist()
        index = sent(torch.tensor(numbers, dtype=torch.long), self.mask.device)
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
        return _map_tensors(self, lambda tensor: sent(tensor, torch.device(device)))

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
    """What a model says about a batch. `values[t]` and `logps[t]` see only the tokens before t, `step_rewards[t]` also t itself.

    Attributes:
        mask: [B, K, T] bool, the batch's.
        logps: [B, K, T] log-probabilities of the tokens, at the sampling temperature; 0 outside the mask.
        values: [B, K, T] from a value head or a critic.
        rewards: [B, K] from a scorer.
        step_rewards: [B, K, T] from a scorer of steps, which gives a number at every token of the mask, having read it: the number
            at the end of a step (`Batch.step_ends`) is the step's; 0 outside the mask. Its `rewards` sum them up.
        statistics: [B, K, T] full-vocabulary numbers, those that `Needs.statistics` named.
    """

    mask: Tensor
    logps: Tensor | None = None
    values: Tensor | None = None
    rewards: Tensor | None = None
    step_rewards: Tensor | None = None
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
        """Every tensor that a loss may have a gradient for, by name: `logps`, `values`, the rewards and the statistics."""
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


_OUTPUT_FIELDS = ("logps", "values", "rewards", "step_rewards")


def lengths_of(mask: Tensor) -> Tensor:
    """[...] int64, places up to the last True of a mask [..., T], whatever holes it has; 0 where there is none."""
    places = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (mask * places).amax(-1) if len(places) else mask.sum(-1)


def _map_tensors(record: Any, function: Any) -> Any:
    """A frozen dataclass with `function` applied to its tensors and to those in its mappings."""

    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, Mapping):
            return {key: apply(item) for key, item in value.items()}
        return value

    return dataclasses.replace(record, **{f.name: apply(getattr(record, f.name)) for f in dataclasses.fields(record)})
