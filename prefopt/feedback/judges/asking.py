"""What all modes of judging share: asking, with or without a chain of thought, and counting what came back."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefopt.feedback.judges.question import Answer, Question
from prefopt.feedback.judges.rubric import Rubric
from prefopt.feedback.judges.thinking import after_thinking
from prefopt.types import Prompt

Ask = Callable[[Sequence[Question]], Sequence[Answer]]
"""Who answers: a backend, with what remembers its answers or without. Answers come in the order of the questions."""

LARGEST = 50.0
"""Bound on a difference of two log-likelihoods, so that a label that a server leaves out of its list makes no infinite score."""


@dataclass(frozen=True)
class AnswerFormat:
    """The form of a judge's answers.

    Attributes:
        labels: what a verdict may be; empty leaves it to the rubric, and then to the mode.
        thought: let it write a rationale first, which then stands before its verdict.
        thought_tokens: of the longest rationale.
        verdict_tokens: of the longest verdict, where it is written and not read from likelihoods.
        temperature: of all that is written.
        samples: verdicts of each question, averaged; more than one needs a temperature.
        seed: of what is written, and of the principle under which it is judged.
    """

    labels: tuple[str, ...] = ()
    thought: bool = False
    thought_tokens: int = 256
    verdict_tokens: int = 16
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0

    def choose(self, rubric: Rubric, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        """The labels: its own, or the rubric's, or these."""
        return self.labels or rubric.labels or otherwise


@dataclass(frozen=True)
class Case:
    """One thing to judge.

    Attributes:
        place: whose it is: the prompt, then the completions as they are shown.
        prompt: what they answer.
        texts: the completions by their placeholders.
        row: the other columns.
    """

    place: tuple[int, ...]
    prompt: Prompt
    texts: Mapping[str, str]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """A judge's answer to a case.

    Attributes:
        case: which.
        answer: with log-likelihoods or a text.
        rationale: what it wrote first; None where it was not asked.
        thought: the answer that the rationale is of; None where it was not asked.
        neutralised: marks in the texts that were broken up.
        prompt_tokens: read in all steps.
        completion_tokens: written in all steps.
        calls: requests that it took.
    """

    case: Case
    answer: Answer
    rationale: str | None
    neutralised: int
    prompt_tokens: int
    completion_tokens: int
    calls: int
    thought: Answer | None = None


@dataclass(frozen=True)
class Request:
    """What a judge is asked, and how.

    Attributes:
        rubric: by which it judges.
        answer_format: the form of its answers.
        ask: who answers.
        prompts: B of them.
        completions: K texts for each.
        rows: the other columns of each.
    """

    rubric: Rubric
    answer_format: AnswerFormat
    ask: Ask
    prompts: Sequence[Prompt]
    completions: Sequence[Sequence[str]]
    rows: Sequence[Mapping[str, Any]]

    def answers(
        self, cases: Sequence[Case], labels: Sequence[str], written: bool = False
    ) -> tuple[list[Reply], list["Tally"]]:
        """The replies to these cases, as `ask_all` puts them, and a tally for each prompt."""
        replies = ask_all(cases, self.rubric, self.answer_format, self.ask, labels, written)
        return replies, tallied(replies, self.completions)


def ask_all(
    cases: Sequence[Case], rubric: Rubric, answer_format: AnswerFormat, ask: Ask, labels: Sequence[str], written: bool
) -> list[Reply]:
    """Ask about every case: the replies, `answer_format.samples` of them next to one another.

    Args:
        cases: what to judge.
        rubric: by which.
        answer_format: how.
        ask: whom.
        labels: the possible verdicts.
        written: let the verdict be written, in place of the likelihood of each label.
    """
    asked = [rubric.ask(c.prompt, c.texts, c.row, labels, answer_format.thought, answer_format.seed) for c in cases]
    drawn = [(i, answer_format.seed + s) for i in range(len(cases)) for s in range(answer_format.samples)]
    thoughts: Sequence[Answer] = ()
    if answer_format.thought:
        thoughts = ask(
            [
                Question(
                    asked[i].turns,
                    max_tokens=answer_format.thought_tokens,
                    temperature=answer_format.temperature,
                    seed=seed,
                )
                for i, seed in drawn
            ]
        )
    rationales: Sequence[str | None] = [_rationale(a, rubric.mark) for a in thoughts] or [None] * len(drawn)
    # Without the rationale that it was to write first, it is not asked for its verdict.
    lost = {n: replace(a, calls=0, prompt_tokens=0, completion_tokens=0) for n, a in enumerate(thoughts) if _is_lost(a)}
    verdict: dict[str, Any] = {"labels": tuple(labels)}
    if written:
        verdict = {"max_tokens": answer_format.verdict_tokens, "temperature": answer_format.temperature}
    given = iter(
        ask(
            [
                Question(asked[i].turns, rubric.start(rationales[n]), **verdict, seed=seed if written else 0)
                for n, (i, seed) in enumerate(drawn)
                if n not in lost
            ]
        )
    )
    answers = [lost[n] if n in lost else next(given) for n in range(len(drawn))]
    steps = [[*thoughts[n : n + 1], answer] for n, answer in enumerate(answers)]
    return [
        Reply(
            cases[i],
            answers[n],
            rationales[n],
            asked[i].neutralised,
            sum(step.prompt_tokens for step in steps[n]),
            sum(step.completion_tokens for step in steps[n]),
            sum(step.calls for step in steps[n]),
            thoughts[n] if thoughts else None,
        )
        for n, (i, _) in enumerate(drawn)
    ]


