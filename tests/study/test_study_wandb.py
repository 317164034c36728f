"""What a study leaves for `wandb sync`, read back from W&B's own files."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt.study import Study, run_study

pytest.importorskip("wandb")


def records(folder: Path) -> list[Any]:
    """LevelDB's log format, a protobuf `Record` in each entry."""
    from wandb.proto import wandb_internal_pb2

    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    data, place, entry, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        entry += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(entry)
            found.append(record)
            entry = b""
    return found


def started(found: list[Any]) -> Any:
    return next(r.run for r in found if r.HasField("run"))


def config(found: list[Any]) -> dict[str, Any]:
    return {u.key: json.loads(u.value_json) for u in started(found).config.update}


def summary(found: list[Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for record in found:
        if record.HasField("summary"):
            said |= {u.key or u.nested_key[0]: json.loads(u.value_json) for u in record.summary.update}
    return said


@pytest.mark.slow
def test_one_group_with_a_run_for_each_arm_and_seed_and_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    base = tiny_recipe(tmp_path, tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl"))
    arms: dict[str, Any] = {"A": {}, "B": {"objective": "IPO"}}
    planned = Study(name="duel", recipe=str(base), arms=arms, seeds=1, metric="nll", wandb={"project": "p"})
    results = run_study(planned, tmp_path / "s", console=Console(quiet=True))
    for result in results:
        found = records(result.folder)
        run = started(found)
        assert (run.project, run.run_group, run.display_name) == ("p", "duel", f"{result.arm}-seed0")
        assert config(found)["objective"][0]["name"] == {"A": "DPO", "B": "IPO"}[result.arm]
        after = json.loads((result.folder / "summary.json").read_text())["after"]
        assert summary(found)["nll"] == after["nll"]["value"] and summary(found)["finished"] is True
    found = records(tmp_path / "s")
    run = started(found)
    assert (run.run_group, run.display_name) == ("duel", "comparison")
    assert config(found)["baseline"] is None and set(config(found)["arms"]) == {"A", "B"}
    assert summary(found)["runs"] == 2 and summary(found)["failed"] == 0
    table = next((tmp_path / "s" / "wandb").glob("offline-run-*/files/media/table/comparison*.table.json"))
    content = json.loads(table.read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [(row["arm"], row["seed"], row["failed"]) for row in rows] == [("A", 0, False), ("B", 0, False)]
    assert all(row["nll"] > 0 and row["labels"] > 0 for row in rows)
    frontier = json.loads(
        next((tmp_path / "s" / "wandb").glob("offline-run-*/files/media/table/frontier*.table.json")).read_text()
    )
    assert {"kl", "nll", "arm", "seed", "step"} <= set(frontier["columns"]) and len(frontier["data"]) == 4
    pages = {
        file.name.split("_")[0] for file in (tmp_path / "s" / "wandb").glob("offline-run-*/files/media/html/figures/*")
    }
    assert {"differences", "frontier"} <= pages
    drawing = next((tmp_path / "s" / "wandb").glob("offline-run-*/files/media/html/figures/frontier*"))
    assert drawing.read_text().lstrip().startswith("<svg") and "KL" in drawing.read_text()
    artifacts = [r.request.log_artifact.artifact for r in found if r.HasField("request")] + [
        r.artifact for r in found if r.HasField("artifact")
    ]
    assert any(a.name == "duel-report" for a in artifacts)
