"""Every online objective with a known answer, from samples: the table and the figure of README.md.

.venv/bin/python experiments/bandit_online/run.py
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt
from scipy.optimize import brentq
from torch import Tensor

from prefopt.evaluation.intervals import over_seeds
from prefopt.objectives import A2C, DPO, GRPO, PPO, REINFORCE, RLOO, DrGRPO, LagrangianPPO, NashMD, SoftDPO
from prefopt.testbeds.bandit import bradley_terry, divergence, frontier, optimum, tabular, total_variation
from prefopt.testbeds.bandit_online import Duel, Payoff, make_rollouts, make_writers, online_trainer
from prefopt.types import Feedback, Objective

HERE = Path(__file__).parent
BLUE, ORANGE = "#1f4e79", "#c55a11"
STYLE = {
    "font.size": 9,
    "svg.hashsalt": "prefopt",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SEEDS = range(5)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


REFERENCE, REWARDS, COSTS = vector(0.1, 0.2, 0.3, 0.4), vector(1, 0.5, 0, -1), vector(1, 0.2, 0, 0)
UNIFORM = vector(1, 1, 1) / 3
INTRANSITIVE = torch.stack([vector(0.5, 0.9, 0.2), vector(0.1, 0.5, 0.7), vector(0.8, 0.3, 0.5)])
LIMIT = 0.3
"""The mean cost that is allowed."""


@dataclass(frozen=True)
class Problem:
    """An objective, what it is given, and the policy that it must find, or must not.

    Attributes:
        name: of the row in the table.
        objective: what is minimised.
        expected: [A], in closed form.
        within: the largest total variation that counts as there.
        fails: it must not get there, but stay further away than this.
        reference: [A]; the policy starts there.
        feedback: the rewards' own, or another.
        prompts: rows of one batch, all of one context.
        completions: of the policy for each row.
        others: further writers' completions.
        share: the reference's, in the mixture.
        steps: logical batches.
        settings: of the recipe's `train`.
    """

    name: str
    objective: Objective
    expected: Tensor
    within: float = 0.01
    fails: float | None = None
    reference: Tensor = REFERENCE
    feedback: Feedback | Mapping[str, Feedback] = Payoff(REWARDS[None])  # noqa: RUF009
    prompts: int = 1
    completions: int = 256
    others: Mapping[str, int] = field(default_factory=dict)
    share: float = 0.5
    steps: int = 300
    settings: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.1})


def solve(problem: Problem, seed: int) -> Tensor:
    """What the trainer finds from samples, [A]."""
    policy = tabular(problem.reference[None])
    reference = policy.frozen()
    writers = make_writers(policy, reference, problem.completions, problem.others, problem.share)
    needs = problem.objective.needs
    source = make_rollouts(writers, problem.feedback, needs, [0] * problem.prompts, seed=seed, ties="keep")
    for _ in online_trainer(policy, problem.objective, source, reference, problem.steps, seed, **problem.settings):
        pass
    return policy.probabilities[0]


def problems() -> Iterator[Problem]:
    for beta in (1.0, 0.25):
        yield from regularised(beta)
    yield from identities()
    yield from groups()
    yield from nash()
    yield from constrained()


PASSES = {"lr": 0.05, "passes": 4}


def regularised(beta: float) -> Iterator[Problem]:
    """Objectives whose optimum is π* ∝ π_ref·exp(r/β), and the same ones without KL."""
    best = optimum(REFERENCE, REWARDS, beta)
    for cls in (RLOO, REINFORCE, A2C):
        yield Problem(f"{cls.__name__}, β = {beta:g}", cls(beta=beta), best)
    yield Problem(f"PPO, β = {beta:g}", PPO(beta=beta), best, 0.02, settings=PASSES)
    for estimator in ("exact", "k2"):
        objective = RLOO(beta=beta, estimator=estimator, placement="loss")
        yield Problem(f"RLOO, {estimator} in the loss, β = {beta:g}", objective, best)
    for cls in (RLOO, REINFORCE, A2C):
        yield Problem(f"{cls.__name__} without KL, for β = {beta:g}", cls(beta=0.0), best, fails=0.2)
    yield Problem(f"PPO without KL, for β = {beta:g}", PPO(beta=0.0), best, fails=0.2, settings=PASSES)


def identities() -> Iterator[Problem]:
    """Estimators that do something else in the loss than in the reward."""
    best = optimum(REFERENCE, REWARDS, 1.0)
    k1, k3 = (RLOO(beta=1.0, estimator=estimator, placement="loss") for estimator in ("k1", "k3"))
    yield Problem("RLOO, k1 in the loss, for β = 1", k1, best, fails=0.2)
    yield Problem("RLOO, k3 in the loss, β = 1", k3, held_forward(1.0))


def groups() -> Iterator[Problem]:
    """GRPO's optima: of large groups, without e."""
    size = {"within": 0.02, "completions": 512}
    yield Problem("GRPO, k3, β = 1", GRPO(beta=1.0, e=0.0), group_optimum("forward"), **size)
    yield Problem("GRPO, k2, β = 1", GRPO(beta=1.0, e=0.0, estimator="k2"), group_optimum("reverse"), **size)
    yield Problem("GRPO, exact, β = 1", GRPO(beta=1.0, e=0.0, estimator="exact"), group_optimum("reverse"), **size)
    yield Problem("DrGRPO, k3, β = 1", DrGRPO(beta=1.0, length=1.0), held_forward(1.0), **size)


