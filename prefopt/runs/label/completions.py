"""The completions that are labelled: those of the data, or those that a policy writes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator

from prefopt.data import DiskRows, Example, prompts, tokenise_to_disk
from prefopt.data.formats import ADAPT_COLUMNS
from prefopt.data.text_episodes import EOS, as_seen, has_text_episodes, opening_of
from prefopt.data.texts import texts
from prefopt.environments.episodes import MESSAGES
from prefopt.policy import find_model, load_policy, load_tokenizer, make_sampler
from prefopt.recipe import Samples, most_tokens
from prefopt.runs.label.recipe import LabelRecipe
from prefopt.runs.lengths import position_warnings, sampled
from prefopt.runs.progress import show_warnings
from prefopt.runs.threads import Shape, settle_threads
from prefopt.runs.tokens import checked_acting
from prefopt.sources.acting import Acting
from prefopt.sources.scoring import said_of
from prefopt.sources.writing import Completer, prompt_seen, text_episode, up_to_last_turn
from prefopt.support.errors import PrefoptError
from prefopt.support.fingerprints import fingerprint_weights
from prefopt.support.seeds import seed_for
from prefopt.support.terminal import Terminal
from prefopt.training.devices import of_main_process
from prefopt.types import Written


class ToLabel(NamedTuple):
    """A prompt with its completions.

    Attributes:
        seen: as feedback sees it.
        row: as it is written out; other than that of an episode in a plain text.
    """

    seen: Example
    row: Example


class Completions(Protocol):
    """Prompts by their numbers, with K completions each."""

    @property
    def source(self) -> dict[str, str]:
        """Who wrote them, for a manifest."""
        ...

    def __call__(self, numbers: Sequence[int]) -> list[ToLabel]:
        """These prompts with their completions; the same at every call."""
        ...


def to_label(examples: DiskRows[Example], settings: LabelRecipe) -> DiskRows[Example]:
    """What is labelled: distinct prompts that a policy completes, or the rows of the data.

    Raises:
        PrefoptError: a row has no completions and no policy writes any, or a completion has several turns of a conversation.
    """
    if settings.policy is not None:
        return DiskRows.of(islice(prompts(examples), settings.prompts))
    rows = examples[: settings.prompts]
    for row in rows:
        if not row.size:
            raise PrefoptError(
                f"{row.where}: a prompt without completions; say who writes them: `policy: {{model: …}}`"
                + (f". Its other columns are {sorted(row.columns)}. {ADAPT_COLUMNS}" if row.columns else "")
            )
        texts(as_seen(row))
    return rows


@dataclass(frozen=True)
class DataCompletions:
    """Those of the data."""

    rows: Sequence[Example]
    source = {"policy": "given"}  # noqa: RUF012

    def __call__(self, numbers: Sequence[int]) -> list[ToLabel]:
        """These rows, their completions as text; of an episode in a plain text, feedback sees the turns as well."""
        return [_given(self.rows[number]) for number in numbers]


class PolicyCompletions:
    """K completions of each prompt by a policy. Noise is a function of (seed, number of the prompt, completion).

    Args:
        rows: prompts.
        settings: with a policy.
        accelerator: knows the processes, which draw together.
        begun: the manifest of a labelling that goes on.
    """

    def __init__(
        self,
        rows: Sequence[Example],
        settings: LabelRecipe,
        accelerator: Accelerator,
        begun: Mapping[str, Any] = MappingProxyType({}),
    ):
        assert settings.policy is not None
        self.rows, self.seed = rows, settings.seed
        self.samples = settings.samples or Samples()
        tokenizer: Any = load_tokenizer(settings.policy)
        self.tokenised, self.report = tokenise_to_disk(rows, tokenizer, settings.max_prompt_tokens)
        most, key = most_tokens(self.samples.sampling, self.samples.environment)
        longest = sampled(self.tokenised, most, "samples", f"samples.{key}", "max_prompt_tokens")
        show_warnings(Terminal(stderr=True), position_warnings({"policy.model": settings.policy.model}, longest))
        acted = checked_acting(self.samples.environment, "samples.environment", self.tokenised, tokenizer)
        show_warnings(Terminal(stderr=True), acted)
        self.policy = load_policy(settings.policy, tokenizer, settings.seed).to(accelerator.device).eval()
        sampler = make_sampler(self.samples, accelerator, "samples", self.policy)
        shape = Shape.drawing(self.samples, settings.batch_size)
        console = of_main_process(accelerator, Terminal(stderr=True))
        settle_threads(settings.threads, self.policy, self.tokenised, shape, accelerator, console, begun)
        acting = Acting.of(self.samples.environment, "samples.environment", tokenizer)
        self.completer = Completer.of(sampler, self.policy, self.samples.sampling, accelerator, acting)
        self.completer.sync(self.policy, version=0)  # its weights stay as they are
        self.source = {"policy": find_model(settings.policy.model), "weights": fingerprint_weights(self.policy)}

    @torch.no_grad()
    def __call__(self, numbers: Sequence[int]) -> list[ToLabel]:
        """These prompts, completed; the column `ended` says which completions came to an end by themselves."""
        rows = [self.tokenised[number] for number in numbers]
        seeds = torch.tensor([seed_for(self.seed, "label", number) for number in numbers])
        count, sampling = self.samples.completions, self.samples.sampling
        written = self.completer.write(self.policy, rows, count, sampling, seeds)
        return [self._written(self.rows[number], group) for number, group in zip(numbers, written, strict=True)]

    def _written(self, row: Example, group: Sequence[Written]) -> ToLabel:
        """A prompt with what was written on it."""
        seen = dataclasses.replace(
            row,
            prompt=prompt_seen(row.prompt, (one.opening for one in group)),
            completions=tuple(up_to_last_turn(self.completer.completion(one, row.prompt)) for one in group),
            columns={**row.columns, **said_of(group)},
        )
        if (writer := self.completer.episodes) is None or not isinstance(row.prompt, str):
            return ToLabel(seen, seen)
        columns = {name: value for name, value in seen.columns.items() if name != MESSAGES}  # the completions say it
        episodes, eos = zip(*(text_episode(one, writer.encoder) for one in group), strict=True)
        return ToLabel(seen, dataclasses.replace(row, completions=episodes, columns={**columns, EOS: list(eos)}))


def _given(row: Example) -> ToLabel:
    """A row of the data."""
    if not has_text_episodes(row):
        text = dataclasses.replace(row, completions=tuple(texts(row)))
        return ToLabel(text, text)
    seen, opening = as_seen(row), opening_of(row)
    turns = [list(one[opening:]) for one in row.completions if not isinstance(one, str)]
    return ToLabel(dataclasses.replace(seen, columns={**row.columns, MESSAGES: turns}), row)
