"""Writing completions: the one way of rollouts, evaluation, labelling and `prefopt sample`."""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor

from prefopt.data import Example, Tokenised, collate
from prefopt.data.encoding import TextEncoder
from prefopt.data.text_episodes import ASSISTANT
from prefopt.data.texts import decode_continuation, decode_everything, decode_following
from prefopt.policy import Policy
from prefopt.policy.decode.ends import EndTokens
from prefopt.policy.decode.sampler import TransformersSampler, policies_of
from prefopt.policy.parallel import draw, gathered_objects
from prefopt.policy.sharding import asked_apart
from prefopt.recipe import Sampling
from prefopt.sources.acting import Acting, EpisodeWriter, without_end
from prefopt.support.errors import PrefoptError
from prefopt.types import Batch, Message, Prompt, Remote, Sampled, Sampler, Synchronised, Written

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Completer:
    """Draws completions with a sampler and says how each ended.

    Attributes:
        sampler: draws the tokens.
        tokenizer: of the policy, to read them.
        ends: the tokens that end a completion.
        accelerator: knows the processes, which draw together and all have the result.
        episodes: writes completions of several turns, in an environment; None where there is none.
    """

    sampler: Sampler
    tokenizer: Any
    ends: EndTokens
    accelerator: Accelerator
    episodes: EpisodeWriter | None = None

    @classmethod
    def of(
        cls,
        sampler: Sampler,
        policy: Policy,
        sampling: Sampling,
        accelerator: Accelerator,
        acting: Acting | None = None,
    ) -> Self:
        """With the tokenizer of a policy, the tokens that end its completions, and what it acts in, if anything."""
        ends = EndTokens.of(policy, sampling.stop)
        tokenizer: Any = policy.tokenizer
        if ends.turn and ends.turn[0] not in ends.stop:
            turn, *eos = tokenizer.convert_ids_to_tokens([ends.turn[0], *sorted(ends.eos)])
            _warn_of_turn(turn, ", ".join(eos))
        episodes = None if acting is None else EpisodeWriter(acting, sampler, TextEncoder.of(tokenizer), ends)
        return cls(sampler, tokenizer, ends, accelerator, episodes)

    def sync(self, policy: Any, version: int | None = None) -> None:
        """Let a sampler that holds a copy of the weights take over the policy's; call it once per update, before `write`.

        Args:
            policy: what will be sampled from.
            version: how many updates it has had; None if that is not known.
        """
        if isinstance(self.sampler, Synchronised):
            self.sampler.sync(policy, version)

    @property
    def remote(self) -> bool:
        """Whether it may write in threads while the policy is trained: an environment has the process's random numbers."""
        return isinstance(self.sampler, Remote) and self.episodes is None

    def write(
        self,
        model: Any,
        rows: Sequence[Tokenised],
        completions: int,
        sampling: Sampling,
        seeds: Tensor,
        version: int | None = None,
        tasks: Sequence[int] | None = None,
    ) -> list[list[Written]]:
        """Completions of all prompts, B × K; see `begin`."""
        return self.begin(model, rows, completions, sampling, seeds, version, tasks)()

    def begin(
        self,
        model: Any,
        rows: Sequence[Tokenised],
        completions: int,
        sampling: Sampling,
        seeds: Tensor,
        version: int | None = None,
        tasks: Sequence[int] | None = None,
        pool: Executor | None = None,
    ) -> Callable[[], list[list[Written]]]:
        """Begin to write completions of all prompts, and give what waits for them, B × K; all processes do both.

        Args:
            model: a policy, a reference, or a mixture of the two.
            rows: B, with their prompts, and with the columns that an environment reads.
            completions: K of each.
            sampling: the recipe's.
            seeds: [B] int64, of each prompt's noise.
            version: how many updates the policy has had; None for what another model writes.
            tasks: B seeds of environments; None takes those of the noise.
            pool: threads to write in, if it is `remote`; None writes at once.

        Raises:
            PrefoptError: the sampler drew a completion without tokens, or refuses the model or the settings; an environment that
                is none.
        """
        if self.episodes is None:
            prompts = [row.prompt_ids for row in rows]
            drawn = draw(self.sampler, model, prompts, completions, sampling, seeds, self.accelerator, pool)
            return lambda: written(drawn(), self.ends, version)
        tasks = seeds.tolist() if tasks is None else tasks
        own = range(self.accelerator.process_index, len(rows), self.accelerator.num_processes)

        def write_own() -> dict[int, list[Written]]:
            assert self.episodes is not None
            mine, at = [rows[i] for i in own], torch.tensor(list(own), dtype=torch.long)
            with self._apart(model):
                groups = self.episodes(model, mine, completions, sampling, seeds[at], [tasks[i] for i in own], version)
            return dict(zip(own, groups, strict=True))

        shares: dict[int, list[Written]] = {}
        for share in gathered_objects(self.accelerator, write_own):
            shares |= share
        return lambda: [shares[i] for i in range(len(rows))]

    def _apart(self, model: Any) -> AbstractContextManager:
        """Of processes whose episodes have different numbers of turns."""
        if not isinstance(self.sampler, TransformersSampler):  # others have copies of the weights
            return nullcontext()
        return asked_apart(policies_of(model), self.accelerator.autocast, self.accelerator.device)

    def completion(self, written: Written, prompt: Prompt) -> str | tuple[Message, ...]:
        """A completion as feedback sees it; see `shown_completion`."""
        return shown_completion(written.messages, self.text(written, prompt), prompt)

    def text(self, completion: Written, prompt: Prompt) -> str:
        """A completion as it was written up to its end, with every special token in it; behind a text it goes on with that text.

        Feedback must see what the policy learns from: tags that are special tokens, and turns of others that it writes. Not shown
        is the end of a completion that came to one: the special token that ended it, and before it what the chat template writes
        there, as that would stand twice if the text were put into a conversation again.
        """
        ids, _ = without_end(self.tokenizer, completion.ids, self.ends, completion.ended)
        seen = prompt_seen(prompt, (completion.opening,))
        if isinstance(seen, str):
            return decode_continuation(self.tokenizer, ids, seen)
        return decode_everything(self.tokenizer, ids)


