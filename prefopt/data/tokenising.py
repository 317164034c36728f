"""Tokenisation of examples, the same for all methods.

Prompt and completion are tokenised together and cut at their common prefix, because a tokenizer may merge tokens across the
boundary, and a chat template may render a prompt differently once it is answered.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Self

from prefopt.data.disk_rows import DiskRows
from prefopt.data.example import Completion, Example, Matrix, select_matrix
from prefopt.support.errors import PrefoptError
from prefopt.types import Axis, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]

CHUNK = 512
"""Examples in one call of the tokenizer: enough for its threads, few enough to bound memory."""


@dataclass(frozen=True)
class Tokenised:
    """One prompt with its K completions, as tokens.

    Attributes:
        prompt_ids: what the first completion token is predicted from; never empty.
        completion_ids: K sequences, none empty; each ends in EOS unless it was cut.
        scores: K numbers, larger is better.
        preference: K × K, P(y_i beats y_j).
        example: the text; the same K completions in the same order.
        row: the number of the example in the sequence that was tokenised.
        masks: for each completion, which of its tokens the policy wrote; None when it wrote all of them.
        prompt_cut: whether the prompt was cut at the beginning.
        completions_cut: for each completion, whether it was cut at the end.
    """

    prompt_ids: Ids
    completion_ids: tuple[Ids, ...]
    scores: tuple[float | None, ...] | None
    preference: Matrix | None
    example: Example
    row: int = 0
    masks: tuple[tuple[bool, ...], ...] | None = None
    prompt_cut: bool = False
    completions_cut: tuple[bool, ...] = ()

    @property
    def size(self) -> int:
        """K."""
        return len(self.completion_ids)

    @property
    def group(self) -> str:
        """The example's."""
        return self.example.group

    @property
    def where(self) -> str:
        """The example's."""
        return self.example.where

    @property
    def columns(self) -> Mapping[str, Any]:
        """The example's."""
        return self.example.columns

    @property
    def axes(self) -> Mapping[str, Axis]:
        """The example's."""
        return self.example.axes

    def with_axes(self, axes: Mapping[str, Axis]) -> Self:
        """The same with the axes of its columns stated; see `Example.with_axes`."""
        example = self.example.with_axes(axes)
        return self if example is self.example else dataclasses.replace(self, example=example)

    def select(self, order: Sequence[int]) -> Self:
        """Only these completions, in this order, with their scores, preferences, masks and columns."""
        return dataclasses.replace(
            self,
            completion_ids=tuple(self.completion_ids[i] for i in order),
            scores=None if self.scores is None else tuple(self.scores[i] for i in order),
            preference=select_matrix(self.preference, order),
            example=self.example.select(order),
            masks=None if self.masks is None else tuple(self.masks[i] for i in order),
            completions_cut=tuple(self.completions_cut[i] for i in order) if self.completions_cut else (),
        )

    def scored(self, scores: tuple[float | None, ...]) -> Self:
        """The same completions with these scores, and without preferences."""
        return dataclasses.replace(self, scores=scores, preference=None, example=self.example.scored(scores))


@dataclass(frozen=True)
class Report:
    """What tokenisation dropped and cut.

    Attributes:
        examples: number of examples given.
        kept: number of rows returned.
        counts: number of prompts or completions by what was done to them.
        prompt_tokens: median and largest number, after cutting.
        completion_tokens: median and largest number, after cutting.
    """

    examples: int
    kept: int
    counts: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: tuple[int, int] = (0, 0)
    completion_tokens: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        lines = [
            f"{self.kept} of {self.examples} examples kept",
            f"tokens, median and most: prompts {self.prompt_tokens[0]}, {self.prompt_tokens[1]}; "
            f"completions {self.completion_tokens[0]}, {self.completion_tokens[1]}",
        ]
        return "\n".join(lines + [f"{count} {what}" for what, count in sorted(self.counts.items())])


