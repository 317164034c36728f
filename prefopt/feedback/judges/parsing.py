"""Which verdict a written answer gives: only one that stands where it was asked for, on the scale that was asked for.

A verdict stands at the beginning of the answer, or after the rubric's `answer` (the mark) at the beginning of a line. Where there
is none of these, one after a mark within a line counts, unless it is quoted or denied. Verdicts that disagree are none.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from prefopt.feedback.judges.thinking import after_thinking

OPENING = r"[\s*_`\"'“‘«(\[#-]*"
"""What may stand before the first verdict of an answer: space, emphasis, quotation marks, brackets."""
EMPHASIS = r"[\s*_`#-]*"
"""What may stand before a mark at the beginning of a later line, and between a mark and its verdict."""
CLOSING = r"[*_`\"'”’»)\]]*"
QUOTES = {"“": "”", "«": "»", "‹": "›", "„": "“", "「": "」", "『": "』", "(": ")", "[": "]"}

DENIED = re.compile(
    r"\b(?:not|never|no|cannot|nor|neither|could|might|may|if|unless|until|instead|rather|demand\w*|ask\w*|claim\w*|want\w*"
    r"|beg\w*|says?|said|tells?|told|writes?|wrote|reads?|ends?|initially|at first|first (?:thought|impression)|perfect"
    r"|would (?:be|have|get|deserve))\b|n['’]t\b",
    re.IGNORECASE,
)
"""Words in whose sentence a verdict is not given but spoken of."""
ANEW = re.compile(r"[.!?;]|\b(?:so|therefore|thus|hence|overall|finally)\b", re.IGNORECASE)
"""What begins another statement."""

REVISED = (
    r"\b(?:on second thoughts?|scratch that|correction|i (?:retract|take (?:that|it) back|changed? my mind|mean)"
    r"|(?:actually|wait|no|rather|instead|or|maybe|perhaps|sorry|hmm)\b\W{{0,3}}(?:\w+\W+){{0,3}}?(?:{labels})(?!\w))"
)
"""An answer that takes its verdict back."""
SCALE = re.compile(
    r"\b(?:out of|scale (?:of|from|that goes from)?(?:[^.\n]{0,20}?(?:to|[-–—]))?)\s*(\d+|\w+)", re.IGNORECASE
)
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twenty", "hundred")
WORDS = dict(zip(NUMBERS, (*range(2, 11), 20, 100), strict=True))
LONGEST = 50_000
"""Characters of an answer that is read for its verdict; one that says so much has not given it where it was asked for."""


def parse(text: str, labels: Sequence[str], mark: str = "") -> int | None:
    """Which of the labels a text gives as its verdict; None where it gives none, or leaves doubt.

    Args:
        text: what was written, with the mark or, where that was given to it, without; thinking is cut off.
        labels: the possible ones.
        mark: what stands before the verdict.
    """
    answer = after_thinking(text)
    if answer is None or len(answer) > LONGEST:
        return None
    whole = re.fullmatch(r"\s*```\w*\n(.*?)\n?```\s*", answer, re.DOTALL)
    form = Form(tuple(label.strip() for label in labels), mark.strip())
    verdict = form.verdict(whole[1] if whole else answer)
    return None if verdict is None else form.labels.index(verdict)


@dataclass(frozen=True)
class Claim:
    """A place of an answer at which a verdict stands, or seems to.

    Attributes:
        line: its number.
        label: None where what stands there is none, or is taken back.
        standing: it is at the beginning of the answer or of its line.
        marked: a mark is before it, or it begins the answer.
    """

    line: int
    label: str | None
    standing: bool
    marked: bool = True


@dataclass(frozen=True)
class Form:
    """The form of a verdict.

    Attributes:
        labels: without space around them.
        mark: what stands before one; may be empty.
    """

    labels: tuple[str, ...]
    mark: str

    def verdict(self, answer: str) -> str | None:
        """The one that the answer gives."""
        claims = list(self._claims(answer))
        standing = [claim for claim in claims if claim.standing]
        given = standing if any(claim.marked for claim in standing) else [c for c in claims if c.marked]
        if not given or len({claim.label for claim in given}) > 1:
            return None
        # Said otherwise in a later line: a verdict that is drafted before, or spoken of in the same line, is no other one.
        later = {c.label for c in claims if c.marked and c.line > given[-1].line} if given is standing else set()
        return given[0].label if later <= {given[0].label} else None

    def _claims(self, answer: str) -> Iterator[Claim]:
        lines = answer.split("\n")
        first = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
        fenced, start = False, 0
        for i, line in enumerate(lines):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif not fenced and not line.lstrip().startswith(">"):
                yield from self._claims_of(line, i, i == first, answer[:start])
            start += len(line) + 1

    def _claims_of(self, line: str, i: int, first: bool, before: str) -> Iterator[Claim]:
        opening = OPENING if first else EMPHASIS
        marks = [found.span() for found in self._marks.finditer(line)]
        stands = re.fullmatch(opening, line[: marks[0][0]]) if marks else None
        if stands and (first or not _is_quoted(before)):
            yield Claim(i, self._label(line, marks[0][1]), standing=True)
            marks = marks[1:]
        elif first and (label := self._label(line, 0)) is not None:
            yield Claim(i, label, standing=True)
        elif first and self._begins.match(line):  # a label that is denied, revised or on another scale in its own line
            yield Claim(i, None, standing=True)
        elif alone := self._alone.fullmatch(line):
            yield Claim(i, alone[1], standing=True, marked=False)
        elif not first and self._corrects.match(line):
            yield Claim(i, None, standing=False)
        for start, end in marks:
            if not _is_quoted(before + line[:start]) and not _is_denied(line[:start]):
                yield Claim(i, self._label(line, end), standing=False)

    def _label(self, line: str, at: int) -> str | None:
        """The label that stands in a line at a place, if nothing else in the line takes it back."""
        opening = re.match(OPENING, line[at:])
        assert opening is not None
        found = self._begins.match(line, at)
        if found is None or (opening[0].endswith("-") and found[1][:1].isdigit()):
            return None
        rest = line[found.end() :]
        others = [other for other in self._another.findall(rest) if other != found[1]]
        scales = [WORDS.get(scale.lower(), scale) for scale in SCALE.findall(_unquoted(line))]
        wrong = [scale for scale in scales if str(scale).isdigit() and str(scale) != self._top]
        return None if others or wrong or self._revised.search(_unquoted(rest)) else found[1]

    @cached_property
    def _any(self) -> str:
        return "|".join(re.escape(label) for label in sorted(self.labels, key=len, reverse=True))

    @cached_property
    def _begins(self) -> re.Pattern[str]:
        # "8/10" and "8 out of 10" name the scale's end themselves. After a label comes the end of the line, or nothing that tells:
        # "A film", "8?" and "1.5" are no verdicts.
        scale = rf"(?:\s*(?:/|out of|of)\s*{self._top})?" if self._top else ""
        return re.compile(rf"{OPENING}({self._any}){scale}{CLOSING}(?=\s*$|[.,:;!](?!\d)|\s+[-–—(])")

    @cached_property
    def _alone(self) -> re.Pattern[str]:
        return re.compile(rf"{EMPHASIS}({self._any}){CLOSING}[.!]?\s*")

    @cached_property
    def _another(self) -> re.Pattern[str]:
        """Another label directly after the first."""
        return re.compile(rf"^\s*(?:[,;/&+(]|[-–—]+|\bor\b|\band\b|\bto\b)\s*({self._any})(?!\w)")

    @cached_property
    def _revised(self) -> re.Pattern[str]:
        return re.compile(REVISED.format(labels=self._any), re.IGNORECASE)

    @cached_property
    def _corrects(self) -> re.Pattern[str]:
        """A later line that takes back what was said before it."""
        words = r"(?:actually|wait|no|correction|sorry|hmm|on second thoughts?|on reflection)"
        return re.compile(rf"^\W*{words}\b\W+(?:\w+\W+){{0,4}}?(?:{self._any})(?!\w)", re.IGNORECASE)

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.mark) if self.mark else r"(?!)", re.IGNORECASE)

    @cached_property
    def _top(self) -> str:
        """The end of the scale as it is written; "" where labels are no numbers."""
        try:
            return max(self.labels, key=float)
        except ValueError:
            return ""


def _is_quoted(before: str) -> bool:
    """Whether what follows stands within quotation marks or brackets that are open."""
    plain = before.replace('\\"', "")
    if plain.count('"') % 2 or re.search(r"(?:^|[\s(])['‘`][*_]*$", plain):
        return True
    return any(plain.rfind(opening) > plain.rfind(closing) for opening, closing in QUOTES.items())


def _unquoted(line: str) -> str:
    """Without what is in quotation marks."""
    return re.sub(r'"[^"]*"|“[^”]*”|«[^»]*»', "", line)


def _is_denied(before: str) -> bool:
    """Whether the statement that leads to a mark only speaks of it."""
    return bool(DENIED.search(ANEW.split(before)[-1]))
