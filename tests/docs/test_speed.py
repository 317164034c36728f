"""What experiments/speed makes of its measurements: ratios turn by turn, rankings as pairs, a neighbour that ends."""

import os
import signal
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from prefopt.objectives.contract.case import make_case
from prefopt.types import Outputs

SPEED = Path(__file__).parents[2] / "experiments" / "speed"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SPEED))
    for name in ("people", "results", "run"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_ratios_are_of_measurements_of_one_turn_in_whatever_order_they_are(speed: None, tmp_path: Path) -> None:
    import results

    shared = dict.fromkeys(results.COLUMNS, "") | {"part": "e", "commit": "abc", "busy": "no", "losses": "0.5 0.25"}
    measured = [  # side, setting, repeat, train, reference, cpu, peak, losses
        ("trl", "best", "b.1", 60, 20, 40, 1000, "0.5 0.25"),
        ("trl", "best", "b.0", 30, 10, 20, 1000, "0.5 0.25"),
        ("prefopt", "warm", "b.1", 10, 0, 10, 250, "0.5 0.2499"),
        ("prefopt", "cold", "b.0", 20, 0, 10, 250, "0.5 0.25"),
        ("prefopt", "cold", "b.1", 20, 0, 20, 350, "0.5 0.25"),
    ]
    names = ("side", "setting", "repeat", "train", "reference", "cpu", "peak_mb", "losses")
    file = tmp_path / "results.csv"
    for values in measured:
        results.append(shared | dict(zip(names, map(str, values), strict=True)), file)
    _, _, cold, warm = results.table(file=file)
    assert "| **3.00** (2.00, 4.00) |" in cold and "| **2.00** (2.00, 2.00) |" in cold and "MB, 0.30 |" in cold
    assert "| **6.00** (6.00) |" in warm and "| **4.00** (4.00) |" in warm and warm.endswith("| 1.0e-04 |")


def test_every_line_of_the_results_has_all_columns(speed: None) -> None:
    import results

    found = list(results.lines())
    assert len(found) >= 78
    assert all(tuple(line) == results.COLUMNS and None not in line.values() for line in found)


def test_the_loss_of_rankings_is_the_mean_over_the_pairs_made_of_them(speed: None) -> None:
    import people

    case = make_case(people.EveryPair())
    batch, rewards = case.batch, torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    assert batch.scores is not None
    each = []
    for row in range(4):
        present = batch.present[row].nonzero().flatten().tolist()
        ranking = {"prompt": "", "completions": present, "scores": batch.scores[row, present].tolist()}
        each += [logsigmoid(rewards[row, p["chosen"]] - rewards[row, p["rejected"]]) for p in people.pairs_of(ranking)]
    count = sum(len(list(combinations(row.nonzero(), 2))) for row in batch.present)
    loss = people.EveryPair(pairs=count / 4).loss(batch, Outputs(batch.mask, rewards=rewards), {})
    assert len(each) == count
    torch.testing.assert_close(loss.total.sum() / 4, -torch.stack(each).mean())


@pytest.mark.skipif(sys.platform != "linux", reason="pins a process to a core")
def test_the_neighbour_computes_on_one_core_and_ends(speed: None) -> None:
    import run

    last, deadline = {max(os.sched_getaffinity(0))}, time.monotonic() + 20
    with run.neighbour(False) as nobody, run.neighbour(True) as process:
        while os.sched_getaffinity(process.pid) != last:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    assert nobody is None and process.returncode == -signal.SIGKILL
