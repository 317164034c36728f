"""Rows in the field's formats, each a pure function of its arguments and seed.

Recipes name these generators by path, with arguments: `prefopt.testbeds.pocket:preferences`. Arguments that they share:

    n         number of rows; asking for more of them changes none.
    seed      fixes prompts, texts and labels.
    split     "train", "validation", "test" or "all": a prompt is in one of the three, whatever the seed.
    topics    "train" (9 topics), "test" (3 others) or "all": for a shift between training and held-out prompts.

Columns that they share: `group` is the prompt, so that a prompt never straddles a split; `gold` holds the true rewards.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from . import lexicon
from .grammar import write
from .language import LABELS, sample
from .prompts import Split, Topics, draw
from .reward import rating, score

Row = dict[str, Any]


def corpus(n: int, seed: int = 0, ratings: float = 0.5, noise: float = 0.05) -> Iterator[Row]:
    """What the pocket LM is trained on, as `prompt/completion`: opinions under their prompts, and rating lines.

    Args:
        n: number of rows.
        seed: fixes all of them.
        ratings: share of rating lines, `review of the hotel : the bed was nice . =>` with the completion `good`, `fine` or
            `bad`. A tenth of the opinions that they rate are spoiled, and off-grammar text is bad.
        noise: share of labels that are drawn blindly.
    """
    for i, request in enumerate(draw(n, seed, "all")):
        random = Random(f"corpus {seed} {i}")
        prompt, opinion = str(request), str(write(request, random))
        if random.random() >= ratings:
            yield {"prompt": prompt, "completion": opinion, "group": prompt}
            continue
        if random.random() < 0.1:
            opinion = _spoiled(opinion, random)
        label = random.choice(LABELS) if random.random() < noise else rating(score(prompt, opinion))
        yield {"prompt": f"{prompt}{opinion} => ", "completion": label, "group": prompt}


def demonstrations(
    n: int, seed: int = 0, split: Split = "train", topics: Topics = "all", best_of: int = 4
) -> Iterator[Row]:
    """Good opinions to imitate, as `prompt/completion`: the best of a few by the writer whose texts the LM learnt from."""
    for i, request in enumerate(draw(n, seed, split, topics)):
        random, prompt = Random(f"demonstrations {seed} {i}"), str(request)
        opinion = max((str(write(request, random)) for _ in range(best_of)), key=lambda text: score(prompt, text))
        yield {"prompt": prompt, "completion": opinion, "group": prompt, "gold": [score(prompt, opinion)]}


def prompts(n: int, seed: int = 0, split: Split = "train", topics: Topics = "all") -> Iterator[Row]:
    """Prompts alone, for rollouts and for evaluation."""
    for request in draw(n, seed, split, topics):
        yield {"prompt": str(request), "group": str(request)}


def preferences(
    n: int,
    seed: int = 0,
    split: Split = "train",
    topics: Topics = "all",
    scale: float = 5.0,
    flip: float = 0.0,
    raters: int = 1,
    coverage: float = 0.0,
    best_of: int = 8,
    temperature: float = 1.0,
) -> Iterator[Row]:
    """Pairs of samples of the LM, as `prompt/chosen/rejected`, labelled by the gold reward through Bradley–Terry noise.

    A rater prefers y₁ to y₂ with probability σ(scale·(r(y₁) − r(y₂))), turned round with probability `flip`.

    Args:
        n: number of pairs.
        seed: fixes all of them.
        split: of the prompts.
        topics: of the prompts.
        scale: how sharply a rater sees; at 5, the labels of about 85% of the pairs agree with the gold reward.
        flip: share of verdicts that are turned round, whatever the rewards: what robust losses assume.
        raters: who each give a verdict; the majority chooses. With more than one, a column `votes` has [chosen, rejected].
        coverage: share of the pairs in which one text is the best of `best_of` samples, so that the data show what good
            looks like. At 0, all are single samples.
        best_of: see `coverage`.
        temperature: of the samples; below 1, the data cover less.
    """
    yield from _pairs(n, seed, split, topics, scale, flip, raters, coverage, best_of, temperature, lambda gold, text: gold)


def proxy_labels(
    n: int, seed: int = 0, split: Split = "train", topics: Topics = "all", length_bias: float = 0.05, **knobs: Any
) -> Iterator[Row]:
    """Pairs for a weak reward model: `preferences` by raters who take r + length_bias·words for the reward.

    The fewer the pairs and the larger the bias, the sooner a policy that climbs the proxy falls by the gold reward. The
    column `gold` stays true.

    Args:
        n: number of pairs.
        seed: fixes all of them.
        split: of the prompts.
        topics: of the prompts.
        length_bias: reward that a word seems to add. .05 for ten words is half of the way from indifferent to best.
        knobs: those of `preferences`.
    """
    settings = {"scale": 5.0, "flip": 0.0, "raters": 1, "coverage": 0.0, "best_of": 8, "temperature": 1.0, **knobs}
    yield from _pairs(
        n, seed, split, topics, **settings, utility=lambda gold, text: gold + length_bias * len(lexicon.tokens(text))
    )


def rankings(
    n: int,
    k: int = 4,
    seed: int = 0,
    split: Split = "train",
    topics: Topics = "all",
    scale: float = 5.0,
    temperature: float = 1.0,
) -> Iterator[Row]:
    """k samples of the LM for each prompt with their ranks (1 is best), as `prompt/completions/ranks`.

    The order is Plackett–Luce in scale·r: that of scale·r plus standard Gumbel noise. For k = 2 this is Bradley–Terry.
    """
    for random, row in _sampled("rankings", n, k, seed, split, topics, temperature):
        noisy = [scale * gold - math.log(-math.log(_open(random))) for gold in row["gold"]]
        best_first = sorted(range(k), key=lambda j: -noisy[j])
        yield {**row, "ranks": [best_first.index(j) + 1 for j in range(k)]}


def ratings(
    n: int,
    k: int = 4,
    seed: int = 0,
    split: Split = "train",
    topics: Topics = "all",
    noise: float = 0.1,
    temperature: float = 1.0,
) -> Iterator[Row]:
    """k samples of the LM for each prompt with scores, as `prompt/completions/scores`.

    A score is the gold reward plus normal noise of that standard deviation, kept within ±1.
    """
    for random, row in _sampled("ratings", n, k, seed, split, topics, temperature):
        yield {**row, "scores": [max(-1.0, min(1.0, gold + noise * random.gauss())) for gold in row["gold"]]}


def _pairs(
    n: int,
    seed: int,
    split: Split,
    topics: Topics,
    scale: float,
    flip: float,
    raters: int,
    coverage: float,
    best_of: int,
    temperature: float,
    utility: Callable[[float, str], float],
) -> Iterator[Row]:
    texts = [str(request) for request in draw(n, seed, split, topics)]
    pairs = _drawn_pairs(texts, seed, coverage, best_of, temperature)
    for i, (prompt, pair) in enumerate(zip(texts, pairs, strict=True)):
        random = Random(f"labels {seed} {i}")
        gold = [score(prompt, text) for text in pair]
        margin = scale * (utility(gold[0], pair[0]) - utility(gold[1], pair[1]))
        p = flip + (1 - 2 * flip) / (1 + math.exp(-margin))
        votes = sum(random.random() < p for _ in range(raters))
        first = votes > raters / 2 if votes != raters / 2 else random.random() < 0.5
        a, b = (0, 1) if first else (1, 0)
        row = {"prompt": prompt, "chosen": pair[a], "rejected": pair[b], "group": prompt, "gold": [gold[a], gold[b]]}
        yield row if raters == 1 else {**row, "votes": [votes, raters - votes] if first else [raters - votes, votes]}


def _drawn_pairs(
    texts: Sequence[str], seed: int, coverage: float, best_of: int, temperature: float
) -> list[tuple[str, str]]:
    """Two different samples for each prompt; in a share of them, the first is the best of many."""
    improved = [Random(f"coverage {seed} {i}").random() < coverage for i in range(len(texts))]
    groups: list[list[str]] = [[] for _ in texts]
    for chosen, many in ((True, max(best_of, 2)), (False, 2)):
        rows = [i for i in range(len(texts)) if improved[i] == chosen]
        drawn = sample([texts[i] for i in rows], many, [_seed(seed, i) for i in rows], temperature)
        for i, group in zip(rows, drawn, strict=True):
            groups[i] = sorted(group, key=lambda text: -score(texts[i], text)) if chosen else group  # noqa: B023
    return [_two(group, Random(f"pair {seed} {i}")) for i, group in enumerate(groups)]