NO_SCORE = "completions dropped: without a score"
EMPTY = "completions dropped: empty"
LEFT_EMPTY = "prompts dropped: too few completions left"
PROMPT_CUT = "prompts cut at the beginning"
COMPLETION_CUT = "completions cut at the end, so without EOS"
MERGED = "prompts whose last tokens went to the completion, because they change when one follows"


def tokenise(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    max_prompt: int | None = None,
    max_completion: int | None = None,
    *,
    fewest: int = 1,
    axes: Mapping[str, Axis] | None = None,
) -> tuple[list[Tokenised], Report]:
    """Examples as tokens, in memory, and a report of what was dropped and cut; for rows that are used once, and soon.

    Prompts that are too long lose their beginning (a BOS stays), completions that are too long their end, EOS included.
    Special tokens that are spelt out in a text count as special, as everywhere in the field.

    Args:
        examples: those without completions give rows with a prompt only.
        tokenizer: of a causal model, or of an encoder, whose [SEP] is used as EOS.
        max_prompt: most tokens of a prompt.
        max_completion: most tokens of a completion, EOS included.
        fewest: a prompt that had completions and has fewer than this left is dropped.
        axes: of the examples' columns, `Needs.axes`, so that columns of completions lose those that are dropped.

    Raises:
        PrefoptError: the tokenizer has no EOS, or no chat template for conversations, or its template refuses one.
    """
    tokenising = _Tokenising(examples, tokenizer, max_prompt, max_completion, fewest, axes or {})
    rows = list(tokenising)
    return rows, tokenising.report()


def tokenise_to_disk(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    max_prompt: int | None = None,
    max_completion: int | None = None,
    *,
    fewest: int = 1,
    axes: Mapping[str, Axis] | None = None,
) -> tuple[DiskRows[Tokenised], Report]:
    """`tokenise` for data sets: every row goes to disk as soon as it is made.

    Raises:
        PrefoptError: as `tokenise`; or the disk is full.
    """
    tokenising = _Tokenising(examples, tokenizer, max_prompt, max_completion, fewest, axes or {})
    rows = DiskRows.of(tokenising)
    return rows, tokenising.report()


class _Tokenising:
    """Examples as tokens, one by one, and a report on those that were taken; the arguments are those of `tokenise`."""

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: "PreTrainedTokenizerBase",
        max_prompt: int | None,
        max_completion: int | None,
        fewest: int,
        axes: Mapping[str, Axis],
    ) -> None:
        for name, most in (("prompt", max_prompt), ("completion", max_completion)):
            if most is not None and most < 1:
                raise PrefoptError(f"the most tokens of a {name} must be at least 1, not {most}")
        self.examples, self.fewest, self.axes = examples, fewest, axes
        self.longest = (max_prompt, max_completion)
        self.encoder = _TextEncoder.of(tokenizer)
        self.kept = 0
        self.counts: Counter[str] = Counter()
        self.prompt_lengths: Counter[int] = Counter()
        self.completion_lengths: Counter[int] = Counter()

    def __iter__(self) -> Iterator[Tokenised]:
        encoder, counts = self.encoder, self.counts
        for start in range(0, len(self.examples), CHUNK):
            given = [example.with_axes(self.axes) for example in self.examples[start : start + CHUNK]]
            chunk = [_present(example, counts) for example in given]
            texts = [encoder.texts(example) for example in chunk]
            ids = iter(encoder.encode([text for of_one in texts for text in of_one]))
            for number, (before, example, of_one) in enumerate(zip(given, chunk, texts, strict=True), start):
                prompt, *joint = (next(ids) for _ in of_one)
                row = _row(encoder, example, number, prompt, joint, counts)
                row = _without_empty(_cut(row, encoder, *self.longest, counts), counts)
                if before.size and row.size < self.fewest:
                    counts[LEFT_EMPTY] += 1
                    continue
                self.kept += 1
                self.prompt_lengths[len(row.prompt_ids)] += 1
                self.completion_lengths.update(map(len, row.completion_ids))
                yield row

    def report(self) -> Report:
        lengths = _typical(self.prompt_lengths), _typical(self.completion_lengths)
        return Report(len(self.examples), self.kept, dict(+self.counts), *lengths)


