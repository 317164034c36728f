import math

import pytest
import torch

from prefopt import PrefoptError, Verdict
from prefopt.feedback import Rule, run_feedback

PROMPTS, COMPLETIONS, ROWS = ["a", "b"], [["x", "yy", "z"], ["u", "v", "www"]], [{"id": 1}, {"id": 2}]


def judge(function):
    return run_feedback(function, "lab:rule", PROMPTS, COMPLETIONS, ROWS)


def test_numbers_none_and_nan():
    verdict = judge(lambda prompts, completions, rows: [[1, 2.5, None], [math.nan, True, torch.tensor(3.0)]])
    assert verdict.scores.shape == (2, 3)
    assert torch.equal(verdict.scores.nan_to_num(-9), torch.tensor([[1, 2.5, -9], [-9, 1, 3]]))


def test_tensors_and_verdicts_pass():
    scores = torch.rand(2, 3)
    assert torch.equal(judge(lambda *_: scores).scores, scores)
    verdict = Verdict(scores, torch.full((2, 3, 3), 0.5), notes=[{}, {}])
    assert judge(lambda *_: verdict) is verdict


def test_gets_prompts_completions_and_rows():
    seen = []
    judge(lambda *given: seen.extend(given) or [[0] * 3] * 2)
    assert seen == [PROMPTS, COMPLETIONS, ROWS]


def raises(*_):
    raise KeyError("gold")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (raises, "raised KeyError: 'gold'"),
        (lambda *_: [1, 2], "a list of numbers for each prompt"),
        (lambda *_: None, "a list of numbers for each prompt"),
        (lambda *_: [["good"] * 3] * 2, "a list of numbers for each prompt"),
        (lambda *_: [[1, 2, 3], [1, 2]], "a list of numbers for each prompt"),
        (lambda *_: [[1, 2]] * 2, r"shape \[2, 2\] for 2 prompts × 3 completions"),
        (lambda *_: torch.zeros(6, 1), r"shape \[6, 1\]"),
        (lambda *_: Verdict([[0] * 3] * 2), "list, not a tensor"),
        (lambda *_: Verdict(torch.zeros(2, 3), torch.zeros(2, 3)), r"preference of shape \[2, 3\]"),
        (lambda prompts: [], "raised TypeError"),
    ],
)
def test_what_is_wrong_names_the_feedback(function, words):
    with pytest.raises(PrefoptError, match=words) as caught:
        judge(function)
    assert "lab:rule" in str(caught.value)


def test_a_rule_is_named_by_path(tmp_path):
    (tmp_path / "rules.py").write_text(
        "def length(prompts, completions, rows):\n    return [[len(c) for c in r] for r in completions]\n"
    )
    scores = Rule("rules.py:length", tmp_path)(PROMPTS, COMPLETIONS, ROWS).scores
    assert scores.tolist() == [[1, 2, 1], [1, 1, 3]]
    with pytest.raises(PrefoptError, match="length"):
        Rule("rules.py:lenght", tmp_path)(PROMPTS, COMPLETIONS, ROWS)
    with pytest.raises(PrefoptError, match=r"no file nowhere\.py"):
        Rule("nowhere.py:length", tmp_path)(PROMPTS, COMPLETIONS, ROWS)