def disjoint(labels: Sequence[str], logps: Sequence[float]) -> list[float]:
    """Probability of each label and no longer one: what a label begins is taken off its own likelihood.

    P(answer is "1") = P(it starts with "1") − P(it starts with "10"), so that the events exclude one another.
    """
    whole = [math.exp(logp) for logp in logps]
    apart = list(whole)
    for i, label in enumerate(labels):
        longer = [j for j, other in enumerate(labels) if other != label and other.startswith(label)]
        for j in longer:
            if not any(
                k != j and labels[j].startswith(labels[k]) for k in longer
            ):  # the next longer ones hold the rest
                apart[i] -= whole[j]
    return [max(0.0, p) for p in apart]


def margin(good: float, bad: float) -> float:
    """log(good / bad) of two probabilities, within ±50; NaN where both are 0."""
    if not good and not bad:
        return math.nan
    if not good or not bad:
        return LARGEST if good else -LARGEST
    return max(-LARGEST, min(LARGEST, math.log(good) - math.log(bad)))


@dataclass
class Tally:
    """What is counted for one prompt, for its note.

    Attributes:
        counts: empty completions, malformed verdicts, refusals, …
        outside: of each answer, the probability that it is none of the labels.
        rationales: that were written, with the completions they are about.
        usage: requests and tokens; of what came from a cache, too.
        more: what a mode adds.
    """

    counts: Counter[str] = field(default_factory=Counter)
    outside: list[float] = field(default_factory=list)
    rationales: list[dict[str, Any]] = field(default_factory=list)
    usage: Counter[str] = field(default_factory=Counter)
    more: dict[str, Any] = field(default_factory=dict)

    def see(self, reply: Reply) -> None:
        """Count a reply."""
        self.counts["neutralised"] += reply.neutralised
        self.usage.update(
            calls=reply.calls, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens
        )
        if reply.rationale is not None:
            self.rationales.append({"completions": list(reply.case.place[1:]), "text": reply.rationale})
        if reply.answer.logps is None and reply.answer.text is None:
            self.counts["unanswered"] += 1
            if reply.answer.missing:
                self.counts[reply.answer.missing if reply.answer.missing != "empty" else "empty_answer"] += 1
        elif reply.thought is not None and (reply.thought.cut_off or not reply.rationale):
            self.counts["rationale_cut_off" if reply.thought.cut_off else "rationale_empty"] += 1

    @property
    def note(self) -> dict[str, Any]:
        """For a verdict; what was not seen is left out."""
        note: dict[str, Any] = {name: count for name, count in self.counts.items() if count}
        if self.outside:
            note["outside"] = sum(self.outside) / len(self.outside)
        if self.rationales:
            note["rationales"] = self.rationales
        return note | self.more | ({"usage": dict(self.usage)} if self.usage else {})


def tallied(replies: Iterable[Reply], completions: Sequence[Sequence[str]]) -> list[Tally]:
    """A tally for each prompt, empty completions counted."""
    tallies = [Tally(Counter(empty=sum(not text.strip() for text in texts))) for texts in completions]
    for reply in replies:
        tallies[reply.case.place[0]].see(reply)
    return tallies


def likelihoods(reply: Reply, labels: Sequence[str], tally: Tally) -> list[float] | None:
    """Probability of each label, and what is outside to the tally; None where there are none."""
    if reply.answer.logps is None:
        return None
    probabilities = disjoint(labels, reply.answer.logps)
    tally.outside.append(max(0.0, 1 - sum(probabilities)))
    return probabilities


def _is_lost(answer: Answer) -> bool:
    """Whether there is no rationale, for a reason that makes a verdict without it another judge's."""
    return answer.text is None and answer.missing not in (None, "empty")


def _rationale(answer: Answer, mark: str) -> str:
    """What was written before the verdict that it may have gone on to."""
    text = after_thinking(answer.text or "") or ""
    return (text.partition(mark)[0] if mark else text).strip()
