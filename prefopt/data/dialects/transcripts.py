"""Dialects that write conversations in a way of their own: HH, OpenAssistant, Orca pairs, UltraInteract."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from prefopt.data.dialects.dialect import (
    Dialect,
    LeftOut,
    NamedRow,
    Row,
    answered,
    asked,
    contradicts,
    each,
    present,
    records,
    text,
)
from prefopt.data.values import fail, list_of, without_arrays
from prefopt.types import Message

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""What comes before each turn in Anthropic's transcripts."""

TRUTHS = {"True", "False", "0", "1"}
"""Labels of steps, as text."""

ROLES = {"Human": "user", "Assistant": "assistant", "prompter": "user", "assistant": "assistant", "user": "user"}


def turns_of_transcript(transcript: str, where: str) -> list[Message]:
    """A transcript up to where the assistant writes, as turns.

    Raises:
        PrefoptError: it does not begin with a turn of the human.
    """
    before, *pieces = re.split(r"(?:^|\n\n)(Human|Assistant): ?", transcript)
    if before.strip() or not pieces:
        fail(where, "the transcript does not begin with 'Human:'")
    turns: list[Message] = [
        {"role": ROLES[role], "content": content.strip()}
        for role, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _hh(row: Row, where: str) -> Row:
    """Prompt and two answers, as text: the prompt is all up to the last `Assistant:` of the chosen dialogue, included.

    Cutting both where their characters begin to differ would give the words that two answers share to the prompt.

    Source: the prompt is that of eric-mitchell/direct-preference-optimization, preference_datasets.py, which keeps the pairs that
    are left out here, of which one is no answer to the prompt.
    """
    before, mark, _ = text(row, "chosen", where).rpartition(ASSISTANT)
    prompt, rejected = before + mark, text(row, "rejected", where)
    if not mark or not rejected.startswith(prompt):
        raise LeftOut("the two dialogues have not one prompt")
    pair = row["chosen"].removeprefix(prompt), rejected.removeprefix(prompt)
    if not all(answer.strip() for answer in pair):
        raise LeftOut("without an answer")
    if ASSISTANT in pair[1]:
        raise LeftOut("the rejected dialogue goes on")
    return {"prompt": prompt, "chosen": pair[0], "rejected": pair[1]}


def _hh_chat(row: Row, where: str) -> Row:
    pair = _hh(row, where)
    chosen, rejected = answered([pair["chosen"].strip(), pair["rejected"].strip()])
    return {"prompt": turns_of_transcript(pair["prompt"], where), "chosen": chosen, "rejected": rejected}


def _is_transcript(row: Row) -> bool:
    return all(isinstance(row.get(name), str) and row[name].startswith(HUMAN) for name in ("chosen", "rejected"))


def _orca(row: Row, where: str) -> Row:
    if row.get("status") == "tie":
        raise LeftOut("judged a tie")
    prompt = asked(text(row, "question" if "question" in row else "input", where), row.get("system") or "")
    chosen, rejected = answered([text(row, name, where) for name in ("chosen", "rejected")])
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _ultrainteract(row: Row, where: str) -> Row:
    turns = [(text(turn, "from", where), text(turn, "value", where)) for turn in records(row, "trajectory", where)]
    if unknown := next((role for role, _ in turns if role not in ROLES), None):
        fail(where, f"'trajectory' has a turn from {unknown!r}; it must be from user or assistant")
    chosen, rejected = answered([text(row, name, where) for name in ("chosen", "rejected")])
    prompt = [{"role": ROLES[role], "content": content} for role, content in turns]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _stepwise(row: Row, where: str) -> Row:
    labels = [bool(label) for label in list_of(row["labels"], "labels", where)]
    others = {name: value for name, value in row.items() if name not in ("completions", "labels")}
    return {**others, "completion": row["completions"], "step_labels": labels, "label": all(labels)}


def _has_steps(row: Row) -> bool:
    """Truth values for a list of texts: ratings of rivals have another name or other values."""
    labels, steps = (without_arrays(row.get(name)) for name in ("labels", "completions"))
    if not isinstance(labels, list) or not isinstance(steps, list) or len(labels) != len(steps) or not labels:
        return False
    return all(str(label) in TRUTHS for label in labels) and all(isinstance(step, str) for step in steps)


def _stepwise_whole(row: Row, where: str) -> Row:
    labels = list(present(row, "labels", where))
    return {"prompt": row["prompt"], "completion": "\n".join(row["completions"]), "label": all(labels)}


def _oasst(rows: Iterator[NamedRow], left_out: Counter[str]) -> Iterator[NamedRow]:
    """The assistant's replies to each message of a prompter's; trees are read one after another, their messages in any order."""
    for _, tree in itertools.groupby(rows, key=lambda named: present(named[1], "message_tree_id", named[0])):
        messages = {text(row, "message_id", where): (where, row) for where, row in tree}
        replies: dict[str, list[Row]] = {}
        for _, row in messages.values():
            if row.get("parent_id") is not None and row.get("role") == "assistant" and not row.get("deleted"):
                replies.setdefault(row["parent_id"], []).append(row)
        for parent, answers in replies.items():
            if parent not in messages:
                left_out["replies to a message that is not there"] += len(answers)
                continue
            where, _ = messages[parent]
            ranks = [row.get("rank") for row in answers]
            if len(answers) > 1 and len(set(ranks) - {None}) < sum(rank is not None for rank in ranks):
                contradicts(where, f"two replies have one rank: {ranks}")
            yield (
                where,
                {
                    "prompt": _thread(parent, messages),
                    "completions": answered([text(row, "text", where) for row in answers]),
                    # From 0 there; a reply without others is not ranked.
                    "ranks": [1] if len(answers) == 1 else [None if rank is None else rank + 1 for rank in ranks],
                },
            )


def _thread(last: str, messages: Mapping[str, NamedRow]) -> list[Message]:
    """The messages from the root of a tree to this one."""
    turns: list[Message] = []
    at: str | None = last
    while at is not None:
        if at not in messages or len(turns) > len(messages):
            fail(messages[last][0], f"the message {at!r} above this one is not in its tree")
        where, row = messages[at]
        role = text(row, "role", where)
        if role not in ROLES:
            fail(where, f"'role' must be prompter or assistant, not {role!r}")
        turns.append({"role": ROLES[role], "content": text(row, "text", where)})
        at = row.get("parent_id")
    return turns[::-1]


TRANSCRIPTS = (
    Dialect(
        "hh",
        "Anthropic/hh-rlhf",
        ("chosen", "rejected"),
        "paired",
        "the prompt is all up to the last `Assistant:`, as text; pairs of two prompts are left out",
        each(_hh),
        without=("prompt",),
        shape=_is_transcript,
    ),
    Dialect(
        "hh-chat",
        "Anthropic/hh-rlhf",
        ("chosen", "rejected"),
        "paired",
        "the same pairs as `hh`, as turns for a chat template",
        each(_hh_chat),
        without=("prompt",),
        recognised=False,
    ),
    Dialect(
        "oasst",
        "OpenAssistant/oasst1, OpenAssistant/oasst2",
        ("message_id", "parent_id", "message_tree_id", "role", "text", "rank"),
        "ranked",
        "the replies to each message of a prompter's, by `rank`; deleted ones are left out",
        _oasst,
    ),
    Dialect(
        "orca-pairs",
        "Intel/orca_dpo_pairs, argilla/distilabel-intel-orca-dpo-pairs",
        ("system", "chosen", "rejected"),
        "paired",
        "`system` and `question` (or `input`) are the prompt; ties are left out",
        each(_orca),
        without=("prompt",),
        shape=lambda row: isinstance(row.get("question", row.get("input")), str) and isinstance(row.get("chosen"), str),
    ),
    Dialect(
        "ultrainteract",
        "openbmb/UltraInteract_pair",
        ("trajectory", "chosen", "rejected"),
        "paired",
        "`trajectory` is the prompt",
        each(_ultrainteract),
        without=("prompt",),
    ),
    Dialect(
        "stepwise",
        "trl-lib/math_shepherd, trl-lib/prm800k and others in TRL's stepwise format",
        ("prompt", "completions", "labels"),
        "unpaired",
        "the steps are one answer, each followed by a line break (`step_separator`); `labels` are of steps, and true of the answer "
        "where all of them are",
        each(_stepwise),
        shape=_has_steps,
    ),
    Dialect(
        "stepwise-whole",
        "trl-lib/math_shepherd and others in TRL's stepwise format",
        ("prompt", "completions", "labels"),
        "unpaired",
        "the steps are one answer, a line each, labelled true where all of them are",
        each(_stepwise_whole),
        recognised=False,
    ),
)
