"""Human-rated film snippets as preference data.

`movies.jsonl` (10,605 snippets, each rated −4..4 by about 15 people; Hutto & Gilbert, "VADER", ICWSM 2014) is made from a PyPI
package; recipes/movies/README.md says how. A snippet belongs to train, validation or test by a hash of its text, so that pairs
of different parts never share one.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

PARTS = (("train", 0.8), ("validation", 0.9), ("test", 1.0))
ASKS = ("Write", "Give me", "Compose", "Quote")
WHATS = ("one sentence", "a line", "a snippet", "a short remark")
WHERES = ("from a film review", "about a movie", "by a film critic", "on a film you have seen")
KINDS = (
    "",
    ", a comedy",
    ", a thriller",
    ", a drama",
    ", a documentary",
    ", a love story",
    ", a sequel",
    ", a film for children",
)


def pairs(
    file: str,
    part: str,
    gap: float = 0.0,
    rounds: int = 1,
    seed: int = 0,
    ask: bool = True,
    raters: str = "all",
    half: str = "both",
) -> Iterator[dict[str, Any]]:
    """Two snippets each, the one with the higher mean rating chosen.

    Args:
        file: movies.jsonl.
        part: train, validation or test.
        gap: smallest difference of the mean ratings.
        rounds: times that each snippet is paired, every time anew.
        seed: of the pairing.
        ask: under a request for a snippet, as a language model sees it; otherwise the bare text, as a scorer does.
        raters: all, or every other one of each snippet's: even or odd.
        half: of the part's snippets: first, second or both. A reward model and the gold scorer that judges what a policy made
            of it share neither raters nor snippets.

    `preference` is the chance that a rater of one snippet rates it higher than a rater of the other does, ties ½.
    """
    snippets = [s for s in read(file, raters) if part_of(s["text"]) == part and half in ("both", half_of(s["text"]))]
    for number in range(rounds):
        random.Random(f"{seed} {part} {number}").shuffle(snippets)
        for one, other in zip(snippets[::2], snippets[1::2], strict=False):
            if abs(one["rating"] - other["rating"]) < max(gap, 1e-9):
                continue
            chosen, rejected = sorted((one, other), key=lambda s: -s["rating"])
            yield {
                "prompt": request(chosen["text"] + rejected["text"]) if ask else "",
                "chosen": (" " if ask else "") + chosen["text"],
                "rejected": (" " if ask else "") + rejected["text"],
                "score_chosen": chosen["rating"],
                "score_rejected": rejected["rating"],
                "preference": beats(chosen["ratings"], rejected["ratings"]),
                "group": f"{chosen['text']} | {rejected['text']}",
            }


def demonstrations(file: str, part: str) -> Iterator[dict[str, Any]]:
    """Every snippet of a part under a request for one."""
    for snippet in read(file):
        if part_of(snippet["text"]) == part:
            text = snippet["text"]
            yield {"prompt": request(text), "completion": f" {text}", "group": text}


def requests(part: str) -> Iterator[dict[str, Any]]:
    """Requests alone, for rollouts: 512 in all, of which a part has those that its hash gives it."""
    for ask, what, where, of in itertools.product(ASKS, WHATS, WHERES, KINDS):
        text = f"{ask} {what} {where}{of}:"
        if part_of(text) == part:
            yield {"prompt": text, "group": text}


def read(file: str, raters: str = "all") -> list[dict[str, Any]]:
    """All snippets that somebody rated, each text once; `rating` is the mean of these raters."""
    lines = Path(file).expanduser().read_text().splitlines()
    found = {s["text"]: s for s in map(json.loads, lines) if s["ratings"]}
    if raters == "all":
        return list(found.values())
    kept = [(s, s["ratings"][("even", "odd").index(raters) :: 2]) for s in found.values()]
    return [{**s, "ratings": own, "rating": fmean(own)} for s, own in kept if own]


def part_of(text: str) -> str:
    """Train, validation or test."""
    place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    return next(name for name, bound in PARTS if place < bound)


def half_of(text: str) -> str:
    """First or second, of any part."""
    return ("first", "second")[hashlib.blake2b(text.encode(), digest_size=8, salt=b"half").digest()[0] % 2]


def request(key: str) -> str:
    """One of 64 requests for a snippet; the key decides which."""
    draw = random.Random(key)
    return f"{draw.choice(ASKS)} {draw.choice(WHATS)} {draw.choice(WHERES)}:"


def beats(one: list[float], other: list[float]) -> float:
    """P(a rater of one gives more than a rater of the other), ties ½."""
    wins = sum((a > b) + (a == b) / 2 for a in one for b in other)
    return wins / (len(one) * len(other))


def rated(file: str, part: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Single snippets with all their ratings, in a random order, over the full range: what a judge is compared with.

    `scores` is the mean; `ratings` has the raters' own numbers.
    """
    snippets = [s for s in read(file) if part_of(s["text"]) == part]
    random.Random(f"rated {seed} {part}").shuffle(snippets)
    for snippet in snippets:
        text, ratings = snippet["text"], snippet["ratings"]
        yield {"prompt": "", "completions": [text], "scores": [snippet["rating"]], "ratings": [ratings], "group": text}


def contrasted(file: str, part: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Two snippets each at any distance of their ratings, the first of the two by chance, with all ratings."""
    snippets = [s for s in read(file) if part_of(s["text"]) == part]
    random.Random(f"contrasted {seed} {part}").shuffle(snippets)
    for one, other in zip(snippets[::2], snippets[1::2], strict=False):
        both = (one, other)
        yield {
            "prompt": "",
            "completions": [s["text"] for s in both],
            "scores": [s["rating"] for s in both],
            "ratings": [s["ratings"] for s in both],
            "group": f"{one['text']} | {other['text']}",
        }
