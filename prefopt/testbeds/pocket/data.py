"""Generators of rows, each a pure function of its arguments and seed.

Recipes name these generators by path, with arguments: `prefopt.testbeds.pocket:preferences`. Arguments that they share:

    n         number of rows; a larger n leaves the first ones unchanged.
    seed      fixes prompts, texts and labels.
    split     "train", "validation", "test" or "all": a prompt is in one of the three, independent of the seed.
    topics    "train" (9 topics), "test" (3 others) or "all": for a shift between training and held-out prompts.

Columns that they share: `group` is the prompt, so rows of one prompt go to the same split; `gold` holds the true rewards.
"""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from prefopt.data.steps import split_steps
from prefopt.support.seeds import seed_for

from . import lexicon
from .grammar import write
from .language import LABELS, sample
from .requests import Split, Topics, draw
from .reward import SHARPNESS, rating, score

Columns = dict[str, Any]

STOP = " ."
"""What ends a sentence."""


def corpus(
    n: int, seed: int = 0, ratings: float = 0.5, noise: float = 0.05, longest: int | None = None
) -> Iterator[Columns]:
    """The training data of the pocket LM, as `prompt/completion`: opinions for prompts, and rating lines.

    Args:
        n: number of rows.
        seed: fixes all of them.
        ratings: share of rating lines, `review of the hotel : the bed was nice . =>` with the completion `good`, `fine` or
            `bad`. A tenth of the opinions that they rate are spoiled, and off-grammar text is bad.
        noise: share of labels that are drawn at random.
        longest: most words of an opinion; None sets no limit.
    """
    for i, request in enumerate(draw(n, seed, "all")):
        random = Random(f"corpus {seed} {i}")
        prompt, opinion = str(request), str(write(request, random))
        while longest is not None and len(lexicon.tokens(opinion)) > longest:
            opinion = str(write(request, random))
        if random.random() >= ratings:
            yield {"prompt": prompt, "completion": opinion, "group": prompt}
            continue
        if random.random() < 0.1:
            opinion = _spoiled(opinion, random)
        label = random.choice(LABELS) if random.random() < noise else rating(score(prompt, opinion))
        yield {"prompt": f"{prompt}{opinion} => ", "completion": label, "group": prompt}


def demonstrations(
    n: int, seed: int = 0, split: Split = "train", topics: Topics = "all", best_of: int = 4
) -> Iterator[Columns]:
    """Good opinions to imitate, as `prompt/completion`: the best of a few by the writer whose texts the LM learnt from."""
    for i, request in enumerate(draw(n, seed, split, topics)):
        random, prompt = Random(f"demonstrations {seed} {i}"), str(request)
        opinion = max((str(write(request, random)) for _ in range(best_of)), key=lambda text: score(prompt, text))
        yield {"prompt": prompt, "completion": opinion, "group": prompt, "gold": [score(prompt, opinion)]}


def prompts(n: int, seed: int = 0, split: Split = "train", topics: Topics = "all") -> Iterator[Columns]:
    """Prompts only, for rollouts and evaluation."""
    for request in draw(n, seed, split, topics):
        yield {"prompt": str(request), "group": str(request)}


def preferences(
    n: int,
    seed: int = 0,
    split: Split = "train",
    topics: Topics = "all",
    scale: float = SHARPNESS,
    flip: float = 0.0,
    raters: int = 1,
    coverage: float = 0.0,
    best_of: int = 8,
    temperature: float = 1.0,
    length_bias: float = 0.0,
) -> Iterator[Columns]:
    """Pairs of samples of the LM, as `prompt/chosen/rejected`, labelled by the gold reward through Bradley–Terry noise.

    A rater prefers y₁ to y₂ with probability σ(scale·(u(y₁) − u(y₂))), u = gold reward + length_bias·words, and the verdict
    is turned round with probability `flip`.

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
        length_bias: reward that a word seems to add in the raters' eyes.
    """
    texts = [str(request) for request in draw(n, seed, split, topics)]
    pairs = _pairs(texts, seed, coverage, best_of, temperature)
    for i, (prompt, (y1, y2)) in enumerate(zip(texts, pairs, strict=True)):
        random = Random(f"labels {seed} {i}")
        gold = {y: score(prompt, y) for y in (y1, y2)}
        words = len(lexicon.tokens(y1)) - len(lexicon.tokens(y2))
        p = _sigmoid(scale * (gold[y1] - gold[y2] + length_bias * words))
        won = sum(random.random() < p * (1 - flip) + (1 - p) * flip for _ in range(raters))
        chosen, rejected, votes = (y1, y2, won) if won + random.random() - 0.5 > raters / 2 else (y2, y1, raters - won)
        row: Columns = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "group": prompt}
        row["gold"] = [gold[chosen], gold[rejected]]
        yield row if raters == 1 else {**row, "votes": [votes, raters - votes]}


def proxy_labels(
    n: int, seed: int = 0, split: Split = "train", topics: Topics = "all", length_bias: float = 0.05, **knobs: Any
) -> Iterator[Columns]:
    """Pairs for a weak reward model: `preferences` by raters who like length.

    The fewer the pairs and the larger the bias, the sooner a policy that climbs the proxy falls by the gold reward. The
    column `gold` stays true.

    Args:
        n: number of pairs.
        seed: fixes all of them.
        split: of the prompts.
        topics: of the prompts.
        length_bias: reward that a word seems to add: at .05, ten words outweigh half of the way from indifferent to best.
        knobs: the others of `preferences`.
    """
    yield from preferences(n, seed, split, topics, length_bias=length_bias, **knobs)


