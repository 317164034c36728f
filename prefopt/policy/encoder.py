"""Embeddings of prompts, for objectives that compare across prompts; each distinct prompt is read once, ever."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.data import DiskRows, Tokenised
from prefopt.policy.loading import load_backbone, load_tokenizer
from prefopt.support.caches import cache_folder
from prefopt.support.fingerprints import fingerprint_weights
from prefopt.types import Prompt

log = logging.getLogger(__name__)

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Encoder:
    """Prompts to directions: the mean of the last hidden states over a prompt's tokens, scaled to length 1.

    That is all-MiniLM-L6-v2's own recipe. A model that was trained with another one (the first token's state, a further layer)
    gets this one all the same. A language model's states are more alike than a sentence encoder's: between the requests of
    recipes/movies the median cosine is .93 by SmolLM2 and .67 by MiniLM.

    Attributes:
        model: whatever answers token ids with `last_hidden_state`.
        tokenizer: for the text of a prompt; None takes the prompt's tokens as they are, for the policy itself.
        max_tokens: longer texts lose their end.
        batch_size: prompts in a forward pass.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None = None
    max_tokens: int = 256
    batch_size: int = 64

    def ids(self, rows: Sequence[Tokenised]) -> list[Ids]:
        """What it reads of each row's prompt."""
        if self.tokenizer is None:
            return [row.prompt_ids for row in rows]
        texts = [plain_text(row.example.prompt) for row in rows]
        return [tuple(ids) for ids in self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Ids]) -> Tensor:
        """[N, D] float32, on the CPU."""
        device = next(self.model.parameters()).device
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: list[Tensor] = []
        for start in range(0, len(order), self.batch_size):
            part = [prompts[i] for i in order[start : start + self.batch_size]]
            lengths = torch.tensor([max(len(ids), 1) for ids in part])
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
            ids = torch.zeros(mask.shape, dtype=torch.long)
            for row, prompt in enumerate(part):
                ids[row, : len(prompt)] = torch.tensor(prompt)
            states = self.model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).last_hidden_state
            mean = (states.cpu().float() * mask[..., None]).sum(1) / lengths[:, None]
            found.append(normalize(mean, dim=-1))
        return torch.cat(found)[torch.tensor(order).argsort()]

    def fingerprint(self) -> str:
        """A hash of the weights and of the configuration that says how they are used."""
        config: Any = getattr(self.model, "config", None)
        settings = {} if config is None else config.to_dict()
        settings = {k: v for k, v in settings.items() if k not in ("_name_or_path", "transformers_version")}
        text = json.dumps([fingerprint_weights(self.model), type(self.model).__name__, settings], default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def load_encoder(spec: recipe.Embeddings, policy: recipe.Policy) -> Encoder:
    """What a recipe says to embed prompts with.

    Raises:
        PrefoptError: it cannot be loaded, or what is not the policy has no tokenizer.
    """
    if spec.model is None:
        return Encoder(load_backbone(policy, head=True).eval(), batch_size=spec.batch_size)
    named = recipe.Policy(model=spec.model)
    return Encoder(load_backbone(named, head=False).eval(), load_tokenizer(named), spec.max_tokens, spec.batch_size)


def embedded(rows: Sequence[Tokenised], encoder: Encoder, folder: Path | None = None) -> DiskRows[Tokenised]:
    """The rows with the column `embeddings`, a NumPy array [D] each.

    Args:
        rows: any.
        encoder: reads each distinct prompt once.
        folder: where embeddings are kept, by what the encoder is and what it read; `cache_folder("embeddings")` unless given.
    """
    if not rows:
        return DiskRows.of(rows)
    read = encoder.ids(rows)
    distinct = sorted(set(read))
    places = {ids: place for place, ids in enumerate(distinct)}
    found = _kept(distinct, encoder, cache_folder("embeddings") if folder is None else folder).numpy()
    columns = ({**row.columns, "embeddings": found[places[ids]]} for row, ids in zip(rows, read, strict=True))
    return DiskRows.of(
        dataclasses.replace(row, example=dataclasses.replace(row.example, columns=new))
        for row, new in zip(rows, columns, strict=True)
    )


def plain_text(prompt: Prompt) -> str:
    """A prompt as an encoder reads it: of a conversation, what was said, a line for each turn, without a chat template."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn["content"] for turn in prompt if isinstance(turn.get("content"), str))


def _kept(prompts: Sequence[Ids], encoder: Encoder, folder: Path) -> Tensor:
    """[N, D]: from disk where they are there, and else computed and put there."""
    key = hashlib.blake2b(repr((encoder.fingerprint(), prompts)).encode(), digest_size=16).hexdigest()
    file = folder / f"{key}.safetensors"
    found = _read(file, len(prompts))
    if found is None:
        found = encoder(prompts)
        _write(file, found)
    return found


def _read(file: Path, rows: int) -> Tensor | None:
    """What is in the file, unless it is damaged."""
    try:
        found = load_file(file)["embeddings"]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as error:
        log.warning("%s is damaged (%s): its prompts are embedded again", file, error)
        return None
    return found if len(found) == rows else None


def _write(file: Path, found: Tensor) -> None:
    """Whole or not at all; a run does not fail for want of a cache."""
    staging = file.with_name(f".{uuid.uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(save({"embeddings": found.contiguous()}))
        os.replace(staging, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            staging.unlink()
        log.warning("embeddings are not kept: %s", error)
