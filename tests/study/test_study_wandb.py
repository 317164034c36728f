"""What a study leaves for `wandb sync`, read back from W&B's own files."""

import json
from pathlib import Path
from typing import Any

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from _wandb import config, offline_folders, records, started, summary
from rich.console import Console

from prefopt.study import Study, run_study

pytest.importorskip("wandb")


@pytest.mark.slow
def test_one_group_with_a_run_for_each_arm_and_seed_and_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    base = tiny_recipe(tmp_path, tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl"))
    arms: dict[str, Any] = {"A": {}, "B": {"objective": "IPO"}}
    planned = Study(name="duel", recipe=str(base), arms=arms, seeds=1, metric="nll", wandb={"project": "p"})
    results = run_study(planned, tmp_path / "s", console=Console(quiet=True))
    ids = set()
    for result in results:
        found = records(*offline_folders(result.folder))
        run = started(found)
        ids.add(run.run_id)
        assert (run.project, run.run_group, run.display_name) == ("p", "duel", f"{result.arm}-seed0")
        assert config(found)["objective"][0]["name"] == {"A": "DPO", "B": "IPO"}[result.arm]
        after = json.loads((result.folder / "summary.json").read_text())["after"]
        assert summary(found)["nll"] == after["nll"]["value"] and summary(found)["finished"] is True
    found = records(*offline_folders(tmp_path / "s"))
    run = started(found)
    assert len(ids | {run.run_id}) == 3
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
