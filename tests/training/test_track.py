"""Tracking: what is written, and that no tracker can stop a run, make it wait, or ask."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _wandb import config, history, offline_folders, records, started, summary

from prefopt import recipe
from prefopt.support.logs import silence_telemetry
from prefopt.training import trackers
from prefopt.training.trackers import Jsonl, Tracker, WandbRun, rewind, wandb_mode

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "home").mkdir()


def steps(found: list[object]) -> list[tuple[int, float | None, float | None]]:
    """Step, loss and accuracy of each line of the history."""
    return [(line["_step"], line.get("loss"), line.get("test/accuracy")) for line in history(found)]


def test_offline_run_holds_config_history_and_summary(tmp_path, capfd):
    run = WandbRun(recipe.Wandb(project="p", tags=["t"]), tmp_path, "dpo-seed0", {"train": {"lr": 0.5}})
    assert run.run.settings.mode == "offline"
    run.log(0, {"test/accuracy": 0.5})
    run.log(1, {"loss": 0.25, "broken": float("nan")})
    run.finish({"accuracy": 0.75, "finished": True})
    found = records(*offline_folders(tmp_path))
    run = started(found)
    assert (run.project, run.display_name, list(run.tags)) == ("p", "dpo-seed0", ["t"])
    assert config(found)["train"] == {"lr": 0.5}
    assert steps(found) == [(0, None, 0.5), (1, 0.25, None)]
    assert summary(found)["accuracy"] == 0.75 and summary(found)["finished"] is True
    assert [r.exit.exit_code for r in found if r.HasField("exit")] == [0]
    assert capfd.readouterr() == ("", "")


def test_a_run_that_goes_on_keeps_its_id_and_sends_the_history_that_nobody_knows_to_be_there(tmp_path):
    """Offline, what a killed process wrote of its last steps is not known."""
    lines = [{"step": 0, "test/accuracy": 0.5}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    run = WandbRun(recipe.Wandb(), tmp_path, "n", {}, "a-run", lines)
    run.log(3, {"loss": 0.25})
    run.finish({"finished": True})
    found = records(*offline_folders(tmp_path))
    assert started(found).run_id == "a-run"
    assert steps(found) == [(0, None, 0.5), (1, 0.5, None), (2, None, None), (3, 0.25, None)]


IN_THE_ENVIRONMENT = {
    "WANDB_RUN_ID": "theirs", "WANDB_RESUME": "must", "WANDB_RESUME_FROM": "theirs?_step=3", "WANDB_PROJECT": "other",
    "WANDB_NAME": "other", "WANDB_TAGS": "other", "SM_TRAINING_ENV": "{}", "TRAINING_JOB_NAME": "theirs",
}  # fmt: skip


def test_ids_and_places_in_the_environment_are_not_obeyed(tmp_path):
    """In a process of its own, since W&B reads the environment once."""
    code = f"""
from pathlib import Path
from prefopt import recipe
from prefopt.training.trackers import WandbRun
runs = [WandbRun(recipe.Wandb(project="p"), Path({str(tmp_path)!r}) / name, name, {{}}) for name in "ab"]
for run in runs:
    run.log(1, {{"loss": 0.5}})
    run.finish({{"finished": True}})
"""
    for name in "ab":
        (tmp_path / name).mkdir()
    environment = os.environ | IN_THE_ENVIRONMENT
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stderr) == (0, "")
    logged = [started(records(*offline_folders(tmp_path / name))) for name in "ab"]
    assert [(run.project, run.display_name, list(run.tags)) for run in logged] == [("p", "a", []), ("p", "b", [])]
    assert len({run.run_id for run in logged} | {"theirs"}) == 3


def test_a_run_that_the_user_has_open_is_left_alone(tmp_path):
    theirs = wandb.init(mode="offline", dir=str(tmp_path / "home"), settings=wandb.Settings(silent=True))
    ours = WandbRun(recipe.Wandb(), tmp_path / "home", "ours", {})
    assert ours.run.id != theirs.id
    ours.finish({"finished": True})
    theirs.log({"still": "open"})
    theirs.finish()


@pytest.mark.parametrize("what", ["import", "init", "log", "summary", "finish"])
def test_broken_wandb_ends_itself_only(tmp_path, monkeypatch, caplog, what):
    class Broken:
        step = 0

        def __getattr__(self, name):
            if name == what or (name == "summary" and what == "summary"):
                raise OSError(f"{what} is broken")
            return lambda *a, **k: None if name == "finish" else self

    if what == "import":
        monkeypatch.setitem(sys.modules, "wandb", None)
    elif what == "init":
        monkeypatch.setattr(wandb, "init", lambda **k: (_ for _ in ()).throw(RuntimeError("init is broken")))
    else:
        monkeypatch.setattr(wandb, "init", lambda **k: Broken())
    file = tmp_path / "metrics.jsonl"
    tracker = Tracker([Jsonl(file), WandbRun(recipe.Wandb(), tmp_path, "n", {})])
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
    tracker.finish({"finished": True})
    assert len(file.read_text().splitlines()) == 3
    (message,) = [r.getMessage() for r in caplog.records if r.name == "prefopt.training.trackers"]  # said once
    assert message.startswith("W&B: ") and "metrics.jsonl has everything" in message


def test_finish_that_never_returns_is_not_waited_for(tmp_path, monkeypatch, caplog):
    class Slow:
        step, summary = 0, {}

        def finish(self, **more):
            time.sleep(30)

    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    monkeypatch.setattr(wandb, "init", lambda **k: Slow())
    start = time.monotonic()
    WandbRun(recipe.Wandb(), tmp_path, "n", {}).finish({})
    assert time.monotonic() - start < 5 and "no answer within 0.2 s" in caplog.text


def test_service_that_is_away(tmp_path):
    """Online with a key, and nobody at the other end: offline after bounded time, without a question, everything written."""
    code = f"""
