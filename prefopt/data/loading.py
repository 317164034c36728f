"""Loading rows from files, a Python function, or a data set of the Hugging Face hub."""

import csv
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from prefopt.data.adapting import Readings, adapted, function_of, mapping_of
from prefopt.data.dialects import NamedRow
from prefopt.data.disk_rows import DiskRows
from prefopt.data.example import Example
from prefopt.data.formats import optional_columns, parse, recognise
from prefopt.data.text_episodes import Spoken
from prefopt.data.values import read_json
from prefopt.support.downloads import HUB_ID, note_data, rows_awaited
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.files import files_like
from prefopt.support.given import Given, as_rows, refuse_text_of_object

BATCH = 1024
"""Rows of a Parquet file that are read at a time."""


class Loaded(NamedTuple):
    """The rows of a data set.

    Attributes:
        rows: stored on disk.
        notes: what they were read as, where their columns are no format's, and how many were left out.
    """

    rows: DiskRows[Example]
    notes: tuple[str, ...]


def load_examples(
    data: str | Path | Sequence[str | Path],
    arguments: Mapping[str, Any] | None = None,
    *,
    split: str | None = None,
    folder: Path | None = None,
    adapt: str | None = None,
) -> DiskRows[Example]:
    """The examples of a data set, read one after another and stored on disk.

    Args:
        data: a .jsonl, .json, .csv or .parquet file, a glob of them, or a list of these; or a function that yields
            rows, `module.path:function` or `file.py:function`; or the id of a data set on the Hugging Face hub; or a `Given`
            list of dicts, `pandas.DataFrame`, `datasets.Dataset` or function.
        arguments: keyword arguments of the function, or of `datasets.load_dataset`.
        split: of a hub data set, its split; of anything else, only the rows whose `split` column has this value.
        folder: where files are looked for before the working directory: the folder of the recipe that names them.
        adapt: a dialect of `DIALECTS`; or a function, `module.path:function` or `file.py:function`, that turns each row into one of
            a known format, or returns None to leave it out. None: a dialect that the first row shows, if any.

    Raises:
        PrefoptError: nothing found, nothing in it, a row that cannot be read (names file and line), or no room on the disk.
    """
    return load(data, arguments, split=split, folder=folder, adapt=adapt).rows


def load(
    data: str | Path | Sequence[str | Path],
    arguments: Mapping[str, Any] | None = None,
    *,
    split: str | None = None,
    folder: Path | None = None,
    adapt: str | None = None,
) -> Loaded:
    """`load_examples`, with what is to be said of the rows."""
    arguments = dict(arguments or {})
    parts = [data] if isinstance(data, str | Path) else list(data)
    if not parts:
        raise PrefoptError("data is an empty list; name at least one file, function or data set")
    readings = Readings()
    examples = DiskRows.of(
        example
        for part in parts
        for rows in _sources(part if isinstance(part, str) else str(part), arguments, split, folder)
        for example in _parsed(adapted(rows, adapt, folder, readings))
    )
    if not examples and not rows_awaited():
        left = "".join(f"; {note}" for note in readings.notes())
        raise PrefoptError(f"{', '.join(map(str, data)) if isinstance(data, list) else data}: no rows{left}")
    return Loaded(examples, readings.notes())


def load_rows(data: str) -> Iterator[NamedRow]:
    """The rows of files, of a function or of a data set as they are, of any columns.

    Raises:
        PrefoptError: nothing found, or a row that cannot be read (names file and line).
    """
    for rows in _sources(data, {}, None, None):
        yield from rows


def _parsed(rows: Iterator[NamedRow]) -> Iterator[Example]:
    """The rows of one file as examples. All must have one form, so that a missing value is an error and not another form."""
    first, spoken = None, Spoken()
    for where, row in rows:
        kind = recognise(row, where)
        options = optional_columns(row) if kind == "paired" else frozenset()
        first = first or (kind, options, where)
        if kind != first[0]:
            raise PrefoptError(
                f"{where}: this row has the columns of format {kind!r} ({sorted(row)}), but {first[2]} those of "
                f"{first[0]!r}. Is a value missing? Rows of two formats go into two files"
            )
        for name in sorted(options ^ first[1]):
            has, before = ("a", "none") if name in options else ("no", "one")
            raise PrefoptError(
                f"{where}: this row has {has} {name!r}, and before it, from {first[2]} on, every row has {before}. Is a value "
                "missing? Rows with and without go into two files"
            )
        try:
            example = parse(row, where)
        except RecursionError:
            raise PrefoptError(f"{where}: nested too deeply to be read") from None
        spoken.add(example, row.get("prompt"))
        yield example


