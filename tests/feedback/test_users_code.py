"""Whatever a user's function does, the run's data stay as they are, and what it raises ends as a sentence that names its line."""

import asyncio
import sys

import numpy as np
import pytest
import torch

from prefopt import PrefoptError, recipe
from prefopt.cli import main
from prefopt.feedback import Transformed, check_feedback, run_feedback
from prefopt.support.plugins import make, users_code
from prefopt.types import Verdict

PROMPTS, TEXTS = ["p", [{"role": "user", "content": "q"}]], [["a", "bb"], ["c", "dd"]]

CALLED_LATER = """
from dataclasses import dataclass

@dataclass
class later:
    async def __call__(self, prompts, completions, rows):
        return []
"""


class Odd(BaseException):
    pass


def exits(*given):
    sys.exit(0)


def odd(*given):
    raise Odd("x")


def cancelled(*given):
    raise asyncio.CancelledError


def late(*given):
    yield [1.0, 2.0]
    sys.exit(0)


@pytest.mark.parametrize("timeout", [None, 5.0], ids=["", "with a time limit"])
@pytest.mark.parametrize(
    ("function", "words"),
    [(exits, "SystemExit: 0"), (odd, "Odd: x"), (cancelled, "CancelledError"), (late, "SystemExit: 0")],
)
def test_whatever_a_feedback_raises_names_it_and_its_line(function, words, timeout):
    with pytest.raises(PrefoptError, match=rf"the feedback mine raised {words}.*\(test_users_code\.py:\d+\)"):
        run_feedback(function, "mine", PROMPTS, TEXTS, [{}, {}], timeout)


def test_an_interrupt_passes():
    def interrupted(*given):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_feedback(interrupted, "mine", PROMPTS, TEXTS, [{}, {}])
    with pytest.raises(KeyboardInterrupt), users_code("mine"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["feedback", "transform"])
def test_what_a_function_is_given_is_a_copy(place):
    prompts, texts = [p if isinstance(p, str) else [dict(m) for m in p] for p in PROMPTS], [list(t) for t in TEXTS]
    rows = [{"ended": [True, True], "meta": {"a": [1]}}, {"ended": [True, False]}]

    def wreck(prompts, completions, rows):
        prompts[1][0]["content"] = "other" if place == "feedback" else prompts[1][0]["content"]
        prompts.clear()
        for one in completions:
            one.clear()
        for row in rows:
            if place == "feedback":
                row["ended"].clear()
            row.clear()

    def feedback(prompts, completions, rows):
        if place == "feedback":
            wreck(prompts, completions, rows)
        return [[1.0, 2.0], [3.0, 4.0]]

    def transform(scores, prompts, completions, rows):
        wreck(prompts, completions, rows)
        return scores.mul_(2)

    transforms = (transform,) if place == "transform" else ()
    verdict = Transformed(feedback, transforms, "mine")(prompts, texts, rows)
    assert (prompts, texts) == (PROMPTS, TEXTS)
    assert rows == [{"ended": [True, True], "meta": {"a": [1]}}, {"ended": [True, False]}]
    if place == "transform":
        assert verdict.scores.tolist() == [[2, 4], [6, 8]] and verdict.notes[0]["untransformed"] == [1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]]),
        [np.array([1, 2], np.float16), np.array([3, 4], np.int8)],
        torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16),
        Verdict(torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16)),
        Verdict(torch.tensor([[1.0, 2], [3, 4]], requires_grad=True)),
        Verdict(torch.tensor([[1, 2], [3, 4]])),
        (row for row in [[1, 2], [3, 4]]),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_numbers_of_every_kind_become_plain_scores(answer):
    scores = run_feedback(lambda *given: answer, "mine", PROMPTS, TEXTS, [{}, {}]).scores
    assert scores.tolist() == [[1, 2], [3, 4]] and scores.dtype == torch.float32 and not scores.requires_grad


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([[10**400, 1], [1, 1]], "too large"),
        ([[1e300, 1], [1, 1]], "scores are finite"),
        ([["a", 1], [1, 1]], "one number for each completion, in a list for each prompt"),
        (Verdict(torch.ones(2, 2, dtype=torch.complex64)), "scores are real numbers"),
    ],
    ids=["a large integer", "beyond fp32", "text", "complex"],
)
def test_what_is_no_score_is_refused(answer, words):
    with pytest.raises(PrefoptError, match=words):
        run_feedback(lambda *given: answer, "mine", PROMPTS, TEXTS, [{}, {}])


def test_an_async_function_is_named_as_one():
    async def later(prompts, completions, rows):
        return [[1.0, 2.0]]

    with pytest.raises(PrefoptError, match="the feedback mine is `async def`"):
        run_feedback(later, "mine", PROMPTS, TEXTS, [{}, {}])


@pytest.mark.parametrize("code", ["async def later(p, c, r):\n    return []", CALLED_LATER], ids=["function", "class"])
def test_an_async_function_is_refused_before_anything_is_loaded(code, tmp_path):
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(PrefoptError, match=r"is `async def`.*plain `def`"):
        check_feedback(recipe.Feedback(name=f"{tmp_path}/own.py:later"))


def test_a_constructor_that_exits_is_named():
    class Exits:
        def __init__(self):
            sys.exit(0)

    with pytest.raises(PrefoptError, match=r"feedback: own cannot be made: SystemExit: 0 \(test_users_code\.py:"):
        make("own", known={"own": Exits}, where="feedback")


def test_an_exit_from_anywhere_in_users_code_is_no_success(tmp_path, capsys, monkeypatch):
    """An objective, a sampler, a metric: whoever calls them, the exit status says that the run did not end well."""
    monkeypatch.setattr("prefopt.recipe.load_recipe", exits)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "r.yaml")])
    assert ended.value.code == 2
    assert "called sys.exit(0)" in capsys.readouterr().err.replace("\n", "")
