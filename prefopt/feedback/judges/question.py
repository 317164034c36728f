"""Questions and answers: what passes between a mode of judging, the memory of answers, and a backend."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Question:
    """Everything that an answer depends on, beside who answers.

    With `labels` it asks how likely the answer is to be each of them; without, it asks for a text.

    Attributes:
        turns: a conversation as (role, content); the last turn is the user's. A model without a chat template reads the
            contents one after another, as they are.
        start: how the answer begins; it is given, not asked for.
        labels: what may follow.
        max_tokens: of the longest text that may be written.
        temperature: of what is written; 0 is greedy.
        seed: of what is written.
    """

    turns: tuple[tuple[str, str], ...]
    start: str = ""
    labels: tuple[str, ...] = ()
    max_tokens: int = 0
    temperature: float = 0.0
    seed: int = 0

    @property
    def room(self) -> int:
        """Tokens that its answer may take; no token of a label is shorter than a byte."""
        return max((len(label) for label in self.labels), default=self.max_tokens)


@dataclass(frozen=True)
class Answer:
    """What came back, and what it cost.

    No answer is taken for one: where neither `logps` nor `text` is there, `missing` says why.

    Attributes:
        logps: for each label, the natural log-likelihood that the answer starts with the whole of it, −inf for none. A label that
            begins another ("1" and "10") contains it; the modes take them apart.
        text: what was written, without `start` and without thinking; None where log-likelihoods were asked for.
        prompt_tokens: that were read; 0 where nobody counts.
        completion_tokens: that were written.
        calls: requests that it took.
        missing: why there is no answer: too_long, filtered (refused for its content), empty, thinking (it did not come to its end),
            called_tools, unfinished (for another reason), not_a_number; None where there is one, or nobody says why.
        cut_off: the text ended at `max_tokens`, and so perhaps before it said what it was to say.
        served: what a server says of the model that gave it, as JSON; "" where nobody says.
    """

    logps: tuple[float, ...] | None = None
    text: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 1
    missing: str | None = None
    cut_off: bool = False
    served: str = ""


@runtime_checkable
class Serving(Protocol):
    """Who passes questions on to a model that others may change: a server. What it says of that model is part of a memory's key."""

    def listed(self) -> str | None:
        """What it lists about the model now, as JSON; "" where it lists nothing, None where it is not there."""
        ...


@runtime_checkable
class Rendering(Protocol):
    """Who writes questions by a chat template that is at hand, and so can try that before anything is asked."""

    def render(self, question: Question) -> str:
        """The question as the model will read it; loads no model. "" while a dry run awaits the template's download.

        Raises:
            PrefoptError: the template does not take such turns, or begins the answer with thinking.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """Who answers: a local model, a server."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its answers depend on, beside the question: kind, model, dtype. A part of the cache's key, so without secrets."""
        ...

    def check(self) -> None:
        """Refuse what cannot work, loading and calling nothing."""
        ...

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """The number of a question and its answer, each as soon as it is there, in any order.

        Raises:
            PrefoptError: it cannot go on; what was yielded before is good.
        """
        ...


def in_order(answers: Iterable[tuple[int, Answer]]) -> list[Answer]:
    """The answers to all questions, in the order of these and not in that in which they came."""
    return [answer for _, answer in sorted(answers, key=lambda pair: pair[0])]
