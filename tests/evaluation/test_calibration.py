"""Calibration and gaps against plain loops, and what they are known to be."""

import math

import pytest
import torch

from prefopt.evaluation.calibration import BINS, brier, by_gap, calibration_error, pair_nll


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def win(x):
    return 1 / (1 + math.exp(-x))


MARGIN, LABEL = tensor(2.0, -1.0, 0.0, 0.1, 5.0), tensor(1.0, 1.0, 1.0, 0.6, 0.25)


def test_brier_and_nll_by_hand():
    pairs = list(zip(MARGIN.tolist(), LABEL.tolist(), strict=True))
    assert brier(MARGIN, LABEL).tolist() == pytest.approx([(win(d) - p) ** 2 for d, p in pairs])
    expected = [-p * math.log(win(d)) - (1 - p) * math.log(win(-d)) for d, p in pairs]
    assert pair_nll(MARGIN, LABEL).tolist() == pytest.approx(expected)
    assert (pair_nll(tensor(0.0), tensor(1.0)).item(), brier(tensor(0.0), tensor(1.0)).item()) == (math.log(2), 0.25)
    assert pair_nll(tensor(-1000.0), tensor(1.0)).item() == 1000, "no overflow"


def test_calibration_error_by_hand():
    """Five pairs in the bins 7 (.881), 4 (.731), 0 (.5 and .525) and 9 (.993)."""
    expected = (abs(win(2) - 1) + abs(win(1) - 0) + abs(0.5 - 0.5 + win(0.1) - 0.6) + abs(win(5) - 0.25)) / 5
    assert calibration_error(MARGIN, LABEL) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(calibration_error(tensor(), tensor()))


def test_calibration_error_does_not_know_the_order_of_a_pair():
    assert calibration_error(-MARGIN, 1 - LABEL) == pytest.approx(calibration_error(MARGIN, LABEL), abs=1e-12)


def test_a_calibrated_model_has_none_and_a_sure_one_what_it_is_wrong_by():
    draw = torch.Generator().manual_seed(0)
    margin = 3 * torch.randn(50_000, generator=draw, dtype=torch.float64)
    won = (torch.rand(50_000, generator=draw, dtype=torch.float64) < margin.sigmoid()).double()
    assert calibration_error(margin, margin.sigmoid()) < 1e-9, "shares instead of draws"
    assert calibration_error(margin, won) < 0.01
    doubled = calibration_error(3 * margin, won)
    assert doubled > 0.05
    sure = calibration_error(torch.full((1000,), 50.0), tensor(*[1.0] * 700, *[0.0] * 300).float())
    assert sure == pytest.approx(0.3, abs=1e-6) and BINS == 10


def test_gaps_by_hand():
    split, limits = by_gap(tensor(1, 0, 1, 1, 0, 0), tensor(0.5, 3, 1, 2, 4, 6))
    assert {name: values[~values.isnan()].tolist() for name, values in split.items()} == {
        "small": [1, 1],
        "medium": [0, 1],
        "large": [0, 0],
    }
    assert limits == pytest.approx([1 + 2 / 3, 3 + 1 / 3])


def test_a_gap_on_the_limit_is_on_its_lower_side_and_kinds_without_pairs_are_left_out():
    split, limits = by_gap(tensor(1, 1, 1, 0), tensor(1, 1, 1, 2))
    assert list(split) == ["small", "large"] and limits == [1, 1]
    assert split["large"].nan_to_num(9).tolist() == [9, 9, 9, 0]
    for gaps in (tensor(1, 1), tensor()):
        assert by_gap(torch.ones_like(gaps), gaps) == ({}, [])
