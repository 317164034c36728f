"""Every offline objective with a known answer, trained to it: the table and the figures of README.md.

.venv/bin/python experiments/bandit/solve.py
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from prefopt.objectives.preference.dpo import DPO
from prefopt.objectives.preference.ipo import IPO
from prefopt.objectives.preference.noisy_labels import CDPO, RobustDPO
from prefopt.objectives.preference.reward_aware_rpo import RewardAwareRPO
from prefopt.objectives.preference.softdpo import SoftDPO
from prefopt.objectives.preference.sppo import SPPO
from prefopt.testbeds.bandit import (
    Weighted,
    best_of_n,
    bradley_terry,
    divergence,
    flipped,
    frontier,
    make_trainer,
    optimum,
    population,
    regression_optimum,
    solve,
    tabular,
    total_variation,
    worst_gap,
)
from prefopt.types import Batch, Objective

HERE = Path(__file__).parent
BLUE, ORANGE = "#1f4e79", "#c55a11"
STYLE = {
    "font.size": 9,
    "svg.hashsalt": "prefopt",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def table(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


BETAS = (1, 0.25, 0.1)
REFERENCE, REWARDS = table([0.1, 0.2, 0.3, 0.4]), table([1, 0.5, 0, -1])
PREFERENCE = bradley_terry(REWARDS)
UNIFORM = table([1, 1, 1]) / 3
ORDER = table([0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5])[None]
CYCLE = table([0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5])[None]
INTRANSITIVE = table([0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5])[None]
COINS = table([0.5, 0.5], [0.5, 0.5], [0.5, 0.5])
WINS = table([0.6], [0.75], [0.9])
"""P(first action beats second) in three contexts; with β = 1 and a uniform reference it is the first's optimal probability."""


@dataclass(frozen=True)
class Problem:
    """An objective, the batch it is given, and the policy it must find.

    Attributes:
        name: of the row in the table.
        objective: what is minimised.
        batch: all pairs.
        reference: [C, A].
        expected: [C, A], in closed form.
        beta: scale of the implied gaps β(Δ_i − Δ_j).
        start: [C, A], where the policy starts if not at the reference.
    """

    name: str
    objective: Objective
    batch: Batch
    reference: Tensor
    expected: Tensor
    beta: float
    start: Tensor | None = None

    def solve(self) -> Tensor:
        """What the trainer finds, [C, A]."""
        return solve(self.objective, self.batch, self.reference, self.start)


def problems() -> Iterator[Problem]:
    yield from regularised()
    yield from identity()
    yield from noisy()
    yield from self_play()


def regularised() -> Iterator[Problem]:
    """Objectives whose optimum is π* ∝ π_ref·exp(r/β)."""
    batch = population(PREFERENCE, REWARDS)
    for beta in BETAS:
        solution = optimum(REFERENCE, REWARDS, beta)
        for name, objective in (
            ("SoftDPO", SoftDPO(beta)),
            *((f"RewardAwareRPO {d}", RewardAwareRPO(beta, 1, d)) for d in ("sq", "bwd", "fwd")),
        ):
            yield Problem(f"{name}, β = {beta}", objective, batch, REFERENCE, solution, beta)
    for name, objective, labels in (
        ("DPO, hard labels", DPO(0.25), PREFERENCE),
        ("RobustDPO, a tenth flipped", RobustDPO(0.25, 0.1), flipped(PREFERENCE, 0.1)),
    ):
        solution = optimum(REFERENCE, REWARDS, 0.25)
        yield Problem(f"{name}, β = 0.25", Weighted(objective), population(labels), REFERENCE, solution, 0.25)


