"""Reads the files that W&B writes offline."""

import json
import struct
import time
from pathlib import Path
from typing import Any


def offline_folders(run_folder: Path) -> list[Path]:
    """The folders of W&B's own, the oldest first."""
    return sorted(run_folder.glob("wandb/offline-run-*"), key=lambda folder: folder.stat().st_mtime_ns)


def records(offline_folder: Path) -> list[Any]:
    """What is in the one file of an offline run: LevelDB's log format, a protobuf `Record` in each entry."""
    from wandb.proto import wandb_internal_pb2

    (file,) = offline_folder.glob("*.wandb")
    deadline = time.monotonic() + 20  # a busy machine writes after `finish` has come back
    while file.stat().st_size < 100 and time.monotonic() < deadline:
        time.sleep(0.05)
    data, place, entry, found = file.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        entry += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(entry)
            found.append(record)
            entry = b""
    return found


def started(found: list[Any]) -> Any:
    """How the run was begun: id, project, group, name, config."""
    return next(record.run for record in found if record.HasField("run"))


def config(found: list[Any]) -> dict[str, Any]:
    """The recipe that was sent."""
    return {update.key: json.loads(update.value_json) for update in started(found).config.update}


def history(found: list[Any]) -> list[dict[str, Any]]:
    """A mapping for each step, `_step` among its keys."""
    return [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]


def summary(found: list[Any]) -> dict[str, Any]:
    """The summary at the end."""
    numbers: dict[str, Any] = {}
    for record in found:
        if record.HasField("summary"):
            numbers |= {u.key or u.nested_key[0]: json.loads(u.value_json) for u in record.summary.update}
    return numbers
