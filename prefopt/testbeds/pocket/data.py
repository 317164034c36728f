"""Rows in the field's formats, each a pure function of its arguments and seed.

Recipes name these generators by path, with arguments: `prefopt.testbeds.pocket:preferences`. A row of one seed does not
change when more rows are asked for.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

from . import lexicon
from .grammar import write
from .language import LABELS
from .prompts import draw
from .reward import rating, score

Row = dict[str, Any]


def corpus(n: int, seed: int = 0, ratings: float = 0.5, noise: float = 0.05) -> Iterator[Row]:
    """What the pocket LM is trained on: opinions under their prompts, and rating lines.

    Args:
        n: number of rows.
        seed: fixes all of them.
        ratings: share of rating lines, `review of the hotel : the bed was nice . =>` with the completion `good`, `fine` or
            `bad`. Some of the opinions that they rate are spoiled, and off-grammar text is bad.
        noise: share of labels that are drawn blindly.
    """
    for i, request in enumerate(draw(n, seed, "all")):
        random = Random(f"corpus {seed} {i}")
        opinion = str(write(request, random))
        if random.random() >= ratings:
            yield {"prompt": str(request), "completion": opinion, "group": str(request)}
            continue
        if random.random() < 0.1:
            opinion = _spoil(opinion, random)
        label = random.choice(LABELS) if random.random() < noise else rating(score(str(request), opinion))
        yield {"prompt": f"{request}{opinion} => ", "completion": label, "group": str(request)}


def _spoil(opinion: str, random: Random) -> str:
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