def identity() -> Iterator[Problem]:
    """IPO: its optimum has the chance to win against a uniform opponent for a reward."""
    for tau in (0.1, 0.5):
        solution = optimum(UNIFORM, ORDER.mean(-1), tau)
        yield Problem(f"IPO, total order, τ = {tau}", IPO(tau), population(ORDER), UNIFORM, solution, tau)
    solution = optimum(REFERENCE, PREFERENCE.mean(-1), 0.1)
    yield Problem("IPO, Bradley–Terry, τ = 0.1", Weighted(IPO(0.1)), population(PREFERENCE), REFERENCE, solution, 0.1)
    away = table([0.7, 0.2, 0.1])
    yield Problem("IPO, cycle, τ = 0.1", IPO(0.1), population(CYCLE), UNIFORM, UNIFORM, 0.1, start=away)


def noisy() -> Iterator[Problem]:
    """Labels flipped with probability ε = .1, and what each objective makes of them."""
    sure = population(table([0.5, 1], [0, 0.5])[None])
    for beta in (1, 0.1):
        margin = torch.tensor(0.9, dtype=torch.float64).logit() / beta
        solution = two(margin.sigmoid()[None, None])
        yield Problem(f"CDPO, sure labels, β = {beta}", CDPO(beta, 0.1), sure, COINS[:1], solution, beta)
    labels = flipped(bradley_terry(two(WINS).log()), 0.1)
    for name, objective, first in (
        ("RobustDPO", RobustDPO(1, 0.1), WINS),
        ("DPO", DPO(1), flipped(WINS, 0.1)),
        ("CDPO", CDPO(1, 0.1), flipped(flipped(WINS, 0.1), 0.1)),
    ):
        title = f"{name}, a tenth flipped, three coins"
        yield Problem(title, Weighted(objective), population(labels), COINS, two(first), 1)


def self_play() -> Iterator[Problem]:
    """SPPO: the least squares that its regression states, which no policy fits exactly."""
    for name, preference, reference, eta in (
        ("Bradley–Terry", PREFERENCE, REFERENCE, 2),
        ("Bradley–Terry", PREFERENCE, REFERENCE, 20),
        ("intransitive", INTRANSITIVE, UNIFORM, 10),
    ):
        solution = regression_optimum(reference[0], against_others(preference, eta)[0])[None]
        yield Problem(f"SPPO, {name}, η = {eta}", SPPO(eta), population(preference), reference, solution, 1 / eta)


def two(first: Tensor) -> Tensor:
    """[C, 1] to [C, 2]."""
    return torch.cat([first, 1 - first], -1)


def against_others(preference: Tensor, eta: float) -> Tensor:
    """η(mean P(y ≻ y′) − ½) over the other actions, [C, A]."""
    actions = preference.shape[-1]
    return eta * (preference - 0.5).sum(-1) / (actions - 1)


def row(problem: Problem, found: Tensor) -> str:
    """A line of the table in README.md."""
    distance = total_variation(found, problem.expected).max()
    gap = worst_gap(found, problem.expected, problem.beta).max()
    return f"| {problem.name} | {shown(problem.expected)} | {shown(found)} | {distance:.0e} | {gap:.0e} |"


def shown(policy: Tensor) -> str:
    return " · ".join(" ".join(f"{p:.4f}".lstrip("0") for p in context.tolist()) for context in policy)


def collapse(objective: Objective, updates: int = 3000) -> Tensor:
    """Plain gradient descent on the total order, [N, 3]: number of updates, π(1) and Δ_1 − Δ_2."""
    policy, batch = tabular(UNIFORM), population(ORDER)
    settings = {"optimizer": "sgd", "schedule": "constant", "lr": 0.3, "passes": 10}
    path = []
    for step in make_trainer(policy, objective, batch, tabular(UNIFORM).frozen(), updates // 10, **settings):
        found = policy.probabilities[0]
        path.append([10 * step.number, found[0].item(), (found[0] / found[1]).log().item()])
    return torch.tensor(path)


def draw_collapse(file: Path) -> None:
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.2, 4.6), sharex=True, layout="constrained")
    for strength, dashes in ((0.1, "-"), (0.5, "--")):
        for name, colour, objective in (("DPO, β", BLUE, DPO(strength)), ("IPO, τ", ORANGE, IPO(strength))):
            at, first, margin = collapse(objective).T
            label = f"{name} = {strength}: π(1) = {first[-1]:.6f}"
            above.plot(at, first, dashes, color=colour, label=label, linewidth=1.5)
            below.plot(at, margin, dashes, color=colour, linewidth=1.5)
    above.axhline(1, color="0.8", linewidth=0.8)
    above.set(ylabel="π(1)", ylim=(0.3, 1.03))
    below.set(ylabel="Δ₁ − Δ₂ (nats)", xlabel="steps of gradient descent", xscale="log")
    figure.legend(loc="outside upper center", ncols=1, frameon=False)
    save(figure, file)


