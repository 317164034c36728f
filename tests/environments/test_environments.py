"""Environments: their shape is checked before training, and the reward of their one turn scores a completion."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import tiny_model
from rich.console import Console

import prefopt
from prefopt import PrefoptError, Turn, recipe
from prefopt.cli import main
from prefopt.environments import EnvironmentReward, check_environment, environment_factory
from prefopt.feedback import run_feedback

QUIET = Console(quiet=True)


@dataclass
class Guess:
    """Rewards the answer of the row; closes once."""

    bonus: float = 1.0
    closed: int = 0

    def reset(self, row: Any, seed: int) -> None:
        self.answer, self.seed = row["answer"], seed

    def step(self, text: str, *, truncated: bool) -> Turn:
        return Turn(reward=self.bonus * (self.answer in text.split()), done=True, info={"truncated": float(truncated)})


def section(named: Any, **fields: Any) -> recipe.Environment:
    return recipe.Environment(name=named, **fields)


@pytest.mark.parametrize("named", [Guess, Guess(2.0), lambda bonus=2.0: Guess(bonus)])
def test_every_completion_has_an_environment_of_its_own(named: Any) -> None:
    spec = section(named, **({"bonus": 2} if named is Guess else {}))
    factory = environment_factory(spec)
    assert factory() is not factory() and factory().bonus == 2  # type: ignore[attr-defined]


def test_rewards_of_turns_are_steps_of_a_verdict() -> None:
    rows = [{"turn_rewards": [[1.0, 2.0], [0.5]], "failed": [False, True]}]
    verdict = EnvironmentReward()(["p"], [["a", "b"]], rows)
    assert verdict.scores[0, 0] == 0 and verdict.scores.isnan().tolist() == [[False, True]]
    assert verdict.steps == [[[1.0, 2.0], [0.5]]]
    assert verdict.totals[0, 0] == verdict.named["environment"][0, 0] == 3 and verdict.totals.isnan()[0, 1]
    with pytest.raises(PrefoptError, match=r"not written in an environment"):
        EnvironmentReward()(["p"], [["a"]], [{}])


class Bare:
    """What is wrong is patched in."""

    answer: Any = Turn(done=True)
    opening: Any = None

    def reset(self, row: Any, seed: int) -> Any:
        return self.opening

    def step(self, text: str, *, truncated: bool) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reset": lambda self: None}, r"it: reset\(row, seed\) raised TypeError.*the row has 'prompt'"),
        ({"reset": lambda self, row, seed: row["answr"]}, "raised KeyError: 'answr'; the row has 'prompt'"),
        ({"opening": 3}, "reset returned 3; it returns a text, messages, or None"),
        ({"step": lambda self, text: Turn()}, r"it: step\(text, truncated=…\) raised TypeError"),
        ({"answer": 1.0}, r"step returned 1\.0; it returns prefopt\.Turn"),
        ({"answer": Turn(reward=float("nan"))}, "step returned the reward nan; a reward is a finite number"),
        ({"answer": Turn(reward="1")}, "step returned the reward '1'; a reward is a finite number"),  # type: ignore[arg-type]
        ({"answer": Turn(reward=10**400)}, "step returned the reward 10+; a reward is a finite number"),
        ({"answer": Turn(reward=torch.ones(1))}, r"the reward tensor\(\[1\.\]\); a reward is"),  # type: ignore[arg-type]
        ({"answer": Turn(reward=torch.tensor(float("inf")))}, r"the reward tensor\(inf\)"),  # type: ignore[arg-type]
        ({"answer": Turn(done=1)}, "step returned done=1"),  # type: ignore[arg-type]
        ({"answer": Turn(text=3)}, "step returned text=3; it is a text, or messages"),  # type: ignore[arg-type]
        ({"answer": Turn(info={"x": "y"})}, r"info\['x'\]='y'; `info` holds finite numbers"),  # type: ignore[dict-item]
    ],
)
def test_the_shape_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        check_environment(type("Env", (Bare,), changes)(), {"prompt": "w1"}, "it")


@pytest.mark.parametrize(
    "one",
    [
        True,
        np.True_,
        1,
        np.int64(1),
        np.float32(1),
        np.array(1),
        torch.tensor(1.0),
        torch.tensor(True),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_number_of_any_kind_is_a_reward_as_it_is_a_score(one: Any) -> None:
    answer = Turn(reward=one, info={"n": one})
    turn = check_environment(type("Env", (Bare,), {"answer": answer})(), {"prompt": "w1"}, "it")
    assert type(turn.reward) is type(turn.info["n"]) is float and turn == Turn(reward=1.0, info={"n": 1.0})
    assert run_feedback(lambda *_: [[one]], "f", ["p"], [["c"]], [{}]).scores.tolist() == [[1.0]]


def settings(home: Any, environment: Any, **more: Any) -> dict[str, Any]:
    prompts = [{"prompt": f"w{number} w2", "answer": "w1"} for number in range(40)]
    rollouts = {"completions": 2, "sampling": {"max_tokens": 3}, "environment": environment}
    return {
        "policy": {"model": tiny_model(home / "lm")},
        "source": {"data": prompts, "rollouts": rollouts},
        "objective": "RLOO",
        "train": {"steps": 2, "batch_size": 8, "lr": 1e-2, "threads": 1},
        "evaluate": {"prompts": 3, "sampling": {"max_tokens": 3}},
        "track": {"folder": str(home / "runs")},
    } | more


def test_a_run_learns_from_an_environment(tmp_path: Any) -> None:
    class Always(Guess):
        def step(self, text: str, *, truncated: bool) -> Turn:
            return Turn(reward=0.5 + truncated, done=True)

    history = prefopt.run(settings(tmp_path, Always), console=QUIET).metrics
    assert ((history["rollouts/reward"].dropna() >= 0.5) & (history["rollouts/reward"].dropna() <= 1.5)).all()
    assert history["rollouts/reward"].notna().sum() == 2


MEASURED_WRONGLY = {"evaluate": {"environment": type("Wrong", (Bare,), {"answer": 2.0})}}


@pytest.mark.parametrize(
    ("environment", "more", "message"),
    [
        (
            Guess,
            {"evaluate": {"environment": type("Wrong", (Bare,), {"answer": 2.0})}},
            r"evaluate\.environment.*step returned 2\.0",
        ),
        (type("Wrong", (Bare,), {"answer": 1.0}), {}, r"step returned 1\.0"),
        (type("None", (), {}), {}, "has no method 'reset' and no 'step'; an environment has reset"),
        ({"name": Guess, "bonsu": 1}, {}, "has no field 'bonsu'. Did you mean 'bonus'"),
    ],
)
def test_a_run_refuses(tmp_path: Any, environment: Any, more: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        prefopt.run(settings(tmp_path, environment, **more), console=QUIET)


def test_the_command_line_checks_an_environment(tmp_path: Any, capsys: Any) -> None:
    file = tmp_path / "env.py"
    file.write_text(
        "from prefopt import Turn\n\n\nclass Env:\n    def reset(self, row, seed):\n        self.answer = row['answer']\n\n"
        "    def step(self, text, *, truncated):\n        return Turn(reward=len(self.answer), done=True)\n"
    )
    main(["check", f"{file}:Env", "row.answer=four"])
    assert "has the shape of an environment; its first answer is Turn(text='', reward=4" in " ".join(
        capsys.readouterr().out.split()
    )
    with pytest.raises(SystemExit):
        main(["check", f"{file}:Env"])
    assert "raised KeyError: 'answer'" in " ".join(capsys.readouterr().err.split())
    file.write_text(
        "from prefopt import Turn\n\n\nclass NoStep:\n    stop = '</a>'\n\n    def reset(self, row, seed):\n        return 3\n\n\n"
        "class Wrong(NoStep):\n    tools = [print]\n\n    def step(self, text, *, truncated):\n"
        "        return Turn(text=3, reward='x', done=1, info={1: 2})\n\n\n"
        'def double(n: int) -> int:\n    """Double it.\n\n    Args:\n        n: a number.\n    """\n    return 2 * n\n'
    )
    of_reset = ("reset returned 3", "stop is '</a>'")
    for name, faults in (
        ("NoStep", (*of_reset, "has no method 'step'; an environment has")),
        (
            "Wrong",
            (*of_reset, "text=3", "the reward 'x'", "done=1", "returned 1 as a name in `info`", "tools is [<built-in"),
        ),
    ):
        with pytest.raises(SystemExit):
            main(["check", f"{file}:{name}"])
        said = " ".join(capsys.readouterr().err.split())
        assert all(fault in said for fault in faults), said
    main(["check", "Tools", f"functions=['{file}:double']"])
    assert "Tools has the shape of an environment" in capsys.readouterr().out
