"""How a causal LM reads questions: as token ids, what they share once, and each once for all its labels."""

import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.data.texts import decode_completion, decode_everything
from prefopt.feedback.judges.prompts import opens_thinking, refuse_thinking, rendered
from prefopt.feedback.judges.question import Answer, Question
from prefopt.feedback.judges.texts import broken
from prefopt.feedback.judges.thinking import after_thinking
from prefopt.policy import Policy
from prefopt.policy.decode.ends import end_tokens
from prefopt.policy.decode.sampler import TransformersSampler, is_stateful
from prefopt.support.errors import PrefoptError
from prefopt.support.threads import phase
from prefopt.types import Batch, Needs

SHARED = 8
"""Tokens that all questions must begin with before it pays to read them apart."""

Ids = tuple[int, ...]


class Reading:
    """A policy that reads and answers questions.

    Args:
        policy: with a tokenizer.
        batch_size: questions together.
        template: whether turns are written by its chat template, where it has one; otherwise they are plain text.
        settings: what the chat template takes beside the turns.
    """

    def __init__(
        self, policy: Policy, batch_size: int, template: bool = True, settings: Mapping[str, Any] = MappingProxyType({})
    ):
        assert policy.tokenizer is not None
        self.policy = policy
        self.tokenizer: PreTrainedTokenizerBase = policy.tokenizer
        self.batch_size = batch_size
        self.turns = Turns(self.tokenizer, template, settings)
        self._last_prefix: tuple[Ids, Any] = ((), None)
        self._labels: dict[tuple[str, str], Ids] = {}

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """The number of a question and its answer; questions of like length together. What is too long has no answer."""
        ids = [self.read(question) for question in questions]
        for places in self._batches(questions, [len(one) for one in ids]):
            asked, read = [questions[i] for i in places], [ids[i] for i in places]
            if asked[0].labels:
                yield from zip(places, self._likelihoods(asked, read), strict=True)
            else:
                yield from zip(places, self._written(asked, read), strict=True)
        yield from (
            (i, Answer(missing="too_long"))
            for i, question in enumerate(questions)
            if not self._fits(question, len(ids[i]))
        )

    def read(self, question: Question) -> Ids:
        """A question as token ids, with the beginning of its answer."""
        return self.turns.ids(question)

    def text(self, question: Question) -> str:
        """A question as text; raises as `Turns.text`."""
        return self.turns.text(question)

    def _batches(self, questions: Sequence[Question], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of questions of one kind and of like length."""
        kinds: dict[Any, list[int]] = {}
        for i, question in enumerate(questions):
            if self._fits(question, lengths[i]):
                kinds.setdefault((question.labels, question.max_tokens, question.temperature), []).append(i)
        for members in kinds.values():
            members.sort(key=lambda i: lengths[i])
            for at in range(0, len(members), self.batch_size):
                yield members[at : at + self.batch_size]

    def _fits(self, question: Question, length: int) -> bool:
        most = getattr(self.policy.causal.config.get_text_config(), "max_position_embeddings", None)
        return most is None or length + question.room <= most

    # Likelihoods

    def _likelihoods(self, questions: Sequence[Question], ids: Sequence[Ids]) -> list[Answer]:
        labels = questions[0].labels
        texts = [self.text(question) for question in questions]
        tokens = [[self._label_ids(text, label) for label in labels] for text in texts]
        with phase("scoring"), torch.no_grad(), self._evaluating():
            logps = self._one_by_one(ids, tokens) if is_stateful(self.policy) else self._shared(ids, tokens)
        return [
            Answer(tuple(contained(labels, own, of_labels)), prompt_tokens=len(read))
            for own, of_labels, read in zip(tokens, logps.tolist(), ids, strict=True)
        ]

    def _label_ids(self, text: str, label: str) -> Ids:
        """A label's tokens after a text: those that it has in place, where the text keeps its own, or those it has alone."""
        tail = text[-24:]
        if (tail, label) not in self._labels:
            before, joined = (self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (tail, tail + label))
            unchanged = joined[: len(before)] == before and len(joined) > len(before)
            alone = joined[len(before) :] if unchanged else self.tokenizer(label, add_special_tokens=False)["input_ids"]
            if not alone:
                raise PrefoptError(f"the judge's tokenizer finds nothing in the label {label!r}")
            self._labels[tail, label] = tuple(alone)
        return self._labels[tail, label]

    def _one_by_one(self, ids: Sequence[Ids], tokens: Sequence[Sequence[Ids]]) -> Tensor:
        """[N, L] by the policy's own forward pass, which reads the question again for every label."""
        longest = max(len(label) for own in tokens for label in own)
        padded = torch.tensor([[[*label, *[0] * (longest - len(label))] for label in own] for own in tokens])
        lengths = torch.tensor([[len(label) for label in own] for own in tokens])
        batch = Batch(tuple(ids), padded, torch.arange(longest) < lengths[..., None])
        return self.policy(batch, Needs()).sum().double().cpu()

    def _shared(self, ids: Sequence[Ids], tokens: Sequence[Sequence[Ids]]) -> Tensor:
        """[N, L] from one reading of each question, and a few more tokens for labels of several."""
        first, cache, mask = self._states(ids)
        # What has to be read to know all tokens of a label: the label without its last, if that is anything.
        heads = list(dict.fromkeys(label[:-1] for own in tokens for label in own if len(label) > 1))
        following = self._following(cache, mask, heads) if heads else first[:, None, None]
        logps = torch.zeros(len(ids), len(tokens[0]), dtype=torch.float64)
        for n, own in enumerate(tokens):
            for i, label in enumerate(own):
                logp = first[n, label[0]].double()
                for depth in range(1, len(label)):
                    logp = logp + following[n, heads.index(label[:-1]), depth - 1, label[depth]].double()
                logps[n, i] = logp
        return logps

    def _states(self, ids: Sequence[Ids]) -> tuple[Tensor, Any, Tensor]:
        """Log-probs [N, V] of what follows each question, the cache behind them, and its mask [N, T]."""
        prefix, cache = self._prefix(ids)
        rest = [one[len(prefix) :] for one in ids]
        longest, device = max(map(len, rest)), self.policy.device
        padded = torch.tensor([[0] * (longest - len(one)) + list(one) for one in rest], device=device)
        lengths = torch.tensor([len(one) for one in rest], device=device)
        own = torch.arange(longest, device=device) >= longest - lengths[:, None]
        mask = torch.cat([own.new_ones(len(ids), len(prefix)), own], 1).long()
        if len(prefix):
            cache.batch_repeat_interleave(len(ids))
        logits = self._read(padded, mask, cache, 1)[:, -1]
        return logits.log_softmax(-1), cache, mask

    def _prefix(self, ids: Sequence[Ids]) -> tuple[Ids, Any]:
        """What all of these begin with, and a cache that has read it; the last one is reused, because a judge has one rubric."""
        prefix, cache = self._last_prefix
        if not (prefix and all(one[: len(prefix)] == prefix and len(one) > len(prefix) for one in ids)):
            low, high = min(ids), max(ids)  # in the order of tuples, so that what these two share all share
            most = min(len(one) for one in ids) - 1
            same = next((i for i in range(most) if low[i] != high[i]), most)
            prefix, cache = ids[0][:same], DynamicCache(config=self.policy.causal.config)
            if len(ids) < 2 or same < SHARED:
                return (), cache
            row = torch.tensor([prefix], device=self.policy.device)
            self._read(row, torch.ones_like(row), cache, 1)
            self._last_prefix = prefix, cache
        return prefix, copy.deepcopy(cache)

    def _following(self, cache: Any, mask: Tensor, heads: Sequence[Ids]) -> Tensor:
        """Log-probs [N, H, D, V] after each token of each head, by the question."""
        longest, (rows, _), device = max(map(len, heads)), mask.shape, self.policy.device
        padded = torch.tensor([[*head, *[0] * (longest - len(head))] for head in heads], device=device)
        cache.batch_repeat_interleave(len(heads))
        mask = torch.cat([mask.repeat_interleave(len(heads), 0), mask.new_ones(rows * len(heads), longest)], 1)
        return self._read(padded.repeat(rows, 1), mask, cache, 0).log_softmax(-1).unflatten(0, (rows, len(heads)))

    def _read(self, ids: Tensor, mask: Tensor, cache: Any, keep: int) -> Tensor:
        """Logits of the last `keep` tokens, 0 for all, after what the cache has read."""
        more: dict[str, Any] = (
            {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]} if self._places else {}
        )
        logits = self.policy.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=keep, **more
        ).logits
        return logits if logits.dtype == torch.float64 else logits.float()

    # Texts

    def _written(self, questions: Sequence[Question], ids: Sequence[Ids]) -> Iterator[Answer]:
        one = questions[0]
        settings = recipe.Sampling(temperature=one.temperature, max_tokens=one.max_tokens)
        seeds = torch.tensor([question.seed for question in questions])
        drawn = TransformersSampler(self.batch_size)(self.policy, ids, 1, settings, seeds)
        ends = end_tokens(self.policy, settings.stop)
        for n, own in enumerate(drawn.mask[:, 0]):
            tokens = drawn.completion_ids[n, 0][own].tolist()
            cut_off = not tokens or tokens[-1] not in ends
            answer = self._answer(tokens, opens_thinking(self.text(questions[n])), cut_off)
            yield replace(answer, prompt_tokens=len(ids[n]), completion_tokens=len(tokens))

    def _answer(self, tokens: Sequence[int], thinks: bool, cut_off: bool) -> Answer:
        """What was written after all thinking, which special tokens may mark."""
        text, everything = decode_completion(self.tokenizer, tokens), decode_everything(self.tokenizer, tokens)
        answer = after_thinking(f"<think>{everything}" if thinks else everything)
        if answer is None:
            return Answer(missing="thinking")
        if answer != everything:
            text = self.turns.control.sub("", answer)
        return Answer(text=text, cut_off=cut_off) if text.strip() else Answer(missing="empty")

    @cached_property
    def _places(self) -> bool:
        return "position_ids" in inspect.signature(self.policy.causal.forward).parameters

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.policy.training
        self.policy.eval()
        try:
            yield
        finally:
            self.policy.train(training)


