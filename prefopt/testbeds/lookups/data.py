"""Generators of rows, each a pure function of its arguments and seed; recipes name them by path."""

from collections.abc import Iterator
from random import Random
from typing import Any, Literal

from .world import QUESTIONS, Question, World

Columns = dict[str, Any]
Split = Literal["train", "test"]

SEARCHES = {1: (0.25, 0.75), 2: (0.25, 0.4, 0.35)}
"""By how many look-ups a question needs: how often a demonstration makes 0, 1, … of them. If some are missing, it guesses."""


def facts() -> Iterator[Columns]:
    """The texts of the world in which questions are asked, one a row."""
    for text in World().facts():
        yield {"text": text}


def questions(
    n: int | None = None, seed: int = 0, split: Split = "train", hops: int | None = None
) -> Iterator[Columns]:
    """Questions about the world, as `prompt/answer/hops`: in the test those of two look-ups that training never asks.

    Args:
        n: number of rows, which repeat the questions in another order as often as it takes; None asks each once.
        seed: fixes their order.
        split: "train" has all questions of one look-up and two thirds of those of two, "test" the rest of these.
        hops: only questions of that many look-ups.
    """
    world = World()
    for question in _asked(n, seed, split, hops):
        yield {"prompt": str(question), "answer": world.path(question)[-1], "hops": len(question.hops)}


def demonstrations(
    n: int | None = None, seed: int = 0, split: Split = "train", hops: int | None = None
) -> Iterator[Columns]:
    """Recorded episodes of somebody who often guesses rather than looks up, as `prompt/completion` of messages.

    Each is of a world of its own, so that they teach to search and to read, and not a single fact of the world in which questions
    are asked.

    Args:
        n: as in `questions`.
        seed: as in `questions`; also fixes the worlds and what is guessed.
        split: as in `questions`.
        hops: as in `questions`.
    """
    for number, question in enumerate(_asked(n, seed, split, hops)):
        random = Random(f"demonstration {seed} {number}")
        world = World(f"demonstration {seed} {number}")
        needed = len(question.hops)
        [searches] = random.choices(range(needed + 1), SEARCHES[needed])
        yield _asking(question) | {"completion": episode(world, question, searches, random)}


def preferences(n: int, seed: int = 0, split: Split = "train", hops: int | None = None) -> Iterator[Columns]:
    """Two recorded episodes of a question, as `prompt/chosen/rejected` of messages: one that looks up all, and one that guesses.

    They are of worlds of their own, as in `demonstrations`; so are its arguments.
    """
    for number, question in enumerate(_asked(n, seed, split, hops)):
        random = Random(f"preference {seed} {number}")
        world = World(f"preference {seed} {number}")
        needed = len(question.hops)
        yield _asking(question) | {
            "chosen": episode(world, question, needed, random),
            "rejected": episode(world, question, random.randrange(needed), random),
        }


def episode(world: World, question: Question, searches: int, random: Random) -> list[dict[str, str]]:
    """The messages of an episode with so many look-ups; where some are missing, the answer is drawn."""
    path = world.path(question)
    messages = []
    for relation, one, other in zip(question.hops[:searches], path, path[1:], strict=False):
        query = relation.query.format(one)
        thought = f"<think> I look for {one} </think><search> {query} </search>"
        found = f"<result>{relation.fact.format(one, other)}</result>"
        messages += [{"role": "assistant", "content": thought}, {"role": "tool", "content": found}]
    answer = path[-1] if searches == len(question.hops) else random.choice(question.hops[-1].to)
    last = f"<think> I know it </think><answer> {answer} </answer>"
    return [*messages, {"role": "assistant", "content": last}]


def _asking(question: Question) -> Columns:
    return {"prompt": [{"role": "user", "content": str(question)}]}


def _asked(n: int | None, seed: int, split: Split, hops: int | None) -> Iterator[Question]:
    pool = [q for q in QUESTIONS if q.held_out == (split == "test") and hops in (None, len(q.hops))]
    random = Random(f"questions {seed}")
    left = len(pool) if n is None else n
    while left > 0 and pool:
        random.shuffle(pool)
        yield from pool[:left]
        left -= len(pool)
