"""A tokenizer with what is derived from it once: examples as texts and ids, and which tokens of them the assistant wrote."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from prefopt.data.example import Example
from prefopt.data.rendering import Places, Renderer, Turns, joined
from prefopt.data.text_episodes import contents_of, has_text_episodes
from prefopt.data.texts import encode_following
from prefopt.data.tokenised import Ids
from prefopt.support.errors import PrefoptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PIECE = re.compile(r"<[^<>\s]*>|\s|[^\s<]+|<")
"""A tag, a control token, a blank or a word."""

NOWHERE = Places({}, {}, {}, {})


@dataclass(frozen=True)
class Rendered:
    """A prompt, alone or with a completion, as text.

    Attributes:
        text: without the EOS of the completion.
        turns: of a conversation.
        places: of its words; of a prompt they are those of its completions.
        ended: whether the template writes an EOS behind it.
        follows: whether it is not a prompt with what goes on with it, but a message that stands behind others.
    """

    text: str
    turns: Turns = ()
    places: Places = NOWHERE
    ended: bool = False
    follows: bool = False


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer, and what is derived from it once.

    Attributes:
        eos: id of the token that ends a completion.
        eos_text: its text.
        prefix: ids that the tokenizer puts before plain text, such as BOS.
        starts: ids that stay at the beginning of a prompt that is cut.
        filler: id that stands for an empty prompt.
        unknown: see `unknown_token`.
        renderer: the chat template.
        control: texts of the special tokens, which may end turns.
    """

    tokenizer: Any
    eos: int
    eos_text: str
    prefix: Ids
    starts: frozenset[int]
    filler: int
    unknown: int | None
    renderer: Renderer
    control: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Raises a `PrefoptError` for a tokenizer that has no token to end a completion with."""
        eos, text = tokenizer.eos_token_id, tokenizer.eos_token
        if eos is None:
            eos, text = tokenizer.sep_token_id, tokenizer.sep_token
        if eos is None:
            raise PrefoptError(
                f"the tokenizer {tokenizer.name_or_path} has neither an EOS nor a SEP token, so a completion cannot end; set one, "
                "e.g. tokenizer.eos_token = '<|endoftext|>'"
            )
        prefix = _prefix_of(tokenizer, eos)
        starts = {i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id) if i is not None} | set(prefix[:1])
        filler = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        control = tuple({*map(str, tokenizer.all_special_tokens), *added})
        return cls(
            tokenizer,
            eos,
            str(text),
            prefix,
            frozenset(starts),
            filler,
            unknown_token(tokenizer),
            Renderer.of(tokenizer),
            control,
        )

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, nothing added."""
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])

    def encode_rendered(self, texts: Sequence[Rendered]) -> list[list[int]]:
        """Token ids of each."""
        whole = iter(self.encode([one.text for one in texts if not one.follows]))
        following = iter(encode_following(self.tokenizer, [one.text for one in texts if one.follows]))
        return [next(following if one.follows else whole) for one in texts]

    def texts(self, example: Example) -> list[Rendered]:
        """The prompt alone, then followed by each completion; of episodes in a plain text, then each message alone."""
        prompt = example.prompt
        if has_text_episodes(example):
            contents = (content for completion in example.completions for content in contents_of(completion))
            return [Rendered(str(prompt)), *(Rendered(content, follows=True) for content in contents)]
        if isinstance(prompt, str):
            return [Rendered(prompt), *(Rendered(prompt + str(completion)) for completion in example.completions)]
        prompt = tuple(prompt)
        asked = self.renderer(example, prompt, ask=True)
        places = NOWHERE if example.completions else self.renderer.places(example, prompt, asked, ask=True)
        answered = [self._answered(example, asked, joined(prompt, completion)) for completion in example.completions]
        return [Rendered(asked, prompt, places), *answered]

    def _answered(self, example: Example, asked: str, turns: Turns) -> Rendered:
        """A conversation up to the end of its last turn: without its EOS and without what the template adds after it."""
        text = self.renderer(example, turns, ask=False)
        places = self.renderer.places(example, turns, text)
        last = len(turns) - 1
        if last in places.found:
            start = places.found[last][1]
        else:  # a turn without words begins behind all others
            start = common(self.renderer(example, turns[:-1], ask=True, begun=False) if last else asked, text)
        end = text.find(self.eos_text, start)
        return Rendered(text if end < 0 else text[:end], turns, places, end >= 0)

    def written_by_assistant(
        self, example: Example, k: int, whole: Rendered, joint: list[int], shared: int
    ) -> list[bool]:
        """[T] which tokens of completion `k` the assistant wrote, rather than tools or users.

        It holds what stands behind the `shared` tokens of its prompt: more than the answer where a template writes the prompt
        otherwise once it is answered.
        """
        written = [False] * len(joint)
        turns = whole.turns
        for i in range(len(turns) - len(example.completions[k]), len(turns)):
            if turns[i]["role"] != "assistant":
                continue
            for part in self._parts(example, whole, i):
                first, last = (common(ids, joint) for ids in self.encode([whole.text[:place] for place in part]))
                written[max(first, shared) : last] = [True] * (last - max(first, shared))
        return written[shared:]

    def _parts(self, example: Example, whole: Rendered, i: int) -> list[tuple[int, int]]:
        """Where the text of the whole conversation holds the assistant's turn `i`, the token that ends it included."""
        asked = self.renderer(example, whole.turns[:i], ask=True, begun=False) if i else ""
        answered = self._answered(example, asked, whole.turns[: i + 1])
        start, end = len(asked), len(answered.text)
        if whole.text.startswith(answered.text) and whole.text.startswith(asked):
            end += self._ending(whole.text, end, answered.ended)
        else:
            start, end = self._around_words(example, whole, i, asked, answered)
        return self._without_others(whole, answered, start, end)

    def _without_others(self, whole: Rendered, answered: Rendered, start: int, end: int) -> list[tuple[int, int]]:
        """A turn of the assistant's without what others say inside it: Gemma 4 writes a tool's result before the caller's text.

        Args:
            answered: the conversation up to this turn, so without the results.
            start: where it begins in the text of the whole conversation.
            end: where it ends there.
        """
        found = whole.places.found
        others = {turn for turn, message in enumerate(whole.turns) if message["role"] != "assistant"}
        if not any(turn in others and first < end and last > start for turn, (first, last) in found.items()):
            return [(start, end)]
        parts: list[tuple[int, int]] = []
        number, own, inside = -1, start, (end, end)
        for n, word in sorted(whole.places.words.items(), key=lambda item: item[1].start):
            if not start <= word.start < end:
                continue
            if word.turn in others:
                inside = (min(inside[0], word.start), word.end) if word.start >= own else inside
                continue
            if inside[1] <= word.start:
                parts.append((start, self._before_others(whole, answered, number, own, inside[0])))
                start = self._behind(whole.text, inside[1], word.start)
            number, own, inside = n, max(own, word.end), (end, end)
        return [*parts, (start, end)]

    def _before_others(self, whole: Rendered, answered: Rendered, number: int, own: int, others: int) -> int:
        """How far the assistant wrote before others' words: what stands behind its word without them, and the token that ends it.

        Args:
            number: of its last word before them.
            own: the end of that word.
            others: where their words begin.
        """
        if number not in answered.places.words:
            return own
        end = own + _alike(whole.text[own:others], answered.text[answered.places.words[number].end :])
        ends = (t for t in self.control if whole.text.startswith(t, end) and answered.text.endswith(t))
        return end + len(next(ends, ""))

    def _behind(self, text: str, others: int, own: int) -> int:
        """Where the assistant goes on between others' words and its own: behind the last control token, or at its word."""
        found = [at + len(token) for token in self.control if (at := text.rfind(token, others, own)) >= 0]
        return max(found, default=own)

    def _around_words(
        self, example: Example, whole: Rendered, i: int, asked: str, answered: Rendered
    ) -> tuple[int, int]:
        """The same where a template writes an earlier turn otherwise than the last one, by the words of the turns.

        It begins behind as much of its header as stands before its words; or, where a template lets it go on with an earlier turn
        of the assistant's without one (Gemma 4), where the conversation before it ends. It ends as it does where it is the last
        turn (tags and numbers may follow its last word), or else with the first EOS after its words.
        """
        found = whole.places.found
        if i not in found:
            return 0, 0
        first, last = found[i]
        before = max((place[1] for turn, place in found.items() if turn < i and place[1] <= first), default=0)
        after = min(
            (place[0] for turn, place in found.items() if turn > i and place[0] >= last), default=len(whole.text)
        )
        tail = answered.text[answered.places.found[i][1] :] if i in answered.places.found else ""
        end = self._end(whole.text, last, after, tail, answered.ended)
        if whole.text.startswith(asked) and before <= len(asked) <= first:
            return len(asked), end
        goes_on = i > 0 and whole.turns[i - 1]["role"] != "user"
        answered_first = next(n for n, turn in enumerate(whole.turns) if turn["role"] == "assistant")
        headers = [self._header(example, whole.turns[:n]) for n in ([i, answered_first] if goes_on else [i])]
        gap = whole.text[before:first]
        for header in headers:
            lengths = [piece.end() for piece in PIECE.finditer(header)]
            if length := next((n for n in reversed(lengths) if header[:n] in gap), 0):
                return before + gap.rindex(header[:length]) + length, end
        closed = _alike(self.renderer(example, whole.turns[:i], ask=False), whole.text) if goes_on else 0
        return (closed if before <= closed <= first else first), end

    def _header(self, example: Example, turns: Turns) -> str:
        """What the template writes between these turns and an answer to them."""
        if not turns:
            return ""
        asked, closed = (self.renderer(example, turns, ask, begun=False) for ask in (True, False))
        return asked[common(asked, closed) :]

    def _end(self, text: str, last: int, after: int, tail: str, ended: bool) -> int:
        """The end of a turn between its last word and the next turn's first; `tail` and `ended` are of it where it is the last."""
        end = last + _alike(text[last:after], tail)
        if end == last + len(tail) and (ending := self._ending(text, end, ended)):
            return end + ending
        at = text.find(self.eos_text, last, after)
        return end if at < 0 else at + len(self.eos_text)

    def _ending(self, text: str, end: int, ended: bool) -> int:
        """Length of the token at `end` that ends a turn: EOS, or any control token if the turn has an EOS where it is the last."""
        ends = (self.eos_text, *self.control) if ended else (self.eos_text,)  # gpt-oss has one token for the last turn
        return next((len(token) for token in ends if text.startswith(token, end)), 0)


def unknown_token(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Id of the token for all that has no other; None where there is no such thing, or the same token ends or begins texts."""
    unknown: int | None = tokenizer.unk_token_id
    others = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.cls_token_id)
    return None if unknown in others else unknown


def _prefix_of(tokenizer: "PreTrainedTokenizerBase", eos: int) -> Ids:
    """The ids that the tokenizer puts before a text, found by tokenising one."""
    plain, full = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    if plain:
        return tuple(full[: next(i for i in range(len(full)) if full[i : i + len(plain)] == plain)])
    return tuple(full[:-1] if full and full[-1] == eos else full)  # it has no token for "a"


def _alike(one: str, other: str) -> int:
    """Length of the common prefix of two texts in whole pieces, so that no control token is cut."""
    pieces = PIECE.findall(one)
    return sum(map(len, pieces[: common(pieces, PIECE.findall(other))]))


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the common prefix."""
    if one == other[: len(one)]:  # the usual case, and fast
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