@dataclass(frozen=True)
class Turns:
    """How one tokenizer writes a question.

    Attributes:
        tokenizer: any.
        wanted: whether its chat template writes the turns, where it has one; otherwise they are plain text.
        settings: what the template takes beside the turns.
    """

    tokenizer: PreTrainedTokenizerBase
    wanted: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def template(self) -> bool:
        """Whether the chat template writes the turns."""
        return self.wanted and bool(self.tokenizer.chat_template)

    def text(self, question: Question) -> str:
        """A question as text: by the chat template, or line by line where there is none.

        Control tokens of this tokenizer in a turn are broken up: only the template writes any.

        Raises:
            PrefoptError: the chat template does not take these turns, or begins the answer with thinking.
        """
        start = broken(question.start, self.control)[0]
        turns = [{"role": role, "content": broken(content, self.control)[0]} for role, content in question.turns]
        if not self.template:
            return "\n".join([*(turn["content"] for turn in turns), *filter(None, [start])])
        written = rendered(turns, self.tokenizer, self.settings, "the judge's chat template")
        refuse_thinking(written, question, "chat_template_kwargs")
        return written + start

    def ids(self, question: Question) -> Ids:
        """A question as token ids, with the beginning of its answer; raises as `text`."""
        return tuple(self.tokenizer(self.text(question), add_special_tokens=not self.template)["input_ids"])

    @cached_property
    def control(self) -> re.Pattern[str]:
        """The tokenizer's own control tokens; what only looks like one is the rubric's business."""
        added = self.tokenizer.added_tokens_decoder.values()
        known = {token.content for token in added if token.special or token.content[:1] in "<["}
        known |= set(self.tokenizer.all_special_tokens)
        return re.compile(
            "|".join(re.escape(token) for token in sorted(known, key=len, reverse=True) if len(token) > 1) or r"(?!)"
        )


def contained(labels: Sequence[str], ids: Sequence[Ids], logps: Sequence[float]) -> list[float]:
    """Log-likelihood that the answer starts with each label, where longer labels that begin with it count, too.

    Where "10" is the token "1" and a "0" more, the likelihood of "1" has it already; where it is a token of its own, it is added.
    """
    values = torch.tensor(logps, dtype=torch.float64)
    whole = []
    for i, label in enumerate(labels):
        longer = [j for j, other in enumerate(labels) if other.startswith(label)]
        # Not what another of them has already, by its tokens.
        apart = [j for j in longer if not any(k != j and _begins(ids[k], ids[j]) for k in longer)]
        whole.append(float(values[apart].logsumexp(0)) if apart != [i] else float(values[i]))
    return whole


def _begins(one: Ids, other: Ids) -> bool:
    return len(one) < len(other) and other[: len(one)] == one
