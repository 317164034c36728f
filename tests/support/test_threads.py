"""Threads by phase: they nest, end with their context whatever ends it, and leave other threads alone."""

import threading

import pytest
import torch

from prefopt.support import threads
from prefopt.support.threads import (
    AS_IT_IS,
    PhaseThreads,
    phase,
    threads_of_phases,
    threads_restored,
    usable_cores,
    use,
)


def test_cores_that_others_use(monkeypatch):
    """Of four, 2.6 were busy for .2 s, and .2 of a second was this process's own."""
    clocks, own = iter([(1000, 9000), (1052, 9080)]), iter([5.0, 5.2])
    monkeypatch.setattr(threads, "_clocks", lambda: next(clocks))
    monkeypatch.setattr(threads.time, "process_time", lambda: next(own))
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    assert threads.busy_elsewhere(0.2) == 2
    monkeypatch.undo()
    busy, total = threads._clocks()
    assert 0 < busy < total


CHOSEN = PhaseThreads(decoding=1, scoring=2, training=3)


@pytest.fixture
def chosen():
    with threads_restored():
        use(CHOSEN)
        yield


def test_phases_nest_and_end_with_their_context(chosen):
    assert torch.get_num_threads() == 2 and threads_of_phases() == CHOSEN
    with phase("training"):
        with pytest.raises(ZeroDivisionError), phase("decoding"):
            1 / (torch.get_num_threads() - 1)
        with phase("scoring"), phase("scoring"):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 2


def test_a_phase_sets_the_number_of_its_own_thread_alone(chosen):
    seen, entered, left = [], threading.Event(), threading.Event()

    def elsewhere():
        with phase("training"):
            seen.append(torch.get_num_threads())
            entered.set()
            left.wait(10)
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    entered.wait(10)
    with phase("decoding"):
        left.set()
        thread.join()
        assert torch.get_num_threads() == 1
    assert seen == [3, 3] and torch.get_num_threads() == 2


def test_equal_numbers_and_none_cost_nothing():
    with threads_restored():
        assert phase("decoding") is AS_IT_IS
        use(PhaseThreads.alike(torch.get_num_threads()))
        assert phase("decoding") is phase("training") is AS_IT_IS


def test_numbers_end_with_their_work():
    before = torch.get_num_threads()
    with threads_restored():
        use(CHOSEN)
        with threads_restored():
            assert threads_of_phases() == PhaseThreads.alike(2)
        assert threads_of_phases() == CHOSEN
    assert torch.get_num_threads() == before and threads_of_phases() == PhaseThreads.alike(before)


def test_a_manifest_may_have_one_number_or_none():
    assert PhaseThreads.of({"decoding": 1, "scoring": 2, "training": 3}) == CHOSEN
    assert PhaseThreads.of(2) == PhaseThreads.alike(2)
    assert all(
        PhaseThreads.of(other) is None for other in (None, 0, "2", {"decoding": 1}, {**vars(CHOSEN), "scoring": 0})
    )


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"a/b/cpu.max": "max 100000"}, 2.5),
        ({"a/b/cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
    ],
)
def test_the_quota_is_the_smallest_around_the_process(tmp_path, files, cores):
    (tmp_path / "own").write_text("12:cpu:/x\n0::/a/b\n")
    for name, content in {"a/cpu.max": "250000 100000\n", **files}.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(content)
    assert threads._quota(tmp_path / "root", tmp_path / "own") == cores


def test_usable_cores_are_those_of_the_affinity_and_the_quota(monkeypatch):
    own = usable_cores()
    assert own >= 1
    monkeypatch.setattr(threads, "_quota", lambda: 0.5)
    assert usable_cores() == 1
