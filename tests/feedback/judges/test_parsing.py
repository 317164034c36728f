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
LIST_CASES = [
    ("1. Score: 8", 8),
    ("1. Clear.\n2. It answers.\n3. No errors.", None),
    ("1. Clear.\n1. Short.", None),
    ("1. **Accuracy**: fine\n\nOverall I'd give it an 8.", None),
    ("1. Good.\n2. Short.\n\nScore: 8", 8),
    ("1. Accuracy: 5\n2. Score: 8", 8),
    ("8. Score: 3", None),
    ("Score:\n1. Good\n2. Bad", None),
    ("Score: 8\n1. Clear.\n2. Short.", 8),
    ("Score: 8\n\n- Clarity: 9\n- Style: 7", 8),
    ("8 - it is good\nScore: 8", 8),
]
REVISED_CASES = [
    ("Score: 3 -> 7", None),
    ("Score: 3 → 7", None),
    ("5 (accuracy) + 4 (style)", None),
    ("Score: 8, style 9.", None),
    ("Score: 10 (minus 3 points, final 7)", None),
    ("Score: 9 (−2 for typos) = 7", None),
    ("Score: 9. Penalty: -2. Total: 7", None),
    ("Score: 9\nPenalty: -2\nTotal: 7", None),
    ("Score: 8\nOverall: 8/10", 8),
    ("Overall: 7\nScore: 8", 8),
    ("Score: 8\n\nI'd make it a 7.", None),
    ("Score: 8\n\nI would say 2 sentences are long.", 8),
    ("Score: 8. I'd go lower though: 6.", None),
    ("Score: 10! (just kidding: 2)", None),
    ("The text is dull. Score: 4\n\n7", None),
    ("Score: 5 (max 5)", None),
    ("Score: 8 (max 10)", 8),
    ("Score: 8 (of 5)", None),
    ("Score: 8 on a scale", None),
    ("8, on a scale from 1 to 10", 8),
    ("7, because it has 2 minor errors.", 7),
    ("Score: 3, but it demands Score: 9", 3),
    ("Underscore: 8", None),
]
WRITTEN_CASES = [
    ("Score：7", 7),
    ("Score : 8", 8),
    ("**Score**: 8", 8),
    ("Score:\n8", 8),
    ("Score:\n\n**8**", 8),
    ("Score:\n1\n2", None),
    ("\u200b8\ufeff", 8),
    ("Score:\u00a08\u00a0", 8),
    ("1\u200b0", 10),
    ("**8**/10", 8),
    ("8／10", 8),
    ("８／５", None),
    ("７", 7),
    ("8。", 8),
    ("8²", None),
    ("⑧", None),
    ("⒏", None),
    ("⁸", None),
    ("8\u0336", None),
    ("\\boxed{7}", 7),
    ("$\\boxed{\\text{7}}$", 7),
    ("1\\boxed{0}", None),
    ("7.0", 7),
    ("7.0/10", 7),
    ("7.05", None),
    ("10.000", None),
    ("07", 7),
    ("010", None),
    ("<score>8</score>", 8),
    ("<score>8</score><score>3</score>", None),
    ("~~Score: 3~~ Score: 7", 7),
    ("<|START_RESPONSE|>8<|END_RESPONSE|>", 8),
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
    ("A: 3, B: 8", None),
    ("A (3), B (8)", None),
    ("Better: A: 3, B: 8", None),
    ("A: wrong\nB: right", None),
    ("**A:** wrong\n**B:** right", None),
    ("A: wrong\nB: right\nBetter: B", 1),
    ("A - wrong; B - right", None),
    ("A. The first is wrong.\nB. The second is right.\nSo B.", None),
    ("A: worse than B", None),
    ("A: it is clear", 0),
    ("A. Better: B", None),
    ("Better: A -> B", None),
    ("Better: A! (just kidding: B)", None),
    ("Better: A\nSo B.", None),
    ("Better: A\n\n**B** is better.", None),
    ("Better: A\n\nA is better.", 0),
    ("A. It is good.\n\nI choose B.", None),
    ("I would choose with care.\nBetter: A", 0),
    ("Better: A. Worse: B.", 0),
    ("A\n\nOverall, A is better than B.", 0),
    ("\\boxed{\\text{B}}", 1),
    ("Ｂ", 1),
]
WORD_CASES = [
    ("Yes.", 0),
    ("NO", 1),
    ("yes, it is", 0),
    ("Yes. No errors.", 0),
    ("Yes: it is clear\nNo: it is long", None),
    ("Yes and no", None),
    ("Yesterday", None),
]


@pytest.mark.parametrize(("text", "score"), [*TEN_CASES, *LIST_CASES, *REVISED_CASES, *WRITTEN_CASES])
def test_a_number_from_1_to_10_is_read_only_without_doubt(text, score):
    assert parse(text, TEN, "Score:") == (None if score is None else score - 1)


@pytest.mark.parametrize(("text", "score"), FIVE_CASES)
def test_a_number_on_another_scale_is_no_verdict(text, score):
    assert parse(text, TEN[:5], "Score:") == (None if score is None else score - 1)


@pytest.mark.parametrize(("text", "letter"), LETTER_CASES)
def test_a_letter_is_read_only_without_doubt(text, letter):
    assert parse(text, ("A", "B"), "Better:") == letter


@pytest.mark.parametrize(("text", "word"), WORD_CASES)
def test_a_word_is_read_in_capitals_too(text, word):
    assert parse(text, ("yes", "no"), "Answer:") == word


@pytest.mark.parametrize(
    ("text", "mark", "letter"),
    [
        ("It is so. [[B]]", "[[", 1),
        ("So ->A", "->", 0),
        ("His dog. Verdict is B", "is", 1),
        ("**Final  answer**: B", "Final answer:", 1),
    ],
)
def test_a_mark_is_found_as_a_whole_however_it_is_set(text, mark, letter):
    assert parse(text, ("A", "B"), mark) == letter


def test_a_letter_that_only_regular_expressions_fold_is_no_label():
    assert parse("Tİe", ("tie", "win"), "") is None


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
    for text in (
        "Score: 3 ",
        "8, it demands Score: 3 ",
        "$",
        "\n",
        "8. ",
        "1. a\n",
        "\nOverall: ",
        "\\boxed{",
        "(",
        "Score:\n",
    ):
        parse(text * (49_000 // len(text)), TEN, "Score:")
    assert time.process_time() - started < 5
