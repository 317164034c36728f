"""Exports of annotation tools, which are refused: what the questions and fields mean was decided by whoever set them up."""

from collections.abc import Mapping

from prefopt.data.dialects.dialect import REFUSED, Dialect, refuses

ARGILLA = (
    "a record of Argilla, whose fields and questions have names of their own: say which are what by `source: {adapt: "
    "mine.py:pair}`, where mine.py has, e.g., `def pair(row): best = row['responses']['preference'][0]['value']; fields = "
    "row['fields']; other = {'response1': 'response2', 'response2': 'response1'}[best]; return {'prompt': fields['prompt'], "
    "'chosen': fields[best], 'rejected': fields[other]}`, or returns None where there is no response"
)
LABEL_STUDIO = (
    "a task of Label Studio, whose data and controls have names of their own: say which are what by `source: {adapt: "
    "mine.py:pair}`, where mine.py has, e.g., `def pair(row): side = row['annotations'][0]['result'][0]['value']['selected']; "
    "data = row['data']; one, other = ('answer1', 'answer2') if side == 'left' else ('answer2', 'answer1'); return {'prompt': "
    "data['prompt'], 'chosen': data[one], 'rejected': data[other]}`, or returns None where there is no annotation"
)

EXPORTS = (
    Dialect(
        "argilla",
        "Argilla's records, `dataset.records.to_json`",
        ("fields", "responses", "suggestions"),
        REFUSED,
        "which question chooses among which fields is not in it; the refusal has a function to begin with",
        refuses(ARGILLA),
        shape=lambda row: isinstance(row.get("fields"), Mapping),
    ),
    Dialect(
        "label-studio",
        "Label Studio's JSON export",
        ("data", "annotations"),
        REFUSED,
        "which control compares which data is not in it; the refusal has a function to begin with",
        refuses(LABEL_STUDIO),
        shape=lambda row: isinstance(row.get("data"), Mapping),
    ),
)
