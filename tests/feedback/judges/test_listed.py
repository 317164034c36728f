"""Likelihoods of labels from lists of tokens, against sums over all that a small language can say."""

import math

import pytest

from prefopt.feedback.judges.listed import label_logps

TABLES = {
    # "10" is two tokens
    "two": {"": {"1": 0.5, "2": 0.3, "x": 0.2}, "1": {"0": 0.25, ".": 0.75}},
    # "10" is a token of its own
    "one": {"": {"1": 0.4, "10": 0.1, "2": 0.3, "100": 0.2}},
    # "100" by way of "10", which is a label as well, and by no token "1"
    "three": {"": {"10": 0.4, "2": 0.6}, "10": {"0": 0.5, "5": 0.5}},
    # everything along "1"
    "deep": {"": {"1": 0.8, "2": 0.2}, "1": {"0": 0.5, "": 0.25, "7": 0.25}, "10": {"0": 0.1, "1": 0.9}},
}


def spoken(table, labels):
    """By hand: what can be said whole, with its probability, and which labels that counts for."""
    return {
        "two": {"1": 0.5, "2": 0.3, "10": 0.125},
        "one": {"1": 0.5, "2": 0.3, "10": 0.1},
        "three": {"1": 0.4, "2": 0.6, "10": 0.4, "100": 0.2},
        "deep": {"1": 0.8, "2": 0.2, "10": 0.4, "100": 0.04},
    }[table]


@pytest.mark.parametrize("table", TABLES)
def test_labels_of_one_and_several_tokens(table):
    expected = spoken(table, TABLES[table])
    looked = []

    def look(given):
        looked.append(given)
        return {token: math.log(p) for token, p in TABLES[table][given].items()}

    found = label_logps(tuple(expected), look)
    assert [math.exp(logp) for logp in found] == pytest.approx(list(expected.values()))
    assert sorted(looked) == sorted(TABLES[table])


def test_what_no_list_has_has_no_mass():
    assert label_logps(("a", "b"), lambda given: {"a": -1.0}) == (-1.0, -math.inf)
    assert label_logps(("a",), lambda given: {}) == (-math.inf,)


def test_a_longer_token_is_no_label():
    """'As an AI' does not say A."""
    assert label_logps(("A", "B"), lambda given: {"As": -0.1, "A": -2.0, "B": -3.0, "": -5.0}) == (-2.0, -3.0)


def test_no_label_is_looked_for_that_is_listed_whole():
    looked = []

    def look(given):
        looked.append(given)
        return {" ": -1.0, " yes": -2.0, " no": -2.5}

    label_logps((" yes", " no"), look)
    assert looked == [""]