@dataclass(frozen=True)
class _TextEncoder:
    """A tokenizer, and what is derived from it once.

    Attributes:
        eos: id of the token that ends a completion.
        eos_text: its text.
        prefix: ids that the tokenizer puts before plain text, such as BOS.
        starts: ids that stay at the beginning of a prompt that is cut.
        filler: id that stands for an empty prompt.
    """

    tokenizer: Any
    eos: int
    eos_text: str
    prefix: Ids
    starts: frozenset[int]
    filler: int

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> Self:
        eos, text = tokenizer.eos_token_id, tokenizer.eos_token
        if eos is None:
            eos, text = tokenizer.sep_token_id, tokenizer.sep_token
        if eos is None:
            raise PrefoptError(
                "the tokenizer has neither an EOS nor a SEP token, so a completion cannot end; set one, e.g. "
                "tokenizer.eos_token = '<|endoftext|>'"
            )
        prefix = _prefix_of(tokenizer, eos)
        starts = {i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id) if i is not None} | set(prefix[:1])
        filler = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return cls(tokenizer, eos, str(text), prefix, frozenset(starts), filler)

    def encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])

    def texts(self, example: Example) -> list[str]:
        """The prompt alone, then followed by each completion."""
        if isinstance(example.prompt, str):
            return [example.prompt, *(example.prompt + str(completion) for completion in example.completions)]
        prompt = self.render(example, example.prompt, ask=True)
        return [prompt, *(self.answered(example, prompt, completion) for completion in example.completions)]

    def answered(self, example: Example, prompt: str, completion: Completion) -> str:
        """A conversation up to the end of its last turn: without its EOS and without what the template adds after it.

        Where the answer itself contains the text of an EOS, what follows that is kept.
        """
        assert not isinstance(completion, str)
        text = self.render(example, (*example.prompt, *completion), ask=False)
        before, eos, rest = text.rpartition(self.eos_text)
        own = eos and self.eos_text in str(completion[-1].get("content")) and rest.strip()
        answered = len(before) >= _common(prompt, text)
        return before if eos and answered and not own else text

    def render(self, example: Example, turns: Prompt, ask: bool) -> str:
        """The chat template's text for these turns; with `ask`, followed by the start of an assistant's turn."""
        if not self.tokenizer.chat_template:
            raise PrefoptError(
                f"{example.where}: a conversation, but the tokenizer has no chat template; set "
                "tokenizer.chat_template, use an instruct model's tokenizer, or give the prompts as plain text"
            )
        settings = {"tools": example.columns.get("tools"), **(example.columns.get("chat_template_kwargs") or {})}
        try:
            return self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns if not isinstance(turn, str)],
                tokenize=False,
                add_generation_prompt=ask,
                **settings,
            )
        except Exception as error:  # templates raise exceptions of many kinds
            raise PrefoptError(f"{example.where}: the chat template refuses this conversation: {error}") from error


def _prefix_of(tokenizer: "PreTrainedTokenizerBase", eos: int) -> Ids:
    """The ids that the tokenizer puts before a text, found by tokenising one."""
    plain, full = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    if plain:
        return tuple(full[: next(i for i in range(len(full)) if full[i : i + len(plain)] == plain)])
    return tuple(full[:-1] if full and full[-1] == eos else full)  # it has no token for "a"


def _present(example: Example, counts: Counter[str]) -> Example:
    """Without empty completions, and without those that have no score where others have one."""
    scores = example.scores or (0.0,) * example.size
    scored = [i for i, score in enumerate(scores) if score is not None]
    present = [i for i in scored if example.completions[i]]
    counts[NO_SCORE] += example.size - len(scored)
    counts[EMPTY] += len(scored) - len(present)
    return example if len(present) == example.size else example.select(present)


