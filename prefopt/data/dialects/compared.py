"""Dialects that compare two answers: HelpSteer's preferences, Safe-RLHF, summaries, the arena."""

from collections.abc import Callable, Mapping
from typing import Any

from prefopt.data.dialects.dialect import (
    Dialect,
    LeftOut,
    Row,
    answered,
    asked,
    contradicts,
    each,
    number,
    present,
    records,
    text,
)
from prefopt.data.dialects.rated import helpsteer_prompt
from prefopt.data.values import fail, list_of, plain, read_json, shown
from prefopt.types import Message

WINNERS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5, "both_bad": 0.5, "bothbad": 0.5}
"""P(A beats B), by what the arena's column `winner` says."""


def _strength(row: Row, name: str, where: str) -> list[float]:
    """Scores whose difference is how much better the second answer is, from −3 to 3."""
    strength = number(row, name, where)
    if not -3 <= strength <= 3:
        fail(where, f"{name!r} is {strength:g}; it goes from -3 (the first is much better) to 3")
    return [-strength / 2, strength / 2]


def _helpsteer3(row: Row, where: str) -> Row:
    return {
        "prompt": present(row, "context", where),
        "completions": answered([text(row, name, where) for name in ("response1", "response2")]),
        "scores": _strength(row, "overall_preference", where),
    }


def _helpsteer2(row: Row, where: str) -> Row:
    return {
        "prompt": helpsteer_prompt(text(row, "prompt", where)),
        "completions": answered([text(row, name, where) for name in ("response_1", "response_2")]),
        "scores": _strength(row, "preference_strength", where),
    }


def _saferlhf_better(row: Row, where: str) -> Row:
    return _by_id(row, "better_response_id", where)


def _saferlhf_safer(row: Row, where: str) -> Row:
    pair = _by_id(row, "safer_response_id", where)
    safer = row["safer_response_id"]
    safe = [row.get(f"is_response_{i}_safe") for i in (0, 1)]
    if safe[safer] is False and safe[1 - safer] is True:
        contradicts(
            where, f"'safer_response_id' is {safer}, and 'is_response_{safer}_safe' is false where the other's is true"
        )
    return pair


def _by_id(row: Row, name: str, where: str) -> Row:
    chosen = present(row, name, where)
    if chosen not in (0, 1):
        fail(where, f"{name!r} must be 0 or 1, not {shown(chosen)}")
    better, worse = (answered([text(row, f"response_{i}", where)])[0] for i in (chosen, 1 - chosen))
    return {"prompt": asked(text(row, "prompt", where)), "chosen": better, "rejected": worse}


def _summaries(row: Row, where: str) -> Row:
    """The prompt of a post is that of Stiennon et al., arXiv 2009.01325, B.2; that of an article TRL's, tldr_preference.py."""
    chosen = present(row, "choice", where)
    summaries = records(row, "summaries", where)
    if len(summaries) != 2 or chosen not in (0, 1):
        fail(where, f"'choice' is {shown(chosen)} among {len(summaries)} summaries; it must be 0 or 1 among 2")
    info = present(row, "info", where)
    if info.get("post") is not None:
        prompt = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:".format(
            **{name: text(info, name, where).strip() for name in ("subreddit", "title", "post")}
        )
    else:
        prompt = f"Article:\n{text(info, 'article', where).strip()}\n\nTL;DR:"
    better, worse = (" " + text(summaries[i], "text", where).strip() for i in (chosen, 1 - chosen))
    return {"prompt": prompt, "chosen": better, "rejected": worse}


def _arena(row: Row, where: str) -> Row:
    winner = text(row, "winner", where)
    if winner not in WINNERS:
        fail(where, f"'winner' is {winner!r}; it must be one of {', '.join(WINNERS)}")
    one, other = (records(row, f"conversation_{side}", where) for side in "ab")
    return _battle(one, other, WINNERS[winner], where)


