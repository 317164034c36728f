"""Exports of annotation tools, whose fields and questions are named by whoever set them up.

Read is what the values themselves say: which answers a choice, a ranking or a rating is of, and which text is left for a prompt.
Where more than one reading is possible, the row is refused, with what could not be told.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from prefopt.data.dialects.dialect import Row, answered, asked
from prefopt.data.values import fail
from prefopt.types import Message

PROMPTS = ("prompt", "instruction", "question", "input", "query")
"""Names that only a prompt has."""

TIE = "tie"

NUMBERED = re.compile(r"(.+?)(?:[-_ ]?(\d+)|[-_ ]([a-h])|([A-H])|[-_ ]([A-H]))")
"""response1, answer_2, text-a, responseB: a stem, and what counts."""

SAY = (
    "Say which is which by `source: {adapt: mine.py:pair}`, where mine.py has, e.g., `def pair(row): …; return {'prompt': …, "
    "'chosen': …, 'rejected': …}`, or returns None to leave a row out"
)


def unclear(where: str, what: str) -> NoReturn:
    """Refuse a row that can be read in more than one way, or in none."""
    fail(where, f"{what}. {SAY}")


def contents_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that can be a prompt or an answer: texts, and conversations."""
    return {name: value for name, value in parts.items() if isinstance(value, str) or _is_chat(value)}


def counted(names: Sequence[str]) -> list[str]:
    """Those that count answers (response1, response2), in the order of their numbers or letters; none where it is not one group."""
    groups: dict[str, list[tuple[int, str, str]]] = {}
    for name in names:
        if match := NUMBERED.fullmatch(name):
            stem, number, *letters = match.groups()
            letter = next(filter(None, letters), "")
            groups.setdefault(stem, []).append((int(number or 0), letter, name))
    several = [group for group in groups.values() if len(group) > 1]
    return [name for _, _, name in sorted(several[0])] if len(several) == 1 else []


def judged(
    parts: Mapping[str, Any], answers: Sequence[str], judgement: Mapping[str, Any], prompt: str, where: str
) -> Row:
    """A row of a format: the prompt, the answers as turns, and what was said of them.

    Args:
        parts: texts and conversations by name.
        answers: the names of those that are answers.
        judgement: `votes` or `scores`.
        prompt: the name of the prompt; empty takes the only part that is no answer.
        where: how messages name the row.
    """
    if not prompt:
        others = [name for name in parts if name not in answers]
        if len(others) != 1:
            unclear(where, f"of {sorted(parts)}, the answers are {list(answers)}, and one other must be the prompt")
        prompt = others[0]
    texts = [parts[name] if _is_chat(parts[name]) else answered([parts[name]])[0] for name in answers]
    return {"prompt": _asked(parts[prompt]), "completions": texts, **judgement}


def mean(values: Sequence[float]) -> float | None:
    """None where there are none."""
    return sum(values) / len(values) if values else None


def choice(value: str, answers: Sequence[str]) -> list[float]:
    """One annotator's vote for an answer, or for none of them."""
    return [float(value == name) for name in answers]


def only(found: Sequence[str], all_of: Sequence[str], where: str, what: str) -> str:
    """The one question that judges answers."""
    if not found:
        unclear(where, f"none of the {what} {sorted(all_of)} chooses among texts by their names, ranks or rates them")
    if len(found) > 1:
        unclear(where, f"the {what} {sorted(found)} all judge answers, and only one can be learnt from")
    return found[0]


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, Mapping) and "role" in t for t in value)


def _asked(prompt: Any) -> list[Message]:
    return prompt if _is_chat(prompt) else asked(prompt)
