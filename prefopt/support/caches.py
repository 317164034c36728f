"""What prefopt keeps on disk between runs: where it is, how much, whether it is whole, and how to be rid of it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from prefopt.support.disk_store import SUFFIX, blocks, checksum, keys_of, mapped
from prefopt.support.errors import PrefoptError, nearest

KINDS = ("logps", "embeddings", "judges")
"""Folders of the cache: log-probs of references, embeddings of prompts, verdicts of judges."""


@dataclass(frozen=True)
class Kept:
    """What one model has said, or one kind where files do not tell whose they are.

    Attributes:
        kind: of `KINDS`.
        folder: where it is.
        of: the model, as the note beside the files calls it.
        files: number of files with entries.
        bytes: of these.
        used: seconds since 1970 when a file was last written, or served from; 0 without files.
        entries: vectors in them.
        damaged: entries that are not what was written; 0 until they are verified.
        torn: bytes at the end of files that a writer left half-written: killed, or still at it.
    """

    kind: str
    folder: Path
    of: str = ""
    files: int = 0
    bytes: int = 0
    used: float = 0.0
    entries: int = 0
    damaged: int = 0
    torn: int = 0


def cache_folder(kind: str) -> Path:
    """The folder of a kind below $PREFOPT_CACHE, or below ~/.cache/prefopt."""
    return Path(os.environ.get("PREFOPT_CACHE") or "~/.cache/prefopt").expanduser() / kind


def kept(kind: str | None = None) -> Iterator[Kept]:
    """What is there, by kind and model; values are not read."""
    return _each(kind, _entries)


def verified(kind: str | None = None) -> Iterator[Kept]:
    """The same, with every checksum checked."""
    return _each(kind, _checked)


def clear(kind: str | None = None) -> int:
    """Delete what is kept of one kind, or of all; the number of bytes that this frees.

    A run that is going on computes anew what it finds no more.
    """
    freed = 0
    for name in _kinds(kind):
        folder = cache_folder(name)
        freed += sum(file.stat().st_size for file in _files(folder))
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)  # a run may be writing to it
    return freed


def _kinds(kind: str | None) -> tuple[str, ...]:
    if kind is not None and kind not in KINDS:
        raise PrefoptError(f"nothing of the kind {kind!r} is kept.{nearest(kind, KINDS)} There are: {', '.join(KINDS)}")
    return KINDS if kind is None else (kind,)


def _each(kind: str | None, measure: Callable[[Path], tuple[int, int, int]]) -> Iterator[Kept]:
    for name in _kinds(kind):
        top = cache_folder(name)
        subfolders = sorted(f for f in top.iterdir() if f.is_dir()) if top.is_dir() else []
        for folder in [top, *subfolders]:
            found = _measured(Kept(name, folder, _note(folder)), measure)
            if found.files:
                yield found


def _measured(one: Kept, measure: Callable[[Path], tuple[int, int, int]]) -> Kept:
    for file in (f for f in _files(one.folder) if f.parent == one.folder and f.name != "model.json"):
        with suppress(FileNotFoundError):  # deleted for a newer one in this moment
            entries, damaged, torn = measure(file)
            state = file.stat()
            one = replace(
                one,
                files=one.files + 1,
                bytes=one.bytes + state.st_size,
                used=max(one.used, state.st_mtime),
                entries=one.entries + entries,
                damaged=one.damaged + damaged,
                torn=one.torn + torn,
            )
    return one


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))


def _note(folder: Path) -> str:
    """What `model.json` says, in a line."""
    with suppress(OSError, json.JSONDecodeError, KeyError, TypeError):
        note = json.loads((folder / "model.json").read_text())
        return f"{Path(note['model']).name} ({note['parameters'] / 1e6:.3g}M, {note['dtype']}, {note['arithmetic']})"
    return ""


def _entries(file: Path) -> tuple[int, int, int]:
    """Entries of a file, how many are damaged, and how many bytes are torn, as far as can be told without reading the values."""
    if file.suffix == SUFFIX:
        found = list(blocks(file))
        end = found[-1].end if found else 0
        return sum(len(block.entries) for block in found), 0, file.stat().st_size - end
    if file.suffix == ".safetensors":
        return _embeddings(file)
    return 1, 0, 0  # of another kind: the file is the entry


def _checked(file: Path) -> tuple[int, int, int]:
    entries, damaged, torn = _entries(file)
    if file.suffix == SUFFIX:
        damaged = sum(_damaged(file))
    return entries, damaged, torn


def _damaged(file: Path) -> Iterator[bool]:
    """Of each entry of a segment, whether its values are not those that were written."""
    memory = mapped(file)
    for block in blocks(file):
        ends = block.start + block.entries["length"].astype(np.int64).cumsum()
        for key, end, entry in zip(keys_of(block.entries), ends.tolist(), block.entries, strict=True):
            yield checksum(key, memory[end - int(entry["length"]) : end]) != int(entry["crc"])


def _embeddings(file: Path) -> tuple[int, int, int]:
    """Embedded prompts of a file; its header says how long it must be, checksums it has none."""
    try:
        with safe_open(file, "numpy") as opened:
            return opened.get_slice("embeddings").get_shape()[0], 0, 0
    except (SafetensorError, OSError):
        return 0, 1, 0
