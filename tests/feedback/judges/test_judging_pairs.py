import math

import pytest
import torch

from prefopt import PrefoptError
from prefopt.feedback.judges import Answer, Judge

WORTH = {"great": 2.0, "fine": 0.5, "dull": -1.0}


def biased(bias, scale=1.0):
    """A judge whose logit margin is the difference in worth, and a bias towards what it sees first."""

    def say(question):
        _, one, _, other, *_ = question.turns[-1][1].replace("```\n", "```").split("```")[0:]
        margin = scale * (WORTH[one.strip()] - WORTH[other.strip()]) + bias
        first = 1 / (1 + math.exp(-margin))
        return Answer((math.log(0.9 * first), math.log(0.9 * (1 - first))), prompt_tokens=10)

    return say


@pytest.fixture
def judge(scripted):
    def make(say, average="probabilities", **fields):
        rubric = {"question": "{{ completion_a }}\nor\n{{ completion_b }}", "labels": ["A", "B"]}
        return Judge(rubric, "pairwise", backend=scripted(say), average=average, **fields)

    return make


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("bias", [-3.0, 0.0, 0.7, 4.0])
@pytest.mark.parametrize("better", ["great", "dull"])
def test_what_a_bias_does_to_a_preference(judge, bias, better):
    d = WORTH[better] - WORTH["fine"]
    asked = (["p"], [[better, "fine"]], [{}])
    logits = judge(biased(bias), "logits")(*asked).preference[0]
    assert logits[0, 1].item() == pytest.approx(sigmoid(d), abs=1e-6)
    assert logits[1, 0].item() == pytest.approx(sigmoid(-d), abs=1e-6)
    both = judge(biased(bias))(*asked).preference[0]
    assert both[0, 1].item() == pytest.approx((sigmoid(d + bias) + sigmoid(d - bias)) / 2, abs=1e-6)
    assert both[0, 1] + both[1, 0] == pytest.approx(1, abs=1e-6)
    assert (both[0, 1] > 0.5) == (d > 0)
    one = judge(biased(bias), "none")(*asked).preference[0]
    assert one[0, 1].item() == pytest.approx(sigmoid(d + bias), abs=1e-6)
    assert one[0, 1] + one[1, 0] == pytest.approx(1, abs=1e-6)


def test_all_pairs_are_compared_and_scores_are_mean_wins(judge):
    made = judge(biased(0.3), "logits")
    verdict = made(["p"], [["dull", "great", "fine"]], [{}])
    assert len(made.backend.asked) == 6
    wins = {(a, b): sigmoid(WORTH[a] - WORTH[b]) for a in WORTH for b in WORTH if a != b}
    assert verdict.scores[0, 1].item() == pytest.approx((wins["great", "dull"] + wins["great", "fine"]) / 2, abs=1e-6)
    assert verdict.preference[0].diagonal().tolist() == [0.5] * 3
    assert torch.allclose(verdict.preference + verdict.preference.mT, torch.ones(1, 3, 3))


def test_the_note_says_how_the_judge_depends_on_the_order(judge):
    note = judge(biased(4.0))(["p"], [["great", "fine"]], [{}]).notes[0]
    assert note["turned"] == 1  # whichever is first wins
    assert note["prefers_first"] == pytest.approx((sigmoid(5.5) + sigmoid(2.5)) / 2)
    assert note["margins"][0][1] == pytest.approx(5.5)
    assert note["outside"] == pytest.approx(0.1)
    assert note["usage"] == {"calls": 2, "prompt_tokens": 20, "completion_tokens": 0}
    assert "turned" in note and judge(biased(0.1))(["p"], [["great", "fine"]], [{}]).notes[0]["turned"] == 0


def test_an_empty_completion_has_no_verdict_and_costs_nothing(judge):
    made = judge(biased(0))
    verdict = made(["p", "q"], [["great", " \n", "dull"], ["", "", "fine"]], [{}, {}])
    assert len(made.backend.asked) == 2
    assert verdict.scores.isnan().tolist() == [[False, True, False], [True] * 3]
    assert verdict.scores[0, 0].item() == pytest.approx(sigmoid(3))  # over those that were compared
    assert verdict.preference[0, 1].tolist() == [0.5] * 3
    assert [note["empty"] for note in verdict.notes] == [1, 2]


def test_a_label_that_a_server_leaves_out_makes_no_infinite_score(judge):
    verdict = judge(lambda q: Answer((-0.1, -math.inf)), "logits")(["p"], [["great", "dull"]], [{}])
    assert verdict.preference[0, 0, 1] == 0.5
    neither = judge(lambda q: Answer((-math.inf, -math.inf)))(["p"], [["great", "dull"]], [{}])
    assert neither.scores.isnan().all()
    assert neither.notes[0]["unlikely"] == 2


def test_a_single_completion_is_refused(judge):
    with pytest.raises(PrefoptError, match="there is one each"):
        judge(biased(0))(["p"], [["great"]], [{}])


def test_a_chain_of_thought_stands_before_the_verdict(scripted):
    def say(question):
        if not question.labels:
            assert question.turns[-1][1].endswith("Think.")
            return "because so.\nBetter: A"  # it goes on to the verdict, which is cut off
        assert question.start == "because so.\nBetter:"
        return Answer((-0.1, -2.5), prompt_tokens=20)

    rubric = {
        "question": "{{ completion_a }}\n{{ completion_b }}",
        "thought": "Think.",
        "answer": "Better:",
        "labels": [" A", " B"],
    }
    made = Judge(rubric, "pairwise", backend=scripted(say), thought=True, thought_tokens=7)
    note = made(["p"], [["x", "y"]], [{}]).notes[0]
    assert note["rationales"][0] == {"completions": [0, 1], "text": "because so."}
    assert note["usage"] == {"calls": 4, "prompt_tokens": 46, "completion_tokens": 2}
    assert {q.max_tokens for q in made.backend.asked} == {0, 7}
