"""Where the time goes: sections nest, nothing is counted twice, and nothing happens unless somebody asks."""

import threading
import time

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt import load_recipe, run
from prefopt.cli import consoles, main
from prefopt.support import profile
from prefopt.support.profile import Clock, counted, profiling, timed


@pytest.fixture
def passing(monkeypatch):
    """A clock that goes on by as many seconds as are told."""
    now = [0.0]
    monkeypatch.setattr(profile, "_now", lambda: now[0])

    def go(seconds):
        now[0] += seconds

    return go


def test_sections_nest_and_add_up(passing):
    with profiling() as clock:
        passing(1)
        for _ in range(2):
            with timed("evaluation"):
                passing(2)
                with timed("sampling"):
                    passing(3)
                    counted(lambda: (6, 8))
                counted(lambda: (1, 2))
        with timed("forward"), timed("forward"):
            passing(5)
    assert {path: s.seconds for path, s in clock.sections.items()} == {
        ("evaluation",): 10,
        ("evaluation", "sampling"): 6,
        ("forward",): 5,
    }
    assert clock.seconds == 16
    outer, inner = clock.sections["evaluation",], clock.sections["evaluation", "sampling"]
    assert (outer.useful, outer.computed, inner.useful, inner.computed) == (14, 20, 12, 16)


def test_what_came_before_counts_where_it_is_asked_for():
    with profiling(time.perf_counter() - 5) as clock, timed("data"):
        sum(range(200_000))
    assert clock.sections["starting",].seconds == pytest.approx(5, abs=0.5) and clock.explained > 0.99
    assert 0 < clock.sections["data",].processor <= clock.processor


def test_a_section_that_fails_is_closed(passing):
    with profiling() as clock:
        with pytest.raises(ZeroDivisionError), timed("data"):
            raise ZeroDivisionError
        with timed("forward"):
            passing(2)
    assert list(clock.sections) == [("data",), ("forward",)]


def test_nothing_is_measured_unless_asked(monkeypatch):
    monkeypatch.setattr(profile, "_now", lambda: 1 / 0)
    with timed("data"):
        counted(lambda: 1 / 0)
    assert timed("data") is timed("forward")


def test_other_threads_have_no_place_in_the_sum(passing):
    def elsewhere():
        with timed("feedback"):
            counted(lambda: (1, 1))

    with profiling() as clock, timed("sampling"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert list(clock.sections) == [("sampling",)] and not clock.sections["sampling",].useful


def test_profiles_do_not_mix(passing):
    with profiling() as outer, timed("a"):
        with profiling() as inner, timed("b"):
            passing(1)
        passing(1)
    assert (outer.sections["a",].seconds, inner.sections["b",].seconds) == (2, 1)
    assert isinstance(inner, Clock) and ("b",) not in outer.sections


def test_a_run_says_where_its_time_went(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(consoles, "out", Console(highlight=False, width=100))
    model, data = tiny_model(tmp_path / "model"), tiny_pairs(tmp_path / "pairs.jsonl")
    file = tiny_recipe(tmp_path, model, data)
    main(["run", str(file), "--profile"])
    text = capsys.readouterr().out
    names = [line.split()[0] for line in text[text.index("where the time went") :].splitlines()[2:] if line.strip()]
    for name in ("starting", "loading", "reading", "tokenising", "models", "threads", "evaluation", "sampling", "data"):
        assert name in names, text
    for name in ("reference", "targets", "forward", "loss", "backward", "optimiser", "saving", "tracking", "all"):
        assert name in names, text
    (last,) = (line for line in text.splitlines() if "of the time is explained" in line)
    assert int(last.partition("%")[0]) >= 90 and "processor seconds; 1 thread" in last, text
    main(["run", str(file)])
    assert "where the time went" not in capsys.readouterr().out


def test_rollouts_are_sampled_and_scored_within_data(tmp_path):
    (tmp_path / "f.py").write_text(
        "def words(prompts, texts, rows):\n    return [[len(t) for t in row] for row in texts]\n"
    )
    model, data = tiny_model(tmp_path / "model"), tiny_pairs(tmp_path / "pairs.jsonl")
    file = tiny_recipe(
        tmp_path, model, data, objective="RLOO", feedback=f"{tmp_path}/f.py:words", evaluate="{prompts: 0}"
    )
    with profiling() as clock:
        run(load_recipe(file, ["source.rollouts={sampling: {max_tokens: 4}}"]))
    inside = {path for path in clock.sections if path[0] == "data"}
    assert inside == {("data",), ("data", "sampling"), ("data", "feedback")}
    top = [s.seconds for path, s in clock.sections.items() if len(path) == 1]
    assert 0 < sum(top) <= clock.seconds
    for path in (("data", "sampling"), ("forward",), ("reference",)):
        assert 0 < clock.sections[path].useful <= clock.sections[path].computed
    assert clock.sections["data", "sampling"].useful <= 4 * 8 * 4 * 4  # steps × prompts × completions × tokens