def nash() -> Iterator[Problem]:
    """Nash-MD on preferences that no reward has."""
    for share in (0.05, 0.5):
        yield Problem(
            f"Nash-MD, τ = .1, m = {share:g}",
            NashMD(0.1),
            nash_point(INTRANSITIVE, UNIFORM, 0.1, share),
            0.02,
            reference=UNIFORM,
            feedback=Duel(INTRANSITIVE[None]),
            completions=192,
            others={"mixture": 64},
            share=share,
            steps=400,
            settings={"optimizer": "sgd", "lr": 1.0},
        )


def constrained() -> Iterator[Problem]:
    """PPO under a limit on cost."""
    feedback = {"scores": Payoff(REWARDS[None]), "cost": Payoff(COSTS[None])}
    for beta in (0.25, 0.125):
        yield Problem(
            f"LagrangianPPO, β = {beta:g}",
            LagrangianPPO(beta=beta, threshold=LIMIT),
            multiplied(beta, lagrangian_multiplier(beta), normalised=True),
            0.02,
            feedback=feedback,
            steps=400,
            settings=PASSES,
        )


def held_forward(weight: float) -> Tensor:
    """The maximum of E r − w·KL(π_ref‖π), [A]: w·π_ref / (w + m − r), the m at which it sums to 1, which is then E r."""

    def policy(mean: float) -> Tensor:
        return weight * REFERENCE / (weight + mean - REWARDS)

    low = (REWARDS - weight).max().item()  # there a denominator is 0
    return policy(brentq(lambda m: policy(m).sum().item() - 1, low + 1e-9, low + 10 * weight + 10, xtol=1e-14))


def group_optimum(direction: str, beta: float = 1.0) -> Tensor:
    """Where rewards over their standard deviation are in balance with β times a KL, "forward" or "reverse", [A].

    The gradient of E[A] with A = (r − E r)/std is that of E r, divided by std: so it is the optimum of E r − β·std·KL at the
    std that it has itself. With the reverse KL there are two such at β = 1: this is the one that a policy comes back to; from
    between the other one and collapse it goes on to collapse (README.md).
    """

    def policy(weight: float) -> Tensor:
        return held_forward(weight) if direction == "forward" else optimum(REFERENCE, REWARDS, weight)

    return policy(brentq(lambda w: beta * spread(policy(w)) - w, 0.3, 2, xtol=1e-14))


def spread(policy: Tensor) -> float:
    """The standard deviation of the reward."""
    mean = (policy * REWARDS).sum()
    return (policy * (REWARDS - mean).square()).sum().sqrt().item()


def nash_point(preference: Tensor, reference: Tensor, tau: float, share: float) -> Tensor:
    """Nash-MD's fixed point, [A]: π ∝ π_ref·exp(P π′/τ), π′ ∝ π^(1−m)·π_ref^m; by damped iteration."""
    log = reference.log()
    for _ in range(100_000):
        rival = ((1 - share) * log + share * reference.log()).softmax(-1)
        log = (0.99 * log + 0.01 * (reference.log() + preference @ rival / tau)).log_softmax(-1)
    return log.exp()


def multiplied(beta: float, multiplier: float, normalised: bool) -> Tensor:
    """π ∝ π_ref·exp((r − νc)/β), [A]; `normalised` as in the loss, which divides r − νc, and not the KL, by 1 + ν."""
    return optimum(REFERENCE, REWARDS - multiplier * COSTS, beta * (1 + multiplier) if normalised else beta)


def lagrangian_multiplier(beta: float, normalised: bool = True) -> float:
    """The ν at which the mean cost is the limit."""
    return brentq(lambda nu: (multiplied(beta, nu, normalised) * COSTS).sum().item() - LIMIT, 0, 50, xtol=1e-14)


