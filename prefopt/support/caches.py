"""What prefopt keeps on disk between runs: list it, verify it, delete it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prefopt.support.disk_store import SUFFIX, blocks, checksum, keys_of, mapped
from prefopt.support.errors import PrefoptError, nearest

KINDS = ("logps", "embeddings", "judges", "layouts", "threads")
"""Folders of the cache: log-probs of references, embeddings of prompts, answers of judges, layouts of rows found exact, fastest
numbers of CPU threads."""


@dataclass(frozen=True)
class CacheUsage:
    """What one folder of the cache holds: entries of one model, or of a whole kind where files do not say which model they are of.

    Attributes:
        kind: of `KINDS`.
        folder: where the files are.
        of: the model, as the note beside the files describes it; "" without a note.
        files: number of files with entries.
        bytes: size of these files.
        used: when a file was last written or read from, in seconds since 1970; 0 without files.
        entries: number of entries; a file that is not of the shared store counts as one.
        damaged: entries whose values are not those that were written; 0 unless they were verified.
        torn: bytes at the end of files that are half-written: the writer was killed, or is still writing.
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
    """The folder of a kind below $PREFOPT_CACHE, or below ~/.cache/prefopt.

    Raises:
        PrefoptError: $PREFOPT_CACHE is a file.
    """
    root = Path(os.environ.get("PREFOPT_CACHE") or "~/.cache/prefopt").expanduser()
    if root.is_file():
        raise PrefoptError(f"{root}, where caches go, is a file: name a folder in PREFOPT_CACHE, or move the file away")
    return root / kind


def usage(kind: str | None = None) -> Iterator[CacheUsage]:
    """What is there, by kind and model; values are not read."""
    return _each(kind, _entries)


def verified(kind: str | None = None) -> Iterator[CacheUsage]:
    """The same as `usage`, with every checksum checked."""
    return _each(kind, _checked)


def clear(kind: str | None = None) -> int:
    """Delete the entries of one kind, or of all; returns the number of bytes freed.

    A run that is going on computes again what it no longer finds.
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
        raise PrefoptError(f"the cache has no kind {kind!r}.{nearest(kind, KINDS)} There are: {', '.join(KINDS)}")
    return KINDS if kind is None else (kind,)


def _each(kind: str | None, measure: Callable[[Path], tuple[int, int, int]]) -> Iterator[CacheUsage]:
    for name in _kinds(kind):
        top = cache_folder(name)
        subfolders = sorted(f for f in top.iterdir() if f.is_dir()) if top.is_dir() else []
        for folder in [top, *subfolders]:
            measured = _measured(CacheUsage(name, folder, _note(folder)), measure)
            if measured.files:
                yield measured


def _measured(one: CacheUsage, measure: Callable[[Path], tuple[int, int, int]]) -> CacheUsage:
    for file in (f for f in _files(one.folder) if f.parent == one.folder and f.name != "model.json"):
        with suppress(FileNotFoundError):  # evicted by another process just now
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
    """The contents of `model.json` in one line."""
    with suppress(OSError, json.JSONDecodeError, KeyError, TypeError):
        note = json.loads((folder / "model.json").read_text())
        return f"{Path(note['model']).name} ({note['parameters'] / 1e6:.3g}M, {note['dtype']}, {note['arithmetic']})"
    return ""


def _entries(file: Path) -> tuple[int, int, int]:
    """Entries of a file, how many are damaged (not known here: 0), and how many bytes are torn; values are not read."""
    if file.suffix != SUFFIX:  # not of the shared store: the file is the entry
        return 1, 0, 0
    whole = list(blocks(file))
    end = whole[-1].end if whole else 0
    return sum(len(block.entries) for block in whole), 0, file.stat().st_size - end


def _checked(file: Path) -> tuple[int, int, int]:
    """The same with damaged entries counted."""
    entries, damaged, torn = _entries(file)
    if file.suffix == SUFFIX:
        damaged = sum(_damaged(file))
    return entries, damaged, torn


def _damaged(file: Path) -> Iterator[bool]:
    """For each entry of a segment, whether its values fail their checksum."""
    memory = mapped(file)
    for block in blocks(file):
        ends = block.start + block.entries["length"].astype(np.int64).cumsum()
        for key, end, entry in zip(keys_of(block.entries), ends.tolist(), block.entries, strict=True):
            yield checksum(key, memory[end - int(entry["length"]) : end]) != int(entry["crc"])
