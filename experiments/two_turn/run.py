"""Two turns with chance in between: what objectives find, and where DPO of whole episodes lands. The tables of README.md.

.venv/bin/python experiments/two_turn/run.py
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from prefopt.evaluation.intervals import over_seeds
from prefopt.objectives import A2C, DPO, GRPO, PPO, REINFORCE, RLOO
from prefopt.objectives.maths import masked_sum
from prefopt.testbeds.bandit import Weighted, make_trainer
from prefopt.testbeds.bandit_online import online_trainer
from prefopt.testbeds.two_turn import WORLD, Choices, Episodes, TwoTurnPolicy, World, pairs
from prefopt.testbeds.two_turn_episodes import make_episodes
from prefopt.types import Batch, Objective
from prefopt.types.batch import lengths_of

SEEDS = range(5)
BETAS = (1.0, 0.5, 0.25)
COMPLETIONS = {1.0: 1024, 0.5: 1024, 0.25: 4096}
"""Of each batch, by β: the smaller it is, the more does the same noise of returns move the optimum."""


class Counted(Episodes):
    """A fault: the environment's tokens are in the mask, as if the policy had written them."""

    def _written(self, noise: torch.Generator) -> Batch:
        batch = super()._written(noise)
        return replace(batch, mask=torch.arange(batch.mask.shape[-1]) < batch.lengths[..., None])


def acted(world: World, policy: TwoTurnPolicy, completions: int, seed: int) -> Any:
    """The same episodes by the project's rollouts, in an environment: eight of each prompt."""
    return make_episodes(world, policy, completions // 8, 8, seed)


def lengthy_means() -> AbstractContextManager[Any]:
    """A fault: GRPO's mean over a completion's tokens divides by its length, the environment's tokens among them."""

    def token_means(losses: Tensor, mask: Tensor) -> Tensor:
        return (masked_sum(losses, mask) / lengths_of(mask).clamp(min=1)).sum(-1)

    return patch("prefopt.objectives.online.grpo.token_means", token_means)


@dataclass(frozen=True)
class Problem:
    """An objective, and the policy that it must find, or must not.

    Attributes:
        name: of the row in the table.
        objective: what is minimised.
        expected: in closed form.
        within: the largest total variation, of episodes, that counts as there.
        fails: it must not get there, but stay further away than this.
        world: what it acts in.
        source: who draws the episodes.
        faulty: makes a fault while it runs.
        completions: in each batch.
        steps: batches.
        settings: of the recipe's `train`.
    """

    name: str
    objective: Objective
    expected: Choices
    within: float = 0.01
    fails: float | None = None
    world: World = WORLD
    source: Callable[..., Any] = Episodes
    faulty: Callable[[], AbstractContextManager[Any]] = nullcontext
    completions: int = 1024
    steps: int = 400
    settings: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.1})


PASSES = {"lr": 0.05, "passes": 4}
LONG = replace(WORLD, answers=(1, 4))
"""The same world, in which y is an answer of four tokens."""


def problems() -> Iterator[Problem]:
    """All rows of the table; those of one β have batches of one size."""
    for problem in _problems():
        yield replace(problem, completions=COMPLETIONS[vars(problem.objective)["beta"]])


def _problems() -> Iterator[Problem]:
    for beta in BETAS:
        best, _ = WORLD.best(beta)
        group = WORLD.group_optimum(beta)
        yield Problem(f"RLOO, β = {beta:g}", RLOO(beta=beta), best)
        yield Problem(f"REINFORCE, β = {beta:g}", REINFORCE(beta=beta), best)
        yield Problem(f"REINFORCE, reward-to-go, β = {beta:g}", REINFORCE(beta=beta, credit="reward_to_go"), best)
        yield Problem(f"A2C, β = {beta:g}", A2C(beta=beta), best)
        yield Problem(f"PPO, β = {beta:g}", PPO(beta=beta), best, 0.02, steps=300, settings=PASSES)
        yield Problem(f"GRPO, β = {beta:g}", GRPO(beta=beta, e=0.0), group, 0.02)
        yield from faults(beta, best, group)
    best, _ = WORLD.best(1.0)
    acting = {"source": acted, "steps": 40, "settings": {"lr": 0.07}}
    yield Problem("RLOO, in the environment, β = 1", RLOO(beta=1.0), best, **acting)