def series() -> Iterator[tuple[str, Tensor]]:
    """Policies for the one bandit, [N, A] for each way to get them, from near the reference to far."""
    clean, noise = population(PREFERENCE, REWARDS), population(flipped(PREFERENCE, 0.1))

    def found(batch: Batch, *objectives: Objective) -> Tensor:
        return torch.cat([solve(objective, batch, REFERENCE) for objective in objectives])

    yield "SoftDPO", found(clean, *(SoftDPO(beta) for beta in BETAS))
    yield "RewardAwareRPO, sq", found(clean, *(RewardAwareRPO(beta, 1, "sq") for beta in BETAS))
    yield "RobustDPO, a tenth flipped", found(noise, *(Weighted(RobustDPO(beta, 0.1)) for beta in BETAS))
    yield "DPO, a tenth flipped", found(noise, *(Weighted(DPO(beta)) for beta in BETAS))
    yield "IPO, τ = .4, .1, .03", found(clean, *(Weighted(IPO(tau)) for tau in (0.4, 0.1, 0.03)))
    yield "SPPO, η = 5, 20, 80", found(clean, *(SPPO(eta) for eta in (5, 20, 80)))
    yield "best of 2, 4, 16", torch.cat([best_of_n(REFERENCE, REWARDS, n) for n in (2, 4, 16)])


def draw_frontier(file: Path) -> None:
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.2, 6.2), sharex=True, layout="constrained")
    line = torch.linspace(1e-4, 2.29, 200)
    above.plot(
        line, frontier(line, REFERENCE[0], REWARDS[0]), color="0.6", linewidth=1.2, label="the most that is possible"
    )
    sizes = (9, 7, 5, 6, 6, 6, 6)
    for (name, policies), marker, size, colour in zip(series(), "os^vD*x", sizes, cycle([BLUE, ORANGE, "0.2"])):
        kl, reward = divergence(policies, REFERENCE), (policies * REWARDS).sum(-1)
        style = {"color": colour, "marker": marker, "markersize": size, "markerfacecolor": "none", "linewidth": 0.6}
        above.plot(kl, reward, label=name, **style | {"linestyle": "none"})
        below.plot(kl, (frontier(kl, REFERENCE[0], REWARDS[0]) - reward).abs(), **style | {"linestyle": ":"})
    above.set(ylabel="expected reward")
    below.set(ylabel="reward short of the frontier", yscale="log", xlabel="KL(π‖π_ref) (nats)")
    figure.legend(loc="outside upper center", ncols=1, frameon=False)
    save(figure, file)


def save(figure: Figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    print("| problem | expected π | found π | TV | worst gap |\n|---|---|---|---|---|")
    for problem in problems():
        print(row(problem, problem.solve()), flush=True)
    for name, policies in series():
        kl, reward = divergence(policies, REFERENCE), (policies * REWARDS).sum(-1)
        short = [f"{gap:.0e}" for gap in (frontier(kl, REFERENCE[0], REWARDS[0]) - reward).tolist()]
        print(f"{name}: KL {shown(kl[None])}, reward {shown(reward[None])}, short by {' '.join(short)}")
    matplotlib.use("agg")
    with plt.rc_context(STYLE):
        draw_collapse(HERE / "collapse.svg")
        draw_frontier(HERE / "frontier.svg")


if __name__ == "__main__":
    main()
