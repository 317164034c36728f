"""What a case starts from: a folder in which every command works, and what the case puts there instead."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _folders import finished_run

GOOD = Path(__file__).parent / "good"

ENVIRONMENT = {
    "ACCELERATE_USE_CPU": "1",
    "COLUMNS": "200",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "NO_COLOR": "1",
    "OMP_NUM_THREADS": "1",
    "WANDB_MODE": "offline",
}


def make(folder: Path, models: Path, files: Mapping[str, Any]) -> Path:
    """A world below `folder`, with `models` in reach: the good one, and over it these files, as `write` takes them."""
    world = folder / "world"
    shutil.copytree(GOOD, world, ignore=shutil.ignore_patterns("__pycache__"))
    (world / "models").symlink_to(models)
    for name, content in files.items():
        write(world / name, content)
    return world


def write(file: Path, content: Any) -> None:
    """Put something at a place.

    Args:
        file: what is there is replaced.
        content: text; bytes; a list, whose items become JSON lines; null, for nothing at all; or a mapping, which is one of
            {instead: {this: that}}     what stands there, with other words
            {made: {…}}                 many rows or much text, as `_made` has it
            {parquet: [row, …], harm: cut | scrambled}
            {link: path}, {folder: {name: content}}
            {run: {…}}                  a finished run, with the arguments of `_folders.finished_run`, and `files` over it
            {copy: path}                of a folder in this one's world, or in `models`, and `files` over it
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    kind, given = next(iter(content.items())) if isinstance(content, dict) else (type(content).__name__, content)
    if kind == "instead":
        content = _with_other_words(file.read_text(), given)
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    match kind:
        case "NoneType":
            return
        case "str":
            file.write_text(given, encoding="utf-8")
        case "instead":
            file.write_text(content, encoding="utf-8")
        case "bytes":
            file.write_bytes(given)
        case "list":
            file.write_text(_lines(given), encoding="utf-8")
        case "made":
            file.write_bytes(_made(**given))
        case "parquet":
            _write_parquet(file, given, content.get("harm", ""))
        case "link":
            file.symlink_to(given)
        case "folder":
            file.mkdir()
        case "run":
            finished_run(file, **{"seed": 0, "gold": 0.5} | given)
        case "copy":
            shutil.copytree(file.parent / given, file)
        case _:
            raise ValueError(f"{file.name}: {kind} is no way to write a file")
    for name, below in (
        given if kind == "folder" else content.get("files", {}) if isinstance(content, dict) else {}
    ).items():
        write(file / name, below)


def environment(folder: Path, port: int) -> dict[str, str]:
    """The variables of a case's process: a home, a cache and a place for temporary files of its own.

    Args:
        folder: for these three.
        port: of the judge's server.
    """
    own = {"HOME": "home", "TMPDIR": "tmp", "PREFOPT_CACHE": "cache"}
    for name in own.values():
        (folder / name).mkdir()
    return ENVIRONMENT | {name: str(folder / place) for name, place in own.items()} | {"JUDGE_PORT": str(port)}


def reply(given: Any) -> Any:
    """A fault of `_server.Loopback`: hang, drop, a status, other text or bytes in place of HTTP, or {status, body}."""
    if isinstance(given, str) and given not in ("hang", "drop"):
        return given.encode()
    return (given.get("status", 200), given["body"]) if isinstance(given, dict) else given


def _with_other_words(text: str, words: Mapping[str, str]) -> str:
    for this, that in words.items():
        assert this in text, f"{this!r} is not there"
        text = text.replace(this, that)
    return text


def _lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _made(
    rows: list[Any] = (), text: str = "", times: int = 1, before: str = "", after: str = "", encoding: str = "utf-8"
) -> bytes:
    """`rows`, or `text`, so many times, with the number in the place of every `#`; something before, and something after."""
    unit = _lines(rows) if rows else text
    middle = "".join(unit.replace("#", str(number)) for number in range(times)) if "#" in unit else unit * times
    return f"{before}{middle}{after}".encode(encoding)


def _write_parquet(file: Path, rows: list[Any], harm: str) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows * 2000), file, compression="none", use_dictionary=False)
    content = bytearray(file.read_bytes())
    if harm == "cut":
        del content[len(content) // 3 :]
    elif harm == "scrambled":
        for place in range(100, len(content) // 2, 40):
            content[place] ^= 0xFF
    file.write_bytes(content)
