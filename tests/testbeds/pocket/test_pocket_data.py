import itertools
import math
from statistics import mean, stdev

import pytest

from prefopt.data.formats import recognise
from prefopt.support.errors import PrefoptError
from prefopt.testbeds import pocket
from prefopt.testbeds.pocket.lexicon import tokens
from prefopt.testbeds.pocket.requests import HELD_OUT_TOPICS, TOPICS, pool, read
from prefopt.testbeds.pocket.reward import rating, score

FORMATS = {
    "corpus": "demonstrations",
    "demonstrations": "demonstrations",
    "prompts": "prompts",
    "preferences": "paired",
    "proxy_labels": "paired",
    "rankings": "ranked",
    "ratings": "rated",
    "segments": "paired",
    "steps": "unpaired",
}


def surprise(outcomes, probabilities):
    """Standard score of a count of Bernoulli outcomes, each with its own probability."""
    variance = sum(p * (1 - p) for p in probabilities)
    return (sum(outcomes) - sum(probabilities)) / math.sqrt(variance)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_pure_in_a_known_format_and_do_not_change_when_more_are_asked_for(name, writer):
    generate = getattr(pocket, name)
    rows = list(generate(12, seed=3))
    assert rows == list(generate(30, seed=3))[:12]
    assert rows != list(generate(12, seed=4))
    assert {recognise(row) for row in rows} == {FORMATS[name]}
    assert all(row["group"] in row["prompt"] for row in rows)
    assert list(generate(0)) == []


def test_gold_is_the_true_reward_of_each_completion(writer):
    for row in pocket.preferences(20, flip=0.3):
        assert row["gold"] == [score(row["prompt"], row["chosen"]), score(row["prompt"], row["rejected"])]
    for row in itertools.chain(pocket.rankings(20, k=5), pocket.ratings(20, k=5)):
        assert row["gold"] == [score(row["prompt"], y) for y in row["completions"]]
        assert len(row["gold"]) == 5


@pytest.mark.parametrize(("scale", "flip"), [(5.0, 0.0), (1.0, 0.0), (2.0, 0.2), (5.0, 0.5)])
def test_labels_follow_bradley_terry_and_flips(writer, scale, flip):
    """Rows are split by the size of the gap, so that a wrong slope cannot hide in a right average."""
    gaps, outcomes = [], []
    for row in pocket.preferences(2400, scale=scale, flip=flip):
        gap = row["gold"][0] - row["gold"][1]
        gaps.append(abs(gap))
        outcomes.append(gap > 0)
    for low, high in ((0.01, 0.3), (0.3, 0.8), (0.8, 2)):
        inside = [i for i, gap in enumerate(gaps) if low <= gap < high]
        p = [sigmoid(scale * gaps[i]) for i in inside]
        assert len(inside) > 300
        assert abs(surprise([outcomes[i] for i in inside], [q * (1 - flip) + (1 - q) * flip for q in p])) < 3.5


def test_votes_of_several_raters(writer):
    rows = list(pocket.preferences(1500, raters=4, scale=2))
    assert {recognise(row) for row in rows} == {"paired"}
    assert all(sum(row["votes"]) == 4 and row["votes"][0] >= row["votes"][1] for row in rows)
    ties = [row for row in rows if row["votes"] == [2, 2]]
    assert abs(surprise([row["gold"][0] > row["gold"][1] for row in ties], [0.5] * len(ties))) < 3.5
    ps = [sigmoid(2 * (row["gold"][0] - row["gold"][1])) for row in rows]
    expected = [6 * p**2 * (1 - p) ** 2 for p in ps]  # binomial: two of four
    assert abs(surprise([row["votes"] == [2, 2] for row in rows], expected)) < 3.5


def test_coverage_puts_better_texts_into_the_pairs(writer):
    best = {c: mean(max(row["gold"]) for row in pocket.preferences(300, coverage=c)) for c in (0.0, 0.5, 1.0)}
    assert best[0.0] + 0.1 < best[0.5] < best[1.0] - 0.1
    other = {c: mean(min(row["gold"]) for row in pocket.preferences(300, coverage=c)) for c in (0.0, 1.0)}
    assert abs(other[1.0] - other[0.0]) < 0.25, "the other text stays an ordinary sample"


