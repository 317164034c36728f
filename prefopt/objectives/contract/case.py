"""A random case of whatever an objective asks for, on which its contract is checked."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prefopt.types import ORIGINS, Batch, Loss, Needs, Objective, Outputs, Targets, axis_of


@dataclasses.dataclass(frozen=True)
class Case:
    """An objective with everything it asked for, and nothing else, in float64."""

    objective: Objective
    batch: Batch
    policy: Outputs
    old: Outputs | None
    reference: Outputs | None

    def targets(self, seed: int = 0) -> Targets:
        """The same draws for the same seed."""
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.objective.targets(self.batch, self.old, self.reference)

    def loss(self, targets: Targets | None = None) -> Loss:
        """The loss of the whole batch; the targets are its own unless given."""
        return self.objective.loss(self.batch, self.policy, self.targets() if targets is None else targets)

    def draws(self) -> bool:
        """Whether `targets` contain random draws, which belong to places in the batch and not to what is there."""
        first, second = self.targets(0).rows, self.targets(1).rows
        return any(not same(value, second[name]) for name, value in first.items())

    def transformed(self, batch: Callable[[Batch], Batch], outputs: Callable[[Outputs], Outputs]) -> "Case":
        """The same objective on other inputs."""
        old, reference = (None if o is None else outputs(o) for o in (self.old, self.reference))
        return Case(self.objective, batch(self.batch), outputs(self.policy), old, reference)

    def single(self) -> "Case":
        """The same numbers in float32."""

        def cast(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: cast(item) for key, item in value.items()}
            return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

        def of(record: Any) -> Any:
            return dataclasses.replace(
                record, **{f.name: cast(getattr(record, f.name)) for f in dataclasses.fields(record)}
            )

        return self.transformed(of, of)


def make_case(
    objective: Objective, seed: int = 0, prompts: int = 4, tokens: int = 5, needs: Needs | None = None
) -> Case:
    """A random case with completions of different lengths, and absent ones where the objective allows any number.

    `needs` says what to supply, if not what the objective declares.
    """
    needs, draw = needs or objective.needs, torch.Generator().manual_seed(seed)
    completions = needs.completions or 4
    shape = (prompts, completions, tokens)
    lengths = torch.randint(1, tokens + 1, shape[:2], generator=draw)
    lengths[0, 0] = tokens
    if needs.completions is None:
        lengths[-1, 2:] = 0
    mask = torch.arange(tokens) < lengths[..., None]
    batch = Batch(
        prompt_ids=tuple((1, 2, 3)[: 1 + row % 3] for row in range(prompts)),
        completion_ids=torch.randint(4, 100, shape, generator=draw) * mask,
        mask=mask,
        scores=_scores(needs, shape, draw) if needs.scores else None,
        preference=_preference(needs, shape, draw) if needs.preference else None,
        columns=_steps(mask, seed, needs) | {name: _column(name, shape, draw, needs) for name in needs.columns},
        axes=needs.axes,
        rewards=_turn_rewards(mask, seed) if needs.rollouts and needs.scores else None,
        named_scores={name: torch.rand(shape[:2], generator=draw, dtype=torch.float64) for name in needs.named_scores},
    )

    def outputs(offset: float) -> Outputs:
        noise = torch.rand(shape, generator=draw, dtype=torch.float64)
        statistics = {
            name: sign_of(name) * torch.rand(shape, generator=draw, dtype=torch.float64) * mask
            for name in sorted(needs.statistics)
        }
        return Outputs(
            mask=mask,
            logps=None if needs.rewards else -(offset + noise) * mask,
            values=torch.randn(shape, generator=draw, dtype=torch.float64) * mask if needs.values else None,
            rewards=torch.randn(shape[:2], generator=draw, dtype=torch.float64) if needs.rewards else None,
            step_rewards=torch.randn(shape, generator=draw, dtype=torch.float64) * mask if needs.step_rewards else None,
            statistics=statistics,
        )

    return Case(
        objective, batch, outputs(0.5), outputs(0.5) if needs.old else None, outputs(0.5) if needs.reference else None
    )


def sign_of(statistic: str) -> int:
    """Of the values that a statistic can have."""
    return -1 if statistic == "log_sum_squares" else 1


def _scores(needs: Needs, shape: tuple[int, int, int], draw: torch.Generator) -> Tensor:
    if shape[1] == 1 or ("origin" in needs.columns and not needs.rollouts):  # labels, of both kinds
        return torch.tensor([0.5, -0.5], dtype=torch.float64).repeat(shape[0])[: shape[0], None].repeat(1, shape[1])
    scores = torch.rand(shape[:2], generator=draw, dtype=torch.float64)
    return scores.sort(dim=1, descending=True).values if needs.ordered else scores


def _turn_rewards(mask: Tensor, seed: int) -> Tensor:
    """Of an objective that learns from rollouts: a reward at about every third token, whatever stands outside the mask."""
    draw = torch.Generator().manual_seed(seed + 1)
    at = torch.rand(mask.shape, generator=draw) < 1 / 3
    return torch.rand(mask.shape, generator=draw, dtype=torch.float64) * (at & mask)


def _steps(mask: Tensor, seed: int, needs: Needs) -> dict[str, Tensor]:
    """Of an objective that learns from steps: one ends at about every second token of the mask, and at the last one."""
    if not needs.step_rewards:
        return {}
    at = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed + 1)) < 1 / 2
    last = mask.sum(-1, keepdim=True) - 1
    return {"step_ends": mask & (at | (torch.arange(mask.shape[-1]) == last))}


def _preference(needs: Needs, shape: tuple[int, int, int], draw: torch.Generator) -> Tensor:
    strength = torch.randn(shape[:2], generator=draw, dtype=torch.float64)
    if needs.ordered:
        strength = strength.sort(dim=1, descending=True).values
    return (strength[:, :, None] - strength[:, None, :]).sigmoid()


def _column(name: str, shape: tuple[int, int, int], draw: torch.Generator, needs: Needs) -> Tensor:
    if name == "embeddings":
        return torch.randn(shape[0], 8, generator=draw, dtype=torch.float64)
    if name == "sampler_logps":
        return -torch.rand(shape, generator=draw, dtype=torch.float64)
    if name == "origin":
        return torch.tensor([ORIGINS.index(origin) for origin in _origins(needs, shape[1])]).expand(shape[:2])
    if name == "trained":  # the last completion of several is a writer's
        return (torch.arange(shape[1]) < max(shape[1] - 1, 1)).expand(shape[:2])
    if name == "step_labels":
        return (torch.rand(shape, generator=draw) < 1 / 2).double()
    dimensions = {"prompt": 1, "completion": 2, "token": 3}[axis_of(name, needs.axes)]
    return torch.rand(shape[:dimensions], generator=draw, dtype=torch.float64)


def _origins(needs: Needs, completions: int) -> list[str]:
    """Of each completion: the last of several are writers', and there is one of each that the catalogue asks for."""
    if not needs.rollouts:
        return ["dataset"] * max(completions - 1, 1) + ["mismatched"] * (completions > 1)
    writers = ["mixture", "greedy"] if completions > 2 else ["dataset"] * (completions > 1)
    return ["policy"] * (completions - len(writers)) + writers


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding in float64."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)