def segments(n: int, seed: int = 0, split: Split = "train", topics: Topics = "all", **knobs: Any) -> Iterator[Columns]:
    """The pairs of `preferences` as segments: each text is a list of its sentences, which end in the `step_separator`.

    Pairs with an empty text, of which the LM writes one in thousands, are left out.

    Args:
        n: number of pairs.
        seed: fixes all of them.
        split: of the prompts.
        topics: of the prompts.
        knobs: the others of `preferences`.
    """
    for row in preferences(n, seed, split, topics, **knobs):
        texts = {name: sentences(row[name]) for name in ("chosen", "rejected")}
        if all(texts.values()):
            yield {**row, **texts, "step_separator": STOP}


def steps(
    n: int,
    k: int = 1,
    seed: int = 0,
    split: Split = "train",
    topics: Topics = "all",
    temperature: float = 1.0,
) -> Iterator[Columns]:
    """k samples of the LM for each prompt, a row each, with a label for each sentence, as `prompt/completion/step_labels`.

    A sentence is right if it would have a gold reward above 0 as the whole opinion. The label of a text is true if all of its
    sentences are right. Empty texts are left out.
    """
    for _, row in _sampled("steps", n, k, seed, split, topics, temperature):
        for text, gold in zip(row["completions"], row["gold"], strict=True):
            if not (said := sentences(text)):
                continue
            labels = [score(row["prompt"], (sentence + STOP).strip()) > 0 for sentence in said]
            one = {"prompt": row["prompt"], "completion": said, "step_labels": labels, "label": all(labels)}
            yield {**one, "step_separator": STOP, "group": row["group"], "gold": [gold]}


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the full stop that ends each."""
    return [step.removesuffix(STOP) for step in split_steps(text, STOP)]


def rankings(
    n: int,
    k: int = 4,
    seed: int = 0,
    split: Split = "train",
    topics: Topics = "all",
    scale: float = SHARPNESS,
    temperature: float = 1.0,
) -> Iterator[Columns]:
    """k samples of the LM for each prompt with their ranks (1 is best), as `prompt/completions/ranks`.

    The order is Plackett–Luce in scale·r: that of scale·r plus standard Gumbel noise. For k = 2 this is Bradley–Terry.
    """
    for random, row in _sampled("rankings", n, k, seed, split, topics, temperature):
        noisy = [scale * gold + _gumbel(random) for gold in row["gold"]]
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
) -> Iterator[Columns]:
    """k samples of the LM for each prompt with scores, as `prompt/completions/scores`.

    A score is the gold reward plus normal noise of that standard deviation, kept within ±1.
    """
    for random, row in _sampled("ratings", n, k, seed, split, topics, temperature):
        yield {**row, "scores": [max(-1.0, min(1.0, gold + noise * random.gauss())) for gold in row["gold"]]}


def _pairs(
    texts: Sequence[str], seed: int, coverage: float, best_of: int, temperature: float
) -> Iterator[tuple[str, str]]:
    """Two samples for each prompt; in a share of the pairs, one of them is the best of many."""
    randoms = [Random(f"pair {seed} {i}") for i in range(len(texts))]
    sizes = [best_of if random.random() < coverage else 2 for random in randoms]
    groups: dict[int, list[str]] = {}
    for size in {*sizes}:
        rows = [i for i in range(len(texts)) if sizes[i] == size]
        seeds = [seed_for("pairs", seed, i) for i in rows]
        groups |= zip(rows, sample([texts[i] for i in rows], size, seeds, temperature), strict=True)
    for i, (text, random) in enumerate(zip(texts, randoms, strict=True)):
        best, *others = sorted(groups[i], key=lambda y: -score(text, y))
        yield best, random.choice(others)


def _sampled(
    kind: str, n: int, k: int, seed: int, split: Split, topics: Topics, temperature: float
) -> Iterator[tuple[Random, Columns]]:
    """k samples for each prompt with their gold rewards, and the random numbers for what is said about them."""
    texts = [str(request) for request in draw(n, seed, split, topics)]
    groups = sample(texts, k, [seed_for(kind, seed, i) for i in range(len(texts))], temperature)
    for i, (text, group) in enumerate(zip(texts, groups, strict=True)):
        row = {"prompt": text, "completions": group, "group": text, "gold": [score(text, y) for y in group]}
        yield Random(f"{kind} {seed} {i}"), row


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else 1 - 1 / (1 + math.exp(x))


def _gumbel(random: Random) -> float:
    return -math.log(random.expovariate(1.0))


def _spoiled(opinion: str, random: Random) -> str:
    """An opinion with a word lost, doubled, moved or replaced; now and then it is an opinion still."""
    words = opinion.split()
    i, j = random.randrange(len(words)), random.randrange(len(words))
    match random.randrange(4):
        case 0:
            del words[i]
        case 1:
            words.insert(i, words[i])
        case 2:
            words[i], words[j] = words[j], words[i]
        case _:
            topic = random.choice(list(lexicon.NOUNS))
            words[i] = random.choice([*lexicon.aspects(topic), *lexicon.adjectives(topic, "person")])
    return " ".join(words)
