"""Tokenisation of examples, the same for all methods.

Prompt and completion are tokenised together and cut at their common prefix, because a tokenizer may merge tokens across the
boundary, and a chat template may render a prompt differently once it is answered.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prefopt.data.disk_rows import DiskRows
from prefopt.data.encoding import Rendered, TextEncoder, common
from prefopt.data.example import Example
from prefopt.data.fitting import TooLong, first_that_fits, later_beginnings, too_long
from prefopt.data.losses import Losses
from prefopt.data.repeats import Repeats
from prefopt.data.steps import ends_of
from prefopt.data.text_episodes import eos_of, has_text_episodes
from prefopt.data.tokenised import Ids, Report, Tokenised
from prefopt.data.tokenising_episodes import episode_ids
from prefopt.support.errors import PrefoptError
from prefopt.types import Axis

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 512
"""Examples in one call of the tokenizer: enough for its threads, few enough to bound memory."""


NO_SCORE = "completions dropped: without a score"
EMPTY = "completions dropped: empty"
LEFT_EMPTY = "prompts dropped: too few completions left"
PROMPT_CUT = "prompts cut at the beginning"
COMPLETION_CUT = "completions cut at the end, so without EOS"
TURNS_CUT = "conversations that lost their earliest turns"
DROPPED = {
    "prompt": "rows dropped: the prompt is too long",
    "completion": "rows dropped: a completion is too long",
}
UNKNOWN = "{what} with words or characters that the tokenizer has no token for"
MERGED = "prompts whose last tokens went to the completion, because they change when one follows"


def tokenise(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    max_prompt: int | None = None,
    max_completion: int | None = None,
    *,
    fewest: int = 1,
    axes: Mapping[str, Axis] | None = None,
    longer: TooLong = "cut",
    ended: bool = False,
) -> tuple[list[Tokenised], Report]:
    """Examples as tokens, in memory, and a report of what was dropped and cut; for rows that are used once, and soon.

    Unless `longer` says otherwise, prompts that are too long lose their beginning (a BOS stays), completions that are too long
    their end, EOS included.
    Special tokens that are spelt out in a text count as special, as everywhere in the field.

    Args:
        examples: those without completions give rows with a prompt only.
        tokenizer: of a causal model, or of an encoder, whose [SEP] is used as EOS.
        max_prompt: most tokens of a prompt.
        max_completion: most tokens of a completion, EOS included.
        fewest: a prompt that had completions and has fewer than this left is dropped.
        axes: of the examples' columns, `Needs.axes`, so that columns of completions lose those that are dropped.
        longer: what becomes of rows with a prompt or a completion that is longer.
        ended: whether EOS ends every completion, whatever the column `eos` says: as models that score read them.

    Raises:
        PrefoptError: the tokenizer has no EOS, or no chat template for conversations, or its template refuses one.
    """
    tokenising = _Tokenising(examples, tokenizer, max_prompt, max_completion, fewest, axes or {}, longer, ended)
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
    longer: TooLong = "cut",
    ended: bool = False,
) -> tuple[DiskRows[Tokenised], Report]:
    """`tokenise` for data sets: every row goes to disk as soon as it is made.

    Raises:
        PrefoptError: as `tokenise`; or the disk is full.
    """
    tokenising = _Tokenising(examples, tokenizer, max_prompt, max_completion, fewest, axes or {}, longer, ended)
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
        longer: TooLong,
        ended: bool,
    ) -> None:
        for name, most in (("prompt", max_prompt), ("completion", max_completion)):
            if most is not None and most < 1:
                raise PrefoptError(f"the most tokens of a {name} must be at least 1, not {most}")
        self.examples, self.fewest, self.axes = examples, fewest, axes
        self.longest, self.longer, self.ended = (max_prompt, max_completion), longer, ended
        self.encoder = TextEncoder.of(tokenizer)
        self.kept = 0
        self.counts: Counter[str] = Counter()
        self.losses = Losses()
        self.repeats = Repeats()
        self.prompt_lengths: Counter[int] = Counter()
        self.completion_lengths: Counter[int] = Counter()

    def __iter__(self) -> Iterator[Tokenised]:
        encoder, counts = self.encoder, self.counts
        for start in range(0, len(self.examples), CHUNK):
            given = [example.with_axes(self.axes) for example in self.examples[start : start + CHUNK]]
            chunk = [_present(example, counts) for example in given]
            texts = [encoder.texts(example) for example in chunk]
            ids = iter(encoder.encode_rendered([one for of_one in texts for one in of_one]))
            for number, (before, example, of_one) in enumerate(zip(given, chunk, texts, strict=True), start):
                row, of_one, own = self._fitted(example, number, of_one, [next(ids) for _ in of_one])
                counts.update(own)
                if row is None:
                    continue
                self.losses.add(row.example, of_one)
                row = _without_empty(_cut(row, encoder, *self.longest, counts), counts)
                if before.size and row.size < self.fewest:
                    counts[LEFT_EMPTY] += 1
                    continue
                self.kept += 1
                self.repeats.add(row)
                self.prompt_lengths[len(row.prompt_ids)] += 1
                self.completion_lengths.update(map(len, row.completion_ids))
                yield row

    def _fitted(
        self, example: Example, number: int, texts: list[Rendered], ids: list[list[int]]
    ) -> tuple[Tokenised | None, list[Rendered], Counter[str]]:
        """A row that is no longer than it may be, unless it is to be cut; None where it is dropped. With its texts and counts."""
        counts: Counter[str] = Counter()
        row = self._row(example, number, texts[1:], ids[0], ids[1:], counts)
        if self.longer == "cut" or not (what := too_long(row, *self.longest)):
            return row, texts, counts
        beginnings = later_beginnings(example) if self.longer == "cut_turns" else []
        later = first_that_fits(
            beginnings, lambda one: self._alone(one, number)[0], lambda one: not too_long(one, *self.longest)
        )
        if later is None:
            return None, texts, Counter({DROPPED[what]: 1})
        row, texts, counts = self._alone(later, number)
        return row, texts, counts + Counter({TURNS_CUT: 1})

    def _alone(self, example: Example, number: int) -> tuple[Tokenised, list[Rendered], Counter[str]]:
        """One example, with its texts and counts."""
        counts: Counter[str] = Counter()
        texts = self.encoder.texts(example)
        prompt, *joint = self.encoder.encode_rendered(texts)
        return self._row(example, number, texts[1:], prompt, joint, counts), texts, counts

    def _row(
        self,
        example: Example,
        number: int,
        whole: list[Rendered],
        prompt: list[int],
        joint: list[list[int]],
        counts: Counter[str],
    ) -> Tokenised:
        """Of an episode in a plain text, `joint` are its messages."""
        with_eos = (True,) * example.size if self.ended else eos_of(example.columns, example.size)
        if has_text_episodes(example):
            return _episode_row(self.encoder, example, number, prompt, joint, with_eos, self.ended, counts)
        return _row(self.encoder, example, number, whole, prompt, joint, with_eos, counts)

    def report(self) -> Report:
        lengths = _typical(self.prompt_lengths), _typical(self.completion_lengths)
        counts = +(self.counts + self.losses.counts + self.repeats.counts)
        return Report(len(self.examples), self.kept, dict(counts), *lengths, self.losses.refusal())


def _present(example: Example, counts: Counter[str]) -> Example:
    """Without empty completions, and without those that have no score where others have one."""
    scores = example.scores or (0.0,) * example.size
    scored = [i for i, score in enumerate(scores) if score is not None]
    present = [i for i in scored if example.completions[i]]
    counts[NO_SCORE] += example.size - len(scored)
    counts[EMPTY] += len(scored) - len(present)
    return example if len(present) == example.size else example.select(present)


def _row(
    encoder: TextEncoder,
    example: Example,
    number: int,
    whole: list[Rendered],
    prompt: list[int],
    joint: list[list[int]],
    with_eos: Sequence[bool],
    counts: Counter[str],
) -> Tokenised:
    """Cut the joint sequences at the prefix that they share with the prompt, and end each completion with one EOS if it has one."""
    shared = min((common(prompt, ids) for ids in joint), default=len(prompt))
    counts[MERGED] += shared < len(prompt)
    completions = tuple(
        _ended(ids[shared:], encoder.eos) if ends else tuple(ids[shared:])
        for ids, ends in zip(joint, with_eos, strict=True)
    )
    masks = None
    turns = [len(completion) for completion in example.completions if not isinstance(completion, str)]
    if max(turns, default=0) > 1 or (turns and shared < len(prompt)):
        written = [encoder.written_by_assistant(example, k, whole[k], ids, shared) for k, ids in enumerate(joint)]
        masks = tuple(
            (*mask[: len(ids) - 1], True) if ids else () for mask, ids in zip(written, completions, strict=True)
        )
        masks = None if all(map(all, masks)) else masks
    _count_unknown(encoder, prompt, completions, counts)
    return Tokenised(
        _begun(encoder, example, prompt[:shared]),
        completions,
        example.scores,
        example.preference,
        example,
        number,
        masks,
        completions_cut=(False,) * len(joint),
        step_ends=None
        if example.steps is None
        else ends_of(example.prompt, example.steps, joint, shared, encoder.encode),
    )


def _episode_row(
    encoder: TextEncoder,
    example: Example,
    number: int,
    prompt: list[int],
    messages: list[list[int]],
    with_eos: Sequence[bool],
    scored: bool,
    counts: Counter[str],
) -> Tokenised:
    """Episodes in a plain text, whose steps are the policy's turns."""
    opening, completions, masks, ends = episode_ids(example, messages, encoder.eos, with_eos, scored)
    start = (*_begun(encoder, example, prompt), *opening)
    _count_unknown(encoder, start, completions, counts)
    return Tokenised(
        start,
        completions,
        example.scores,
        example.preference,
        example,
        number,
        None if all(map(all, masks)) else masks,
        completions_cut=(False,) * example.size,
        step_ends=ends,
    )


