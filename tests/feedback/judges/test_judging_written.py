import pytest

from prefopt.feedback.judges import Judge

TEN = [f" {i}" for i in range(1, 11)]
PAIR = {"question": "{{ completion_a }}\n{{ completion_b }}", "answer": "Better:", "labels": ["A", "B"]}
POINT = {"question": "{{ completion }}", "answer": "Score:"}


def test_scores_are_rescaled_and_what_is_no_verdict_is_counted(scripted):
    said = {"x": "10", "y": "4", "z": "great!", "refuse": "I'm sorry, I cannot rate this."}
    judge = Judge(POINT, "generative", backend=scripted(lambda q: said[q.turns[-1][1].split("\n")[1]]))
    judge.check()
    verdict = judge(["p"], [["x", "y", "z", "refuse", ""]], [{}])
    assert verdict.scores[0, :2].tolist() == pytest.approx([1, -1 / 3])
    assert verdict.scores[0, 2:].isnan().all()
    assert {name: verdict.notes[0][name] for name in ("malformed", "refused", "empty")} == {
        "malformed": 1,
        "refused": 1,
        "empty": 1,
    }
    assert verdict.preference[0, 0].tolist() == [0.5, 1, 0.5, 0.5, 0.5]
    assert {q.labels for q in judge.backend.asked} == {()}


def test_letters_of_both_orders_are_averaged(scripted):
    first = Judge(PAIR, "generative", backend=scripted(lambda q: "A"))
    first.check()
    verdict = first(["p"], [["x", "y"]], [{}])
    assert verdict.preference[0, 0, 1] == 0.5
    assert verdict.notes[0]["prefers_first"] == 1 and verdict.notes[0]["turned"] == 1
    one = Judge(PAIR, "generative", backend=scripted(lambda q: "A"), average="none")
    assert one(["p"], [["x", "y"]], [{}]).preference[0, 0, 1] == 1
    honest = Judge(PAIR, "generative", backend=scripted(lambda q: "AB"[q.turns[-1][1].startswith("```\ny")]))
    assert honest(["p"], [["x", "y"]], [{}]).scores.tolist() == [[1, 0]]


def test_a_third_label_is_a_tie_and_half_a_pair_is_no_verdict(scripted):
    tie = Judge(PAIR | {"labels": ["A", "B", "C"]}, "generative", backend=scripted(lambda q: "C"))
    assert tie(["p"], [["x", "y"]], [{}]).scores.tolist() == [[0.5, 0.5]]
    half = Judge(PAIR, "generative", backend=scripted(lambda q: "A" if q.turns[-1][1].startswith("```\ny") else "?"))
    verdict = half(["p"], [["x", "y"]], [{}])
    assert verdict.scores.isnan().all()
    assert verdict.notes[0]["malformed"] == 1


def test_several_samples_are_a_distribution(scripted):
    judge = Judge(
        POINT,
        "generative",
        backend=scripted(lambda q: ["2", "4", "?"][q.seed - 5]),
        samples=3,
        temperature=1.0,
        seed=5,
    )
    verdict = judge(["p"], [["x"]], [{}])
    assert verdict.scores.item() == pytest.approx(2 * (3 - 1) / 9 - 1)
    assert verdict.notes[0]["malformed"] == 1
    assert verdict.notes[0]["usage"]["calls"] == 3


def test_samples_that_would_all_be_the_same_are_refused(scripted):
    for fields in ({"mode": "generative"}, {"mode": "expected", "temperature": 1.0}):
        with pytest.raises(ValueError, match="all the same"):
            Judge(POINT, backend=scripted(str), samples=2, **fields)
