"""Every transform by hand; NaN through all of them; their order; what a checkpoint holds."""

import copy
import math

import pytest
import torch

from prefopt import PrefoptError, Verdict
from prefopt.feedback import (
    Clip,
    Ensemble,
    LengthPenalty,
    MissingEOS,
    Normalise,
    ReferenceNormalise,
    RepetitionPenalty,
    Transformed,
)

PROMPTS = ["p", "q"]
TEXTS = [["a b c d", "a b"], ["a b a b a b", ""]]
ROWS = [{"ended": [True, False]}, {"ended": [False, True]}]
SCORES = torch.tensor([[1.0, -2.0], [4.0, 0.5]], dtype=torch.float64)


def transformed(*transforms, scores=SCORES, rows=ROWS):
    return Transformed(lambda *_: Verdict(scores), transforms)(PROMPTS, TEXTS, rows).scores


def expect(found, *rows):
    torch.testing.assert_close(found, torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-12)


def test_length_by_hand(lm_folder):
    expect(transformed(LengthPenalty(limit=3, weight=0.5)), [0.5, -2], [4 - 1.5, 0.5])
    # Its tokenizer has a token for each of these words, and one for "a  b" as well: two.
    counted = LengthPenalty(limit=3, weight=0.5, tokenizer=str(lm_folder))
    assert counted.length("a film was very good") == 5
    expect(transformed(counted), [0.5, -2], [4 - 1.5, 0.5])


def test_of_several_turns_what_the_policy_wrote_is_measured():
    turns = [("assistant", "a b"), ("tool", "x " * 50), ("assistant", "c d e")]
    episode = [{"role": role, "content": content} for role, content in turns]
    scores = LengthPenalty(limit=3, weight=0.5)(torch.zeros(1, 2), ["p"], [[episode, "a b c d"]], [{}])
    assert scores.tolist() == [[-1.0, -0.5]]


def test_repetition_by_hand():
    """a b a b a b has 5 bigrams, ab ba ab ba ab, of which 2 are distinct."""
    expect(transformed(RepetitionPenalty(weight=2.0, n=2)), [1, -2], [4 - 2 * 3 / 5, 0.5])
    penalty = RepetitionPenalty(n=3)
    assert [penalty.repeated(text) for text in ("", "a b", "a b c", "a " * 100)] == [0, 0, 0, 1 - 1 / 98]


def test_clip_by_hand():
    expect(transformed(Clip(-1, 2)), [1, -1], [2, 0.5])
    expect(transformed(Clip(high=0)), [0, -2], [0, 0])
    for wrong in ({}, {"low": 2, "high": 1}):
        with pytest.raises(ValueError, match="low"):
            Clip(**wrong)


def test_missing_eos_by_hand():
    expect(transformed(MissingEOS(penalty=0.5)), [1, -2.5], [3.5, 0.5])
    expect(transformed(MissingEOS(score=-1.0)), [1, -1], [-1, 0.5])
    for wrong in ({}, {"penalty": 1.0, "score": 0.0}):
        with pytest.raises(ValueError, match="either"):
            MissingEOS(**wrong)
    for rows in ([{}, {}], [{"ended": [True, True]}, {"ended": [True]}]):
        with pytest.raises(PrefoptError, match=r"MissingEOS: the row of prompt \d has no `ended`"):
            transformed(MissingEOS(penalty=1.0), rows=rows)


@pytest.mark.parametrize("center", [True, False])
def test_running_numbers_are_those_of_all_scores_so_far(center):
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(3, 2, generator=draw, dtype=torch.float64) * s + 1e4 for s in (1, 5, 0.1)]
    batches[1][0, 1] = math.nan
    transform, seen = Normalise(center), torch.empty(0, dtype=torch.float64)
    for scores in batches:
        found = transform(scores, (), (), ())
        seen = torch.cat([seen, scores[~scores.isnan()]])
        mean, deviation = seen.mean(), seen.std(correction=0)
        expected = (scores - mean if center else scores) / deviation
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert transform.count == len(seen) == 17
    again = Normalise(center)
    again.load_state_dict(transform.state_dict())
    torch.testing.assert_close(again(batches[0], (), (), ()), transform(batches[0], (), (), ()), rtol=0, atol=0)


