"""The gold reward: an opinion's composed valence, found by parsing it.

Value of a statement:   v(claim) = bend(bend(valence of its word, degree), negation);  v(stance s) = bend(v(s), stance)
Merit of an opinion:    M = Σ_i w_i·v_i over its statements, with w_i the product of

    ½ for each earlier statement on the same aspect, and ½ for each earlier use of the same word,
    ½ if "although" opens it or a "but" follows in its sentence, 5/4 if it comes after that "but" or "although",
    3/4 if its joint misleads: an "and" between opposites, a contrast between statements that agree,
    3/2 if it is on the aspect that the prompt asked for.

Reward:                 tanh(M / 1.6) − .3·[asked-for aspect missing] − .3·(aspects contradicted) − .04·(words over the limit)

kept within ±.95; −1 is for text that is not an opinion on the topic at all. The limit is 10 words where the prompt asks to be
short or quick, 24 where it asks for detail, 18 otherwise, full stops included. So more can be gained by saying more, up to
a length; by strong words, but not by the same one again; and never by saying two things at once.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from prefopt.types import Prompt, Verdict

from . import lexicon
from .grammar import Claim, OffGrammar, Opinion, Sentence, Statement, parse
from .requests import Request, read

OFF_GRAMMAR = -1.0
SHARPNESS = 5.0
FLOOR = 0.95
SCALE = 1.6
LIMITS = {"short": 10, "usual": 18, "detailed": 24}
MISSING, CONTRADICTED, OVER_LIMIT = 0.3, 0.3, 0.04
GOOD, BAD = 1 / 3, -1 / 3
"""Reward from which an opinion is rated good, and below which it is rated bad."""
AGAIN, CONCEDED, STRESSED, MISLEADING, ASKED = 0.5, 0.5, 1.25, 0.75, 1.5


def gold(
    prompts: Sequence[Prompt], completions: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]] = ()
) -> Verdict:
    """Feedback: the gold reward of each completion, [B, K] in [−1, 1].

    Raises:
        PrefoptError: a prompt is not one of the pocket world's.
    """
    return Verdict(torch.tensor([[score(p, c) for c in group] for p, group in zip(prompts, completions, strict=True)]))


def compared(
    prompts: Sequence[Prompt], completions: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]] = ()
) -> Verdict:
    """Feedback that compares: P(y_i beats y_j) = σ(5 (r_i − r_j)), [B, K, K], beside the gold rewards themselves.

    The 5 is the raters' sharpness in `preferences`.

    Raises:
        PrefoptError: a prompt is not one of the pocket world's.
    """
    scores = gold(prompts, completions, rows).scores
    return Verdict(scores, torch.sigmoid(SHARPNESS * (scores[:, :, None] - scores[:, None, :])))


def wordiness(
    prompts: Sequence[Prompt], completions: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]] = ()
) -> list[list[float]]:
    """A cost to be kept at 0 or below, for constrained objectives: a tenth for each word over eight, [B][K]."""
    return [[(len(lexicon.tokens(text)) - 8) / 10 for text in group] for group in completions]


def score(prompt: Prompt, completion: str) -> float:
    """The gold reward of one completion.

    Raises:
        PrefoptError: the prompt is not one of the pocket world's.
    """
    request = read(str(prompt))
    try:
        opinion = parse(request.topic, completion)
    except OffGrammar:
        return OFF_GRAMMAR
    excess = max(0, len(lexicon.tokens(completion)) - LIMITS[request.length])
    reward = math.tanh(merit(request, opinion) / SCALE) - OVER_LIMIT * excess
    values = [(_aspect(request, claim), value) for _, claim, value in _statements(request.topic, opinion)]
    contradicted = {aspect for aspect, value in values for other, v in values if aspect == other and value * v < 0}
    reward -= CONTRADICTED * len(contradicted)
    reward -= MISSING * bool(request.hint and request.hint not in dict(values))
    return max(-FLOOR, min(FLOOR, reward))


def rating(reward: float) -> str:
    """The label of a gold reward on a rating line: good, fine or bad."""
    return "good" if reward >= GOOD else "bad" if reward < BAD else "fine"


def merit(request: Request, opinion: Opinion) -> float:
    """M, the weighted sum of what an opinion says."""
    total = 0.0
    aspects: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for weight, claim, value in _statements(request.topic, opinion):
        aspect = _aspect(request, claim)
        weight *= AGAIN ** (aspects[aspect] + words[claim.word]) * (ASKED if aspect == request.hint else 1)
        total += weight * value
        aspects[aspect] += 1
        words[claim.word] += 1
    return total


def value_of(topic: str, statement: Statement) -> float:
    """v, the valence of one statement."""
    if not isinstance(statement, Claim):
        return lexicon.bend(value_of(topic, statement.statement), lexicon.STANCES[statement.stance])
    if statement.word in lexicon.VERBS:
        valence = lexicon.VERBS[statement.word][1]
    else:
        valence = lexicon.adjectives(topic, str(lexicon.kind_of(topic, statement.noun)))[statement.word]
    return lexicon.bend(
        lexicon.bend(valence, lexicon.DEGREES.get(statement.degree, 1)), lexicon.NEGATIONS.get(statement.negation, 1)
    )


def _statements(topic: str, opinion: Opinion) -> Iterator[tuple[float, Claim, float]]:
    """Each statement's weight in its sentence, its innermost claim, and its value."""
    for sentence in opinion.sentences:
        values = [value_of(topic, statement) for _, statement in sentence.parts]
        for (_, statement), weight, value in zip(sentence.parts, _weights(sentence, values), values, strict=True):
            while not isinstance(statement, Claim):
                statement = statement.statement
            yield weight, statement, value


def _weights(sentence: Sentence, values: Sequence[float]) -> list[float]:
    weights = [1.0] * len(values)
    for i, (joint, _) in enumerate(sentence.parts):
        conceding = i > 0 and sentence.parts[i - 1][0] == "although"
        if joint == "but" or conceding:
            weights = [w * CONCEDED for w in weights[:i]] + [w * STRESSED for w in weights[i:]]
        if i > 0 and (values[i] * values[i - 1] < 0) != (joint == "but" or conceding):
            weights[i] *= MISLEADING
    return weights


def _aspect(request: Request, claim: Claim) -> str:
    return request.topic if claim.noun == lexicon.WHOLE else claim.noun
