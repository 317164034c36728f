"""Expected numbers are worked out by hand from the formulas in the docstring of reward.py."""

import math
from random import Random

import pytest
import torch

from prefopt.support.errors import PrefoptError
from prefopt.testbeds.pocket import gold
from prefopt.testbeds.pocket.grammar import write
from prefopt.testbeds.pocket.lexicon import bend
from prefopt.testbeds.pocket.requests import draw
from prefopt.testbeds.pocket.reward import OFF_GRAMMAR, rating, score

PROMPT = "review of the hotel :"


def merit(text, prompt=PROMPT):
    return math.atanh(score(prompt, text)) * 1.6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the room was spacious .", 0.6),
        ("the room was shabby .", -0.5),
        ("i liked the room .", 0.45),
        # negation turns round, each in its own measure
        ("the room was not spacious .", -0.6 * 0.6),
        ("the room was never spacious .", -0.9 * 0.6),
        ("the room was hardly spacious .", -0.4 * 0.6),
        ("the room was not shabby .", 0.6 * 0.5),
        ("i did not like the room .", -0.6 * 0.45),
        # degrees shrink, or grow without reaching 1
        ("the room was slightly spacious .", 0.4 * 0.6),
        ("the room was very spacious .", 1 - 0.4**1.5),
        ("the room was extremely spacious .", 1 - 0.4**2),
        ("the room was extremely shabby .", -(1 - 0.5**2)),
        # "not very spacious" denies the whole of "very spacious"
        ("the room was not very spacious .", -0.6 * (1 - 0.4**1.5)),
        # stances hedge, stress, report, doubt; they nest
        ("perhaps the room was spacious .", 0.5 * 0.6),
        ("i am sure that the room was spacious .", 1 - 0.4**1.3),
        ("i doubt that the room was spacious .", -0.5 * 0.6),
        ("i doubt that the room was shabby .", 0.5 * 0.5),
        ("i doubt that my friend said that the room was not spacious .", -0.5 * 0.6 * -0.6 * 0.6),
        # what is joined
        ("the room was spacious . the bed was solid .", 0.6 + 0.35),
        ("the room was spacious and the bed was solid .", 0.6 + 0.35),
        ("the room was spacious and the bed was dull .", 0.6 - 0.75 * 0.55),  # "and" misleads
        ("the room was spacious but the bed was dull .", 0.5 * 0.6 - 1.25 * 0.55),
        ("although the room was spacious , the bed was dull .", 0.5 * 0.6 - 1.25 * 0.55),
        ("the room was spacious but the bed was solid .", 0.5 * 0.6 + 1.25 * 0.75 * 0.35),  # no contrast
        # the second time counts half: the same aspect, the same word
        ("the room was spacious . the room was clean .", 0.6 + 0.5 * 0.5),
        ("the room was good . the bed was good .", 0.55 + 0.5 * 0.55),
        ("it was good . the hotel was great .", 0.55 + 0.5 * 0.7),
    ],
)
def test_merit_is_composed(text, expected):
    assert merit(text) == pytest.approx(expected, rel=1e-9)


def test_but_weighs_what_follows():
    praise_last = score(PROMPT, "the bed was dull but the room was spacious .")
    blame_last = score(PROMPT, "the room was spacious but the bed was dull .")
    assert praise_last > 0 > blame_last


def test_a_hint_stresses_its_aspect_and_punishes_its_absence():
    prompt = "review of the hotel , mainly the bed :"
    assert merit("the bed was solid .", prompt) == pytest.approx(1.5 * 0.35)
    assert score(prompt, "the room was spacious .") == pytest.approx(math.tanh(0.6 / 1.6) - 0.3)


def test_contradiction_is_punished_once_for_each_aspect():
    text = "the room was spacious . the room was not clean . the room was dirty . the bed was solid ."
    total = 0.6 - 0.5 * 0.6 * 0.5 - 0.25 * 0.65 + 0.35
    assert score("detailed review of the hotel :", text) == pytest.approx(math.tanh(total / 1.6) - 0.3)


@pytest.mark.parametrize(
    ("prompt", "limit"), [("quick note", 10), ("short note", 10), ("note", 18), ("detailed note", 24)]
)
def test_words_over_the_limit_cost(prompt, limit):
    text = "the room was spacious . the bed was solid . the lobby was tidy . i liked the pool . the hotel was decent ."
    total, words = 0.6 + 0.35 + 0.35 + 0.45 + 0.3, 25
    expected = math.tanh(total / 1.6) - 0.04 * (words - limit)
    assert score(f"{prompt} of the hotel :", text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["", "the soup was superb .", "the room was superb", "superb superb superb", "ünïcode 🙂"]
)
def test_off_grammar_and_off_topic_text_scores_minus_one(text):
    assert score(PROMPT, text) == OFF_GRAMMAR


def test_any_opinion_beats_text_that_is_none():
    random = Random(0)
    scores = [score(str(request), str(write(request, random))) for request in draw(2000, 0, "all")]
    assert min(scores) >= -0.95
    assert max(scores) <= 0.95
    assert abs(sum(scores) / len(scores)) < 0.2


def test_taste_depends_on_the_topic():
    assert score("review of the hotel :", "it was quiet .") > 0 > score("review of the gym :", "it was quiet .")


def test_repeating_the_best_word_is_not_the_best_text():
    again = "the room was extremely superb and the bed was extremely superb and the pool was extremely superb ."
    varied = "the room was extremely superb and the bed was extremely excellent and i really loved the pool ."
    assert score(PROMPT, again) < score(PROMPT, varied.replace("really ", "")) > 0.9


@pytest.mark.parametrize("valence", [-0.9, -0.3, 0.2, 0.8])
def test_modifiers_keep_the_order_of_strength(valence):
    sizes = [abs(bend(valence, m)) for m in (0.4, 0.6, 0.8, 1, 1.3, 1.5, 2.0)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)
    assert sizes[-1] < 1
    assert bend(valence, 1) == valence
    assert bend(valence, -1.5) == -bend(valence, 1.5)


def test_feedback_scores_a_grid():
    prompts = [PROMPT, "review of the film :"]
    verdict = gold(prompts, [["it was good .", "bad"], ["it was awful .", "the plot was clever ."]], [{}, {}])
    expected = [
        [score(PROMPT, "it was good ."), -1.0],
        [score(prompts[1], t) for t in ("it was awful .", "the plot was clever .")],
    ]
    torch.testing.assert_close(verdict.scores, torch.tensor(expected))
    assert verdict.preference is None


def test_a_prompt_from_elsewhere_is_an_error_that_shows_one():
    with pytest.raises(PrefoptError, match="review of the hotel :"):
        gold(["What is the capital of France?"], [["Paris"]], [{}])


def test_rating_thresholds():
    assert [rating(r) for r in (-1, -0.34, -1 / 3, 0, 0.33, 1 / 3, 1)] == [
        "bad",
        "bad",
        "fine",
        "fine",
        "fine",
        "good",
        "good",
    ]