def test_equal_scores_are_not_divided_by_nothing():
    scores = torch.full((2, 2), 3.0)
    assert Normalise()(scores, (), (), ()).tolist() == [[0, 0], [0, 0]]
    assert Normalise(center=False)(scores, (), (), ()).tolist() == scores.tolist()
    assert Normalise()(torch.full((1, 1), math.nan), (), (), ()).isnan().all()


def test_reference_samples_get_the_mean_and_deviation_asked_for():
    transform = ReferenceNormalise(mean=2.0, std=0.5)
    assert transform.unfitted
    with pytest.raises(PrefoptError, match="no gain and bias yet"):
        transformed(transform)
    reference = torch.tensor([1.0, 3.0, 8.0, math.nan])
    transform.fit(reference)
    assert not transform.unfitted
    made = transform(reference[:3, None].double(), (), (), ())
    assert made.mean().item() == pytest.approx(2) and made.std(correction=0).item() == pytest.approx(0.5)
    other = ReferenceNormalise()
    other.load_state_dict(transform.state_dict())
    assert (other.gain, other.bias) == (transform.gain, transform.bias)
    expect(transformed(ReferenceNormalise(gain=2.0, bias=-1.0)), [1, -5], [7, 0])
    with pytest.raises(ValueError, match="gain and bias"):
        ReferenceNormalise(gain=2.0)


@pytest.mark.parametrize("scores", [[1.0], [2.0, 2.0, math.nan], []])
def test_what_cannot_be_fitted(scores):
    with pytest.raises(PrefoptError, match="cannot be fitted"):
        ReferenceNormalise().fit(torch.tensor(scores))


ALL = [
    LengthPenalty(1, 0.5),
    RepetitionPenalty(n=1),
    Clip(-1, 1),
    Normalise(),
    ReferenceNormalise(2.0, 1.0),
    MissingEOS(penalty=1.0),
    MissingEOS(score=0.0),
    lambda scores, *_: torch.zeros_like(scores),
]


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: getattr(transform, "__name__", str(transform)[:30]))
def test_no_verdict_stays_none(transform):
    scores = SCORES.clone()
    scores[0, 1] = scores[1, 1] = math.nan
    assert transformed(transform, scores=scores).isnan().tolist() == [[False, True], [False, True]]


def test_the_first_of_the_list_comes_first():
    expect(transformed(Clip(high=2.0), ReferenceNormalise(2.0, 0.0)), [2, -4], [4, 1])
    expect(transformed(ReferenceNormalise(2.0, 0.0), Clip(high=2.0)), [2, -4], [2, 1])


def test_own_scores_and_notes_are_kept():
    scores = SCORES.clone()
    scores[0, 0] = math.nan
    preference = torch.full((2, 2, 2), 0.5)
    feedback = Transformed(lambda *_: Verdict(scores, preference, [{"why": "x"}, {}]), (Clip(high=0.0),))
    verdict = feedback(PROMPTS, TEXTS, ROWS)
    assert verdict.notes == [{"why": "x", "untransformed": [None, -2.0]}, {"untransformed": [4.0, 0.5]}]
    assert verdict.preference is preference
    plain = Verdict(SCORES)
    assert Transformed(lambda *_: plain)(PROMPTS, TEXTS, ROWS) is plain


