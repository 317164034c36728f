"""Prompt and completion as transformers gives them to a reward model: by its template, or as text that ends in EOS."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.data import Example, Tokenised
from prefopt.data.encoding import common
from prefopt.data.rendering import Renderer, joined
from prefopt.data.text_episodes import contents_of
from prefopt.feedback.judges.texts import broken
from prefopt.support.errors import PrefoptError
from prefopt.types import Completion, Message

SPECIALS = ("eos_token", "bos_token", "sep_token", "cls_token", "pad_token")


@dataclass(frozen=True)
class Rendering:
    """Examples as token ids, all that the tokenizer and its template write included: what follows the last turn, too.

    A conversation is what `apply_chat_template` makes of it. A text is prompt and completion and, where the tokenizer
    does not end texts itself, EOS: so TRL's RewardTrainer trains. A bare completion is a text without that EOS.

    Attributes:
        tokenizer: of the reward model.
        positions: most tokens that the model can read; None for any number.
    """

    tokenizer: PreTrainedTokenizerBase
    positions: int | None = None

    def row(
        self, example: Example, number: int, prompt: bool, longest: tuple[int | None, int | None]
    ) -> Tokenised | None:
        """Token ids of an example with one completion; None where the tokenizer finds nothing in the completion.

        Args:
            example: with one completion.
            number: of the example.
            prompt: whether its prompt is read; otherwise the bare completion.
            longest: most tokens of the prompt, which then loses its beginning, and of the completion, which loses its end.

        Raises:
            PrefoptError: a conversation, and the tokenizer has no template, or it refuses this one.
        """
        if self._finds_nothing(example.completions[0]):
            return None
        before, ids = self._ids(example, prompt)
        shared = common(before, ids)
        asked, answered = ids[:shared], ids[shared:]
        most_asked, most = longest
        if self.positions is not None and len(ids) > self.positions:
            most = min(most or self.positions, self.positions - 1)
            most_asked = min(most_asked or self.positions, self.positions - min(len(answered), most))
        kept = asked if most_asked is None or len(asked) <= most_asked else self._ending(asked, most_asked)
        cut = most is not None and len(answered) > most
        return Tokenised(
            tuple(kept),
            (tuple(answered[:most] if cut else answered),),
            None,
            None,
            example,
            number,
            None,
            prompt_cut=len(kept) < len(asked),
            completions_cut=(cut,),
        )

    def _finds_nothing(self, completion: Completion) -> bool:
        if not isinstance(completion, str) and len(completion) == 1 and not completion[0].get("tool_calls"):
            completion = completion[0].get("content") or ""
        if isinstance(completion, str):
            return not self.tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"]
        return not completion

    def _ids(self, example: Example, prompt: bool) -> tuple[list[int], list[int]]:
        """Of the prompt alone, and of all."""
        if not isinstance(example.prompt, str):
            whole = joined(example.prompt, example.completions[0])
            return self._chat(example, example.prompt, ask=True), self._chat(example, whole, ask=False)
        text = example.prompt + "".join(contents_of(example.completions[0]))
        eos = self.tokenizer.eos_token
        if prompt and eos and not self._ends_texts and not text.endswith(str(eos)):
            text += str(eos)
        start = self._text(example.prompt)
        start = start[:-1] if self._ends_texts else start
        ids = self._text(text)
        # Nothing else could be read before the first token; what the tokenizer puts there is no part of the completion.
        return start[: len(ids) - 1], ids

    def _chat(self, example: Example, turns: Sequence[Message], ask: bool) -> list[int]:
        if not self.tokenizer.chat_template:
            raise PrefoptError(
                f"{example.where}: a conversation, but the reward model's tokenizer has no chat template; name one that has in "
                "`tokenizer`, or give the prompts as plain text"
            )
        text = self._renderer(example, turns, ask)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer.of(self.tokenizer)

    def _text(self, text: str) -> list[int]:
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _ending(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """The last tokens, after the one that the tokenizer puts before a text, where it begins no turns as well."""
        begins = ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) and ids[0] not in ids[1:]
        start = ids[:1] if begins and most > 1 else []
        return [*start, *ids[len(ids) - most + len(start) :]]

    @cached_property
    def _ends_texts(self) -> bool:
        """Whether the tokenizer itself puts EOS or SEP at the end of a text."""
        last = self._text("a")[-1:]
        return bool(last) and last[0] in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """The special tokens that begin or end a text or a turn, which a completion cannot be allowed to write.

    Others stay what they are: a tokenizer may have special tokens of its own for thinking, or for tools.
    """
    known = {str(token) for name in SPECIALS if (token := getattr(tokenizer, name, None))}
    if tokenizer.chat_template:
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text = str(tokenizer.apply_chat_template(talk, tokenize=False))
        except Exception:  # its own kind of talk alone: the row says what is wrong
            text = ""
        known |= {token for token in special if token in text}
    forms = sorted((token for token in known if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, forms))) if forms else None


def without_control(completion: Completion, control: re.Pattern[str] | None, eos: str | None) -> tuple[Completion, int]:
    """The completion with a space inside every control token that it spells out, and how many; an EOS at its end stays."""
    if control is None:
        return completion, 0
    if isinstance(completion, str):
        text = completion.removesuffix(eos) if eos else completion
        kept, count = broken(text, control)
        return kept + completion[len(text) :], count
    turns: list[Mapping[str, Any]] = []
    total = 0
    for turn in completion:
        if isinstance(turn.get("content"), str):
            content, count = broken(turn["content"], control)
            turn, total = {**turn, "content": content}, total + count
        turns.append(turn)
    return tuple(turns), total