@cache
def _warn_of_turn(turn: str, eos: str) -> None:
    """Once for each pair: a model may end its answers as the template does, without the EOS that training adds."""
    log.warning(
        "the chat template ends an answer with %s, and completions end with %s: a model that writes only the first goes on to the "
        "next turn. If yours does, name it where it is sampled: `sampling: {stop: ['%s']}`",
        turn,
        eos,
        turn,
    )


def written(sampled: Sampled, ends: EndTokens, version: int | None = None) -> list[list[Written]]:
    """What a sampler drew, B × K, without padding.

    Args:
        sampled: completions [B, K, T].
        ends: the tokens that end a completion.
        version: how many updates the policy had had.

    Raises:
        PrefoptError: a completion has no tokens.
    """
    ids, masks, lengths = sampled.completion_ids.tolist(), sampled.mask.tolist(), sampled.lengths.tolist()
    logps = None if sampled.logps is None else sampled.logps.tolist()
    return [
        [
            _one(
                ids[b][k][:length],
                masks[b][k][:length],
                None if logps is None else tuple(logps[b][k][:length]),
                ends,
                version,
            )
            for k, length in enumerate(of_prompt)
        ]
        for b, of_prompt in enumerate(lengths)
    ]


def recorded(ids: Sequence[int], mask: Sequence[bool] | None, ends: EndTokens) -> Written:
    """A completion of the data as if it had been written: nobody's log-probs, and of no version of the policy.

    Args:
        ids: its tokens.
        mask: which of them a policy wrote; None for all.
        ends: the tokens that end a completion.
    """
    return _one(ids, [True] * len(ids) if mask is None else mask, None, ends, None)


