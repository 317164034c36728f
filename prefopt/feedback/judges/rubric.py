"""Rubrics: what a judge is asked, as templates, and its worked examples, as data."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.feedback.judges.template import Template
from prefopt.feedback.judges.texts import broken, conversation, shown, whole
from prefopt.support.errors import PrefoptError
from prefopt.support.seeds import seed_for
from prefopt.types import Prompt

TEXTS = ("prompt", "completion", "completion_a", "completion_b")
"""Names of other people's text in templates; `row.NAME`, a column of the row, is another."""

VALUES = (*TEXTS, "row")
NAMES = {
    "system": (*VALUES, "examples", "principle"),
    "question": (*VALUES, "examples", "principle"),
    "thought": ("principle",),
    "rationale": ("rationale",),
    "answer": (),
    "example": (*VALUES, "principle", "verdict", "rationale"),
}
"""The names that each template may use."""

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Asked:
    """A rubric filled for one question.

    Attributes:
        turns: the conversation, the user's turn last.
        neutralised: marks in other people's text that were broken up.
    """

    turns: Turns
    neutralised: int


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked.

    Attributes:
        name: what messages call it: the file, or its section of the recipe.
        sections: its templates, by name.
        labels: what the answer may be; empty leaves it to the mode.
        examples: worked ones: what the template shows of each, `verdict`, and `rationale` for a chain of thought.
        principles: of which each prompt gets one as `{{ principle }}`.
        examples_name: what messages call the examples: their file, or their section of the recipe.
    """

    name: str
    sections: Mapping[str, Template]
    labels: tuple[str, ...] = ()
    examples: tuple[Mapping[str, Any], ...] = ()
    principles: tuple[str, ...] = ()
    examples_name: str = ""

    @property
    def fingerprint(self) -> str:
        """Of everything that a judge is shown; not of names of files."""
        shown = (
            sorted(self.sections.items()),
            self.labels,
            [sorted(e.items()) for e in self.examples],
            self.principles,
        )
        return hashlib.sha256(repr(shown).encode()).hexdigest()

    @property
    def compares(self) -> bool:
        """Whether it shows two completions at once."""
        return bool({"completion_a", "completion_b"} & self._names)

    def check(self, needed: Sequence[str], labels: Sequence[str], thought: bool) -> None:
        """Refuse a rubric that does not show what a mode judges, or examples that do not fit.

        Args:
            needed: names of the completions: ("completion",), or both of a pair.
            labels: that verdicts of examples must be among.
            thought: whether a chain of thought is asked for.

        Raises:
            PrefoptError: says which file, and what to write.
        """
        every = set(TEXTS[1:])
        for name in sorted(set(needed) - self._names):
            raise PrefoptError(
                f"{self.name}: this mode judges {{{{ {name} }}}}, which the rubric does not show; put it into `question`"
            )
        for name in sorted((every - set(needed)) & self._names):
            raise PrefoptError(
                f"{self.name}: {{{{ {name} }}}} is for another mode; this one shows {' and '.join(needed)}"
            )
        known = [label.strip() for label in labels]
        for i, example in enumerate(self.examples):
            if str(example["verdict"]) not in known:
                raise PrefoptError(
                    f"{self.examples_name}:{i + 1}: the verdict {example['verdict']!r} is no label; labels: {', '.join(known)}"
                )
            if thought and "rationale" not in example:
                raise PrefoptError(
                    f"{self.examples_name}:{i + 1}: a chain of thought needs a `rationale` in every example"
                )
        self._listed()
        list(self._turns(labels, thought, 0))

    def ask(
        self,
        prompt: Prompt,
        texts: Mapping[str, str],
        row: Mapping[str, Any],
        labels: Sequence[str],
        thought: bool,
        seed: int = 0,
    ) -> Asked:
        """The question about these completions.

        Args:
            prompt: what they answer.
            texts: the completions by their names in the templates.
            row: the other columns, for `{{ row.NAME }}`.
            labels: of the answer, which examples show.
            thought: ask for a rationale.
            seed: of the principle.

        Raises:
            PrefoptError: the row has no column of that name.
        """
        values = {"prompt": conversation(prompt), **texts, "row": row}
        own = {"examples": self._listed(), "principle": self._principle(values, seed)}
        turns: list[tuple[str, str]] = []
        neutralised = 0
        if "system" in self.sections:
            text, neutralised = self.sections["system"].fill(values, own)
            turns.append(("system", text))
        if "example" not in self.sections:
            turns += self._turns(labels, thought, seed)
        text, count = self._question(values, own, thought)
        return Asked((*turns, ("user", text)), neutralised + count)

    def outline(self, labels: Sequence[str], thought: bool) -> Turns:
        """The turns of a question, with a word in place of what others write: for trying a chat template."""
        system = (("system", "system"),) if "system" in self.sections else ()
        examples = () if "example" in self.sections else self._turns(labels, thought, 0)
        return (*system, *examples, ("user", "question"))

    def start(self, rationale: str | None = None) -> str:
        """How the answer begins: the rationale, where there is one, and `answer`."""
        answer = self._plain("answer")
        if rationale is None:
            return answer
        text = broken(whole(rationale))[0]
        if "rationale" in self.sections:
            text, _ = self.sections["rationale"].fill({}, {"rationale": text})
        return f"{text}\n{answer}"

    @property
    def mark(self) -> str:
        """What stands before a verdict in a written answer: `answer` without the space around it."""
        return self._plain("answer").strip()

    def _question(self, values: Mapping[str, Any], own: Mapping[str, str], thought: bool) -> tuple[str, int]:
        text, count = self.sections["question"].fill(values, own)
        if thought and "thought" in self.sections:
            asks, _ = self.sections["thought"].fill({}, own)
            text = f"{text}\n\n{asks}"
        return text, count

    def _turns(self, labels: Sequence[str], thought: bool, seed: int) -> Iterator[tuple[str, str]]:
        """The examples as turns."""
        for example in self.examples:
            values = _values(example)
            own = {"examples": "", "principle": self._principle(values, seed)}
            yield "user", self._question(values, own, thought)[0]
            label = next(label for label in labels if label.strip() == str(example["verdict"]))
            yield "assistant", self.start(str(example["rationale"]) if thought else None) + label

    def _listed(self) -> str:
        """The examples as text, each by the template `example`."""
        if "example" not in self.sections:
            return ""
        own = ("verdict", "rationale", "principle")
        written = [
            self.sections["example"].fill(
                _values(example), {"principle": "", **{name: str(example[name]) for name in own if name in example}}
            )[0]
            for example in self.examples
        ]
        return "\n\n".join(written)

    def _principle(self, values: Mapping[str, Any], seed: int) -> str:
        """One of the principles; the prompt and the seed decide which, so that both orders of a pair are under the same."""
        if not self.principles:
            return ""
        return self.principles[seed_for(seed, "principle", whole(values.get("prompt", ""))) % len(self.principles)]

    def _plain(self, section: str) -> str:
        return self.sections[section].fill({}, {})[0] if section in self.sections else ""

    @property
    def _names(self) -> set[str]:
        shown = [self.sections[name].names for name in ("system", "question") if name in self.sections]
        return set().union(*shown)


def _values(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example's texts and columns, by their names in templates."""
    texts = {name: shown(value) for name, value in example.items() if name in TEXTS}
    if "prompt" in example:
        texts["prompt"] = conversation(example["prompt"])
    return {**texts, "row": {name: value for name, value in example.items() if name not in TEXTS}}
