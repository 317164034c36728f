"""The files of a labelling, to which lines are only ever added: a killed one has lost nothing that was on disk."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prefopt.runs.label.rows import Row, judged
from prefopt.support.errors import PrefoptError
from prefopt.support.files import append_whole
from prefopt.support.system_errors import naming

T = TypeVar("T")

PLACE = "place in calls.jsonl"


@dataclass(frozen=True)
class Ledger:
    """What was labelled, what could not be, and what it cost.

    A row is in exactly one of the first two files, whole, so its number there says that it is done.

    Attributes:
        folder: where they are.
    """

    folder: Path
    _read: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def data(self) -> Path:
        """Rows with verdicts enough to learn from."""
        return self.folder / "data.jsonl"

    @property
    def missing(self) -> Path:
        """Rows without."""
        return self.folder / "missing.jsonl"

    @property
    def calls(self) -> Path:
        """What each call of the feedback spent."""
        return self.folder / "calls.jsonl"

    def repair(self) -> int:
        """Take lines out that were torn by the kill; how many there were."""
        return sum(_mended(file) for file in (self.data, self.missing, self.calls))

    def done(self) -> set[int]:
        """The numbers of the rows that were labelled, or could not be."""
        return {number for file in (self.data, self.missing) for number in _lines(file, _number)}

    def spend(self, prompts: int, spent: Mapping[str, float]) -> None:
        """Note what a call cost; before its rows, for the money is gone even if they are lost."""
        _append(self.calls, [{"prompts": prompts, "spent": dict(spent)}])

    def add(self, rows: Sequence[Row]) -> None:
        """Put these rows on disk; on return they are there."""
        _append(self.data, [row for row in rows if judged(row)])
        _append(self.missing, [row for row in rows if not judged(row)])

    def spent(self) -> dict[str, float]:
        """What all calls cost, the interrupted ones included; reads what was added since it was asked last."""
        total, place = Counter(self._read), int(self._read.get(PLACE, 0))
        for spent in _lines(self.calls, lambda call: {name: value + 0 for name, value in call["spent"].items()}, place):
            total.update(spent)
        total[PLACE] = self.calls.stat().st_size if self.calls.exists() else 0
        self._read.update(total)
        return {name: value for name, value in total.items() if name != PLACE}

    def counts(self) -> dict[str, int]:
        """How many there are of everything that a reader of the data should know."""
        counts = dict.fromkeys(
            ("prompts", "prompts_missing", "completions", "completions_missing", "not_ended", "tied"), 0
        )
        for scores, ended in _lines(self.data, _scores):
            known = [score for score in scores if score is not None]
            counts["prompts"] += 1
            counts["completions"] += len(known)
            counts["completions_missing"] += len(scores) - len(known)
            counts["not_ended"] += ended.count(False)
            counts["tied"] += len(known) > 1 and len(set(known)) == 1
        for scores, _ in _lines(self.missing, _scores):
            counts["prompts_missing"] += 1
            counts["completions_missing"] += len(scores)
        return counts


def unfinished(file: Path) -> tuple[int, int] | None:
    """Of how many prompts that a labelling has to do how many are done, if this is its data and it has not come to its end.

    None for any other file: manifests of this name are written by others, too.
    """
    ledger = Ledger(file.parent)
    try:
        manifest = json.loads((ledger.folder / "manifest.json").read_text(encoding="utf-8"))
        if not file.samefile(ledger.data) or "feedback" not in manifest or "finished" in manifest:
            return None
        return len(ledger.done()), int(manifest["data"]["rows"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, PrefoptError):
        return None


def _append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    with naming(file), file.open("ab", buffering=0) as out:
        append_whole(file, out, b"".join(map(_line, rows)))
        os.fsync(out.fileno())


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a character, which only an escape can hold
        return (json.dumps(row, allow_nan=False) + "\n").encode()


def _mended(file: Path) -> bool:
    """Cuts a file after its last whole line; whether there was something to cut."""
    if not file.exists():
        return False
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return False
    with file.open("r+b") as out:
        out.truncate(whole)
        os.fsync(out.fileno())
    return True


def _number(row: Mapping[str, Any]) -> int:
    return int(row["provenance"]["row"])


def _scores(row: Mapping[str, Any]) -> tuple[list[float | None], list[bool]]:
    """The scores of a row's completions, and whether each ended, where that is known."""
    return [None if score is None else float(score) for score in row["scores"]], [bool(e) for e in row.get("ended", ())]


def _lines(file: Path, read: Callable[[Mapping[str, Any]], T], start: int = 0) -> Iterator[T]:
    """What `read` takes from each of the lines that begin at this byte or later.

    Raises:
        PrefoptError: a labelling did not write this line.
    """
    if not file.exists():
        return
    with file.open("rb") as lines:
        lines.seek(start)
        for number, line in enumerate(lines, 1):
            try:
                taken = read(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                where = f"{file}:{number}" if not start else f"{file}, after byte {start}, line {number}"
                raise PrefoptError(f"{where}: not a line that a labelling wrote ({error}); restore the file") from None
            yield taken