def shown_completion(messages: Sequence[Message], text: str, prompt: Prompt) -> str | tuple[Message, ...]:
    """What feedback sees: of an episode in a conversation its messages, otherwise its text."""
    return text if isinstance(prompt, str) or not messages else tuple(messages)


def prompt_seen(prompt: Prompt, openings: Iterable[Sequence[Message]]) -> Prompt:
    """A prompt as the policy saw it: with what its environment said at the beginning.

    Args:
        prompt: of the data.
        openings: of its completions, which are the same, or empty.
    """
    opening = next(filter(None, openings), ())
    if isinstance(prompt, str):
        return prompt + "".join(str(message["content"]) for message in opening)
    return (*prompt, *opening)


def text_episode(one: Written, encoder: TextEncoder) -> tuple[tuple[Message, ...], bool]:
    """An episode in a plain text as rows of data have it, and whether EOS ends it (the column `eos`).

    Every turn is what the policy wrote, the token that ended it included; only the EOS at the end is said apart. So rows have the
    tokens that were drawn, wherever a tokenizer finds them again in their text. What the environment says at the beginning stands
    first, and what it says behind the last turn is left out.
    """
    if not one.turns:  # its environment could not begin
        return ({"role": ASSISTANT, "content": ""},), True
    ended = one.ids[-1] == encoder.eos
    ids = one.ids[:-1] if ended else one.ids
    turns = (decode_following(encoder.tokenizer, ids[turn.start : turn.stop]) for turn in one.turns)
    last = max(place for place, message in enumerate(one.messages) if message["role"] == ASSISTANT)
    said = (
        {"role": ASSISTANT, "content": next(turns)} if message["role"] == ASSISTANT else message
        for message in one.messages[: last + 1]
    )
    return (*one.opening, *said), ended


def up_to_last_turn(completion: str | tuple[Message, ...]) -> str | tuple[Message, ...]:
    """A completion without what the environment said behind the policy's last turn, which no policy read; a text as it is."""
    if isinstance(completion, str):
        return completion
    last = max(place for place, message in enumerate(completion) if message["role"] == ASSISTANT)
    return completion[: last + 1]


def told(one: Written) -> dict[str, Any]:
    """What a person reads of an episode beside its text: who said what, what each turn earned, what was logged. {} of others."""
    if one.prompt is None:
        return {}
    opening = {"opening": list(one.opening)} if one.opening else {}
    return {**opening, "messages": list(one.messages), "turn_rewards": list(one.rewards), "info": dict(one.info)}


def batch_of_written(rows: Sequence[Tokenised], written: Sequence[Sequence[Written]]) -> Batch:
    """Completions as models read them, without scores.

    Args:
        rows: B, of which the prompts are read, unless an environment added to them.
        written: K completions of each.
    """
    return collate(
        [
            Tokenised(
                next((one.prompt for one in completions if one.prompt is not None), row.prompt_ids),
                tuple(one.ids for one in completions),
                None,
                None,
                Example(""),
                masks=tuple(one.mask for one in completions),
            )
            for row, completions in zip(rows, written, strict=True)
        ]
    )


def _one(
    ids: Sequence[int],
    mask: Sequence[bool],
    logps: tuple[float, ...] | None,
    ends: EndTokens,
    version: int | None,
) -> Written:
    if not ids:
        raise PrefoptError("a sampler drew a completion without tokens; one has at least its end token")
    return Written(tuple(ids), tuple(mask), logps, turns_of(mask), ends.reason(ids[-1]), version)


def turns_of(mask: Sequence[bool]) -> tuple[range, ...]:
    """The positions of each turn: the runs of tokens that the policy wrote."""
    turns, start = [], 0
    for by_policy, run in groupby(mask):
        end = start + sum(1 for _ in run)
        turns += [range(start, end)] * by_policy
        start = end
    return tuple(turns)