def test_length_bias_is_in_the_labels_and_not_in_gold(writer):
    def words(row):
        return len(tokens(row["chosen"])) - len(tokens(row["rejected"]))

    rows = list(pocket.proxy_labels(1500, length_bias=0.1, scale=3))
    gaps = [row["gold"][0] - row["gold"][1] for row in rows]
    utilities = [gap + 0.1 * words(row) for gap, row in zip(gaps, rows, strict=True)]
    assert abs(surprise([u > 0 for u in utilities if u], [sigmoid(3 * abs(u)) for u in utilities if u])) < 3.5
    plain = list(pocket.preferences(1500, scale=3))
    assert mean(map(words, rows)) > mean(map(words, plain)) + 2
    assert mean(gaps) < mean(row["gold"][0] - row["gold"][1] for row in plain) - 0.05
    assert [sorted((r["chosen"], r["rejected"])) for r in rows] == [sorted((r["chosen"], r["rejected"])) for r in plain]


def test_ranks_follow_plackett_luce(writer):
    firsts, probabilities = [], []
    for row in pocket.rankings(1500, k=3, scale=2):
        assert sorted(row["ranks"]) == [1, 2, 3]
        weights = [math.exp(2 * gold) for gold in row["gold"]]
        top = row["gold"].index(max(row["gold"]))
        firsts.append(row["ranks"][top] == 1)
        probabilities.append(weights[top] / sum(weights))
    assert abs(surprise(firsts, probabilities)) < 3.5


def test_ratings_have_the_noise_asked_for(writer):
    errors = [
        score - gold
        for row in pocket.ratings(500, noise=0.2)
        for score, gold in zip(row["scores"], row["gold"], strict=True)
        if abs(gold) < 0.3
    ]
    assert stdev(errors) == pytest.approx(0.2, rel=0.1)
    assert all(row["scores"] == row["gold"] for row in pocket.ratings(20, noise=0))
    assert all(-1 <= s <= 1 for row in pocket.ratings(200, noise=1) for s in row["scores"])


def test_corpus_rates_opinions_with_a_little_noise():
    rows = list(pocket.corpus(4000, ratings=0.5, noise=0.3))
    lines = [row for row in rows if row["prompt"].endswith("=> ")]
    assert len(lines) / len(rows) == pytest.approx(0.5, abs=0.03)
    right = [
        row["completion"] == rating(score(row["group"], row["prompt"].removeprefix(row["group"]).removesuffix(" => ")))
        for row in lines
    ]
    assert mean(right) == pytest.approx(1 - 0.3 * 2 / 3, abs=0.03)
    assert all(score(row["prompt"], row["completion"]) > -1 for row in rows if row not in lines)


def test_demonstrations_are_good_opinions():
    usual = mean(row["gold"][0] for row in pocket.demonstrations(500, best_of=1))
    best = [row["gold"][0] for row in pocket.demonstrations(500)]
    assert min(best) > -1
    assert mean(best) > usual + 0.3


def test_splits_are_disjoint_and_large_enough():
    for topics in TOPICS:
        parts = [set(pool(split, topics)) for split in ("train", "validation", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(pool("all", topics))
        assert len(parts[2]) >= 300
    assert not set(pool("all", "train")) & set(pool("all", "test"))
    assert len(pool("all")) == len(set(map(str, pool("all")))), "two prompts with one text"


def test_prompts_stay_in_their_split_and_topics_and_come_once_before_twice():
    size = len(pool("test", "test"))
    rows = list(pocket.prompts(2 * size, seed=1, split="test", topics="test"))
    texts = [row["prompt"] for row in rows]
    assert {read(text).topic for text in texts} == set(HELD_OUT_TOPICS)
    assert len(set(texts[:size])) == len(set(texts)) == size


@pytest.mark.parametrize(("name", "value"), [("split", "tset"), ("topics", "tset")])
def test_a_misspelt_split_names_the_nearest(name, value):
    with pytest.raises(PrefoptError, match=f"{name} is one of .*Did you mean 'test'"):
        list(pocket.prompts(1, **{name: value}))
