"""From rollouts to a process reward model, and what its progress pays."""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefopt import load_recipe, run
from prefopt.data.formats import parse
from prefopt.feedback import RewardModel
from prefopt.testbeds.games import Progress, steps_by_outcome

WAY = (("a1", "down"), ("b1", "down"), ("c1", "right"), ("c2", "down"), ("d2", "right"), ("d3", "right"))


def played(squares: Any) -> list[dict[str, str]]:
    roles = ("environment", "assistant")
    return [
        {"role": role, "content": text}
        for place, move in squares
        for role, text in zip(roles, (f" {place} ", move), strict=True)
    ]


def labelled(number: int) -> dict[str, Any]:
    """A row as `prefopt label` writes it: an episode that arrives, and one that falls into a hole."""
    ways = [WAY, (*WAY[:1], ("b1", "right"))]
    rewards = [[0.0] * 5 + [1.0], [0.0, 0.0]]
    row = {"prompt": "lake", "completions": list(map(played, ways)), "eos": [False, False], "turn_rewards": rewards}
    return row | {"scores": [1.0, 0.0], "group": str(number), "failed": [False, False]}


def test_steps_are_labelled_by_what_became_of_their_episode() -> None:
    example = parse(steps_by_outcome(labelled(0)) or {})
    assert example.columns["step_labels"] == [[1.0] * 6, [0.0] * 2] and example.scores is None


def test_an_episode_whose_environment_failed_has_no_outcome() -> None:
    row = labelled(0) | {"turn_rewards": [[], [0.0, 0.0]], "failed": [True, False], "scores": [None, 0.0]}
    example = parse(steps_by_outcome(row) or {})
    assert example.columns["step_labels"] == [[0.0] * 2] and len(example.completions) == 1
    assert steps_by_outcome(row | {"failed": [True, True]}) is None


def test_progress_adds_up_to_the_probability_that_the_process_reward_model_gives(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(labelled(number)) + "\n" for number in range(40)))
    few = ["train.steps=2", "train.batch_size=4", "evaluate.every=1", f"source.data={data}"]
    recipe = load_recipe("pocket/agents/gridworld/steps", few)
    model = str(run(recipe, folder=tmp_path / "steps", console=Console(quiet=True)).folder)
    turns = [played(WAY)[1:], played(WAY[:2])[1:]]
    asked = (["lake a1 "], [["".join(one["content"] for one in own) for own in turns]], [{"messages": turns}])
    probabilities, progress = RewardModel(model)(*asked), Progress(model)(*asked)
    assert probabilities.steps is not None and progress.steps is not None
    for one, paid in zip(probabilities.steps[0], progress.steps[0], strict=True):
        assert list(accumulate(paid)) == pytest.approx(list(one)) and len(set(paid)) > 1