def faults(beta: float, best: Choices, group: Choices) -> Iterator[Problem]:
    """The same runs with the environment's tokens counted, which must miss."""
    counted = {"fails": 0.03, "source": Counted}
    yield Problem(f"RLOO, answers in the loss, β = {beta:g}", RLOO(beta=beta), best, **counted)
    yield Problem(f"REINFORCE, answers in the loss, β = {beta:g}", REINFORCE(beta=beta), best, **counted)
    yield Problem(f"A2C, answers in the loss, β = {beta:g}", A2C(beta=beta), best, **counted)
    yield Problem(
        f"PPO, answers in the loss, β = {beta:g}", PPO(beta=beta), best, **counted, steps=300, settings=PASSES
    )
    grpo = GRPO(beta=beta, e=0.0)
    name = f"GRPO, y of four tokens, answers in the mean, β = {beta:g}"
    yield Problem(name, grpo, group, 0.02, fails=0.03, world=LONG, faulty=lengthy_means)


def solve(problem: Problem, seed: int) -> Choices:
    """What the trainer finds from samples."""
    policy = TwoTurnPolicy(problem.world)
    source: Any = problem.source(problem.world, policy, problem.completions, seed)
    with problem.faulty():
        for _ in online_trainer(
            policy, problem.objective, source, policy.frozen(), problem.steps, seed, **problem.settings
        ):
            pass
    return policy.choices


def distance(one: Choices, other: Choices) -> float:
    """Total variation of episodes."""
    return (WORLD.trajectories(one) - WORLD.trajectories(other)).abs().sum().item() / 2


def row(problem: Problem, found: list[Choices]) -> str:
    """A line of the table in README.md."""
    away = [distance(one, problem.expected) for one in found]
    mean, half = over_seeds(away)
    there = max(away) <= problem.within if problem.fails is None else min(away) > problem.fails
    wanted = f"≤ {problem.within}" if problem.fails is None else f"> {problem.fails}"
    first = torch.stack([one.first for one in found]).mean(0)
    beta: float = vars(problem.objective)["beta"]
    tilt, _ = over_seeds([distance(one, WORLD.tilted(beta)) for one in found])
    columns = (
        problem.name,
        shown(problem.expected.first),
        shown(first),
        f"{mean:.4f} ± {half:.4f}",
        f"{max(away):.4f}",
    )
    return f"| {' | '.join(columns)} | {wanted} | {'yes' if there else '**no**'} | {tilt:.4f} |"


def shown(numbers: Tensor) -> str:
    return " ".join(f"{p:.4f}".lstrip("0") for p in numbers.flatten().tolist())


def dpo(beta: float, sampled: Tensor, world: World = WORLD) -> Choices:
    """Where DPO of whole episodes lands, on every pair of episodes that are drawn like this, [A, E, B]; no samples."""
    batch = pairs(world, sampled)
    policy = TwoTurnPolicy(world)
    for _ in make_trainer(policy, Weighted(DPO(beta)), batch, policy.frozen(), passes=400):
        pass
    return policy.choices


def show_dpo() -> None:
    print("\n| β | pairs | π(a) | π(b = 0) at (0,x) (0,y) (1,x) (1,y) (2,x) (2,y) | J | to π* | to the tilt |")
    print("|---" * 7 + "|")
    for beta in BETAS:
        best, value = WORLD.best(beta)
        drawn = WORLD.trajectories(WORLD.reference)
        uniform = torch.full_like(drawn, 1 / drawn.numel())
        found = {"**π***": best, "**tilt**": WORLD.tilted(beta)}
        found |= {"DPO, of the reference": dpo(beta, drawn), "DPO, of π*": dpo(beta, WORLD.trajectories(best))}
        found |= {"DPO, each alike": dpo(beta, uniform)}
        for name, one in found.items():
            away = f"{distance(one, best):.4f} | {distance(one, WORLD.tilted(beta)):.4f}"
            columns = (f"{beta:g}", name, shown(one.first), shown(one.second[..., 0]), f"{WORLD.value(one, beta):.5f}")
            print(f"| {' | '.join(columns)} | {away} |", flush=True)
        assert abs(WORLD.value(best, beta) - value) < 1e-12


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    print(
        "| problem | expected π(a) | found π(a), mean of seeds | TV ± 95% | largest TV | asked | there | TV to the tilt |"
    )
    print("|---" * 8 + "|")
    for problem in problems():
        if not wanted or any(name in problem.name for name in wanted):
            print(row(problem, [solve(problem, seed) for seed in SEEDS]), flush=True)
    if not wanted or "DPO" in wanted:
        show_dpo()


if __name__ == "__main__":
    main()
