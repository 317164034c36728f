"""The completions that are labelled: those of the data, or those that a policy writes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from prefopt.data import DiskRows, Example, prompts, tokenise_to_disk
from prefopt.data.formats import ADAPT_COLUMNS
from prefopt.data.texts import texts
from prefopt.policy import find_model, load_policy, load_tokenizer, make_sampler
from prefopt.recipe import Samples, most_tokens
from prefopt.runs.label.recipe import LabelRecipe
from prefopt.runs.lengths import position_warnings, sampled
from prefopt.runs.progress import show_warnings
from prefopt.sources.acting import Acting
from prefopt.sources.scoring import said_of
from prefopt.sources.writing import Completer, prompt_seen
from prefopt.support.errors import PrefoptError
from prefopt.support.fingerprints import fingerprint_weights
from prefopt.support.seeds import seed_for
from prefopt.support.terminal import Terminal
from prefopt.types import Message, Written


class Completions(Protocol):
    """Prompts by their numbers, with K completions each, as text."""

    @property
    def source(self) -> dict[str, str]:
        """Who wrote them, for a manifest."""
        ...

    def __call__(self, numbers: Sequence[int]) -> list[Example]:
        """These prompts with their completions; the same at every call."""
        ...


def to_label(examples: DiskRows[Example], settings: LabelRecipe) -> DiskRows[Example]:
    """What is labelled: distinct prompts that a policy completes, or the rows of the data.

    Raises:
        PrefoptError: a row has no completions and no policy writes any, or a completion has several turns.
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
        texts(row)
    return rows


@dataclass(frozen=True)
class DataCompletions:
    """Those of the data."""

    rows: Sequence[Example]
    source = {"policy": "given"}  # noqa: RUF012

    def __call__(self, numbers: Sequence[int]) -> list[Example]:
        """These rows, their completions as text."""
        return [dataclasses.replace(self.rows[n], completions=tuple(texts(self.rows[n]))) for n in numbers]


class PolicyCompletions:
    """K completions of each prompt by a policy. Noise is a function of (seed, number of the prompt, completion).

    Args:
        rows: prompts.
        settings: with a policy.
        accelerator: knows the processes, which draw together.
    """

    def __init__(self, rows: Sequence[Example], settings: LabelRecipe, accelerator: Accelerator):
        assert settings.policy is not None
        self.rows, self.seed = rows, settings.seed
        self.samples = settings.samples or Samples()
        tokenizer: Any = load_tokenizer(settings.policy)
        self.tokenised, self.report = tokenise_to_disk(rows, tokenizer, settings.max_prompt_tokens)
        most, key = most_tokens(self.samples.sampling, self.samples.environment)
        longest = sampled(self.tokenised, most, "samples", f"samples.{key}", "max_prompt_tokens")
        show_warnings(Terminal(stderr=True), position_warnings({"policy.model": settings.policy.model}, longest))
        self.policy = load_policy(settings.policy, tokenizer, settings.seed).to(accelerator.device).eval()
        sampler = make_sampler(self.samples, accelerator, "samples", self.policy)
        acting = Acting.of(self.samples.environment, "samples.environment", tokenizer)
        self.completer = Completer.of(sampler, self.policy, self.samples.sampling, accelerator, acting)
        self.completer.sync(self.policy, version=0)  # its weights stay as they are
        self.source = {"policy": find_model(settings.policy.model), "weights": fingerprint_weights(self.policy)}

    @torch.no_grad()
    def __call__(self, numbers: Sequence[int]) -> list[Example]:
        """These prompts, completed; the column `ended` says which completions came to an end by themselves."""
        rows = [self.tokenised[number] for number in numbers]
        seeds = torch.tensor([seed_for(self.seed, "label", number) for number in numbers])
        count, sampling = self.samples.completions, self.samples.sampling
        written = self.completer.write(self.policy, rows, count, sampling, seeds)
        return [
            dataclasses.replace(
                self.rows[number],
                prompt=prompt_seen(self.rows[number].prompt, (one.opening for one in completions)),
                completions=tuple(self._completion(one, self.rows[number]) for one in completions),
                columns={**self.rows[number].columns, **said_of(completions)},
            )
            for number, completions in zip(numbers, written, strict=True)
        ]

    def _completion(self, one: Written, row: Example) -> str | tuple[Message, ...]:
        """As rows of data have it: a conversation ends with what the policy wrote.

        Raises:
            PrefoptError: an episode of several turns in a text, of which rows cannot say which words the policy wrote.
        """
        completion = self.completer.completion(one, row.prompt)
        if isinstance(completion, str):
            if len(one.turns) > 1:
                raise PrefoptError(
                    f"{row.where or 'a row'}: an episode of {len(one.turns)} turns in a plain text cannot be written out: a row of "
                    "data would not say which words are the policy's, and all would be learnt from. Give prompts as conversations"
                )
            return completion
        last = max(place for place, message in enumerate(completion) if message["role"] == "assistant")
        return completion[: last + 1]