def _sources(
    data: str, arguments: dict[str, Any], split: str | None, folder: Path | None
) -> Iterator[Iterator[NamedRow]]:
    """The rows of each file, function or data set that `data` names."""
    refuse_text_of_object(data, "source.data")
    if not data.strip():
        raise PrefoptError("source.data: is an empty text; name a file, a function or a data set")
    path = Path(data)
    if isinstance(data, Given):
        rows = _given(data, arguments)
        yield rows if split is None else _only(rows, split, data)
    elif path.suffix in _READERS:
        for file in files_like(data, folder):
            rows = _READERS[file.suffix](file)
            yield rows if split is None else _only(rows, split, str(file))
    elif ":" in data:
        rows = _called(data, arguments, folder)
        yield rows if split is None else _only(rows, split, data)
    elif path.is_file():
        raise PrefoptError(f"{data}: cannot read {path.suffix or 'a file without suffix'}; use {', '.join(_READERS)}")
    elif path.is_dir() and not (path / "state.json").exists():
        files = (
            "data.jsonl" if (path / "data.jsonl").is_file() else "*.jsonl"
        )  # a labelling has other files beside its data
        raise PrefoptError(f"{data}: is a directory; name its files, e.g. {data.rstrip('/')}/{files}")
    else:
        yield _hub(data, arguments, split)


def _only(rows: Iterator[NamedRow], split: str, name: str) -> Iterator[NamedRow]:
    """Rows with this value in the column `split`."""
    seen = set()
    kept = 0
    for where, row in rows:
        if "split" not in row:
            raise PrefoptError(f"{where}: split {split!r} was asked for, but there is no 'split' column")
        seen.add(str(row["split"]))
        if row["split"] == split:
            kept += 1
            yield where, row
    if not kept:
        raise PrefoptError(f"{name}: no row of split {split!r}; there are {sorted(seen)}")


# Files. Text formats are read here, not by a library, because messages name the line.


def _jsonl(path: Path) -> Iterator[NamedRow]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, mapping_of(read_json(line, where), where)


