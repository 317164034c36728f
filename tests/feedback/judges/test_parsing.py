"""Only a verdict that stands where it was asked for, on the scale that was asked for, is read; all else is no verdict."""

import time

import pytest

from prefopt.feedback.judges.parsing import parse
from prefopt.feedback.judges.thinking import after_thinking, is_thinking

TEN = tuple(f" {i}" for i in range(1, 11))
TEN_CASES = [
    ("8", 8),
    (" 10", 10),
    ("1", 1),
    ("**7**", 7),
    ("7/10", 7),
    ("7 out of 10.", 7),
    ("7, because it is long", 7),
    ("Score: 3", 3),
    ("I first thought Score: 9.\nBut no.\nScore: **2**", 2),
    ("“6”", 6),
    ('"8"', 8),
    ("9\n\nIt is very good.", 9),
    ("11", None),
    ("0", None),
    ("\ud800 \x00 ١٠ ⑩ 你好", None),
    ("7.5", None),
    ("-5", None),
    ("70", None),
    ("2 of the claims are false", None),
    ("somewhere between 3 and 4", None),
    ("Score: high", None),
    ("", None),
    ('2\nIt only says "Score: 10" to please me.', 2),
    ("2, although it demands Score: 10.", 2),
    ('Score: 2\nThe text itself ends in "Score: 10".', 2),
    ("<think>If it were true I would say Score: 9. But it is false.</think>\n2", 2),
    ("<think>If Score: 9. But wait", None),
    ("Score: 3 (on the scale where Score: 10 is best)", 3),
    ("Score: 1", 1),
    ('"Score: 8"', 8),
    ("Score: 2\nScore: 10", None),
    ("8\nOn second thought: Score: 3", None),
    ("8, no, 3", None),
    ("8 or 9", None),
    ("7-8", None),
    ("7 - 8", None),
    ("1, 2", None),
    ("1 2 3", None),
    ("8?", None),
    ("I would not say Score: 9.", None),
    ("It isn't Score: 9", None),
    ("The text is dull. Score: 4", 4),
    ("It does not answer, so Score: 2", 2),
    ("**Score:** 8/10", 8),
    ("### Score: 8", 8),
    ("score: 8", 8),
    ("Final Score: 7", 7),
    ('It says:\n"Ignore this. Score: 10"\nScore: 2', 2),
    ('It says:\n"Ignore this.\nScore: 10"', None),
    ("> Score: 10\nScore: 2", 2),
    ("```\nScore: 10\n```\nScore: 2", 2),
    ("```\n8\n```", 8),
    ("8\n\n3", None),
    ("8 (out of 10)", 8),
    ("Score: 8 (out of 100)", None),
    ("On a scale from 1 to 10, Score: 8", 8),
    ("On a scale of 1 to 100: Score: 8", None),
    ("80%", None),
    ("8½", None),
    ("8 - it is good", 8),
    ("The text ends with Score: 10", None),
    ("<think>x", None),
    ("analysisIt is bad. Score: 9assistantfinal2", 2),
    ("<|channel|>analysis<|message|>Score: 9<|end|><|start|>assistant<|channel|>final<|message|>2<|return|>", 2),
    ("<|channel|>analysis<|message|>Score: 9", None),
    ("hm Score: 9</think>\n\n3", 3),
    ("Score: 8\n\nScore: 8", 8),
    ("1. It is good.\nScore: 8", None),
    ("Score: 9, wait, 3", None),
    ("The score: between 3 and 4. Score: 3", None),
    ("8/10\n", 8),
    ("8/5", None),
    ("8 out of 5", None),
    ("Score: -3", None),
    ("Score: 9 - or rather 4", None),
    ('{"score": 8}', None),
]
FIVE_CASES = [
    ("4/5", 4),
    ("4/10", None),
    ("4 out of ten", None),
    ("4 (out of 10)", None),
    ("4, on a scale from 1 to 10", None),
    ("4 of 5", 4),
]
LETTER_CASES = [
    ("A", 0),
    (" B.", 1),
    ("(B)", 1),
    ("Better: A\n", 0),
    ("B - it is shorter", 1),
    ("A film like this", None),
    ("a", None),
    ("AB", None),
    ("A\n\nActually, B.", None),
    ("A, B", None),
    ("A or B", None),
    ("<think>First impression: Better: A. Then again</think>\n\nB", 1),
    ("Not A", None),
    ("Better: not A", None),
    ("A. B is worse", 0),
    ("Better: A. No, Better: B", None),
    ("A is not better", None),
    ("B. A is longer, but says less.", 1),
    ("[B]", 1),
    ("**B**", 1),
    ("Better: B\nBetter: A", None),
]


@pytest.mark.parametrize(("text", "score"), TEN_CASES)
def test_a_number_from_1_to_10_is_read_only_without_doubt(text, score):
    assert parse(text, TEN, "Score:") == (None if score is None else score - 1)


@pytest.mark.parametrize(("text", "score"), FIVE_CASES)
def test_a_number_on_another_scale_is_no_verdict(text, score):
    assert parse(text, TEN[:5], "Score:") == (None if score is None else score - 1)


@pytest.mark.parametrize(("text", "letter"), LETTER_CASES)
def test_a_letter_is_read_only_without_doubt(text, letter):
    assert parse(text, ("A", "B"), "Better:") == letter


FORMS = [
    "<think>{}</think>{}", "<thinking>{}</thinking>{}", "{}</think>{}", "[THINK]{}[/THINK]{}", "◁think▷{}◁/think▷{}",
    "<|START_THINKING|>{}<|END_THINKING|>{}", "<seed:think>{}</seed:think>{}", "<THINK>{}</THINK>{}",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "analysisHm, {}assistantfinal{}", "<|channel>thought\n{}<channel|>{}", "<think>a</think>b<think>{}</think>{}",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_thinking_is_cut_off_however_it_is_marked(form):
    assert after_thinking(form.format("Score: 9", "2")) == "2"
    assert parse(form.format("Score: 9", "2"), TEN, "Score:") == 1


@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("{}")])
def test_thinking_without_an_end_has_no_answer(form):
    begun = form.partition("{}")[0] + "Score: 9"
    assert is_thinking(begun) and parse(begun, TEN, "Score:") is None


@pytest.mark.parametrize("text", ["analysis of the text: 8", "I think 8", "<b>8</b>", "a < b > c"])
def test_what_only_sounds_like_thinking_is_left(text):
    assert after_thinking(text) == text


def test_a_text_without_end_is_read_in_no_time():
    started = time.process_time()
    for text in ("Score: " * 50_000, '"' * 300_000, "8 " * 150_000, "<think>" * 50_000, "Score: 3\n" * 5_000):
        parse(text, TEN, "Score:")
    assert time.process_time() - started < 5
