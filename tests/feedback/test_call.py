"""Whatever a feedback says, takes or raises, it is checked, and named."""

import math
import threading
import time

import pytest
import torch

from prefopt import PrefoptError, Verdict
from prefopt.feedback import run_feedback

PROMPTS, COMPLETIONS, ROWS = ["a", "b"], [["x", "yy", "z"], ["u", "v", "www"]], [{"id": 1}, {"id": 2}]


def judge(function, timeout=None):
    return run_feedback(function, "lab:rule", PROMPTS, COMPLETIONS, ROWS, timeout)


@pytest.mark.parametrize("timeout", [None, 60])
def test_numbers_none_and_nan(timeout):
    verdict = judge(lambda prompts, completions, rows: [[1, 2.5, None], [math.nan, True, torch.tensor(3.0)]], timeout)
    assert verdict.scores.shape == (2, 3)
    assert torch.equal(verdict.scores.nan_to_num(-9), torch.tensor([[1, 2.5, -9], [-9, 1, 3]]))


def test_tensors_and_verdicts_pass():
    scores = torch.rand(2, 3)
    assert torch.equal(judge(lambda *_: scores).scores, scores)
    steps, named = [[[1.0, 2], [], [3]], [[0], [0], [0]]], {"safe": torch.full((2, 3), math.nan)}
    verdict = Verdict(scores, torch.full((2, 3, 3), 0.5), notes=[{}, {}], steps=steps, named=named)
    assert judge(lambda *_: verdict) is verdict
    whole = judge(lambda *_: Verdict(torch.ones(2, 3, dtype=torch.long))).scores
    assert whole.dtype == torch.float32, "later arithmetic needs NaN"


@pytest.mark.parametrize("timeout", [None, 60])
def test_gets_prompts_completions_and_rows(timeout):
    seen = []
    judge(lambda *given: seen.extend(given) or [[0] * 3] * 2, timeout)
    assert seen == [PROMPTS, COMPLETIONS, ROWS]


def raises(*_):
    raise KeyError("gold")


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (raises, "raised KeyError: 'gold'"),
        (lambda *_: [1, 2], "one number for each completion, in a list for each prompt"),
        (lambda *_: None, "one number for each completion, in a list for each prompt"),
        (lambda *_: [["good"] * 3] * 2, "one number for each completion, in a list for each prompt"),
        (lambda *_: [[1, 2, 3], [1, 2]], "one number for each completion, in a list for each prompt"),
        (lambda *_: [[1, 2]] * 2, r"shape \[2, 2\] for 2 prompts × 3 completions"),
        (lambda *_: torch.zeros(6, 1), r"shape \[6, 1\]"),
        (lambda *_: Verdict([[0] * 3] * 2), "list, not a tensor"),
        (lambda *_: Verdict(torch.zeros(2, 3), torch.zeros(2, 3)), r"preference of shape \[2, 3\]"),
        (lambda *_: Verdict(torch.zeros(2, 3), notes=[{}]), "1 notes for 2 prompts"),
        (lambda *_: Verdict(torch.zeros(2, 3), named={"safe": torch.zeros(2)}), r"named\['safe'\] of shape \[2\]"),
        (lambda *_: Verdict(torch.zeros(2, 3), named={"safe": [[0] * 3] * 2}), r"named\['safe'\] that are a list"),
        (
            lambda *_: Verdict(torch.zeros(2, 3), named={"safe": torch.full((2, 3), math.inf)}),
            r"in named\['safe'\], gave the score inf to completion 1 of prompt 1",
        ),
        (lambda *_: Verdict(torch.zeros(2, 3), steps=[[[1.0]] * 3]), r"steps of \[3\] completions.*expected \[3, 3\]"),
        (lambda *_: Verdict(torch.zeros(2, 3), steps=[[1.0] * 3] * 2), "not a list of numbers for each completion"),
        (
            lambda *_: Verdict(torch.zeros(2, 3), steps=[[[1.0]] * 3, [[1.0], [0, math.nan], []]]),
            "the step nan for completion 2 of prompt 2",
        ),
        (lambda *_: [[0, 0, 0], [0, -math.inf, 0]], "gave the score -inf to completion 2 of prompt 2"),
        (lambda prompts: [], "raised TypeError"),
    ],
)
def test_what_is_wrong_names_the_feedback(function, words, timeout):
    with pytest.raises(PrefoptError, match=words) as caught:
        judge(function, timeout)
    assert "lab:rule" in str(caught.value)


def test_its_own_words_are_not_wrapped():
    def knows(*_):
        raise PrefoptError("set the key")

    with pytest.raises(PrefoptError, match=r"^set the key$"):
        judge(knows, 60)


def test_one_that_never_comes_back_is_left_behind():
    forever = threading.Event()
    begun = time.monotonic()
    with pytest.raises(PrefoptError, match=r"lab:rule was not back after 0\.05 seconds on 2 prompts"):
        judge(lambda *_: forever.wait(60), timeout=0.05)
    assert time.monotonic() - begun < 10
    assert any(thread.daemon for thread in threading.enumerate() if "lab:rule" in thread.name)
    forever.set()
