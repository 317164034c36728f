import math

import pytest
import torch

from prefopt import PrefoptError, Verdict
from prefopt.feedback import Clip, Ensemble, Normalise, ReferenceNormalise, Transformed
from prefopt.feedback.calling import restore, state_of

PROMPTS, TEXTS, ROWS = ["p", "q"], [["a", "b"], ["c", "d"]], [{}, {}]
SAID = ([[1.0, 2.0], [0.0, math.nan]], [[3.0, 2.0], [0.5, 1.0]], [[5.0, -4.0], [1.0, 1.0]])


def member(scores, preference=None, notes=()):
    return lambda *_: Verdict(torch.tensor(scores), preference, notes)


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", [[3, 0], [0.5, math.nan]]),
        ("min", [[1, -4], [0, math.nan]]),
        ("lcb", [[3 - 0.25 * 8 / 3, 0 - 0.25 * 8], [0.5 - 0.25 / 6, math.nan]]),
    ],
)
def test_by_hand(combine, expected):
    verdict = Ensemble(tuple(map(member, SAID)), combine, lam=0.25)(PROMPTS, TEXTS, ROWS)
    torch.testing.assert_close(verdict.scores, torch.tensor(expected), equal_nan=True)
    spread = [note["std"] for note in verdict.notes]
    assert spread[0] == pytest.approx([math.sqrt(8 / 3), math.sqrt(8)])
    assert spread[1] == [pytest.approx(math.sqrt(1 / 6)), None]


def test_preferences_are_averaged_where_all_have_one():
    halves, ones = torch.full((2, 2, 2), 0.5), torch.ones(2, 2, 2)
    both = Ensemble((member(SAID[1], halves), member(SAID[2], ones)))(PROMPTS, TEXTS, ROWS)
    assert torch.equal(both.preference, torch.full((2, 2, 2), 0.75))
    assert Ensemble((member(SAID[1], halves), member(SAID[2])))(PROMPTS, TEXTS, ROWS).preference is None


def test_notes_of_the_members_are_kept():
    verdict = Ensemble((member(SAID[1], notes=[{"why": "x"}, {}]), member(SAID[2])))(PROMPTS, TEXTS, ROWS)
    assert [note["members"] for note in verdict.notes] == [[{"why": "x"}, {}], [{}, {}]]


@pytest.mark.parametrize(
    ("combine", "safe"),
    [
        ("mean", [[2, 0], [0.5, 1]]),
        ("min", [[1, -4], [0, 1]]),
        ("lcb", [[2 - 0.25, 0 - 0.25 * 16], [0.5 - 0.25 / 4, 1]]),
    ],
)
def test_named_scores_and_steps_are_combined_as_scores_are(combine, safe):
    """A name counts over those that give it; a member without steps gives 0 to each."""
    one = Verdict(torch.zeros(2, 2), named={"safe": torch.tensor([[1.0, -4.0], [0.0, 1.0]]), "kind": torch.ones(2, 2)})
    other = Verdict(
        torch.zeros(2, 2), named={"safe": torch.tensor([[3.0, 4.0], [1.0, 1.0]])}, steps=[[[2.0, 5.0], []]] * 2
    )
    third = Verdict(torch.zeros(2, 2), steps=[[[1.0, -1.0], []]] * 2)
    verdict = Ensemble((lambda *_: one, lambda *_: other), combine, lam=0.25)(PROMPTS, TEXTS, ROWS)
    assert verdict.named["safe"].tolist() == safe
    assert torch.equal(verdict.named["kind"], torch.ones(2, 2))
    everyone = Ensemble((lambda *_: one, lambda *_: other, lambda *_: third), combine, lam=0.25)(PROMPTS, TEXTS, ROWS)
    values = torch.tensor([[0.0, 0.0], [2.0, 5.0], [1.0, -1.0]])
    by_hand = {
        "mean": values.mean(0),
        "min": values.amin(0),
        "lcb": values.mean(0) - 0.25 * values.var(0, correction=0),
    }
    assert everyone.steps[0][0] == pytest.approx(by_hand[combine].tolist()) and everyone.steps[1][1] == []
    assert Ensemble((member(SAID[1]), member(SAID[2])))(PROMPTS, TEXTS, ROWS).steps is None
    odd = Verdict(torch.zeros(2, 2), steps=[[[1.0], []]] * 2)
    with pytest.raises(PrefoptError, match="members give 1 and 2 numbers in `steps` to completion 1 of prompt 1"):
        Ensemble((lambda *_: other, lambda *_: odd), combine)(PROMPTS, TEXTS, ROWS)


def test_transforms_change_scores_alone():
    given = Verdict(torch.full((2, 2), 9.0), named={"safe": torch.full((2, 2), 9.0)}, steps=[[[9.0]] * 2] * 2)
    verdict = Transformed(lambda *_: given, (Clip(high=1.0),))(PROMPTS, TEXTS, ROWS)
    assert verdict.scores.eq(1).all() and verdict.named == given.named and verdict.steps == given.steps


def test_what_is_wrong_names_the_member():
    with pytest.raises(PrefoptError, match=r"\(member 2\) returned scores of shape \[2, 1\]"):
        Ensemble((member(SAID[0]), member([[1.0], [2.0]])))(PROMPTS, TEXTS, ROWS)
    with pytest.raises(ValueError, match="at least two members, not 1"):
        Ensemble((member(SAID[0]),))
    with pytest.raises(ValueError, match="'median'"):
        Ensemble((member(SAID[0]),) * 2, "median")


def test_fits_and_restores_its_members():
    def make():
        normal = Transformed(member(SAID[1]), (ReferenceNormalise(), Normalise()))
        return Ensemble((normal, Transformed(member(SAID[2]), (Clip(0.0, 1.0),))))

    one, other = make(), make()
    outer = Transformed(one)
    assert outer.unfitted
    outer.fit(PROMPTS, TEXTS, ROWS)
    assert not outer.unfitted
    outer(PROMPTS, TEXTS, ROWS)
    Transformed(other).load_state_dict(outer.state_dict())
    assert state_of(one) == state_of(other)
    assert state_of(one)["members"][0]["transforms"][1]["count"] == 4
    with pytest.raises(PrefoptError, match="a state of 2 members for a feedback Ensemble of 3"):
        restore(Ensemble((*one.members, member(SAID[0]))), state_of(one))
