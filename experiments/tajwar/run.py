"""Who samples, and who pushes down: the bandit of Tajwar et al. (arXiv 2404.14367), table and figure of README.md.

.venv/bin/python experiments/tajwar/run.py
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy import stats
from torch import Tensor

from prefopt.evaluation.intervals import over_seeds
from prefopt.objectives import DPO, IPO, PPO, RLOO, SFT
from prefopt.sources.rollouts import Rollouts
from prefopt.sources.writers import Writer
from prefopt.testbeds.bandit import best_of_n, divergence, make_trainer, tabular
from prefopt.testbeds.bandit_online import SAMPLING, Payoff, make_rollouts, online_trainer
from prefopt.types import Batch, Needs, Objective

HERE = Path(__file__).parent
BLUE, ORANGE, GREY = "#1f4e79", "#c55a11", "0.4"
STYLE = {
    "font.size": 9,
    "svg.hashsalt": "prefopt",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
BINS, SAMPLES, PROMPTS, BATCHES = 100, 10, 10, 100
RECORDED = 100
"""Prompts whose samples the reference has drawn, once."""
SEEDS, TUNING = range(5), 100
RATES = (0.01, 0.03, 0.1, 0.3)


def squashed_cauchy(location: float = -0.7, scale: float = 0.4) -> Tensor:
    """The reference, [A]: tanh of a Cauchy variable, in bins of equal width on (−1, 1)."""
    with np.errstate(divide="ignore"):
        edges = np.arctanh(np.linspace(-1, 1, BINS + 1))
    return torch.from_numpy(np.diff(stats.cauchy.cdf(edges, location, scale)))


def peak(centre: float) -> Tensor:
    """The reward of each bin, [A]."""
    return (-((torch.arange(BINS, dtype=torch.float64) - centre) / 10).square()).exp()


REFERENCE = squashed_cauchy()
REWARDS = {"misaligned": peak(70), "aligned": peak(20)}


def best(batch: Batch) -> Batch:
    """Each prompt's best completion alone, [B, 1]; the first of equals."""
    assert batch.scores is not None
    index = batch.scores.argmax(-1, keepdim=True)
    return chosen(batch, torch.arange(len(batch)), index)


def pairs(batch: Batch) -> Batch:
    """Every two completions of one prompt whose rewards differ, the better one first, [N, 2].

    Where there are none at all, one completion is compared with itself, which has no gradient.
    """
    assert batch.scores is not None
    row, better, worse = (batch.scores[:, :, None] > batch.scores[:, None, :]).nonzero(as_tuple=True)
    if not len(row):
        row, better, worse = torch.zeros(3, 1, dtype=torch.long)
    return chosen(batch, row, torch.stack([better, worse], -1))


def chosen(batch: Batch, row: Tensor, index: Tensor) -> Batch:
    """Completions [N, k] of rows [N]."""
    assert batch.scores is not None
    return Batch(
        tuple(batch.prompt_ids[i] for i in row.tolist()),
        batch.completion_ids[row[:, None], index],
        batch.mask[row[:, None], index],
        scores=batch.scores[row[:, None], index],
    )


@dataclass
class Arranged:
    """A source whose samples are put into another shape."""

    source: Rollouts
    arrange: Callable[[Batch], Batch]

    @property
    def batch_size(self) -> int:
        return self.source.batch_size

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.source:
            yield self.arrange(batch)

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state)


@dataclass(frozen=True)
class Arm:
    """A way to learn.

    Attributes:
        name: in the table.
        objective: what is minimised.
        arrange: what it makes of ten scored samples.
        on_policy: the policy draws a batch when its turn comes; or else the reference has drawn the one batch that there is.
        passes: gradient steps on a batch, each time.
        style: of the line.
    """

    name: str
    objective: Objective
    arrange: Callable[[Batch], Batch] | None
    on_policy: bool
    passes: int = 15
    style: Mapping[str, Any] = field(default_factory=dict)


ARMS = (
    Arm("likelihood of best of 10, offline", SFT(), best, False, 2, style={"color": GREY, "linestyle": "--"}),
    Arm("likelihood of best of 10, on-policy", SFT(), best, True, style={"color": GREY}),
    Arm("IPO, offline", IPO(tau=0.05), pairs, False, 2, style={"color": BLUE, "linestyle": "--"}),
    Arm("IPO, on-policy", IPO(tau=0.05), pairs, True, style={"color": BLUE}),
    Arm("DPO, offline", DPO(beta=0.1), pairs, False, 2, style={"color": ORANGE, "linestyle": "--"}),
    Arm("DPO, on-policy", DPO(beta=0.1), pairs, True, style={"color": ORANGE}),
    Arm("RLOO, on-policy", RLOO(beta=0.0), None, True, 1, {"color": "0.1", "linestyle": ":"}),
    Arm("PPO, on-policy", PPO(beta=0.0), None, True, 4, {"color": "0.1", "linestyle": "-."}),
)


