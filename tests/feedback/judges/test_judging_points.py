import math

import pytest
import torch

from prefopt import PrefoptError
from prefopt.feedback.judges import Answer, Judge
from prefopt.feedback.judges.asking import disjoint


@pytest.fixture
def judge(scripted):
    def make(mode, labels, said, **fields):
        rubric = {"question": "{{ completion }}", "labels": list(labels)}
        return Judge(rubric, mode, backend=scripted(lambda q: Answer(said[q.turns[-1][1].split("\n")[1]])), **fields)

    return make


def logs(*probabilities):
    return tuple(math.log(p) if p else -math.inf for p in probabilities)


def test_the_margin_is_between_the_best_and_the_worst_label(judge):
    made = judge("pointwise", ["good", "fine", "bad"], {"x": logs(0.6, 0.1, 0.2), "y": logs(0.1, 0.1, 0.4)}, scale=0.5)
    verdict = made(["p"], [["x", "y"]], [{}])
    assert verdict.scores.tolist()[0] == pytest.approx([math.log(3), -math.log(4)])
    assert verdict.preference[0, 0, 1].item() == pytest.approx(1 / (1 + math.exp(-0.5 * math.log(12))))
    assert verdict.notes[0]["outside"] == pytest.approx((0.1 + 0.4) / 2)


def test_a_label_within_another_is_taken_apart():
    # The answer starts with "1" in .5 of the cases, of which .3 go on to "10", and .1 of those to "100".
    assert disjoint(["1", "10", "100", "2"], logs(0.5, 0.3, 0.1, 0.2)) == pytest.approx([0.2, 0.2, 0.1, 0.2])
    assert disjoint(["1", "10", "12"], logs(0.5, 0.3, 0.15)) == pytest.approx([0.05, 0.3, 0.15])
    assert disjoint(["1", "10"], logs(0.3, 0.3 + 1e-9))[0] == 0


def test_the_expected_score_is_over_whole_labels_and_what_is_outside_is_said(judge):
    # "1" holds .3, of which "10" has .2: so p(1) = .1, p(5) = .1, p(10) = .2, and .6 is outside.
    said = logs(0.3, 0, 0, 0, 0.1, 0, 0, 0, 0, 0.2)
    verdict = judge("expected", map(str, range(1, 11)), {"x": said})(["p"], [["x"]], [{}])
    mean = (1 * 0.1 + 5 * 0.1 + 10 * 0.2) / 0.4
    assert verdict.scores.item() == pytest.approx(2 * (mean - 1) / 9 - 1)
    assert verdict.notes[0]["outside"] == pytest.approx(0.6)


@pytest.mark.parametrize(("place", "score"), [(0, -1.0), (9, 1.0)])
def test_the_ends_of_the_scale(judge, place, score):
    likely = [0.0] * 10
    likely[place] = 0.5
    likely[0] = 0.5  # "1" contains "10"
    verdict = judge("expected", map(str, range(1, 11)), {"x": logs(*likely)})(["p"], [["x"]], [{}])
    assert verdict.scores.item() == pytest.approx(score)


def test_the_preference_of_expected_scores_is_that_of_two_draws(judge):
    said = {"x": logs(0.2, 0.3, 0.5), "y": logs(0.4, 0.4, 0.2)}
    verdict = judge("expected", ["1", "2", "3"], said)(["p"], [["x", "y"]], [{}])
    wins = 0.3 * 0.4 + 0.5 * 0.8 + 0.5 * (0.2 * 0.4 + 0.3 * 0.4 + 0.5 * 0.2)
    assert verdict.preference[0, 0, 1].item() == pytest.approx(wins)
    assert verdict.preference[0, 1, 0].item() == pytest.approx(1 - wins)
    assert verdict.preference[0, 0, 0].item() == pytest.approx(0.5)


def test_no_likelihood_and_no_answer_are_no_score(judge):
    said = {"x": logs(0.5, 0.2), "none": logs(0, 0), "long": None}
    for mode, labels in (("pointwise", ["good", "bad"]), ("expected", ["1", "2"])):
        verdict = judge(mode, labels, said)(["p"], [["x", "none", "long", ""]], [{}])
        assert verdict.scores.isnan().tolist() == [[False, True, True, True]]
        assert {name: verdict.notes[0][name] for name in ("unlikely", "unanswered", "empty")} == dict.fromkeys(
            ("unlikely", "unanswered", "empty"), 1
        )
        assert verdict.preference[0, 0, 1:].tolist() == [0.5] * 3


def test_labels_that_cannot_be_are_refused_before_anything_is_asked(judge):
    for mode, labels, message in (
        ("pointwise", ["good"], "needs `labels`, the best first"),
        ("expected", ["1", "two"], "'two' is none"),
        ("expected", ["1", "1.0"], "at least two scores"),
        ("pairwise", ["a", "b", "c"], "two labels"),
    ):
        with pytest.raises(PrefoptError, match=message):
            judge(mode, labels, {}).check()


def test_shapes_without_prompts_and_with_ragged_groups(judge):
    made = judge("pointwise", ["good", "bad"], {"x": logs(0.5, 0.5)})
    assert made([], [], []).scores.shape == (0, 0)
    verdict = made(["p", "q"], [["x", "x"], ["x"]], [{}, {}])
    assert verdict.scores.isnan().tolist() == [[False, False], [False, True]]
    assert torch.isfinite(verdict.preference).all()
