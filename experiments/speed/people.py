"""The work on a real model: SmolLM2-135M, and what people preferred, from a folder of assets (recipes/movies/README.md makes it).

chat: instruction pairs with long answers, uncut. films: pairs of snippets from reviews, a sentence each. rankings: four to nine
such snippets under one request. requests: what people asked an assistant for, for groups that the policy writes itself.
"""

import importlib.util
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prefopt.data.ordering import Shuffled
from prefopt.objectives.maths import better
from prefopt.objectives.reward.k_wise import KWise
from prefopt.types import Batch, Loss, Outputs

MODEL = "smollm2-135m-instruct"

LONGEST = 2048
"""Most tokens of a prompt with its longer answer; longer pairs are left out, none is cut."""

RANKED = range(4, 10)
"""How many completions rankings have, each number equally often in every logical batch."""

PAIRS_OF_ONE = sum(k * (k - 1) // 2 for k in RANKED) / len(RANKED)
"""Pairs that a ranking gives on average."""


def assets_of(spec: dict) -> Path:
    """The folder of assets.

    Raises:
        SystemExit: what a measurement needs is not in it.
    """
    folder = Path(spec["assets"]).expanduser()
    missing = [name for name in (MODEL, "chat.jsonl", "movies.jsonl") if not (folder / name).exists()]
    if missing:
        raise SystemExit(
            f"{folder} has no {', '.join(missing)}: recipes/movies/README.md says how to make it; or give --assets"
        )
    return folder


@cache
def tokenizer(assets: Path) -> PreTrainedTokenizerBase:
    """Of the model."""
    return AutoTokenizer.from_pretrained(assets / MODEL)


def conversations(assets: Path) -> Iterator[dict]:
    """Instruction pairs as plain text, so that both sides read the same tokens: the chat template ends an answer in a line break
    that belongs to nobody's answer."""
    with (assets / "chat.jsonl").open() as lines:
        for line in lines:
            row = json.loads(line)
            asked = tokenizer(assets).apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
            yield {"prompt": asked, **{side: row[side][0]["content"] for side in ("chosen", "rejected")}}


def chat(assets: Path, spec: dict) -> Iterator[dict]:
    """The first pairs that are not too long."""
    fitting = (row for row in conversations(assets) if longest(row, tokenizer(assets)) <= LONGEST)
    return islice(fitting, spec["pairs"])


def longest(row: dict, tokens: PreTrainedTokenizerBase) -> int:
    """Tokens of a pair's prompt with the longer answer, EOS included."""
    return max(len(tokens(row["prompt"] + row[side]).input_ids) for side in ("chosen", "rejected")) + 1


def films(assets: Path, spec: dict) -> Iterator[dict]:
    """Pairs as recipes/movies/dpo.yaml has them."""
    pairs = snippets().pairs(str(assets / "movies.jsonl"), "train", gap=1.0)
    return ({key: row[key] for key in ("prompt", "chosen", "rejected")} for row in islice(pairs, spec["pairs"]))


def requests(assets: Path, spec: dict) -> Iterator[dict]:
    """Prompts alone, of at most an eighth of the length that pairs may have."""
    fitting = (row for row in conversations(assets) if len(tokenizer(assets)(row["prompt"]).input_ids) <= LONGEST // 8)
    return islice(({"prompt": row["prompt"]} for row in fitting), spec["pairs"])


def rankings(assets: Path, spec: dict) -> Iterator[dict]:
    """Snippets with different ratings under one request. The rows are numbered so that every logical batch has each length of a
    ranking equally often, and so as many pairs as the others."""
    film = snippets()
    rated = [s for s in film.read(str(assets / "movies.jsonl")) if film.part_of(s["text"]) == "train"]
    random.Random("rankings").shuffle(rated)
    left = iter(rated)
    sizes = {
        row: RANKED[place % len(RANKED)] for place, row in enumerate(Shuffled(spec["pairs"], 0).take(spec["pairs"]))
    }
    for row in range(spec["pairs"]):
        ranking: dict[float, str] = {}
        while len(ranking) < sizes[row]:
            snippet = next(left)
            ranking.setdefault(snippet["rating"], " " + snippet["text"])
        texts = list(ranking.values())
        yield {"prompt": film.request("".join(texts)), "completions": texts, "scores": list(ranking)}


ROWS = {"chat": chat, "films": films, "rankings": rankings, "requests": requests}


def pairs_of(ranking: dict) -> list[dict]:
    """All pairs of a ranking, as a trainer that knows only pairs reads them."""
    ordered = sorted(zip(ranking["scores"], ranking["completions"], strict=True), reverse=True)
    return [
        {"prompt": ranking["prompt"], "chosen": better_one, "rejected": worse}
        for (_, better_one), (_, worse) in combinations(ordered, 2)
    ]


@cache
def snippets() -> ModuleType:
    """recipes/movies/snippets.py."""
    file = Path(__file__).parents[2] / "recipes" / "movies" / "snippets.py"
    spec = importlib.util.spec_from_file_location("snippets", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class EveryPair:
    """KWise, but each pair weighs the same, not each ranking: what pairs made of rankings are to a trainer that knows only pairs.

    Attributes:
        pairs: that a ranking has on average over every logical batch.
    """

    pairs: float = PAIRS_OF_ONE
    needs = KWise.needs
    targets = KWise.targets

    def loss(self, batch: Batch, policy: Outputs, targets: Any) -> Loss:
        """Shapes: `policy.rewards` is [B, K]; the total is [B]."""
        mean = KWise().loss(batch, policy, targets)
        return Loss(mean.total * better(batch).sum((1, 2)) / self.pairs, mean.metrics)
