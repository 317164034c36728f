"""Records of Argilla: what `dataset.records.to_json` writes, and what its server answers (`/records?include=responses`).

As read in the sources of argilla 2.8, whose export leaves two things out: the ranks of a ranking, whose answers it lists in the
order of the question's options (records/responses: `__ranking_from_model_value`; the web page sends options and ranks), and the
status of a response. Both are in the server's own answer, so a ranking without ranks is refused and says where they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.dialects.dialect import Dialect, LeftOut, Row, each, mapping, present, records
from prefopt.data.dialects.exports import (
    PROMPTS,
    TIE,
    choice,
    contents_of,
    counted,
    judged,
    mean,
    only,
    unclear,
)
from prefopt.data.values import fail, list_of, number_of, shown

NO_RANKS = (
    "the ranking {question!r} has no ranks: Argilla's `to_json` lists the options as the question does, whatever was ranked first. "
    "The server has them: save `items` of GET /api/v1/datasets/ID/records?include=responses"
)


def _record(row: Row, where: str) -> Row:
    """One record: the answers, and the votes or the mean rating of all that responded."""
    parts = contents_of(mapping(row, "fields", where))
    responses = _responses(row, where)
    if not responses:
        raise LeftOut("without a response")
    judging = [name for name, values in responses.items() if _judges(values, parts)]
    question = only(judging, list(responses), where, "questions")
    values = responses[question]
    if isinstance(values[0], str):
        return _chosen(question, values, parts, where)
    if isinstance(values[0], Sequence):
        return _ranked(question, values, parts, where)
    return _rated(question, values, parts, where)


def _responses(row: Row, where: str) -> dict[str, list[Any]]:
    """The values of each question; the server's are by user, and those that were not submitted do not count."""
    given = present(row, "responses", where)
    if isinstance(given, Mapping):
        by_question = {name: list_of(one, f"responses.{name}", where) for name, one in given.items() if one is not None}
        return {name: [_value(one, name, where) for one in several] for name, several in by_question.items() if several}
    found: dict[str, list[Any]] = {}
    for user in records(row, "responses", where):
        if user.get("status") == "submitted":
            for name, one in mapping(user, "values", where).items():
                found.setdefault(name, []).append(_value(one, name, where))
    return found


def _value(response: Any, question: str, where: str) -> Any:
    if not isinstance(response, Mapping) or response.get("value") is None:
        fail(where, f"a response to {question!r} must have a 'value', not be {shown(response)}")
    return response["value"]


def _judges(values: Sequence[Any], parts: Mapping[str, Any]) -> bool:
    """Whether a question's values rate, or name fields."""
    if all(isinstance(value, str) for value in values):
        return any(value in parts or value == TIE for value in values)
    if rankings := [ranks for value in values if (ranks := _ranks(value))]:
        ranked = any(rank is not None for ranks in rankings for rank in ranks.values())
        return len(rankings) == len(values) and (ranked or all(ranks.keys() <= parts.keys() for ranks in rankings))
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _ranks(value: Any) -> dict[str, Any] | None:
    """The rank of each option of a ranking, None for one that has none; None of what is no ranking."""
    items = (
        [item if isinstance(item, Mapping) else {"value": item} for item in value] if isinstance(value, list) else []
    )
    if not items or not all(isinstance(item.get("value"), str) for item in items):
        return None
    return {item["value"]: item.get("rank") for item in items}


def _chosen(question: str, values: Sequence[str], parts: Mapping[str, Any], where: str) -> Row:
    answers = counted(list(parts))
    for value in values:
        if value not in answers and value != TIE:
            unclear(where, f"{question!r} is {value!r}, and the fields that count answers are {answers}")
    return judged(parts, answers, {"votes": [choice(value, answers) for value in values]}, "", where)


def _ranked(question: str, values: Sequence[Sequence[Any]], parts: Mapping[str, Any], where: str) -> Row:
    rankings = [_ranks(value) or {} for value in values]
    named = {name for ranks in rankings for name in ranks}
    answers = [name for name in parts if name in named]
    if unknown := named - set(answers):
        unclear(where, f"{question!r} ranks {sorted(unknown)}, which name no field of {sorted(parts)}")
    if any(rank is None for ranks in rankings for rank in ranks.values()):
        fail(where, NO_RANKS.format(question=question))
    numbers = [{name: number_of(rank, f"{question}.rank", where) for name, rank in one.items()} for one in rankings]
    votes = [[None if (rank := ranks.get(name)) is None else -rank for name in answers] for ranks in numbers]
    return judged(parts, answers, {"votes": votes}, "", where)


def _rated(question: str, values: Sequence[float], parts: Mapping[str, Any], where: str) -> Row:
    prompts = [name for name in parts if name in PROMPTS]
    if len(parts) != 2 or len(prompts) != 1:
        unclear(where, f"{question!r} rates one answer, and which of the fields {sorted(parts)} it is, is not in it")
    answers = [name for name in parts if name not in prompts]
    return judged(parts, answers, {"scores": [mean(values)]}, prompts[0], where)


ARGILLA = Dialect(
    "argilla",
    "Argilla's records: `dataset.records.to_json`, or the server's `/records?include=responses`",
    ("fields", "responses"),
    "compared, rated",
    "a ranking or a label whose options are names of fields gives each annotator's vote, a rating the mean score; the one field "
    "that is no answer is the prompt; a ranking without ranks, as `to_json` writes it, is refused",
    each(_record),
    shape=lambda row: isinstance(row.get("fields"), Mapping),
)