def _json_file(path: Path) -> Iterator[NamedRow]:
    first = next((line for line in _lines(path) if line.strip()), "")
    if first.lstrip().startswith("{"):  # JSON Lines under another name
        yield from _jsonl(path)
        return
    rows = read_json("".join(_lines(path)), str(path))
    if not isinstance(rows, list):
        raise PrefoptError(f"{path}: must be a list of objects, or one object a line; it is {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield f"{path}:row {number}", mapping_of(row, f"{path}:row {number}")


def _csv(path: Path) -> Iterator[NamedRow]:
    csv.field_size_limit(sys.maxsize)  # by default a cell has at most 131,072 characters; an answer may have more
    reader = csv.DictReader(_lines(path), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise PrefoptError(f"{path}:{start}: not CSV: {error}") from None
        if row is None:
            return
        where = f"{path}:{max(start, 2)}"  # the header is read together with the first row
        if start == 1 and (twice := [name for name, count in Counter(reader.fieldnames).items() if count > 1]):
            raise PrefoptError(f"{path}:1: the header has {twice[0]!r} twice, and only one of its values could be read")
        if None in row:
            raise PrefoptError(f"{where}: more values than the header has columns; quote values that hold commas")
        yield where, {name: _cell(name, value, where) for name, value in row.items()}


_JSON_COLUMNS = frozenset({"completions", "scores", "ranks", "votes", "preference", "messages"})
_TEXT_COLUMNS = frozenset({"text", "group", "split", "label"})
_CONVERSATION_COLUMNS = frozenset({"prompt", "chosen", "rejected", "completion"})


def _cell(name: str, value: str | None, where: str) -> Any:
    """A CSV value: JSON where the column must hold it, text where it must be text, numbers and lists elsewhere."""
    if value is None or (value == "" and name not in _CONVERSATION_COLUMNS):
        return None
    if name in _JSON_COLUMNS:
        return read_json(value, f"{where}: {name}")
    if name in _TEXT_COLUMNS:
        return value
    if name in _CONVERSATION_COLUMNS and not value.lstrip().startswith("[{"):
        return value
    try:
        parsed = read_json(value, where)
    except PrefoptError:
        return value
    return value if isinstance(parsed, dict) else parsed


def _parquet(path: Path) -> Iterator[NamedRow]:
    import pyarrow.parquet as parquet

    number = 0
    try:  # in small pieces: by default the columns of the file are held whole, as they are compressed
        with parquet.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH):
                kinds = {field.name: field.type for field in batch.schema}
                for row in batch.to_pylist():
                    number += 1
                    where = f"{path}:row {number}"
                    yield where, {name: _decoded(value, kinds[name], f"{where}: {name}") for name, value in row.items()}
    except (GeneratorExit, PrefoptError):
        raise
    except Exception as error:  # a damaged file raises exceptions of many kinds
        after = f" after row {number}" if number else ""
        raise PrefoptError(
            f"{path}: not Parquet, or damaged{after} ({error}); write it again, e.g. from where it came"
        ) from error


def _holds_json(kind: Any) -> bool:
    """Whether an Arrow type is JSON text, or has some in it."""
    from pyarrow import types

    if getattr(kind, "extension_name", "") == "arrow.json":
        return True
    if types.is_nested(kind):
        return any(_holds_json(kind.field(i).type) for i in range(kind.num_fields))
    return False


def _decoded(value: Any, kind: Any, where: str) -> Any:
    """A value of an Arrow type with its JSON text decoded, at every depth."""
    if value is None or not _holds_json(kind):
        return value
    if getattr(kind, "extension_name", "") == "arrow.json":
        return read_json(value, where)
    if isinstance(value, Mapping):
        return {name: _decoded(item, kind.field(name).type, where) for name, item in value.items()}
    return [_decoded(item, kind.field(0).type, where) for item in value]


_READERS: dict[str, Callable[[Path], Iterator[NamedRow]]] = {
    ".jsonl": _jsonl,
    ".json": _json_file,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _lines(path: Path) -> Iterator[str]:
    """Lines of text, read as they are taken."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise PrefoptError(f"{path}:{_undecodable(path)}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        target = f", a link to {path.readlink()}" if path.is_symlink() else ""
        raise PrefoptError(f"{path}{target}: cannot be read ({error.strerror or error})") from None


def _undecodable(path: Path) -> int:
    """The number of the first line that is not UTF-8; a decoding error does not say it, because text is decoded in blocks."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError("every line was UTF-8")


# Functions


def _given(data: Given, arguments: dict[str, Any]) -> Iterator[NamedRow]:
    """The rows of an object from Python: a list of dicts, a table, or a function that yields them."""
    rows = as_rows(data.object)
    if rows is None and not callable(data.object):
        raise PrefoptError(
            f"{data} is no list of dicts, pandas.DataFrame, datasets.Dataset or function that yields rows"
        )
    if rows is None:
        return _called(data, arguments, None)
    return ((f"{data}: row {number}", mapping_of(row, f"{data}: row {number}")) for number, row in enumerate(rows, 1))


def _called(path: str, arguments: dict[str, Any], folder: Path | None) -> Iterator[NamedRow]:
    function = function_of(path, folder)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise PrefoptError(f"{path}: {error}; its arguments are {inspect.signature(function)}") from None
    number = 0
    try:
        rows = function(**arguments)
        if isinstance(rows, Mapping):
            raise PrefoptError(f"{path} returned one {type(rows).__name__}; it returns or yields rows, each a mapping")
        for number, row in enumerate(rows, 1):
            yield f"{path}:row {number}", mapping_of(row, f"{path}:row {number}")
    except (GeneratorExit, PrefoptError):
        raise
    except (Exception, SystemExit) as error:
        after = f" after row {number}" if number else ""
        raise PrefoptError(f"{path} raised {type(error).__name__}{after}: {error}") from error


# The hub


def _hub(name: str, arguments: dict[str, Any], split: str | None) -> Iterator[NamedRow]:
    import datasets

    if "trust_remote_code" in arguments:
        raise PrefoptError(f"{name}: data sets that need remote code are not loaded; convert it to Parquet or JSONL")
    plain, at, revision = name.partition("@")
    if at and HUB_ID.fullmatch(plain) and not Path(name).exists():
        if revision != arguments.get("revision", revision):
            raise PrefoptError(f"{name}: arguments.revision is {arguments['revision']!r}: name one revision")
        name, arguments = plain, {**arguments, "revision": revision}
    if HUB_ID.fullmatch(name) and not _on_disk(name) and note_data(name):
        return
    try:
        data = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name, **arguments)
    except Exception as error:  # offline, unknown ids and wrong arguments raise many unrelated classes
        _unreachable(name, error)
    if isinstance(data, datasets.Dataset | datasets.IterableDataset):
        data = {split or "train": data}
    if split is None and len(data) > 1:
        raise PrefoptError(f"{name}: has the splits {sorted(data)}; say which one with `split`")
    split = split or next(iter(data))
    if split not in data:
        raise PrefoptError(f"{name}: no split {split!r}; there are {sorted(data)}.{nearest(split, data)}")
    number = 0
    try:
        for number, row in enumerate(data[split], 1):
            yield f"{name}[{split}]:row {number}", row
    except (GeneratorExit, PrefoptError):
        raise
    except Exception as error:  # a stream is read, and fails, as it is taken
        after = f" after row {number}" if number else ""
        raise PrefoptError(f"{name}[{split}]: cannot be read{after} ({type(error).__name__}: {error})") from error


def _on_disk(name: str) -> bool:
    """Whether it is a saved data set, or one of the hub that was loaded before."""
    import datasets

    return Path(name).is_dir() or Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir()


def _unreachable(name: str, error: Exception) -> NoReturn:
    reason = next(iter(str(error).splitlines()), "") or "no reason given"
    raise PrefoptError(
        f"{name}: neither a file nor a data set that could be loaded from the hub ({type(error).__name__}: {reason}). "
        "If it is a file, check the path; if you are offline, save the data set as .jsonl or .parquet first; if it has "
        "several configurations, give arguments: {name: ...}"
    ) from error
