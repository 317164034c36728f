"""Worlds of people, towns, countries and things, each with facts of its own, and the questions that can be asked in any of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple


def _names(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


PEOPLE = _names(
    """Ada Alan Alice Amir Ana Anton Ben Bella Boris Bruno Carla Carlos Cem Chen Clara Cora Dan Dara Diego Dina Dora Edgar Elena
    Eli Emma Enzo Erik Eva Fatou Felix Finn Flora Frida Gina Gita Greta Hana Hans Hugo Ida Igor Ilse Ines Ivan Iris Jack Jana
    Jens Jin Joan Jonas Julia Kai Karl Kate Kemal Kim Lara Lars Leo Lena Lina Lotte Luca Lucy Maja Marco Maria Max Mia Mila Mina
    Nadia Nico Nils Nina Nora Olaf Olga Omar Oscar Otto Paul Petra Pia Rami Rita Rosa Ruth Sami Sara Simon Sofia Sven Tara Theo
    Tina Tom Uma Vera"""
)
TOWNS = tuple(
    start + end
    for start in ("Al", "Bar", "Cor", "Dun", "El", "Fen", "Gar", "Hol")
    for end in ("bury", "ford", "mere", "ton", "wick")
)
COUNTRIES = tuple(start + end for start in ("Ar", "Bel", "Dor", "Kal", "Mor") for end in ("land", "mark", "nia", "via"))
THINGS = _names(
    """anchor apron axe basket bell bench bicycle blanket boat bottle bowl box brush bucket candle canoe carpet cart chair chest
    clock coat comb cup desk drum flag flute fork globe guitar hammer harp hat kettle kite knife ladder lamp lens mirror needle
    oven pan pen piano pillow plough quilt ring rope saddle saw shovel sofa spoon stove table telescope tent violin"""
)


class Relation(NamedTuple):
    """What can be looked up of something.

    Attributes:
        of: what it can be asked of.
        to: among what the answer is.
        fact: as the world's texts say it, with places for the two.
        query: what finds that text.
    """

    of: tuple[str, ...]
    to: tuple[str, ...]
    fact: str
    query: str


HOME = Relation(PEOPLE, TOWNS, "{0} lives in {1} .", "{0} lives in")
COUNTRY = Relation(TOWNS, COUNTRIES, "{0} is in {1} .", "{0} is in")
OWNER = Relation(THINGS, PEOPLE, "the {0} belongs to {1} .", "the {0} belongs to")
MAYOR = Relation(TOWNS, PEOPLE, "the mayor of {0} is {1} .", "the mayor of {0}")
RELATIONS = (HOME, COUNTRY, OWNER, MAYOR)

ASKED: Mapping[str, tuple[Relation, ...]] = {
    "where does {0} live ?": (HOME,),
    "which country is {0} in ?": (COUNTRY,),
    "who owns the {0} ?": (OWNER,),
    "who is the mayor of {0} ?": (MAYOR,),
    "which country does {0} live in ?": (HOME, COUNTRY),
    "who is the mayor where {0} lives ?": (HOME, MAYOR),
    "where does the owner of the {0} live ?": (OWNER, HOME),
    "where does the mayor of {0} live ?": (MAYOR, HOME),
}
"""Each kind of question, and what has to be looked up in turn to answer it."""


@dataclass(frozen=True)
class Question:
    """A question of a kind about something; what the answer is, a world says.

    Attributes:
        kind: a key of `ASKED`.
        about: what it is asked of.
    """

    kind: str
    about: str

    def __str__(self) -> str:
        return self.kind.format(self.about)

    @property
    def hops(self) -> tuple[Relation, ...]:
        """What has to be looked up in turn."""
        return ASKED[self.kind]

    @property
    def held_out(self) -> bool:
        """Whether it is asked in tests only: a third of the questions of two look-ups, drawn once for every world."""
        return len(self.hops) > 1 and Random(f"held out {self}").random() < 1 / 3


QUESTIONS = tuple(Question(kind, about) for kind, hops in ASKED.items() for about in hops[0].of)


class World:
    """The facts of one world, drawn from its seed: where everybody lives, what is where and whose, and who is mayor."""

    def __init__(self, seed: int | str = 0):
        self.links: dict[tuple[Relation, str], str] = {}
        for number, relation in enumerate(RELATIONS):
            random = Random(f"world {seed} {number}")
            # Each answer is as common as the others, so that a guess is no better for knowing which is common.
            answers = list(relation.to) * (len(relation.of) // len(relation.to) + 1)
            random.shuffle(answers)
            self.links |= zip(((relation, one) for one in relation.of), answers, strict=False)

    def facts(self) -> Iterator[str]:
        """What there is to be found."""
        for (relation, one), other in self.links.items():
            yield relation.fact.format(one, other)

    def path(self, question: Question) -> list[str]:
        """What the question is about, what each look-up gives, and so, last, the answer."""
        path = [question.about]
        for relation in question.hops:
            path.append(self.links[relation, path[-1]])
        return path