def bad_type(scores, *_):
    return scores.tolist()


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (bad_type, "the transform bad_type must return scores of shape .2, 2., not a list"),
        (lambda scores, *_: scores[0], "not shape .2"),
        (lambda scores, *_: scores / 0, "gave the score inf to completion 1 of prompt 1"),
        (lambda scores, *_: scores.log(), "made NaN of the score -2 of completion 2 of prompt 1"),
        (lambda scores: scores, "raised TypeError"),
    ],
)
def test_transforms_that_do_something_else(transform, words):
    with pytest.raises(PrefoptError, match=words):
        transformed(transform)


def test_fit_gives_each_the_scores_that_reach_it():
    running = Normalise()
    first, second = ReferenceNormalise(), ReferenceNormalise(mean=1.0)
    feedback = Transformed(lambda *_: Verdict(SCORES), (Clip(-1, 2), first, running, second))
    assert feedback.unfitted
    feedback.fit(PROMPTS, TEXTS, ROWS)
    assert not feedback.unfitted
    clipped = torch.tensor([1.0, -1.0, 2.0, 0.5])
    assert first.gain == pytest.approx(1 / clipped.std(correction=0).item())
    assert first.bias == pytest.approx(-clipped.mean().item() * first.gain)
    assert (second.gain, second.bias) == (pytest.approx(1), pytest.approx(1))
    assert running.count == 0, "reference samples are none of the policy's"
    feedback.fit(PROMPTS, [["changed"] * 2] * 2, ROWS)
    assert (second.gain, second.bias) == (pytest.approx(1), pytest.approx(1))


def test_a_restored_feedback_goes_on_as_if_nothing_had_been():
    def make():
        return Transformed(
            Transformed(lambda *_: Verdict(SCORES), (Normalise(),)), (ReferenceNormalise(), Normalise(False))
        )

    one, other = make(), make()
    one.fit(PROMPTS, TEXTS, ROWS)
    one(PROMPTS, TEXTS, ROWS)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(PROMPTS, TEXTS, ROWS).scores, other(PROMPTS, TEXTS, ROWS).scores)
    assert one.state_dict() == other.state_dict()


def test_two_normalisations_each_keep_their_own_numbers_over_a_resume():
    """In one list, and in the members of an ensemble, whose scores differ."""

    def make():
        own = [Normalise(), Normalise(False), Normalise(), Normalise()]
        first = Transformed(lambda p, *_: Verdict(SCORES[: len(p)]), (own[0], Clip(low=-0.5), own[1]))
        second = Transformed(lambda p, *_: Verdict(10 * SCORES[: len(p)] + 3), (own[2],))
        return own, Transformed(Ensemble((first, second)), (own[3],))

    (own, one), (others, other) = make(), make()
    one(PROMPTS, TEXTS, ROWS)
    plain = SCORES.flatten()
    standard = (plain - plain.mean()) / plain.std(correction=0)
    clipped = standard.clamp(-0.5)
    combined = (clipped / clipped.std(correction=0) + standard) / 2  # the second member's are the same, up to its scale
    for transform, values in zip(own, (plain, clipped, 10 * plain + 3, combined), strict=True):
        assert (transform.count, transform.mean) == (4, pytest.approx(values.mean().item(), abs=1e-6))
        assert transform.squares == pytest.approx(4 * values.var(correction=0).item(), rel=1e-6)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert others == own
    fresh, resumed, whole = (feedback(PROMPTS[:1], TEXTS[:1], ROWS[:1]).scores for feedback in (make()[1], other, one))
    assert torch.equal(whole, resumed) and not torch.allclose(whole, fresh, atol=0.1)
    assert others == own and [transform.count for transform in own] == [6] * 4


def test_a_checkpoint_of_the_previous_version_is_read():
    feedback = Transformed(lambda *_: Verdict(SCORES), (Normalise(),))
    feedback.load_state_dict({"feedback": {}, "shapes": [{"count": 3, "mean": 1.0, "squares": 2.0}]})
    assert feedback.state_dict()["transforms"] == [{"count": 3, "mean": 1.0, "squares": 2.0}]
