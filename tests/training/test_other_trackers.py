"""TensorBoard, MLflow, trackio and Comet: what they hold is metrics.jsonl, once, also after a resume, and none stops a run."""

import json
import math
import zipfile
from functools import partial

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import PrefoptError, load_recipe, recipe, run
from prefopt.runs.folder import RunFolder
from prefopt.training import other_trackers
from prefopt.training.other_trackers import About, OtherTracker, opened, refuse_missing

# Of the packages themselves: MLflow 3.17 and tensorboard 2.21 use names that other packages have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

FIRST = [{"step": 0, "test/accuracy": 0.5}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "broken": None}]
LATER = [{"step": 3, "loss": 0.125}, {"step": 3, "test/accuracy": 0.75}]
WHOLE = {"test/accuracy": [(0, 0.5), (3, 0.75)], "loss": [(1, 0.5), (2, 0.25), (3, 0.125)]}


@pytest.fixture(params=["tensorboard", "mlflow", "trackio", "comet"])
def kind(request, tmp_path, monkeypatch):
    pytest.importorskip(other_trackers.PACKAGES[request.param])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    if request.param == "trackio":
        monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    return request.param


def found(kind, folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """Every number that a tracker holds of the run, as its own reader shows them."""
    name = folder.tracker_id(kind)
    if kind == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    if kind == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient()
        names = client.get_run(name).data.metrics
        return {n: [(m.step, m.value) for m in client.get_metric_history(name, n)] for n in names}
    if kind == "comet":
        with zipfile.ZipFile(folder.path / "comet" / f"{name}.zip") as archive:
            lines = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        sent = [line["payload"]["metric"] for line in lines if line["type"] == "metric_msg"]
        own = [one for one in sent if one["metricName"] != "process duration"]  # Comet's, which has no step
        return {
            n: [(o["step"], o["metricValue"]) for o in own if o["metricName"] == n]
            for n in {o["metricName"] for o in own}
        }
    from trackio.sqlite_storage import SQLiteStorage

    held: dict[str, list[tuple[int, float]]] = {}
    for line in SQLiteStorage.get_logs("prefopt", name):
        for key in line.keys() - {"step", "timestamp"}:
            held.setdefault(key, []).append((line["step"], line[key]))
    return held


def begin(kind, folder: RunFolder, history=()):
    """The tracker as a run opens it."""

    def about(tracker):
        keep = partial(folder.write_tracker_id, tracker)
        return About(folder.path, "dpo-seed0", {"train": {"lr": 0.5}}, folder.tracker_id(tracker), keep)

    (tracker,) = opened(recipe.Track(**{kind: {}}), about, lambda: history)
    return tracker


def send(tracker, lines):
    for line in lines:
        tracker.log(line["step"], {name: value for name, value in line.items() if name != "step"})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def test_a_tracker_holds_what_it_was_sent(kind, folder, capfd):
    tracker = begin(kind, folder)
    send(tracker, [*FIRST, *LATER])
    tracker.finish({"finished": True})
    assert found(kind, folder) == WHOLE
    said = "".join(capfd.readouterr()).lower()
    assert "trackio" not in said and "comet" not in said


@pytest.mark.parametrize("sent", [0, 1, 2, 3], ids="{} lines were sent before the kill".format)
def test_a_run_that_goes_on_is_one_run_without_holes_and_doubles(kind, folder, sent):
    first = begin(kind, folder)
    send(first, FIRST[:sent])
    first.finish({})  # what a kill does to the process, the test cannot; that all was written is the harder case
    run_id = folder.tracker_id(kind)
    again = begin(kind, folder, FIRST[:2])  # the resume goes on from a checkpoint at step 1
    send(again, [FIRST[2], *LATER])
    again.finish({"finished": True})
    assert found(kind, folder) == WHOLE
    assert folder.tracker_id(kind) == run_id


def test_two_runs_of_one_recipe_are_two_runs(kind, tmp_path):
    folders = []
    for number in range(2):
        (tmp_path / f"run{number}").mkdir()
        folders.append(RunFolder(tmp_path / f"run{number}"))
        tracker = begin(kind, folders[-1])
        send(tracker, FIRST[: number + 1])
        tracker.finish({"finished": True})
    assert [sum(map(len, found(kind, one).values())) for one in folders] == [1, 2]


def test_a_run_that_the_user_has_open_is_left_alone(kind, folder, caplog):
    if kind == "tensorboard":
        pytest.skip("its files are the run's own")
    if kind == "mlflow":
        import mlflow

        with mlflow.start_run() as mine:
            tracker = begin(kind, folder)
            send(tracker, FIRST)
            tracker.finish({"finished": True})
            assert mlflow.active_run().info.run_id == mine.info.run_id != folder.tracker_id(kind)
    elif kind == "comet":
        import comet_ml

        mine = comet_ml.OfflineExperiment(
            "mine", offline_directory=str(folder.path), log_code=False, log_git_patch=False
        )
        tracker = begin(kind, folder)
        assert tracker.run is None and not mine.ended and "has an experiment of Comet open" in caplog.text
        mine.end()
    elif kind == "trackio":
        import trackio

        mine = trackio.init("prefopt", "mine", embed=False)
        tracker = begin(kind, folder)
        tracker.finish({"finished": True})
        assert trackio.context_vars.current_run.get() is mine
        mine.finish()


def test_a_run_is_logged_and_its_end_with_it(kind, tmp_path):
    file = tiny_recipe(tmp_path, tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl"))
    result = run(load_recipe(file, [f"track.{kind}={{}}"]), folder=tmp_path / "run")
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    held = found(kind, RunFolder(result.folder))
    expected = {
        (name, line["step"], float(value))
        for line in lines
        for name, value in line.items()
        if name != "step" and value is not None
    }
    close = {(name, step): value for name, step, value in expected}
    assert {(n, s) for n, points in held.items() for s, _ in points} == set(close) and len(close) > 20
    for name, points in held.items():
        for step, value in points:
            assert math.isclose(value, close[name, step], rel_tol=1e-6, abs_tol=1e-9), (name, step)
    if kind == "mlflow":
        from mlflow import MlflowClient

        ended = MlflowClient().get_run(RunFolder(result.folder).tracker_id(kind))
        assert ended.info.status == "FINISHED" and ended.data.params["objective.name"] == "DPO"
        assert ended.info.run_name == f"{load_recipe(file).name}-seed0"


class Broken:
    """A tracker that fails at what it is told to."""

    def __init__(self, when):
        self.when = when
        if when == "start":
            raise OSError("no space left")

    def log(self, step, metrics):
        if self.when == "log":
            raise ValueError("no such thing")

    def finish(self, summary):
        if self.when == "finish":
            raise RuntimeError("gone")


@pytest.mark.parametrize("when", ["start", "log", "finish"])
def test_a_broken_tracker_ends_itself_only(when, caplog):
    tracker = OtherTracker("MLflow", lambda: Broken(when), FIRST)
    tracker.log(3, {"loss": 1.0})
    tracker.finish({"finished": True})
    assert [record.message for record in caplog.records if "MLflow: " in record.message] == caplog.messages
    assert len(caplog.messages) == 1 and "The run goes on; metrics.jsonl has everything" in caplog.text


def test_a_tracker_that_never_answers_is_not_waited_for(monkeypatch, caplog):
    import threading

    monkeypatch.setattr(other_trackers, "PATIENCE", 0.1)
    tracker = OtherTracker("MLflow", lambda: threading.Event().wait(60))
    assert tracker.run is None and "no answer within 0.4 s" in caplog.text


def test_a_package_that_is_missing_is_refused_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        PrefoptError, match=r"track\.mlflow needs the package mlflow: pip install 'prefopt-research\[mlflow\]'"
    ):
        refuse_missing(recipe.Track(mlflow={}))
    refuse_missing(recipe.Track())