def _begun(encoder: TextEncoder, example: Example, start: Sequence[int]) -> Ids:
    """The ids of a prompt: with one BOS where it is text and the tokenizer has one, and never none."""
    if isinstance(example.prompt, str) and tuple(start[: len(encoder.prefix)]) != encoder.prefix:
        start = [*encoder.prefix, *start]
    return tuple(start) or (encoder.filler,)


def _count_unknown(
    encoder: TextEncoder, prompt: Sequence[int], completions: Sequence[Ids], counts: Counter[str]
) -> None:
    if encoder.unknown is not None:
        counts[UNKNOWN.format(what="prompts")] += encoder.unknown in prompt
        counts[UNKNOWN.format(what="completions")] += sum(encoder.unknown in ids for ids in completions)


def _ended(ids: list[int], eos: int) -> Ids:
    """The ids with exactly one EOS at the end; () if there is nothing but EOS."""
    end = len(ids)
    while end and ids[end - 1] == eos:
        end -= 1
    return (*ids[:end], eos) if end else ()


def _cut(
    row: Tokenised, encoder: TextEncoder, max_prompt: int | None, max_completion: int | None, counts: Counter[str]
) -> Tokenised:
    prompt = row.prompt_ids
    if max_prompt is not None and len(prompt) > max_prompt:
        # What begins a text stays; a token that begins every turn, as BOS does in some templates, would open one without words.
        begins = prompt[0] in encoder.starts and prompt[0] not in prompt[1:]
        start = prompt[:1] if begins and max_prompt > 1 else ()
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
        step_ends=row.step_ends
        and tuple(tuple(at for at in ends if max_completion is None or at < max_completion) for ends in row.step_ends),
    )


def _without_empty(row: Tokenised, counts: Counter[str]) -> Tokenised:
    """Drop completions in which the mask is empty."""
    written = [i for i, ids in enumerate(row.masks or row.completion_ids) if ids and (row.masks is None or any(ids))]
    if len(written) == row.size:
        return row
    counts[EMPTY] += row.size - len(written)
    return row.select(written)


def _typical(lengths: Counter[int]) -> tuple[int, int]:
    """Median (of an even number, the upper one) and maximum."""
    if not lengths:
        return 0, 0
    ordered = sorted(lengths)
    upto = accumulate(lengths[length] for length in ordered)
    return next(n for n, most in zip(ordered, upto, strict=True) if most > lengths.total() // 2), ordered[-1]
