"""Which verdict a written answer gives: only one that stands where it was asked for, on the scale that was asked for.

A verdict stands at the beginning of the answer, or after the rubric's `answer` (the mark) at the beginning of a line. Where there
is none of these, one after a mark within a line counts, unless it is quoted or denied. Verdicts that disagree are none, and the
numbers or letters of a list are no verdicts.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from prefopt.feedback.judges.thinking import after_thinking

PLAIN = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
    | dict.fromkeys((0x00A0, 0x2007, 0x202F, 0x3000), " ")
    | dict.fromkeys((0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF))
    | {ord("。"): "."}
)
"""Full-width characters as ASCII, spaces as one kind, and none without width. Unicode's NFKC would make digits of ², ½ and ⑧."""
WRAPPED = re.compile(
    r"</?(?:b|strong|i|em|code|score|rating|verdict|answer|final_answer)>|<\|\w+\|>|~~[^~\n]+~~", re.IGNORECASE
)
"""Tags and special tokens around a verdict, and what is struck out."""
BOXED = re.compile(r"\$?\$?\\boxed\{(?:\\text\{)?([^{}\n]*)\}{1,2}\$?\$?")

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
    r"\b(?:on second thoughts?|scratch that|just kidding|correction|i (?:retract|take (?:that|it) back|changed? my mind|mean)"
    r"|(?:actually|wait|no|rather|instead|or|maybe|perhaps|sorry|hmm)\b\W{{0,3}}(?:\w+\W+){{0,3}}?(?:{labels})(?!\w))"
)
"""An answer that takes its verdict back."""
CONCLUDES = (
    r"(?:so|therefore|thus|hence|overall|(?:in )?total|final|adjusted|net"
    r"|i(?:['’]d| would)? (?:choose|pick|prefer|make|give|say|rate|go))\b"
)
"""What begins a line that sums up."""
PREFERRED = r"\s+(?:is\s+(?:the\s+)?(?:better|best|winner)|wins)\b"
COUNTED = (
    r"(?:(?:minor|small|major|factual|spelling|other)\s+)?(?:error|mistake|typo|flaw|bug|problem|issue|claim|fact|reason|example"
    r"|source|question|part|item|step|time|word|sentence|line|paragraph|year|day|hour|minute)s?\b"
)
"""After a number that counts something."""
SCALE = re.compile(
    r"(?:\b(?:out of|max(?:imum)?(?: of| is|:)?|scale (?:of|from|that goes from)?(?:[^.\n]{0,20}?(?:to|[-–—]))?)|\((?:of|/))"
    r"\s*(\d+|\w+)",
    re.IGNORECASE,
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
    answer = BOXED.sub(r" \1 ", WRAPPED.sub(" ", answer.translate(PLAIN)))
    whole = re.fullmatch(r"\s*```\w*\n(.*?)\n?```\s*", answer, re.DOTALL)
    form = Form(tuple(label.translate(PLAIN).strip() for label in labels), mark.translate(PLAIN).strip())
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
        claims = list(self._claims(self._parted.sub(r"\1 ", answer)))
        standing = [claim for claim in claims if claim.standing]
        given = standing if any(claim.marked for claim in standing) else [c for c in claims if c.marked]
        if not given or len({claim.label for claim in given}) > 1:
            return None
        # Said otherwise afterwards; a verdict that is drafted in a line before is no other one.
        later = {claim.label for claim in claims if claim.line >= given[-1].line}
        return given[0].label if later <= {given[0].label} else None

    def _claims(self, answer: str) -> Iterator[Claim]:
        lines = answer.split("\n")
        first = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
        fenced, start = False, 0
        for i, line in enumerate(lines):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif not fenced and not line.lstrip().startswith(">"):
                yield from self._claims_of(line, i, answer[start:] if i == first else "", answer[:start])
            start += len(line) + 1

    def _claims_of(self, line: str, i: int, whole: str, before: str) -> Iterator[Claim]:
        """Those of a line; `whole` is the answer from its first line on, or "" in later lines."""
        opening = rf"{OPENING}(?:1[.)]\s+{OPENING})?" if whole else rf"{EMPHASIS}(?:\d+[.)]\s+{EMPHASIS})?"
        marks = [found.span() for found in self._marks.finditer(line)]
        stands = re.fullmatch(opening, line[: marks[0][0]]) if marks else None
        if stands and (whole or not _is_quoted(before)):
            yield Claim(i, self._label(line, marks[0][1]), standing=True)
            marks = marks[1:]
        elif whole and self._begins.match(line):
            if not self._is_list(whole):
                label = self._label(line, 0)
                yield Claim(i, None if self._is_item(whole, label) else label, standing=True)
        elif alone := self._alone.fullmatch(line):
            yield Claim(i, self._named(alone[1]), standing=True, marked=False)
        elif not whole and self._corrects.match(line):
            yield Claim(i, None, standing=False)
        elif not whole and (label := self._conclusion(line)) is not None:
            yield Claim(i, label, standing=False, marked=False)
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
        label, rest = self._named(found[1]), line[found.end() :]
        items = [item[1] for item in self._item.finditer(rest) if not item[1].isdigit()]
        others = [other for other in self._another.findall(rest) + items if self._named(other) != label]
        scales = [WORDS.get(scale.lower(), scale) for scale in SCALE.findall(_unquoted(line))]
        wrong = [scale for scale in scales if str(scale).isdigit() and str(scale) != self._top]
        if label is None or others or wrong or self._has_other_number(rest, label):
            return None
        return None if self._revised.search(_unquoted(rest)) else label

    def _is_list(self, whole: str) -> bool:
        """Whether an answer begins with the first of several items."""
        item = self._item.match(whole)
        return item is not None and self._item.search(whole[item.end() :]) is not None

    def _is_item(self, whole: str, label: str | None) -> bool:
        """Whether an answer begins with a label that may number or name what is said after it, and another one follows."""
        item = self._item.match(whole)
        if item is None or label is None:
            return False
        rest = whole[item.end() :]
        named = (self._named(other) for other in self._word.findall(rest)) if item[2] == ":" else ()
        return self._has_other_number(rest, label) or any(other != label for other in named)

    def _has_other_number(self, rest: str, label: str) -> bool:
        """Whether a number within the scale follows that is not the label, the scale, a count, or denied."""
        if not self._top:
            return False
        text = self._own_scale.sub(" ", _unquoted(rest))
        return any(
            float(found[2]) <= float(self._top)
            and float(found[2]) != float(label)
            and not (found[1] and _is_denied(text[: found.start()]))
            for found in self._number.finditer(text)
        )

    def _conclusion(self, line: str) -> str | None:
        """The label that a line which sums up comes to."""
        begins = self._concludes.match(line)
        word = self._word.search(line, begins.end()) if begins else None
        found = self._ending.match(line, word.start()) if word else None
        return self._named(found[1]) if found else None

    def _named(self, written: str) -> str | None:
        """The label that is written so."""
        folded = (label for label in self.labels if label.casefold() == written.casefold())
        return written if written in self.labels else next(folded, None)

    @cached_property
    def _any(self) -> str:
        # "Yes" is yes, but "a" is a word and not the letter A.
        folds = len({label.casefold() for label in self.labels}) == len(self.labels)
        escaped = {label: re.escape(label) for label in sorted(self.labels, key=len, reverse=True)}
        return "|".join(f"(?i:{x})" if folds and len(label) > 1 else x for label, x in escaped.items())

    @cached_property
    def _written(self) -> str:
        """A label with what a number may have around it: "07", "7.0", and the scale's end, as "8/10" and "8 out of 10" name it."""
        if not self._top:
            return f"({self._any})"
        return rf"(?:0(?=\d(?!\d)))?({self._any})(?:\.00?(?!\d))?(?:[*_`]*\s*(?:/|out of|of)\s*{re.escape(self._top)})?"

    @cached_property
    def _begins(self) -> re.Pattern[str]:
        # After a label comes the end of the line, or nothing that tells: "A film", "8?" and "1.5" are no verdicts.
        return re.compile(rf"{OPENING}{self._written}{CLOSING}(?=\s*$|[.,:;!](?!\d)|\s+[-–—(])")

    @cached_property
    def _alone(self) -> re.Pattern[str]:
        return re.compile(rf"{EMPHASIS}{self._written}{CLOSING}[.!]?\s*")

    @cached_property
    def _ending(self) -> re.Pattern[str]:
        """A label that ends its sentence, or is preferred in it."""
        return re.compile(rf"{self._written}{CLOSING}(?=[.!]?\s*$|[.!]\s|{PREFERRED})")

    @cached_property
    def _concludes(self) -> re.Pattern[str]:
        return re.compile(rf"\W*(?:{CONCLUDES}|(?=(?:{self._any}){CLOSING}{PREFERRED}))", re.IGNORECASE)

    @cached_property
    def _parted(self) -> re.Pattern[str]:
        """A mark whose verdict is all of the next line."""
        alone = rf"[*_`]*{self._written}{CLOSING}[.!]?[ \t]*$"
        return re.compile(rf"({self._marks.pattern}[ \t*_]*)\n\s*(?={alone})", re.IGNORECASE | re.MULTILINE)

    @cached_property
    def _word(self) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w)({self._any})(?!\w)")

    @cached_property
    def _item(self) -> re.Pattern[str]:
        """A label, or any number where labels are numbers, that begins a line or clause and has more to say: "1. Clear", "A: 3"."""
        number = "|[0-9]+" if self._top else ""
        return re.compile(
            rf"(?:^|[.;,|])[ \t*_`\"'“‘«(\[#-]*({self._any}{number})[*_\]]*[ \t]*(\.(?!\d)|[):(=]|[-–—]+)[*_ \t]*(?=\S)",
            re.MULTILINE,
        )

    @cached_property
    def _number(self) -> re.Pattern[str]:
        return re.compile(
            rf"(?:({self._marks.pattern})[\s*_]*)?(?<![\w.])(?<!\w-)([0-9]+(?:\.[0-9]+)?)(?!\w)(?!\s+{COUNTED})",
            re.IGNORECASE,
        )

    @cached_property
    def _own_scale(self) -> re.Pattern[str]:
        """What names the scale and its ends."""
        low, top = re.escape(min(self.labels, key=float)), re.escape(self._top)
        return re.compile(
            rf"\bscale\b[^.;)\n]{{0,40}}?\b{top}(?!\w)|(?:/|\b(?:of|max(?:imum)?(?: of| is|:)?))\s*{top}(?!\w)"
            rf"|\b{low}\s*(?:to|[-–—])\s*{top}(?!\w)|\b(?:{low}|{top})\s*(?:=|being)\s*[a-z]",
            re.IGNORECASE,
        )

    @cached_property
    def _another(self) -> re.Pattern[str]:
        """Another label directly after the first."""
        return re.compile(rf"^\s*(?:[,;/&+(=>]|[-–—=]+>?|\bor\b|\band\b|\bto\b)\s*({self._any})(?!\w)")

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
        # A whole word, however its words are spaced, and its colon may stand outside of bold type.
        written = r"\s+".join(re.escape(word) for word in self.mark.split()) or r"(?!)"
        if re.search(r"\w:$", self.mark):
            written = written.removesuffix(":") + r"[ \t*_]*:"
        before = r"(?<![A-Za-z])" if self.mark[:1].isalpha() else ""
        after = r"(?![A-Za-z])" if self.mark[-1:].isalpha() else ""
        return re.compile(before + written + after, re.IGNORECASE)

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
    if plain.count('"') % 2 or re.fullmatch(r"[\s(]?['‘`]", plain.rstrip("*_")[-2:]):
        return True
    return any(plain.rfind(opening) > plain.rfind(closing) for opening, closing in QUOTES.items())


def _unquoted(line: str) -> str:
    """Without what is in quotation marks."""
    return re.sub(r'"[^"]*"|“[^”]*”|«[^»]*»', "", line)


def _is_denied(before: str) -> bool:
    """Whether the statement that leads to a mark only speaks of it."""
    return bool(DENIED.search(ANEW.split(before[-500:])[-1]))