def _arena_55k(row: Row, where: str) -> Row:
    won = {name: present(row, f"winner_{name}", where) for name in ("model_a", "model_b", "tie")}
    if sorted(map(str, map(int, won.values()))) != ["0", "0", "1"]:
        contradicts(
            where, f"one of winner_model_a, winner_model_b and winner_tie must be 1, and they are {list(won.values())}"
        )
    prompts, one, other = (_texts(row, name, where) for name in ("prompt", "response_a", "response_b"))
    if not len(prompts) == len(one) == len(other):
        contradicts(where, f"'prompt' has {len(prompts)} turns, 'response_a' {len(one)} and 'response_b' {len(other)}")
    preference = next(WINNERS[name] for name, value in won.items() if value)
    return _battle(_talk(prompts, one), _talk(prompts, other), preference, where)


def _texts(row: Row, name: str, where: str) -> list[Any]:
    """The turns of one side, which are a JSON list in a text."""
    value = present(row, name, where)
    return list_of(read_json(value, f"{where}: {name!r}") if isinstance(value, str) else value, name, where)


def _talk(prompts: list[Any], answers: list[Any]) -> list[Message]:
    sides = [("user", prompts), ("assistant", answers)]
    return [{"role": role, "content": side[i]} for i in range(len(prompts)) for role, side in sides]


def _battle(one: list[Row], other: list[Row], preference: float, where: str) -> Row:
    """Two conversations that begin with one prompt; what follows the first answer is each one's own."""
    sides = [
        [{"role": turn.get("role"), "content": plain(turn.get("content"))} for turn in side] for side in (one, other)
    ]
    starts = [next((i for i, turn in enumerate(side) if turn["role"] == "assistant"), len(side)) for side in sides]
    prompt = sides[0][: starts[0]]
    if not prompt or prompt != sides[1][: starts[1]]:
        contradicts(where, "the two conversations do not begin with one prompt")
    completions = [side[start:] for side, start in zip(sides, starts, strict=True)]
    if any(not side or side[-1]["role"] != "assistant" for side in completions):
        raise LeftOut("a conversation does not end with an answer")
    if any(turn["content"] in (None, "", []) for side in sides for turn in side):
        raise LeftOut("with a turn that is empty")
    return {"prompt": prompt, "completions": completions, "preference": preference}


def _is_list(name: str) -> Callable[[Row], bool]:
    return lambda row: not isinstance(row.get(name), str | Mapping)


_SAFE = ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id")

COMPARED = (
    Dialect(
        "helpsteer2-preference",
        "nvidia/HelpSteer2, its preferences",
        ("prompt", "response_1", "response_2", "preference_strength"),
        "rated",
        "the scores differ by `preference_strength`, −3 to 3; 0 is a tie",
        each(_helpsteer2),
    ),
    Dialect(
        "helpsteer3",
        "nvidia/HelpSteer3",
        ("context", "response1", "response2", "overall_preference"),
        "rated",
        "the scores differ by `overall_preference`, −3 to 3; 0 is a tie",
        each(_helpsteer3),
        shape=_is_list("context"),
    ),
    Dialect(
        "saferlhf-better",
        "PKU-Alignment/PKU-SafeRLHF",
        _SAFE,
        "paired",
        "chosen is `better_response_id`, the more helpful answer",
        each(_saferlhf_better),
    ),
    Dialect(
        "saferlhf-safer",
        "PKU-Alignment/PKU-SafeRLHF",
        _SAFE,
        "paired",
        "chosen is `safer_response_id`, the less harmful answer",
        each(_saferlhf_safer),
    ),
    Dialect(
        "summarize-from-feedback",
        "openai/summarize_from_feedback, comparisons",
        ("info", "summaries", "choice"),
        "paired",
        "chosen is the summary of `choice`; the prompt is the paper's, as text",
        each(_summaries),
    ),
    Dialect(
        "arena-55k",
        "lmsys/lmsys-arena-human-preference-55k",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        "compared",
        "whole conversations; the preference is 1, 0, or ½ of a tie",
        each(_arena_55k),
    ),
    Dialect(
        "arena",
        "lmarena-ai/arena-human-preference-100k and -140k, lmsys/chatbot_arena_conversations",
        ("conversation_a", "conversation_b", "winner"),
        "compared",
        "whole conversations; the preference is 1, 0, or ½ of a tie, also of two bad answers",
        each(_arena),
    ),
)