def _row(
    encoder: _TextEncoder,
    example: Example,
    number: int,
    prompt: list[int],
    joint: list[list[int]],
    counts: Counter[str],
) -> Tokenised:
    """Cut the joint sequences at the prefix that they share with the prompt, and end each completion with one EOS."""
    shared = min((_common(prompt, ids) for ids in joint), default=len(prompt))
    counts[MERGED] += shared < len(prompt)
    completions = tuple(_ended(ids[shared:], encoder.eos) for ids in joint)
    masks = None
    if any(not isinstance(completion, str) and len(completion) > 1 for completion in example.completions):
        written = [_written_by_assistant(encoder, example, k, ids, shared) for k, ids in enumerate(joint)]
        masks = tuple(
            (*mask[: len(ids) - 1], True) if ids else () for mask, ids in zip(written, completions, strict=True)
        )
    start = prompt[:shared]
    if isinstance(example.prompt, str) and tuple(start[: len(encoder.prefix)]) != encoder.prefix:
        start = [*encoder.prefix, *start]
    return Tokenised(
        tuple(start) or (encoder.filler,),
        completions,
        example.scores,
        example.preference,
        example,
        number,
        masks,
        completions_cut=(False,) * len(joint),
    )


def _ended(ids: list[int], eos: int) -> Ids:
    """The ids with exactly one EOS at the end; () if there is nothing but EOS."""
    end = len(ids)
    while end and ids[end - 1] == eos:
        end -= 1
    return (*ids[:end], eos) if end else ()


def _written_by_assistant(encoder: _TextEncoder, example: Example, k: int, joint: list[int], shared: int) -> list[bool]:
    """[T] which tokens of completion `k`, which has several turns, the assistant wrote, rather than tools or users."""
    turns: tuple[Any, ...] = (*example.prompt, *example.completions[k])
    written = [False] * len(joint)
    for i in range(len(example.prompt), len(turns)):
        if turns[i]["role"] != "assistant":
            continue
        before = dataclasses.replace(example, prompt=turns[:i])
        asked = encoder.render(before, before.prompt, ask=True)
        first, last = (
            _common(ids, joint) for ids in encoder.encode([asked, encoder.answered(before, asked, turns[i : i + 1])])
        )
        first = shared if i == len(example.prompt) else first
        last += joint[last : last + 1] == [encoder.eos]  # including the EOS that ends the turn
        written[first:last] = [True] * (last - first)
    return written[shared:]


def _cut(
    row: Tokenised, encoder: _TextEncoder, max_prompt: int | None, max_completion: int | None, counts: Counter[str]
) -> Tokenised:
    prompt = row.prompt_ids
    if max_prompt is not None and len(prompt) > max_prompt:
        start = prompt[:1] if prompt[0] in encoder.starts and max_prompt > 1 else ()
        prompt = (*start, *prompt[len(prompt) - max_prompt + len(start) :])
    cut = tuple(max_completion is not None and len(ids) > max_completion for ids in row.completion_ids)
    counts[PROMPT_CUT] += prompt is not row.prompt_ids
    counts[COMPLETION_CUT] += sum(cut)
    return dataclasses.replace(
        row,
        prompt_ids=prompt,
        prompt_cut=prompt is not row.prompt_ids,
        completion_ids=tuple(ids[:max_completion] for ids in row.completion_ids),
        masks=None if row.masks is None else tuple(mask[:max_completion] for mask in row.masks),
        completions_cut=cut,
    )


def _without_empty(row: Tokenised, counts: Counter[str]) -> Tokenised:
    """Drop completions in which the mask is empty."""
    written = [i for i, ids in enumerate(row.masks or row.completion_ids) if ids and (row.masks is None or any(ids))]
    if len(written) == row.size:
        return row
    counts[EMPTY] += row.size - len(written)
    return row.select(written)


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the common prefix."""
    if one == other[: len(one)]:  # the usual case, and fast
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _typical(lengths: Counter[int]) -> tuple[int, int]:
    """Median (of an even number, the upper one) and maximum."""
    if not lengths:
        return 0, 0
    ordered = sorted(lengths)
    upto = accumulate(lengths[length] for length in ordered)
    return next(n for n, most in zip(ordered, upto, strict=True) if most > lengths.total() // 2), ordered[-1]