def curve(arm: Arm, rewards: Tensor, rate: float, seed: int) -> Tensor:
    """Expected reward and KL(π‖π_ref) before the first batch and after each, [2, N + 1]; both are exact."""
    policy = tabular(REFERENCE[None])
    reference = policy.frozen()
    settings: dict[str, Any] = {"lr": rate, "passes": arm.passes, "schedule": "constant", "betas": (0.9, 0.999)}
    writer = Writer("policy", policy if arm.on_policy else reference.policy, SAMPLES, True, SAMPLING)
    needs = arm.objective.needs if arm.arrange is None else Needs(scores=True)
    prompts = [0] * (PROMPTS if arm.on_policy else RECORDED)
    source: Any = make_rollouts([writer], Payoff(rewards[None]), needs, prompts, seed=seed)
    if arm.arrange is not None:
        source = Arranged(source, arm.arrange)
    if arm.on_policy:
        trainer = online_trainer(policy, arm.objective, source, reference, BATCHES, seed, **settings)
    else:
        trainer = make_trainer(policy, arm.objective, next(iter(source)), reference, BATCHES, **settings)
    path = torch.stack([policy.probabilities[0], *(policy.probabilities[0] for _ in trainer)])
    return torch.stack([(path * rewards).sum(-1), divergence(path, REFERENCE)])


def tuned(arm: Arm, rewards: Tensor) -> float:
    """The learning rate with the highest last reward, on a seed that is not reported."""
    return max(RATES, key=lambda rate: curve(arm, rewards, rate, TUNING)[0, -1].item())


def shown(values: Tensor, digits: int = 3) -> str:
    mean, half = over_seeds(values.tolist())
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def report(setting: str, curves: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
    rewards = REWARDS[setting]
    top = best_of_n(REFERENCE, rewards, SAMPLES)
    exact = [(policy * rewards).sum().item() for policy in (REFERENCE, top)]
    print(f"\n{setting}: reference {exact[0]:.3f}, best of 10 of the reference {exact[1]:.3f}\n")
    print("| | rate | reward | less offline likelihood | KL | batches to .5, by seed |\n|---|---|---|---|---|---|")
    base = curves[ARMS[0].name][:, 0, -1]
    for name, found in curves.items():
        last = found[:, :, -1]
        over = [int((path > 0.5).nonzero()[0]) if bool((path > 0.5).any()) else None for path in found[:, 0]]
        reached = " ".join("–" if n is None else str(n) for n in over)
        less = "" if name == ARMS[0].name else shown(last[:, 0] - base)
        print(f"| {name} | {rates[name]:g} | {shown(last[:, 0])} | {less} | {shown(last[:, 1], 2)} | {reached} |")


def draw(all_curves: Mapping[str, Mapping[str, Tensor]], file: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 4.2), sharey=True, layout="constrained")
    for axis, (setting, curves) in zip(axes, all_curves.items(), strict=True):
        for arm in ARMS:
            paths = curves[arm.name][:, 0]
            mean, half = paths.mean(0), paths.std(0) * stats.t.ppf(0.975, len(paths) - 1) / len(paths) ** 0.5
            axis.plot(range(BATCHES + 1), mean, label=arm.name, linewidth=1.3, **arm.style)
            colour = arm.style["color"]
            axis.fill_between(range(BATCHES + 1), mean - half, mean + half, color=colour, alpha=0.12, linewidth=0)
        axis.set(title=setting, xlabel="batches of 100 samples")
    axes[0].set(ylabel="expected reward")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, Tensor]] = {}
    for setting, rewards in REWARDS.items():
        rates = {arm.name: tuned(arm, rewards) for arm in ARMS}
        found[setting] = {
            arm.name: torch.stack([curve(arm, rewards, rates[arm.name], seed) for seed in SEEDS]) for arm in ARMS
        }
        report(setting, found[setting], rates)
    matplotlib.use("agg")
    with plt.rc_context(STYLE):
        draw(found, HERE / "reward.svg")


if __name__ == "__main__":
    main()