import sys
from pathlib import Path
from prefopt import recipe
from prefopt.support.logs import silence_telemetry
from prefopt.training import trackers
silence_telemetry()
trackers.PATIENCE = 2
run = trackers.WandbRun(recipe.Wandb(mode="online"), Path({str(tmp_path)!r}), "n", {{"a": 1}})
assert run.run.settings.mode == "offline", run.run
run.log(1, {{"loss": 0.5}})
run.finish({{"finished": True}})
"""
    environment = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert "This run is logged offline" in done.stderr and len(done.stderr.splitlines()) == 1
    assert time.monotonic() - start < 60
    assert steps(records(*offline_folders(tmp_path))) == [(1, 0.5, None)]


def test_mode(monkeypatch, tmp_path):
    assert [wandb_mode(m) for m in ("auto", "online", "offline")] == ["offline"] * 3
    monkeypatch.setenv("WANDB_MODE", "online")  # would ask for a login
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert [wandb_mode(m) for m in ("auto", "online", "offline")] == ["online", "online", "offline"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert (wandb_mode("auto"), wandb_mode("online")) == ("disabled", "online")


def test_login_is_that_of_the_host(monkeypatch, tmp_path):
    netrc = tmp_path / "home/.netrc"
    netrc.write_text("machine wandb.lab.org\n  login user\n  password secret\n")
    netrc.chmod(0o600)
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.org:8080/")
    assert wandb_mode("auto") == "online"
    netrc.write_text("not a netrc")
    assert wandb_mode("auto") == "offline"
    netrc.unlink()
    (tmp_path / "elsewhere").write_text("machine wandb.lab.org login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
    assert wandb_mode("auto") == "online"


def test_asked_online_without_login_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(wandb, "init", lambda **k: pytest.fail("wrong mode") if k["mode"] != "offline" else None)
    WandbRun(recipe.Wandb(mode="online"), tmp_path, "n", {})
    assert "no login was found" in caplog.text


def test_telemetry_is_off_unless_set(monkeypatch):
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    silence_telemetry()
    assert (os.environ["DO_NOT_TRACK"], os.environ["HF_HUB_DISABLE_TELEMETRY"]) == ("0", "1")


def test_lines_are_json_and_there_at_once(tmp_path):
    file = tmp_path / "metrics.jsonl"
    writer = Jsonl(file)
    writer.log(1, {"loss": float("nan"), "kl": float("inf"), "lr": 1e-6, "tokens": 5})
    line = file.read_text()  # before it is closed
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "kl": None,
        "lr": 1e-6,
        "tokens": 5,
    }
    writer.finish({})
    append(file, 2)
    assert len(file.read_text().splitlines()) == 2


def append(file: Path, step: int) -> None:
    writer = Jsonl(file)
    writer.log(step, {})
    writer.finish({})


LINES = [json.dumps({"step": step, "loss": step / 2}) + "\n" for step in range(1, 6)]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("".join(LINES), "".join(LINES[:3])),
        ("".join(LINES[:3]), "".join(LINES[:3])),
        ("".join(LINES[:3]) + '{"step": 4, "lo', "".join(LINES[:3])),
        ("".join(LINES[:3])[:-1], "".join(LINES[:3])),  # only the line end was lost
        ("".join(LINES[:2]) + '{"step": 3', "".join(LINES[:2])),
        ("".join(LINES[:3]) + "5\n[]\n", "".join(LINES[:3])),
        ("", ""),
    ],
)
def test_rewind(tmp_path, text, kept):
    file, beside = tmp_path / "metrics.jsonl", tmp_path / "metrics-before-resume.jsonl"
    file.write_text(text)
    rewind(file, 3)
    assert file.read_text() == kept
    assert beside.exists() == (text != kept) and (not beside.exists() or beside.read_text() == text)
    rewind(file, 0)
    assert file.read_text() == "" and (not kept or len(list(tmp_path.glob("metrics-before*"))) == 1 + (text != kept))
    append(file, 1)
    assert len(file.read_text().splitlines()) == 1


def test_rewind_of_nothing(tmp_path):
    rewind(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.glob("*.jsonl"))
