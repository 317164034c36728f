"""The picture of the catalogue: each pairwise loss, and its pull, against the margin."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.objectives import CATALOGUE
from prefopt.types import Batch, Objective, Outputs

TOKENS = 20
"""In each completion of the picture, so that losses of sums and of means can share an axis."""

MARGINS = torch.linspace(-40, 40, 161, dtype=torch.float64)


def pairwise() -> Iterator[tuple[str, Objective]]:
    """The objectives of pairs of completions that stand in the catalogue, by name."""
    for name in sorted(CATALOGUE, key=str.lower):
        objective = CATALOGUE[name]()
        needs = objective.needs
        if needs.completions == 2 and not needs.rewards and not needs.rollouts and "origin" not in needs.columns:
            yield name, objective


def curve(objective: Objective, margins: Tensor = MARGINS) -> tuple[Tensor, Tensor]:
    """The loss of one pair, and its pull −dL/dh, at each margin h = Δ_w − Δ_l.

    The policy has moved by half of the margin up on the chosen completion and down on the rejected one, each of `TOKENS` tokens,
    from a reference that says −1.5 of each token. An objective without a reference sees the same policy.

    Args:
        objective: of pairs; those that couple rows see one pair at a time.
        margins: [N], in nats.

    Returns:
        Both [N].
    """
    losses, pulls = zip(*(_point(objective, float(margin)) for margin in margins), strict=True)
    return torch.tensor(losses), torch.tensor(pulls)


def _point(objective: Objective, margin: float) -> tuple[float, float]:
    mask = torch.ones(1, 2, TOKENS, dtype=torch.bool)
    base = torch.full((1, 2, TOKENS), -1.5, dtype=torch.float64)
    side = torch.tensor([1.0, -1.0], dtype=torch.float64)[None, :, None]
    h = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
    policy, reference = (_outputs(objective, mask, logps) for logps in (base + side * h / (2 * TOKENS), base))
    batch = Batch(
        ((1,),),
        torch.ones_like(mask, dtype=torch.long),
        mask,
        scores=torch.tensor([[0.5, -0.5]], dtype=torch.float64),
        preference=torch.tensor([[[0.5, 1.0], [0.0, 0.5]]], dtype=torch.float64),
        columns={"embeddings": torch.ones(1, 4, dtype=torch.float64)}
        if "embeddings" in objective.needs.columns
        else {},
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        targets = objective.targets(
            batch, _outputs(objective, mask, policy.sum().detach()[..., None] / TOKENS + 0 * base), reference
        )
    total = objective.loss(batch, policy, targets).total.sum()
    (gradient,) = torch.autograd.grad(total, h)
    return total.item(), -gradient.item()


def _outputs(objective: Objective, mask: Tensor, logps: Tensor) -> Outputs:
    statistics = {name: torch.zeros_like(logps).detach() for name in objective.needs.statistics}
    return Outputs(mask, logps, statistics=statistics)


def draw(file: Path) -> None:
    """A panel for each objective: the loss, and below it in the same panel its pull on another scale."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    entries = list(pairwise())
    columns = 4
    rows = -(-len(entries) // columns)
    style: dict[Any, Any] = {
        "font.size": 8,
        "svg.hashsalt": "prefopt",
        "svg.fonttype": "none",
        "axes.spines.top": False,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            rows, columns, figsize=(2.6 * columns, 1.9 * rows), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(entries) :]:
            axis.set_axis_off()
        for axis, (name, objective) in zip(axes.flat, entries, strict=False):
            losses, pulls = curve(objective)
            axis.set_title(name, fontsize=9)
            axis.axvline(0, color="0.85", linewidth=0.8)
            axis.plot(MARGINS, losses, color="#1f4e79", linewidth=1.4)
            other = axis.twinx()
            other.plot(MARGINS, pulls, color="#c55a11", linewidth=1.2, linestyle="--")
            other.spines["top"].set_visible(False)
            for scale, colour in ((axis, "#1f4e79"), (other, "#c55a11")):
                scale.tick_params(axis="y", colors=colour, labelsize=6)
                scale.locator_params(axis="y", nbins=3)
                low, high = np.array(scale.get_ylim())
                scale.set_ylim(min(low, 0), max(high, 1e-12))
            axis.tick_params(axis="x", labelsize=6)
        figure.supxlabel("margin h = Δ_w − Δ_l (nats; 20 tokens in each completion)")
        lines = [*axes[0, 0].lines[1:2], *figure.axes[-1].lines[:1]]
        figure.legend(lines, ["loss", "pull −dL/dh"], loc="outside upper right", ncols=2)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
