"""Where the completions come from that are labelled: the data have them, or a policy writes them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from prefopt.data import DiskRows, Example, prompts, tokenise
from prefopt.data.texts import decode_completion, texts
from prefopt.policy import find_model, load_policy, load_tokenizer, make_sampler
from prefopt.policy.decode.sampler import end_tokens
from prefopt.policy.parallel import draw
from prefopt.recipe import Samples
from prefopt.runs.label.recipe import LabelRecipe
from prefopt.support.errors import PrefoptError
from prefopt.support.fingerprints import fingerprint_weights
from prefopt.support.seeds import seed_for


class Completions(Protocol):
    """Prompts by their numbers, with K completions each, as text."""

    @property
    def source(self) -> dict[str, str]:
        """Who wrote them, for a manifest."""
        ...

    def __call__(self, numbers: Sequence[int]) -> list[Example]:
        """These prompts, complete; the same whenever it is asked."""
        ...


def to_label(examples: DiskRows[Example], settings: LabelRecipe) -> DiskRows[Example]:
    """What gets a row: distinct prompts for a policy to complete, or the data's rows.

    Raises:
        PrefoptError: nobody has written completions, or one is no single answer.
    """
    if settings.policy is not None:
        return DiskRows.of(islice(prompts(examples), settings.prompts))
    rows = examples[: settings.prompts]
    for row in rows:
        if not row.size:
            raise PrefoptError(
                f"{row.where}: a prompt without completions; say who writes them: `policy: {{model: …}}`"
            )
        texts(row)
    return rows


@dataclass(frozen=True)
class Given:
    """The data's own."""

    rows: Sequence[Example]
    source = {"policy": "given"}  # noqa: RUF012

    def __call__(self, numbers: Sequence[int]) -> list[Example]:
        """These rows, their completions as text."""
        return [dataclasses.replace(self.rows[n], completions=tuple(texts(self.rows[n]))) for n in numbers]


class Written:
    """A policy's, K of each prompt. Noise is a function of (seed, number of the prompt, completion).

    Args:
        rows: prompts.
        settings: with a policy.
        accelerator: knows the processes, which draw together.
    """

    def __init__(self, rows: Sequence[Example], settings: LabelRecipe, accelerator: Accelerator):
        assert settings.policy is not None
        self.rows, self.accelerator, self.seed = rows, accelerator, settings.seed
        self.samples = settings.samples or Samples()
        self.tokenizer: Any = load_tokenizer(settings.policy)
        self.tokenised, self.report = tokenise(rows, self.tokenizer, settings.max_prompt_tokens)
        self.policy = load_policy(settings.policy, self.tokenizer, settings.seed).to(accelerator.device).eval()
        self.sampler = make_sampler(self.samples, accelerator, "samples")
        self.ends = frozenset(end_tokens(self.policy, self.samples.sampling.stop))
        self.source = {"policy": find_model(settings.policy.model), "weights": fingerprint_weights(self.policy)}

    @torch.no_grad()
    def __call__(self, numbers: Sequence[int]) -> list[Example]:
        """These prompts, completed; the column `ended` says which completions came to an end by themselves."""
        prompt_ids = [self.tokenised[number].prompt_ids for number in numbers]
        seeds = torch.tensor([seed_for(self.seed, "label", number) for number in numbers])
        settings = self.samples.sampling
        drawn = draw(self.sampler, self.policy, prompt_ids, self.samples.completions, settings, seeds, self.accelerator)
        ids = [
            [row[:length] for row, length in zip(group, lengths, strict=True)]
            for group, lengths in zip(drawn.completion_ids.tolist(), drawn.mask.sum(-1).tolist(), strict=True)
        ]
        return [
            dataclasses.replace(
                self.rows[number],
                completions=tuple(decode_completion(self.tokenizer, one) for one in group),
                columns={**self.rows[number].columns, "ended": [one[-1] in self.ends for one in group]},
            )
            for number, group in zip(numbers, ids, strict=True)
        ]
