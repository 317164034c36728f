"""The picture of the pairwise losses."""

import math
from pathlib import Path

import pytest
import torch

from curves import curve, pairwise
from prefopt.objectives import DPO, IPO, Hinge

MARGINS = torch.tensor([-30.0, -1.0, 0.0, 2.0, 30.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("objective", "loss", "pull"),
    [
        (DPO(0.3), lambda h: math.log1p(math.exp(-0.3 * h)), lambda h: 0.3 / (1 + math.exp(0.3 * h))),
        (IPO(0.1), lambda h: (h - 5) ** 2, lambda h: 2 * (5 - h)),
        (Hinge(0.1), lambda h: max(0.0, 1 - 0.1 * h), lambda h: 0.1 * (h < 10)),
    ],
)
def test_curves_by_hand(objective, loss, pull):
    losses, pulls = curve(objective, MARGINS)
    assert losses.tolist() == pytest.approx([loss(h) for h in MARGINS.tolist()])
    assert pulls.tolist() == pytest.approx([pull(h) for h in MARGINS.tolist()])


def test_every_pairwise_objective_is_in_the_picture():
    picture = (Path(__file__).parents[2] / "docs" / "objectives.svg").read_text()
    names = [name for name, _ in pairwise()]
    assert "DPO" in names and "SFT" not in names and "BradleyTerry" not in names
    assert [name for name in names if f">{name}<" not in picture] == [], "out of date: python docs/make.py"
