"""Which processes call a feedback: two of them, over gloo."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from prefopt import PrefoptError
from prefopt.training.devices import end_processes
from prefopt.feedback import Ensemble, Panel, RewardModel, Transformed, ask

scorer, out = sys.argv[1:]
accelerator = Accelerator(cpu=True)
PROMPTS, TEXTS, ROWS = ["the film was", "a room is", "so"], [["good", "bad ."], ["cold", "a b"], ["good", "b a"]], [{}] * 3
calls = []


@dataclass
class Doubled:
    inner: RewardModel

    def __call__(self, prompts, completions, rows):
        calls.append(accelerator.process_index)
        return 2 * self.inner(prompts, completions, rows).scores


class Declared(Doubled):
    @property
    def parts(self):
        return (self.inner,)


def length(prompts, completions, rows):
    calls.append(accelerator.process_index)
    return [[len(text) for text in texts] for texts in completions]


def asked(feedback):
    calls.clear()
    try:
        scores = ask(feedback, "own", PROMPTS, TEXTS, ROWS, accelerator).scores.tolist()
    except PrefoptError as error:
        scores = str(error)
    return [scores, list(calls)]


class Hidden(Doubled):
    # It holds its model where nobody can see it.
    def __init__(self, inner):
        self.__dict__["find"] = lambda: inner

    def __call__(self, prompts, completions, rows):
        return self.find()(prompts, completions, rows)


asked_rows = []


def judge(prompts, completions, rows):
    asked_rows.append(len(prompts))
    return [[float(len(text)) for text in texts] for texts in completions]


model = RewardModel(scorer, accelerator=accelerator)
found = {"model": asked(model), "parts": asked(Declared(model)), "no parts": asked(Doubled(model)), "rule": asked(length)}
found["hidden"] = asked(Hidden(model))
both = Ensemble((Transformed(model, (), "model"), Transformed(judge, (), "judge")))
found["both"] = asked(both)
found["rows"] = [list(asked_rows), []]


def fails(prompts, completions, rows):
    raise ValueError("on one process")


found["fails"] = asked(Panel((model, fails)))
Path(out, f"{accelerator.process_index}.json").write_text(json.dumps(found))
accelerator.wait_for_everyone()
end_processes()
"""


@pytest.mark.slow
def test_all_processes_call_what_holds_a_reward_model_and_one_calls_the_rest(tmp_path, scorer_folder):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "program.py"), str(scorer_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    rows_asked = [found.pop("rows")[0] for found in (main, other)]
    assert [str(found[0]) for found in main.values()] == [str(found[0]) for found in other.values()]
    assert rows_asked == [[3], []]  # what judges beside a reward model is asked once, about every row once
    assert "on one process" in main["fails"][0]
    scores, doubled = main["model"][0], main["parts"][0]
    assert str([[2 * score for score in row] for row in scores]) == str(doubled)  # NaN is not equal to itself
    assert (main["parts"][1], other["parts"][1]) == ([0], [1])
    assert (main["rule"][1], other["rule"][1]) == ([0], [])
    assert str(main["no parts"][0]) == str(doubled) and (main["no parts"][1], other["no parts"][1]) == ([0], [1])
    assert "must list it, with a property `parts`" in main["hidden"][0]
