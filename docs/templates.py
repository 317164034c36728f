"""What becomes of a conversation under each chat template that TRL ships: the table at the end of docs/data.md."""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.data import parse, tokenise
from prefopt.data.encoding import TextEncoder
from prefopt.support.errors import PrefoptError

CONTROL = re.compile(
    r"<[|｜][^<>\s]*?[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_[a-z]+>|<end_of_utterance>|<\|[A-Z_]+\|>|</?s>"
)
"""What looks like a control token in a template."""

ENDS = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|return|>",
    "<end_of_turn>",
    "<turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "<|end|>",
    "<|endoftext|>",
    "<|eot|>",
    "<end_of_utterance>",
    "</s>",
]
"""Tokens that end an answer, one for each family of templates."""

CALL = {"type": "function", "function": {"name": "lookup", "arguments": {"city": "Oslo"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where."}},
            "required": ["city"],
        },
    },
}
ASKED = [{"role": "user", "content": f"Question {n}?"} for n in ("one", "two")]
ANSWERED = [{"role": "assistant", "content": f"Reply {n}."} for n in ("one", "two")]
THOUGHTS = ("Because alpha.", "Because beta.")

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one answer": {"messages": [ASKED[0], ANSWERED[0]]},
    "two answers": {"messages": [ASKED[0], ANSWERED[0], ASKED[1], ANSWERED[1]]},
    "system turn": {"messages": [{"role": "system", "content": "Be terse."}, ASKED[0], ANSWERED[0]]},
    "reasoning in its own key": {
        "messages": [
            turn
            for asked, answer, thought in zip(ASKED, ANSWERED, THOUGHTS, strict=True)
            for turn in (asked, answer | {"reasoning_content": thought})
        ]
    },
    "reasoning in tags": {
        "messages": [
            turn
            for asked, answer, thought in zip(ASKED, ANSWERED, THOUGHTS, strict=True)
            for turn in (asked, answer | {"content": f"<think>\n{thought}\n</think>\n\n{answer['content']}"})
        ]
    },
    "tool call": {
        "messages": [
            ASKED[0],
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "lookup", "content": "rain"},
            ANSWERED[0],
        ],
        "tools": [TOOL],
    },
}
"""The columns of the row of each kind."""


class Outcome(NamedTuple):
    """What tokenisation makes of one row.

    Attributes:
        learnt: what the loss counts.
        lost: what was counted as left out or changed.
        refusal: why rows like this one are refused; empty where they are not.
        spans: whether a turn was found by its words alone.
    """

    learnt: str
    lost: tuple[str, ...] = ()
    refusal: str = ""
    spans: bool = False

    def __str__(self) -> str:
        if self.refusal:
            return f"refused: {self.refusal}"
        how = "kept, found by words" if self.spans else "kept"
        return f"{', '.join(sorted(self.lost))} left out: counted" if self.lost else how


def templates() -> dict[str, str]:
    """The chat templates of the installed TRL, by name."""
    import trl

    return {file.stem: file.read_text() for file in sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))}


@cache
def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    """One token for each character, and for each control token of the template."""
    control = sorted({*CONTROL.findall(template), "<eos>"}, key=len, reverse=True)
    characters = dict.fromkeys(template + "".join(map(chr, range(10, 127))))
    core = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(dict.fromkeys([*control, *characters]))}, unk_token=" ")
    )
    pattern = "|".join([*map(re.escape, control), r"[\s\S]"])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    core.decoder = decoders.Fuse()
    eos = next((end for end in ENDS if end in control), "<eos>")
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<eos>", eos_token=eos, extra_special_tokens=control, chat_template=template
    )
    return made


def outcome(template: str, row: dict[str, Any]) -> Outcome:
    """What becomes of one row."""
    tokenizer = tokenizer_with(template)
    with patch.object(TextEncoder, "_around_words", autospec=True, side_effect=TextEncoder._around_words) as around:
        try:
            ((made,), report) = tokenise([parse(row)], tokenizer)
        except PrefoptError as error:
            return Outcome("", refusal="“" + str(error).partition("conversation: ")[2].rstrip(".") + "”")
    (ids,), masks = made.completion_ids, made.masks or ((True,) * len(made.completion_ids[0]),)
    learnt = "".join(tokenizer.convert_ids_to_tokens([i for i, mine in zip(ids, masks[0], strict=True) if mine]))
    lost = tuple(
        what.partition(" that the")[0].partition(" with ")[2] for what in report.counts if "template leaves" in what
    )
    refusal = report.refusal.partition("template ")[2].partition(" in every")[0]
    return Outcome(learnt, lost, refusal, around.called)


@cache
def templates_table() -> str:
    """The table, templates of like behaviour together, and how many there are of each kind."""
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    outcomes: defaultdict[str, list[Outcome]] = defaultdict(list)
    for name, template in templates().items():
        of_kinds = {kind: outcome(template, row) for kind, row in CONVERSATIONS.items()}
        alike[tuple(map(str, of_kinds.values()))].append(name)
        for kind, of_kind in of_kinds.items():
            outcomes[kind].append(of_kind)
    lines = ["| templates of TRL | " + " | ".join(CONVERSATIONS) + " |", "|---" * (len(CONVERSATIONS) + 1) + "|"]
    for cells, names in sorted(alike.items(), key=lambda item: item[1][0]):
        lines.append(f"| {', '.join(names)} | {' | '.join(cell.replace('|', '∣') for cell in cells)} |")
    return "\n".join(["## Chat templates", "", *_totals(outcomes), "", *lines]) + "\n"


def _totals(outcomes: dict[str, list[Outcome]]) -> Iterator[str]:
    number = len(next(iter(outcomes.values())))
    yield f"Of the {number} templates that TRL ships (1.16), under a tokenizer with their control tokens:"
    yield ""
    for kind, of_kind in outcomes.items():
        refused = sum(bool(one.refusal) for one in of_kind)
        counted = sum(bool(one.lost) and not one.refusal for one in of_kind)
        spans = sum(one.spans and not one.refusal and not one.lost for one in of_kind)
        kept = number - refused - counted
        found = f" ({spans} of them found by their words)" if spans else ""
        yield f"- {kind}: {kept} keep every turn{found}, {counted} leave something out, which is counted, {refused} are refused"
