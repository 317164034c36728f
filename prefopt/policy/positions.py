"""How many tokens a model has positions for, from its configuration, before any weight is loaded."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, AutoModel

from prefopt.policy.finding import adapter_config, base_of
from prefopt.support.downloads import is_awaited
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given

TABLE = re.compile(r"(^|\.)(wpe|pos_embed\w*|embed_positions|position_embeddings?)(\.weight)?$")
"""Names that architectures of transformers give to tables with a row for each position."""


class Positions(NamedTuple):
    """What a model was made for.

    Attributes:
        number: tokens, prompt and completion together.
        table: whether positions are rows of a table, beyond which a model cannot compute; otherwise it computes, and was never
            trained there.
    """

    number: int
    table: bool


def positions_of(name: str) -> Positions | None:
    """The positions of a model, of a folder or hub id that `find_model` has found.

    None where it has no limit (state space models, ALiBi), and where its configuration is not on disk or cannot be read.
    """
    try:
        if (adapter := adapter_config(name)) is not None:
            return positions_of(base_of(name, adapter))
    except PrefoptError:  # loading the adapter says it better
        return None
    config = _config(name)
    if config is None:
        return None
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1 or getattr(config, "alibi", False):
        return None
    if getattr(config, "rope_parameters", None):
        return Positions(most, table=False)
    rows = _rows_of_table(config)
    if rows is None:
        return Positions(most, table=False)
    # RoBERTa and its kin begin to count after the padding token's number.
    offset = config.pad_token_id + 1 if rows == most and _counts_after_padding(config) else 0
    return Positions(most - offset, table=True)


def _rows_of_table(config: Any) -> int | None:
    """Rows of the model's table of positions; None where it has none."""
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config)
    except Exception:  # numbers that no model can have: loading says so
        return None
    tables = [m.weight for n, m in model.named_modules() if isinstance(m, nn.Embedding) and TABLE.search(n)]
    tables += [buffer for n, buffer in model.named_buffers() if buffer.ndim == 2 and TABLE.search(n)]
    return min((len(table) for table in tables), default=None)


def _counts_after_padding(config: Any) -> bool:
    kinds = ("roberta", "camembert", "xmod", "longformer", "mpnet", "data2vec-text", "esm", "ibert", "luke", "layoutlm")
    return config.pad_token_id is not None and any(kind in config.model_type for kind in kinds)


def _config(name: str) -> Any:
    """The configuration of a model's text part; None where it cannot be read yet."""
    if isinstance(name, Given):  # a model that was passed from Python
        return name.object.config.get_text_config()
    if is_awaited(name) or not _on_disk(name):
        return None
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True).get_text_config()
    except (OSError, ValueError, KeyError):  # code of its own, or damaged: loading says so
        return None


def _on_disk(name: str) -> bool:
    if Path(name).is_dir():
        return (Path(name) / "config.json").is_file()
    return isinstance(try_to_load_from_cache(name, "config.json"), str)
