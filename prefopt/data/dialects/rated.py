"""Dialects that rate or rank each answer: UltraFeedback, HelpSteer, Nectar, SHP, WebGPT."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prefopt.data.dialects.dialect import (
    Dialect,
    LeftOut,
    NamedRow,
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
from prefopt.data.dialects.transcripts import HUMAN, turns_of_transcript
from prefopt.data.values import fail, number_of
from prefopt.types import Message

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
"""What UltraFeedback rates, each from 1 to 5 or N/A."""


def _ultrafeedback_overall(row: Row, where: str) -> Row:
    return _ultrafeedback(row, where, lambda answer: number_of(answer.get("overall_score"), "overall_score", where))


def _ultrafeedback_aspects(row: Row, where: str) -> Row:
    return _ultrafeedback(row, where, lambda answer: _mean_rating(answer, where))


def _ultrafeedback(row: Row, where: str, score: Callable[[Row], float | None]) -> Row:
    answers = records(row, "completions", where)
    if not answers:
        raise LeftOut("without completions")
    scores = [score(answer) for answer in answers]
    if all(one is None for one in scores):
        fail(where, "no completion has a score; every row of this dialect has some")
    texts = [text(answer, "response", where) for answer in answers]
    return {"prompt": asked(text(row, "instruction", where)), "completions": answered(texts), "scores": scores}


def _mean_rating(answer: Row, where: str) -> float | None:
    """The mean of what the aspects are rated, as `fine-grained_score` has it; None where none is."""
    annotations = present(answer, "annotations", where)
    ratings = [(annotations.get(aspect) or {}).get("Rating") for aspect in ASPECTS]
    numbers = [float(rating) for rating in ratings if rating is not None and re.fullmatch(r"\d+(\.\d+)?", str(rating))]
    return math.fsum(numbers) / len(numbers) if numbers else None


def _helpsteer(rows: Iterator[NamedRow], left_out: Counter[str]) -> Iterator[NamedRow]:
    """Rows that follow each other with one prompt are the answers to it."""
    for prompt, group in itertools.groupby(rows, key=lambda named: text(named[1], "prompt", named[0])):
        members = list(group)
        texts = [text(row, "response", where) for where, row in members]
        scores = [number(row, "helpfulness", where) for where, row in members]
        where = members[0][0]
        yield where, {"prompt": helpsteer_prompt(prompt), "completions": answered(texts), "scores": scores}


def helpsteer_prompt(prompt: str) -> list[Message]:
    """A prompt of HelpSteer2 as turns: further ones follow a line `<extra_id_1>Assistant` or `<extra_id_1>User`."""
    first, *rest = re.split(r"\n?<extra_id_1>(User|Assistant)\n", prompt)
    turns = asked(first)
    for role, content in zip(rest[::2], rest[1::2], strict=True):
        turns.append({"role": role.lower(), "content": content})
    return turns


def _nectar(row: Row, where: str) -> Row:
    answers = records(row, "answers", where)
    ranks = [number(answer, "rank", where) for answer in answers]
    texts = [text(answer, "answer", where) for answer in answers]
    prompt = text(row, "prompt", where)
    return {
        "prompt": turns_of_transcript(prompt, where) if HUMAN.strip() in prompt else asked(prompt),
        "completions": answered(texts),
        "ranks": ranks,
    }


def _shp(row: Row, where: str) -> Row:
    scores = [number(row, name, where) for name in ("score_A", "score_B")]
    label = present(row, "labels", where)
    if label not in (0, 1):
        fail(where, f"'labels' must be 1 (A is preferred) or 0, not {label!r}")
    if (scores[0] - scores[1]) * (1 if label else -1) < 0:
        contradicts(
            where,
            f"'labels' {label} prefers {'A' if label else 'B'}, and the scores are {scores[0]:g} and {scores[1]:g}",
        )
    texts = [text(row, name, where) for name in ("human_ref_A", "human_ref_B")]
    return {"prompt": asked(text(row, "history", where)), "completions": answered(texts), "scores": scores}


def _webgpt(row: Row, where: str) -> Row:
    scores = [number(row, name, where) for name in ("score_0", "score_1")]
    if abs(scores[0] + scores[1]) > 1e-6:
        contradicts(where, f"the scores {scores[0]:g} and {scores[1]:g} must have the sum 0")
    texts = [text(row, name, where) for name in ("answer_0", "answer_1")]
    question = present(row, "question", where)
    asks = text(question, "full_text", where) if isinstance(question, dict) else text(row, "question", where)
    return {"prompt": asked(asks), "completions": answered(texts), "scores": scores}


def _holds(name: str, key: str) -> Callable[[Row], bool]:
    """Whether a column is a list of objects with this key; an empty list says nothing to the contrary."""

    def shape(row: Row) -> bool:
        first = next(iter(row[name] if row.get(name) is not None else ()), {key: ""})
        return isinstance(first, Mapping) and key in first

    return shape


_ULTRAFEEDBACK = ("instruction", "completions")

RATED = (
    Dialect(
        "ultrafeedback-overall",
        "openbmb/UltraFeedback",
        _ULTRAFEEDBACK,
        "rated",
        "scores are `overall_score`, of the critique",
        each(_ultrafeedback_overall),
        without=("prompt",),
        shape=_holds("completions", "response"),
    ),
    Dialect(
        "ultrafeedback-aspects",
        "openbmb/UltraFeedback",
        _ULTRAFEEDBACK,
        "rated",
        "scores are the mean of the four aspects' ratings",
        each(_ultrafeedback_aspects),
        without=("prompt",),
        shape=_holds("completions", "response"),
    ),
    Dialect(
        "helpsteer2",
        "nvidia/HelpSteer2, nvidia/HelpSteer",
        ("prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"),
        "rated",
        "rows that follow each other with one prompt are its answers; scores are `helpfulness`",
        _helpsteer,
    ),
    Dialect(
        "nectar",
        "berkeley-nest/Nectar",
        ("prompt", "answers"),
        "ranked",
        "`answers` with `rank`, 1 is best; the transcript of the prompt becomes turns",
        each(_nectar),
        shape=_holds("answers", "answer"),
    ),
    Dialect(
        "shp",
        "stanfordnlp/SHP, stanfordnlp/SHP-2",
        ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B"),
        "rated",
        "scores are `score_A` and `score_B`; `history` is the user's turn",
        each(_shp),
    ),
    Dialect(
        "webgpt",
        "openai/webgpt_comparisons",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        "rated",
        "scores are `score_0` and `score_1`, whose sum is 0",
        each(_webgpt),
    ),
)
