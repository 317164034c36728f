"""Writing episodes: the policy writes a turn, its environment answers, and so on, for all rows of a batch together."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prefopt import recipe
from prefopt.data import Tokenised
from prefopt.data.encoding import TextEncoder
from prefopt.data.texts import decode_completion, decode_everything
from prefopt.environments import environment_factory
from prefopt.environments.checking import logged_names, offered_tools, stop_texts
from prefopt.environments.contained import COUNTS, Contained, EpisodeError
from prefopt.environments.transcript import Transcript, transcript
from prefopt.policy.decode.conversation import Conversation, Rereading, row_seeds
from prefopt.policy.decode.drawing import DrawnTokens
from prefopt.policy.decode.ends import EndTokens
from prefopt.policy.decode.sampler import TransformersSampler, prompts_together
from prefopt.policy.decode.stops import StopTexts, stop_texts_of
from prefopt.recipe import Sampling
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import NOTHING
from prefopt.support.profile import timed
from prefopt.types import Message, Sampler, StopReason, Turn, Written


@dataclass(frozen=True)
class Acting:
    """What a policy acts in, and for how long.

    Attributes:
        factory: makes an environment for each completion.
        name: what messages call it.
        max_turns: turns of the policy, at most.
        max_tokens: tokens of an episode, at most, those of the environment among them.
        timeout: seconds for one call of the environment; None is any time.
    """

    factory: Callable[[], Any]
    name: str
    max_turns: int
    max_tokens: int
    timeout: float | None

    @classmethod
    def of(
        cls, spec: recipe.Environment | None, where: str, tokenizer: Any, models: Mapping[str, Any] = NOTHING
    ) -> "Acting | None":
        """As a recipe says; None where it names no environment.

        Args:
            spec: the section.
            where: its key, for messages.
            tokenizer: the policy's, for an environment that asks for it.
            models: of the run, for an environment that asks for them.
        """
        if spec is None:
            return None
        factory = environment_factory(spec, where, tokenizer, models)
        return cls(factory, str(spec.name), spec.max_turns, spec.max_tokens, spec.timeout)


@dataclass
class Episode:
    """One completion while it is being written; the attributes are those of `Written`."""

    environment: Contained
    transcript: Transcript
    prompt: tuple[int, ...] = ()
    opening: tuple[Message, ...] = ()
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logps: list[float] | None = field(default_factory=list)
    turns: list[range] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    info: Counter[str] = field(default_factory=Counter)
    read: list[int] = field(default_factory=list)  # what the environment said last
    most: int = 0  # tokens that it may have, beside what the environment added to the prompt
    stop: StopReason | None = None

    def wrote(self, drawn: DrawnTokens) -> None:
        """Take up a turn of the policy, behind what it read."""
        start = len(self.ids) + len(self.read)
        self.ids += [*self.read, *drawn.tokens]
        self.mask += [False] * len(self.read) + [True] * len(drawn.tokens)
        if self.logps is not None:
            self.logps = None if drawn.logps is None else [*self.logps, *[0.0] * len(self.read), *drawn.logps]
        self.turns.append(range(start, len(self.ids)))
        self.read = []

    def written(self, version: int | None, filler: int) -> Written:
        """The completion. One whose environment could not begin is absent: a token that nobody wrote."""
        assert self.stop is not None
        ids, mask, logps = (self.ids, self.mask, self.logps) if self.ids else ([filler], [False], [0.0])
        logs = logged_names(self.environment.environment, self.environment.name)
        # A number that no turn reports is a sum of none.
        info = (
            dict.fromkeys(logs, 0.0) | dict(self.info) | {name: float(self.environment.counts[name]) for name in COUNTS}
        )
        return Written(
            tuple(ids),
            tuple(mask),
            None if logps is None else tuple(logps),
            tuple(self.turns),
            self.stop,
            version,
            self.prompt,
            self.opening,
            tuple(self.messages),
            tuple(self.rewards),
            info,
        )


@dataclass(frozen=True)
class EpisodeWriter:
    """Writes episodes with a sampler.

    Turns of a batch go on together, and episodes that are over leave it. The noise of a token is a function of the seeds, the
    turn and the position, so that an episode does not depend on its companions.

    Attributes:
        acting: the environment and its limits.
        sampler: draws the tokens.
        encoder: of the policy's tokenizer.
        ends: the tokens that end a turn.
    """

    acting: Acting
    sampler: Sampler
    encoder: TextEncoder
    ends: EndTokens

    def __call__(
        self,
        model: Any,
        rows: Sequence[Tokenised],
        completions: int,
        sampling: Sampling,
        seeds: Tensor,
        tasks: Sequence[int],
        version: int | None,
    ) -> list[list[Written]]:
        """K episodes of each of B rows.

        Args:
            model: a policy, a reference, or a mixture of the two.
            rows: with their prompts and columns, which the environment is reset with.
            completions: K.
            sampling: the recipe's; `max_tokens` is of a turn.
            seeds: [B] int64, of each prompt's noise.
            tasks: B seeds of the environments; the K episodes of a row have the same.
            version: how many updates the policy has had.

        Raises:
            PrefoptError: an environment that is none, or a sampler that refuses.
        """
        together = len(rows)
        # The rows of a part keep what they have read until it is over.
        if isinstance(self.sampler, TransformersSampler):
            together = prompts_together(self.sampler.batch_size, completions)
        written: list[list[Written]] = []
        for start in range(0, len(rows), together):
            part = slice(start, start + together)
            episodes: list[list[Episode]] = []
            try:
                for row, task in zip(rows[part], tasks[part], strict=True):
                    episodes.append(self._made(row, task, completions))
                    self._begin(episodes[-1])
                for numbers in _with_equal_stops(episodes, self.acting.name).values():
                    self._play(model, [episodes[i] for i in numbers], sampling, seeds[part][numbers])
            finally:
                for episode in (one for group in episodes for one in group):
                    episode.environment.close()
            filler = min(self.ends.eos, default=0)
            written += [[one.written(version, filler) for one in group] for group in episodes]
        return written

    def _made(self, row: Tokenised, task: int, completions: int) -> list[Episode]:
        """The episodes of a prompt, which share its transcript."""
        acting, shared = self.acting, transcript(row, self.encoder, self.acting.name)
        given = {**row.columns, "prompt": row.example.prompt}
        environments = [Contained(acting.factory, given, task, acting.name, acting.timeout) for _ in range(completions)]
        return [Episode(environment, shared, row.prompt_ids) for environment in environments]

    def _begin(self, group: Sequence[Episode]) -> None:
        """Begin the task of a prompt in all of its environments, which say one thing.

        Raises:
            PrefoptError: they say different things, or more than an episode has tokens.
        """
        openings = []
        for episode in group:
            try:
                with timed("environment"):
                    opening = episode.environment.begin()
                openings.append((opening or "", offered_tools(episode.environment.environment, self.acting.name)))
            except EpisodeError:
                episode.stop = "error"
        if not openings:
            return
        if any(other != openings[0] for other in openings):
            raise PrefoptError(
                f"{self.acting.name}: reset(row, seed) said different things for one row and seed, and the completions of a prompt "
                "face the same task: draw what it says from the seed"
            )
        shared, (opening, tools) = group[0].transcript, openings[0]
        unopened = len(shared.prompt(None, tools))
        prompt, said = shared.prompt(opening, tools), shared.messages(opening)
        most = self.acting.max_tokens - (len(prompt) - unopened)
        if most < 1:
            raise PrefoptError(
                f"{self.acting.name}: what it says at the beginning is {len(prompt) - unopened} tokens, and an episode has "
                f"{self.acting.max_tokens} at most (max_tokens): give it more"
            )
        for episode in group:  # one that failed shares the task of its companions
            episode.prompt, episode.opening, episode.most = prompt, said, most

    def _play(self, model: Any, episodes: Sequence[Sequence[Episode]], sampling: Sampling, seeds: Tensor) -> None:
        """Write the episodes of some prompts to their ends."""
        prompts = [group[0].prompt for group in episodes]
        every = [episode for group in episodes for episode in group]
        stop = stop_texts_of(self.encoder.tokenizer, _stop_texts(episodes[0], self.acting.name))
        conversation = self._conversation(model, prompts, len(episodes[0]), sampling, seeds, stop)
        for turn in range(self.acting.max_turns):
            going = [number for number, episode in enumerate(every) if episode.stop is None]
            if not going:
                return
            read = [every[number].read for number in going]
            most = [min(sampling.max_tokens, every[n].most - len(every[n].ids) - len(every[n].read)) for n in going]
            with timed("sampling"):
                drawn = conversation.turn(going, read, most, turn)
            with timed("environment"):
                for number, one in zip(going, drawn, strict=True):
                    every[number].wrote(one)
                    self._act(every[number], stop, last=turn + 1 == self.acting.max_turns)

    def _conversation(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        completions: int,
        sampling: Sampling,
        seeds: Tensor,
        stop: StopTexts,
    ) -> Conversation:
        if isinstance(self.sampler, TransformersSampler):
            return self.sampler.conversation(model, prompts, completions, sampling, seeds, stop)
        rows = [prompt for prompt in prompts for _ in range(completions)]
        return Rereading(self.sampler, model, rows, row_seeds(seeds, completions), sampling, stop)

    def _act(self, episode: Episode, stop: StopTexts, last: bool) -> None:
        """Let the environment answer the turn that was just written."""
        ids = [episode.ids[place] for place in episode.turns[-1]]
        why = self.ends.reason(ids[-1])
        if why == "length" and stop.ended(ids):
            why = "stop"
        tokenizer = self.encoder.tokenizer
        parts = without_end(tokenizer, ids, self.ends, ended=why != "length")
        own, end = (decode_everything(tokenizer, part) if part else "" for part in parts)
        episode.messages.append({"role": "assistant", "content": own})
        try:
            turn = episode.environment.step(own, truncated=why == "length")
        except EpisodeError:
            episode.rewards.append(0.0)
            episode.stop = "error"
            return
        episode.rewards.append(float(turn.reward))
        episode.info.update({name: float(value) for name, value in turn.info.items()})
        past = tuple(episode.messages)
        answer = episode.transcript.messages(turn.text)
        episode.messages += answer
        episode.stop = self._stop(why, turn, last)
        if episode.stop is None:
            try:
                episode.read = episode.transcript.answer(past, end, answer)
            except PrefoptError as error:  # the chat template does not keep this turn
                episode.environment.lose(error)
                episode.stop = "error"
                return
            if len(episode.ids) + len(episode.read) >= episode.most:
                episode.read, episode.stop = [], "length"
        if episode.stop is not None and not turn.done and why != "length":
            self._end(episode)

    def _end(self, episode: Episode) -> None:
        """Give the last turn of an episode that ran out of turns or tokens what the environment has left for it."""
        try:
            episode.rewards[-1] += episode.environment.end()
        except EpisodeError:
            episode.stop = "error"

    def _stop(self, why: StopReason, turn: Turn, last: bool) -> StopReason | None:
        """Why an episode is over after a turn; None where it goes on. A turn that was cut by its length is the last."""
        if why == "length" or turn.done:
            return why
        return "turns" if last else None


def _stop_texts(group: Sequence[Episode], name: str) -> tuple[str, ...]:
    """The texts that end turns of a prompt's episodes, which have one task."""
    begun = next((episode for episode in group if episode.stop is None), None)
    return () if begun is None else stop_texts(begun.environment.environment, name)


def _with_equal_stops(episodes: Sequence[Sequence[Episode]], name: str) -> dict[tuple[str, ...], list[int]]:
    """The numbers of the prompts by the texts that end turns: a text of one row must not end the turns of another."""
    numbers: dict[tuple[str, ...], list[int]] = {}
    for number, group in enumerate(episodes):
        numbers.setdefault(_stop_texts(group, name), []).append(number)
    return numbers


def without_end(
    tokenizer: Any, ids: Sequence[int], ends: EndTokens, ended: bool
) -> tuple[Sequence[int], Sequence[int]]:
    """The tokens that a policy wrote, and those that it ended with.

    The end is the special token that ended it, and before it what the chat template writes there, as both would stand twice if
    the text were put into a conversation again; empty where it ended otherwise.
    """
    cut = len(ids)
    if ended and ids and not decode_completion(tokenizer, ids[-1:]):
        cut -= 1
        turn = ends.turn
        if turn and tuple(ids[cut - len(turn) : cut]) == turn:
            cut -= len(turn)
    return ids[:cut], ids[cut:]
