"""Which differences between runs are told as confounds, and which are none."""

import json
from pathlib import Path
from typing import Any

import pytest
from _folders import RECIPE, finished_run

from prefopt.runs.records import RunOfArm
from prefopt.study.comparison.confounds import confounds

GUESS = {"name": "guess.py:Guess", "max_turns": 6}


def told(one: Path, other: Path, *varies: str) -> list[str]:
    said = confounds([RunOfArm("A", 0, one), RunOfArm("B", 0, other)], "A", varies)
    return [one for one in said if "its budget" not in one]  # which these runs do not record


def evaluated(own: Any, rollouts: Any) -> dict[str, Any]:
    acting = None if rollouts is None else {"completions": 2, "environment": rollouts}
    return {"source": {"rollouts": acting}, "evaluate": RECIPE["evaluate"] | {"environment": own}}


@pytest.mark.parametrize(
    ("online", "expected"),
    [
        (evaluated(None, GUESS), []),
        (evaluated(GUESS, {"name": "other"}), []),
        (evaluated(None, GUESS | {"max_turns": 3}), ["B: evaluate.environment.max_turns is 3, and 6 in A"]),
        (evaluated(None, None), ["B: evaluate.environment is none, and guess.py:Guess in A"]),
    ],
)
def test_the_environment_of_evaluations_is_the_one_they_were_made_in(
    tmp_path: Path, online: dict[str, Any], expected: list[str]
) -> None:
    offline = finished_run(tmp_path / "a", 0, 0.5, recipe=evaluated(GUESS, None))
    assert told(offline, finished_run(tmp_path / "b", 0, 0.5, recipe=online), "source") == expected


def test_a_difference_of_rollouts_that_evaluations_inherit_is_told_once(tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / name, 0, 0.5, recipe=evaluated(None, GUESS | {"max_turns": turns}))
        for name, turns in (("a", 6), ("b", 3))
    ]
    assert told(*runs) == ["B: source.rollouts.environment.max_turns is 3, and 6 in A"]
    assert told(*runs, "source") == ["B: evaluate.environment.max_turns is 3, and 6 in A"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"group": "g"}, None),
        ({"task": 7}, "B: it is measured on tasks of other numbers"),
        ({"opening": [{"role": "environment", "content": "x"}]}, "B: it is measured on other prompts than A"),
        ({"prompt": "another"}, "B: it is measured on other prompts than A"),
    ],
)
def test_what_rows_are_called_is_no_other_prompt(tmp_path: Path, changed: dict[str, Any], expected: str | None) -> None:
    runs = [finished_run(tmp_path / name, 0, 0.5) for name in "ab"]
    for file in (runs[1] / "evaluations").iterdir():
        kept = json.loads(file.read_text())
        if "group" in changed:
            kept["observations"]["gold"]["groups"] = ["1", "2", "3"]
        else:
            kept["samples"] = [sample | changed for sample in kept["samples"]]
        file.write_text(json.dumps(kept))
    assert [one.startswith(expected or "") for one in told(*runs)] == [True] * (expected is not None)
