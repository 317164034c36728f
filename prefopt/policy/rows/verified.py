"""What has been compared and found exact: how long the rows were, in this process and, for models of transformers, in earlier ones.

A way to compute is exact or not by the architecture, its configuration and the code, not by the weights, so one comparison serves
all runs of a study, and is kept in the cache folder for further ones.
"""

import hashlib
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from prefopt.support.caches import cache_folder
from prefopt.support.files import write_whole

KIND = "layouts"

LONGEST: dict[tuple[Any, ...], int] = {}
"""The longest rows that were found exact, by `key`."""


def key(way: str, backbone: Any, device: torch.device) -> tuple[Any, ...]:
    """Everything but the lengths of rows that decides whether a way to compute is exact for a model."""
    config = {name: value for name, value in backbone.config.to_dict().items() if name != "_name_or_path"}
    low = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    )  # what fits one GPU may not fit another
    return way, type(backbone), str(config), backbone.dtype, name, low


def longest(kind: tuple[Any, ...]) -> int:
    """Tokens of the longest rows that were found exact; 0 if none were, or what `remember` was given for this process."""
    if kind not in LONGEST:
        LONGEST[kind] = 0
        if (file := _file(kind)) is not None:
            with suppress(OSError, ValueError, KeyError, TypeError):  # none, or damaged: compared anew
                LONGEST[kind] = int(json.loads(file.read_text())["tokens"])
    return LONGEST[kind]


def remember(kind: tuple[Any, ...], tokens: int) -> None:
    """Rows of up to so many tokens are exact; a negative number, which is not kept on disk, says that they are not."""
    LONGEST[kind] = tokens
    if tokens > 0 and (file := _file(kind)) is not None:
        with suppress(OSError):  # a full disk, or one that cannot be written to: compared anew by the next process
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps({"tokens": tokens, "way": [str(part) for part in kind]}))


def _file(kind: tuple[Any, ...]) -> Path | None:
    """Where it is kept; None for a class of the user's own, whose code may be another tomorrow."""
    _, architecture, *_ = kind
    if not str(getattr(architecture, "__module__", "")).startswith("transformers."):
        return None
    text = repr((kind, _code()))
    return cache_folder(KIND) / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.json"


@cache
def _code() -> tuple[str, ...]:
    """The versions of what computes: libraries, the machine's instructions, and the files of this folder and of decoding."""
    own = sorted(file for folder in ("rows", "decode") for file in (Path(__file__).parents[1] / folder).glob("*.py"))
    digest = hashlib.blake2b(b"".join(file.read_bytes() for file in own)).hexdigest()
    return torch.__version__, transformers.__version__, torch.backends.cpu.get_cpu_capability(), digest
