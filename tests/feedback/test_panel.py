import math

import pytest
import torch

from prefopt import PrefoptError, Verdict, recipe
from prefopt.feedback import Panel, check_feedback


def says(p=None, scores=None, notes=()):
    """A member that says the same of every prompt: P(first beats second), or scores."""

    def feedback(prompts, completions, rows):
        if p is None:
            return Verdict(torch.tensor([scores] * len(prompts)), None, notes)
        wins = torch.tensor([[0.5, p], [1 - p, 0.5]])
        known = math.nan if p == 0.5 and notes else p
        return Verdict(torch.tensor([[known, 1 - known]] * len(prompts)), wins.expand(len(prompts), 2, 2), notes)

    return feedback


ASKED = (["p"], [["x", "y"]], [{}])


def test_the_mean():
    verdict = Panel((says(0.9), says(0.6), says(0.3)))(*ASKED)
    assert verdict.preference[0, 0, 1].item() == pytest.approx(0.6)
    assert verdict.scores[0].tolist() == pytest.approx([0.6, 0.4])
    assert verdict.notes[0]["disagreement"] == pytest.approx(2 / 3)  # two of the three pairs of judges


@pytest.mark.parametrize("combine", ["mean", "majority", "agreement"])
def test_named_scores_and_steps_are_means_over_the_members(combine):
    one = Verdict(torch.zeros(1, 2), named={"safe": torch.tensor([[1.0, math.nan]])}, steps=[[[2.0], [4.0, 6.0]]])
    other = Verdict(torch.zeros(1, 2), named={"safe": torch.tensor([[3.0, 5.0]])})
    verdict = Panel((lambda *_: one, lambda *_: other), combine)(*ASKED)
    assert verdict.named["safe"].tolist() == [[2, 5]]
    assert verdict.steps == [[[1.0], [2.0, 3.0]]]


@pytest.mark.parametrize(("members", "won"), [((0.51, 0.52, 0.01), 1), ((0.9, 0.1), 0.5), ((0.5, 0.5, 0.4), 0)])
def test_the_majority(members, won):
    verdict = Panel(tuple(map(says, members)), "majority")(*ASKED)
    assert verdict.preference[0, 0, 1].item() == won
    assert verdict.scores[0].tolist() == [won, 1 - won]


def test_who_agrees_with_the_others_weighs_more():
    verdict = Panel((says(0.9), says(0.7), says(0.1)), "agreement")(*ASKED)
    assert verdict.notes[0]["weights"] == pytest.approx([1 / 2, 1 / 2, 0])
    assert verdict.preference[0, 0, 1].item() == pytest.approx(0.8)
    alike = Panel((says(0.9), says(0.1)), "agreement")(*ASKED)
    assert alike.notes[0]["weights"] == [1 / 2, 1 / 2]


def test_agreement_is_counted_over_all_prompts():
    def third(prompts, completions, rows):
        return [[1, 0], [0, 1], [1, 0], [0, 1]]

    verdict = Panel((says(0.9), says(0.8), third), "agreement")(*(part * 4 for part in ASKED))
    # The first two agree always with one another and on half of the prompts with the third: a = (¾, ¾, ½).
    assert verdict.notes[0]["weights"] == pytest.approx([3 / 8, 3 / 8, 2 / 8])


def test_scores_alone_prefer_the_larger():
    verdict = Panel((says(scores=[2.0, 1.0]), says(0.8)), "majority")(*ASKED)
    assert verdict.preference[0, 0, 1] == 1


def test_those_vote_who_have_a_verdict():
    silent = says(0.5, notes=({"malformed": 1},))
    verdict = Panel((silent, says(0.8)))(*ASKED)
    assert verdict.preference[0, 0, 1].item() == pytest.approx(0.8)
    assert verdict.scores[0].tolist() == pytest.approx([0.8, 0.2])
    assert verdict.notes[0]["members"] == [{"malformed": 1}, {}]
    assert "disagreement" not in verdict.notes[0]
    nobody = Panel((silent, silent), "majority")(*ASKED)
    assert nobody.scores.isnan().all()
    assert nobody.preference[0, 0, 1] == 0.5


def test_a_single_completion_has_nothing_to_vote_on():
    one = lambda p, c, r: [[1.0]]  # noqa: E731
    assert Panel((one, one))(["p"], [["x"]], [{}]).scores.tolist() == [[1.0]]
    with pytest.raises(PrefoptError, match="at least two completions"):
        Panel((one, one), "majority")(["p"], [["x"]], [{}])


def test_a_recipe_names_its_members():
    gold = recipe.Feedback(name="prefopt.testbeds.pocket:gold")
    check_feedback(recipe.Feedback(name="Panel", members=(gold, gold), combine="majority"))
    with pytest.raises(PrefoptError, match="at least two members"):
        check_feedback(recipe.Feedback(name="Panel", members=(gold,)))
    with pytest.raises(PrefoptError, match=r"members\.1"):
        check_feedback(recipe.Feedback(name="Panel", members=(gold, recipe.Feedback(name="Nobody"))))
