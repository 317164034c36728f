"""Words that a chat template leaves out or changes: counted, and a reason not to learn where all rows lose them."""

from collections import Counter
from collections.abc import Sequence

from prefopt.data.encoding import Rendered
from prefopt.data.example import Example
from prefopt.data.values import shown

ANSWER = "completions with {kind} that the chat template leaves out or changes"
CONTEXT = "completions with {kind} of the {role} that the chat template leaves out or changes"
PROMPT = "prompts with {kind} of the {role} that the chat template leaves out or changes"
TOOLS = "prompts with tools that the chat template leaves out"


class Losses:
    """What has become of the words of the rows that were added.

    Attributes:
        counts: prompts and completions that lose words, by kind and by whose they are.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._given: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, example: Example, texts: Sequence[Rendered]) -> None:
        """One example: its prompt, then with each completion."""
        prompt, *answered = texts
        if not prompt.turns:
            return
        whole = (answered or [prompt])[0]
        self._prompt(example, whole, len(whole.turns) - len(example.completions[0]) if answered else len(whole.turns))
        for k, whole in enumerate(answered):
            self._answer(example, whole, len(whole.turns) - len(example.completions[k]))

    def _answer(self, example: Example, whole: Rendered, first: int) -> None:
        """A completion, whose turns are those from `first` on."""
        places, counted = whole.places, set[str]()
        for turn in range(first, len(whole.turns)):
            role, lost = whole.turns[turn]["role"], places.lost.get(turn, {})
            counted.update((ANSWER if role == "assistant" else CONTEXT).format(kind=kind, role=role) for kind in lost)
            if role == "assistant":
                self._given.update(places.given.get(turn, ()))
                self._lost.update(lost.keys())
                for kind, word in lost.items():
                    self._first.setdefault(kind, f"{example.where}, {shown(word)}")
        self.counts.update(counted)

    def _prompt(self, example: Example, whole: Rendered, size: int) -> None:
        lost = {
            (kind, whole.turns[turn]["role"])
            for turn, kinds in whole.places.lost.items()
            for kind in kinds
            if turn < size
        }
        self.counts.update(PROMPT.format(kind=kind, role=role) for kind, role in lost)
        names = [
            (tool.get("function") or tool).get("name")
            for tool in example.columns.get("tools") or ()
            if isinstance(tool, dict)
        ]
        self.counts[TOOLS] += any(isinstance(name, str) and name not in whole.text for name in names)

    def refusal(self) -> str:
        """Why these rows should not be learnt from; empty where some of them keep what all have."""
        kinds = [kind for kind, lost in self._lost.items() if lost == self._given[kind]]
        if not kinds:
            return ""
        return (
            f"the tokenizer's chat template leaves out or changes {' and '.join(kinds)} in every turn that has any "
            f"({self._lost[kinds[0]]}; the first is {self._first[kinds[0]]}), so they would not be learnt. Name a tokenizer whose "
            "template writes them in policy.tokenizer (a copy of the folder with another chat_template.jinja), switch them on by "
            "the column chat_template_kwargs if the template has a switch, or give prompts and completions as plain text"
        )