def row(problem: Problem, found: Tensor) -> str:
    """A line of the table in README.md, from [seeds, A]."""
    distance = total_variation(found, problem.expected).tolist()
    mean, half = over_seeds(distance)
    there = max(distance) <= problem.within if problem.fails is None else min(distance) > problem.fails
    wanted = f"≤ {problem.within}" if problem.fails is None else f"> {problem.fails}"
    columns = (problem.name, shown(problem.expected), shown(found.mean(0)), f"{mean:.4f} ± {half:.4f}")
    return f"| {' | '.join(columns)} | {max(distance):.4f} | {wanted} | {'yes' if there else '**no**'} |"


def shown(policy: Tensor) -> str:
    return " ".join(f"{p:.4f}".lstrip("0") for p in policy.tolist())


def series() -> Iterator[tuple[str, list[Problem]]]:
    """Each way to get policies for the one bandit, near the reference and further away; nothing is expected of them."""
    labels = Duel(bradley_terry(REWARDS)[None])
    small = {"lr": 0.05, "passes": 4}

    def at(name: str, objectives: list[Objective], **more: Any) -> tuple[str, list[Problem]]:
        return name, [Problem(name, objective, REFERENCE, **more) for objective in objectives]

    yield at("RLOO", [RLOO(beta=beta) for beta in (1.0, 0.25, 0.1)])
    yield at("PPO", [PPO(beta=beta) for beta in (1.0, 0.25, 0.1)], settings=small)
    yield at("GRPO, k3", [GRPO(beta=beta, e=0.0) for beta in (4.0, 1.0, 0.25)])
    yield at("GRPO, exact KL", [GRPO(beta=beta, e=0.0, estimator="exact") for beta in (4.0, 1.0, 0.25)])
    yield at("DrGRPO, k3", [DrGRPO(beta=beta, length=1.0) for beta in (1.0, 0.25, 0.1)])
    pairs = {"prompts": 128, "completions": 2}
    yield at("SoftDPO, online", [SoftDPO(beta) for beta in (1.0, 0.25, 0.1)], feedback=labels, **pairs)
    yield at("DPO, online, sure labels", [DPO(beta) for beta in (4.0, 2.0, 1.0)], **pairs)
    rival = {"completions": 128, "others": {"mixture": 64}, "share": 0.05, "feedback": labels}
    yield at("Nash-MD", [NashMD(tau) for tau in (0.2, 0.1, 0.03)], **rival, settings={"lr": 0.05})


def draw_frontier(points: Mapping[str, Tensor], file: Path) -> None:
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.2, 6.2), sharex=True, layout="constrained")
    line = torch.linspace(1e-4, 2.29, 200)
    above.plot(line, frontier(line, REFERENCE, REWARDS), color="0.6", linewidth=1.2, label="the most that is possible")
    for (name, policies), marker, colour in zip(points.items(), "os^vD*xP", cycle([BLUE, ORANGE, "0.2"])):
        kl, reward = divergence(policies, REFERENCE), (policies * REWARDS).sum(-1)
        style = {"color": colour, "marker": marker, "markersize": 6, "markerfacecolor": "none", "linewidth": 0.6}
        above.plot(kl, reward, label=name, **style | {"linestyle": "none"})
        below.plot(kl, (frontier(kl, REFERENCE, REWARDS) - reward).clamp(min=1e-9), **style | {"linestyle": ":"})
    above.set(ylabel="expected reward")
    below.set(ylabel="reward short of the frontier", yscale="log", xlabel="KL(π‖π_ref) (nats)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def show_series(points: Mapping[str, Tensor]) -> None:
    print("| | KL | reward | short of the frontier at this KL |\n|---|---|---|---|")
    for name, policies in points.items():
        kl, reward = divergence(policies, REFERENCE), (policies * REWARDS).sum(-1)
        short = frontier(kl, REFERENCE, REWARDS) - reward
        assert (short > -1e-9).all(), name
        print(f"| {name} | {shown(kl)} | {shown(reward)} | {' '.join(f'{gap:.0e}' for gap in short.tolist())} |")


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    print(
        "| problem | expected π | found π, mean of seeds | TV ± 95% | largest TV | asked | there |\n" + "|---" * 7 + "|"
    )
    for problem in problems():
        if not wanted or any(name in problem.name for name in wanted):
            found = torch.stack([solve(problem, seed) for seed in SEEDS])
            print(row(problem, found), flush=True)
            if isinstance(problem.objective, LagrangianPPO):
                print(f"  cost {over_seeds((found @ COSTS).tolist())}, reward {over_seeds((found @ REWARDS).tolist())}")
    if wanted and "frontier" not in wanted:
        return
    points = {name: torch.stack([solve(problem, 0) for problem in found]) for name, found in series()}
    show_series(points)
    matplotlib.use("agg")
    with plt.rc_context(STYLE):
        draw_frontier(points, HERE / "frontier.svg")


if __name__ == "__main__":
    main()
