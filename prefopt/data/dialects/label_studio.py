"""Tasks of Label Studio, as its JSON export has them: `data`, and `annotations` with results of controls.

As read in label-studio-sdk 2.1 (label_interface/control_tags.py) and the manual's pages of Pairwise, Ranker, Rating and Choices. A
result of Pairwise says left or right and names its own control, not which data stood there.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prefopt.data.dialects.dialect import Dialect, LeftOut, Row, each, mapping, records, text
from prefopt.data.dialects.exports import PROMPTS, TIE, choice, contents_of, counted, judged, mean, only, unclear
from prefopt.data.values import fail, list_of, number_of, shown

SIDES = ("left", "right")


class Result(NamedTuple):
    """What one control of one annotation says: its type, its value, and what it is of."""

    kind: str
    value: Any
    of: str


def _task(row: Row, where: str) -> Row:
    """One task: the answers, and the votes or mean ratings of all annotations that were not cancelled."""
    data = mapping(row, "data", where)
    given = [one for one in records(row, "annotations", where) if not one.get("was_cancelled")]
    annotations = list(filter(None, (_results(one, where) for one in given)))
    if not annotations:
        raise LeftOut("without an annotation")
    by_control: dict[str, list[list[Result]]] = {}
    for one in annotations:
        for control, results in one.items():
            by_control.setdefault(control, []).append(results)
    parts = contents_of(data)
    # Ratings have a control for each answer, and all of them are one question.
    ratings = {
        c: rs for c, rs in by_control.items() if all(r.kind == "rating" and r.of in parts for one in rs for r in one)
    }
    judging = [control for control, results in by_control.items() if _judges(results, parts)]
    if ratings and not judging:
        return _rated([r for results in ratings.values() for one in results for r in one], parts, where)
    control = only([*judging, *ratings], list(by_control), where, "controls")
    if any(len(one) > 1 for one in by_control[control]):
        unclear(where, f"{control!r} has several results in one annotation")
    votes = [one[0] for one in by_control[control]]
    if votes[0].kind == "ranker":
        return _ranked(control, votes, data, where)
    return _chosen(control, [_side(vote, where) for vote in votes], votes[0].of, parts, where)


def _results(annotation: Row, where: str) -> dict[str, list[Result]]:
    """The results of each control."""
    found: dict[str, list[Result]] = {}
    for one in records(annotation, "result", where):
        if "value" in one and "from_name" in one:  # relations between regions have neither
            kind, value = text(one, "type", where), mapping(one, "value", where)
            said = Result(kind, value.get(_KEYS.get(kind, kind)), str(one.get("to_name") or ""))
            found.setdefault(text(one, "from_name", where), []).append(said)
    return found


_KEYS = {"pairwise": "selected"}


def _judges(results: Sequence[Sequence[Result]], parts: Mapping[str, Any]) -> bool:
    """Whether a control chooses among answers, or ranks them."""
    first = [one[0] for one in results]
    if all(r.kind in ("pairwise", "ranker") for r in first):
        return True
    named = {*parts, *SIDES, TIE}
    return all(r.kind == "choices" for r in first) and any(not named.isdisjoint(_texts(r.value)) for r in first)


def _texts(value: Any) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _side(result: Result, where: str) -> str:
    """What was chosen: left, right, a name, or a tie."""
    values = _texts(result.value)
    if len(values) != 1:
        fail(where, f"a {result.kind} must have one choice, not {shown(result.value)}")
    return values[0]


def _chosen(control: str, sides: Sequence[str], of: str, parts: Mapping[str, Any], where: str) -> Row:
    listed = [name.strip() for name in of.split(",")]
    answers = listed if len(listed) > 1 and parts.keys() >= set(listed) else counted(list(parts))
    by_side = dict(zip(SIDES, answers, strict=True)) if len(answers) == 2 else {}
    values = [by_side.get(side, side) for side in sides]
    for value in values:
        if value not in answers and value != TIE:
            unclear(where, f"{control!r} chose {value!r}, and the texts of `data` that count answers are {answers}")
    return judged(parts, answers, {"votes": [choice(v, answers) for v in values]}, _prompt(parts), where)


def _ranked(control: str, results: Sequence[Result], data: Row, where: str) -> Row:
    """A Ranker over a List, whose items have an id and a body; its value has the ids, the best first."""
    lists = [
        v for v in data.values() if isinstance(v, list) and v and all(isinstance(i, Mapping) and "id" in i for i in v)
    ]
    if len(lists) != 1:
        unclear(where, f"{control!r} ranks the items of a list with ids, and `data` has {len(lists)} such lists")
    items = {str(item["id"]): text(item, "body", where) for item in lists[0]}
    votes = []
    for result in results:
        if not isinstance(result.value, Mapping) or result.value.keys() != {control}:
            unclear(
                where,
                f"{control!r} sorts into buckets, and which of them is better is not in it: {shown(result.value)}",
            )
        order = list(map(str, list_of(result.value[control], control, where)))
        if set(order) != set(items) or len(order) != len(items):
            fail(where, f"{control!r} ranks {order}, and the items are {list(items)}")
        votes.append([-order.index(name) for name in items])
    parts = {name: value for name, value in contents_of(data).items() if name not in items}
    return judged({**parts, **items}, list(items), {"votes": votes}, _prompt(parts), where)


def _rated(results: Sequence[Result], parts: Mapping[str, Any], where: str) -> Row:
    answers = [name for name in parts if any(result.of == name for result in results)]
    scores: dict[str, list[float]] = {name: [] for name in answers}
    for result in results:
        if (rating := number_of(result.value, "rating", where)) is not None:
            scores[result.of].append(rating)
    return judged(parts, answers, {"scores": [mean(scores[name]) for name in answers]}, _prompt(parts), where)


def _prompt(parts: Mapping[str, Any]) -> str:
    """The part that is called one; `data` may hold texts beside it that nobody was shown. Empty where none or several are."""
    called = [name for name in parts if name in PROMPTS]
    return called[0] if len(called) == 1 else ""


LABEL_STUDIO = Dialect(
    "label-studio",
    "Label Studio's JSON export",
    ("data", "annotations"),
    "compared, rated",
    "Pairwise, Choices and Ranker give each annotator's vote, a Rating of each answer the mean score; left is the data whose name "
    "ends in 1 or a (`answer1`), right in 2 or b; the prompt is what is called so, or the only other text",
    each(_task),
    shape=lambda row: isinstance(row.get("data"), Mapping),
)
