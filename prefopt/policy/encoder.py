"""Embeddings of prompts, for objectives that compare across prompts. A prompt is embedded once and read from disk afterwards."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.data import DiskRows, Tokenised
from prefopt.policy.loading import load_backbone, load_tokenizer
from prefopt.policy.model_store import model_fingerprint, open_store
from prefopt.support.caches import cache_folder
from prefopt.support.disk_store import KEY
from prefopt.types import Prompt

KIND = "embeddings"
VERSION = 1
"""Part of every key: raise it when a change of prefopt changes embeddings."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Encoder:
    """Embeds prompts: the mean of the last hidden states over a prompt's tokens, scaled to length 1.

    This is the pooling of all-MiniLM-L6-v2. It is used for every model, also for one that was trained with another pooling (the
    first token's state, a further layer). A language model's states are more alike than a sentence encoder's: between the
    requests of recipes/movies the median cosine is .93 by SmolLM2 and .67 by MiniLM.

    Attributes:
        model: gives `last_hidden_state` for token ids.
        tokenizer: for the text of a prompt; None embeds the prompt's own tokens, for the policy itself.
        max_tokens: longer texts are cut at their end; without effect where there is no tokenizer.
        batch_size: prompts in a forward pass.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None = None
    max_tokens: int = 256
    batch_size: int = 64

    def ids(self, rows: Sequence[Tokenised]) -> list[Ids]:
        """The token ids that are embedded for each row."""
        if self.tokenizer is None:
            return [row.prompt_ids for row in rows]
        texts = [plain_text(row.example.prompt) for row in rows]
        return [tuple(ids) for ids in self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]]

    def __call__(self, prompts: Sequence[Ids]) -> Tensor:
        """[N, D] float32, on the CPU."""
        batches = list(self.batches(prompts))
        order = torch.tensor([number for numbers, _ in batches for number in numbers])
        return torch.cat([vectors for _, vectors in batches])[order.argsort()]

    def batches(self, prompts: Sequence[Ids]) -> Iterator[tuple[list[int], Tensor]]:
        """One forward pass after another: numbers of prompts, and their vectors [n, D].

        Prompts are taken in the order of their lengths and padded on the right to the longest of their batch; padding is masked.
        """
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            yield numbers, self._embed([prompts[number] for number in numbers])

    @torch.no_grad()
    def _embed(self, prompts: Sequence[Ids]) -> Tensor:
        """[n, D] by one forward pass."""
        device = next(self.model.parameters()).device
        lengths = torch.tensor([max(len(ids), 1) for ids in prompts])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        states = self.model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).last_hidden_state
        mean = (states.cpu().float() * mask[..., None]).sum(1) / lengths[:, None]
        return normalize(mean, dim=-1)

    def fingerprint(self) -> str:
        """`model_fingerprint` of the model."""
        return model_fingerprint(self.model, dict(self.model.named_parameters()))


def load_encoder(spec: recipe.Embeddings, policy: recipe.Policy) -> Encoder:
    """The encoder of a recipe.

    Raises:
        PrefoptError: it cannot be loaded, or a model other than the policy has no tokenizer.
    """
    if spec.model is None:
        return Encoder(load_backbone(policy, head=True).eval(), batch_size=spec.batch_size)
    named = recipe.Policy(model=spec.model)
    return Encoder(load_backbone(named, head=False).eval(), load_tokenizer(named), spec.max_tokens, spec.batch_size)


def embedded(rows: Sequence[Tokenised], encoder: Encoder, folder: Path | None = None) -> DiskRows[Tokenised]:
    """The rows with the column `embeddings`, a NumPy array [D] of float32 each.

    Args:
        rows: any.
        encoder: embeds each distinct prompt that is not on disk yet.
        folder: of the embeddings on disk; `cache_folder("embeddings")` unless given.
    """
    if not rows:
        return DiskRows.of(rows)
    prompts = encoder.ids(rows)
    distinct = sorted(set(prompts))
    places = {ids: place for place, ids in enumerate(distinct)}
    vectors = cached_vectors(distinct, encoder, cache_folder(KIND) if folder is None else folder)
    columns = ({**row.columns, "embeddings": vectors[places[ids]]} for row, ids in zip(rows, prompts, strict=True))
    return DiskRows.of(
        dataclasses.replace(row, example=dataclasses.replace(row.example, columns=new))
        for row, new in zip(rows, columns, strict=True)
    )


def cached_vectors(prompts: Sequence[Ids], encoder: Encoder, folder: Path) -> NDArray[np.float32]:
    """[N, D]: read from disk where they are there, otherwise computed and written there, batch by batch.

    The key of a vector is a hash of the encoder's weights and configuration, the arithmetic and the token ids, so data sets that
    share prompts share vectors. With an empty cache the batches are those of `Encoder.batches` for all prompts. Once a prompt is
    on disk it always has the vector that is there; computed with other prompts, which pad it otherwise, it would differ by
    rounding (below 1e-6 in fp32).

    Args:
        prompts: N distinct ones.
        encoder: embeds those that are not on disk.
        folder: of all encoders' vectors.
    """
    prefix, store = open_store(folder, encoder.model, encoder.fingerprint(), VERSION)
    keys = _keys(prompts, prefix)
    found, values = store.get(keys)
    parts: list[tuple[NDArray, NDArray]] = []
    if found.any():
        parts.append((found.nonzero()[0], values.reshape(int(found.sum()), -1)))
    missing = (~found).nonzero()[0]
    for numbers, vectors in encoder.batches([prompts[number] for number in missing.tolist()]):
        computed = vectors.numpy()
        if np.isfinite(computed).all():
            store.put(keys[missing[numbers]], list(computed))
        parts.append((missing[numbers], computed))
    order = np.concatenate([numbers for numbers, _ in parts])
    return np.concatenate([vectors for _, vectors in parts])[order.argsort()]


def plain_text(prompt: Prompt) -> str:
    """A prompt as text without a chat template: of a conversation, the content of each turn on a line of its own."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn["content"] for turn in prompt if isinstance(turn.get("content"), str))


def _keys(prompts: Sequence[Ids], prefix: bytes) -> NDArray:
    """[N] `KEY`."""
    digests = (hashlib.blake2b(prefix + np.array(ids, np.int64).tobytes(), digest_size=16).digest() for ids in prompts)
    return np.frombuffer(b"".join(digests), KEY)
