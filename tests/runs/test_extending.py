"""A finished run is trained on: as an uninterrupted one where nothing depends on its length; otherwise it says what it is not."""

import json
import shutil
from pathlib import Path

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import PrefoptError, load_recipe, run
from prefopt.cli import main
from prefopt.runs.extending import extensions, in_words
from prefopt.runs.folder import RunFolder
from prefopt.runs.inspecting import trained
from prefopt.runs.listing import listed_runs
from prefopt.runs.records import RunOfArm, read_run
from prefopt.study.comparison.confounds import confounds
from prefopt.training.loop import Trainer

CONSTANT = ["train.schedule=constant", "train.warmup=2"]
PPO = ["objective=PPO", "source.rollouts={completions: 2, sampling: {max_tokens: 4}}", "feedback={home}/rule.py:score"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    train = "{steps: 4, batch_size: 8, lr: 1e-2, threads: 1, checkpoint_every: 4}"
    tiny_recipe(home, tiny_model(home / "lm"), tiny_pairs(home / "pairs.jsonl", rows=40), train=train)
    (home / "rule.py").write_text(
        "def score(prompts, completions, rows):\n    return [[float(len(t)) for t in row] for row in completions]\n"
    )
    return home


def ran(home: Path, folder: Path, *overrides: str, resume: bool = False) -> RunFolder:
    settings = load_recipe(home / "recipe.yaml", [one.replace("{home}", str(home)) for one in overrides])
    return RunFolder(run(settings, folder=folder, resume=resume).folder)


def numbers(folder: RunFolder) -> list[dict]:
    """Of training alone: the shorter run was measured at its end, too."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in folder.history() if "loss" in line]


def weights(policy: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(policy.glob("*.safetensors"))}


@pytest.mark.parametrize("more", [[], ["policy.adapter={r: 2}"], PPO, ["objective=BradleyTerry"]])
def test_with_a_constant_rate_it_is_what_a_whole_run_is_bit_by_bit(home, tmp_path, more):
    whole = ran(home, tmp_path / "whole", *CONSTANT, "train.steps=10", *more)
    short = ran(home, tmp_path / "run", *CONSTANT, *more)
    earlier = weights(short.policy)
    longer = ran(home, tmp_path / "run", *CONSTANT, "train.steps=10", *more, resume=True)
    assert weights(longer.policy) == weights(whole.policy) != earlier
    assert numbers(longer) == numbers(whole)
    mine, theirs = longer.summary(), whole.summary()
    assert {**mine["costs"], "seconds": 0} == {**theirs["costs"], "seconds": 0}
    assert mine["after"] == theirs["after"] and mine["before"] == theirs["before"]
    (record,) = extensions(longer.manifest())
    assert (record["ended"], record["from"], record["to"], record["by_length"]) == (4, 4, 10, [])
    assert "the result is that of a run of 10 steps from the start" in in_words(record)


def test_with_a_falling_rate_it_says_what_it_is_not_and_what_happens_to_the_rate(home, tmp_path, capsys):
    ran(home, tmp_path / "run-seed0")
    capsys.readouterr()
    main(["run", str(tmp_path / "run-seed0"), "--resume", "train.steps=8"])
    said = "extended from step 4 to 8; the learning rate depends on the length"
    assert said in capsys.readouterr().err.replace("\n", " ")
    longer = RunFolder(tmp_path / "run-seed0")
    rates = {line["step"]: line["lr"] for line in numbers(longer)}
    (record,) = longer.summary()["extended"]
    assert record["lr"] == [rates[4], rates[5]]
    whole = ran(home, tmp_path / "whole-seed0", "train.steps=8")
    assert rates[5] == {line["step"]: line["lr"] for line in numbers(whole)}[5]  # the rate of the new length, at once
    assert longer.recipe().train.steps == 8
    notes = confounds([RunOfArm("whole", 0, whole.path), RunOfArm("run", 0, longer.path)])
    assert any(one.startswith("run, seed 0 was extended from step 4 to 8") for one in notes)
    assert {one.folder.name: one.result.partition(" (")[2] for one in listed_runs(tmp_path)} == {
        "run-seed0": "extended at 4)",
        "whole-seed0": "",
    }


def test_nothing_of_the_earlier_end_is_lost(home, tmp_path):
    short = ran(home, tmp_path / "run")
    before = {
        "summary": short.summary_file.read_bytes(),
        "policy": weights(short.policy),
        "evaluation": short.evaluation_file("test", 4).read_bytes(),
    }
    for steps in (6, 7):
        ran(home, tmp_path / "run", f"train.steps={steps}", resume=True)
    earlier = short.earlier(4)
    assert {
        "summary": (earlier / "summary.json").read_bytes(),
        "policy": weights(earlier / "policy"),
        "evaluation": short.evaluation_file("test", 4).read_bytes(),
    } == before
    assert json.loads((short.earlier(6) / "summary.json").read_text())["steps"] == 6
    assert (short.earlier(6) / "policy" / "config.json").exists()
    assert short.summary()["steps"] == 7 and len(short.summary()["extended"]) == 2
    assert trained(earlier).policy.model == (str(earlier / "policy"),)


def test_what_was_measured_of_the_earlier_end_goes_with_it_and_can_be_measured_again(home, tmp_path):
    folder, metric = ran(home, tmp_path / "run"), f"evaluate.metrics.long={home}/rule.py:score"
    main(["evaluate", str(folder), metric, "--add"])
    measured = folder.measured_file("long").read_bytes()
    ran(home, tmp_path / "run", "train.steps=6", resume=True)
    assert "long" not in read_run(RunOfArm("run", 0, folder.path)).after
    assert (folder.earlier(4) / "measured" / "long.json").read_bytes() == measured
    main(["evaluate", str(folder), metric, "--add"])
    samples = folder.last_evaluation("test").samples
    mean = sum(len(one["completion"]) for one in samples) / len(samples)
    assert read_run(RunOfArm("run", 0, folder.path)).after["long"] == pytest.approx(mean)


@pytest.mark.parametrize("adapter", ["null", "{r: 2}"])
@pytest.mark.parametrize("moment", ["before its first step", "in training", "before its policy", "in its evaluation"])
def test_interrupted_while_it_is_extended_it_goes_on_to_the_same(home, tmp_path, monkeypatch, moment, adapter):
    more = [*CONSTANT, "train.steps=9", "train.checkpoint_every=3", f"policy.adapter={adapter}"]
    short = [*more, "train.steps=5"]
    straight = RunFolder(tmp_path / "straight")
    for overrides, resume in ((short, False), (more, True)):
        ran(home, straight.path, *overrides, resume=resume)
    ran(home, tmp_path / "run", *short)

    def fail(*arguments):
        raise KeyboardInterrupt

    usual = Trainer._learn
    with monkeypatch.context() as patched:
        if moment == "before its first step":
            patched.setattr(Trainer, "_learn", fail)
        elif moment == "in training":
            patched.setattr(Trainer, "_learn", lambda self, b: fail() if self.done == 7 else usual(self, b))
        elif moment == "before its policy":
            patched.setattr("prefopt.runs.run._save", fail)
        else:
            patched.setattr("prefopt.runs.run.evaluated", lambda *a: fail() if a[3] else RunFolder.evaluation)
            patched.setattr("prefopt.runs.measuring.Measurements.keep", lambda *a: None)
        with pytest.raises(KeyboardInterrupt):
            ran(home, tmp_path / "run", *more, resume=True)
    folder = RunFolder(tmp_path / "run")
    assert not folder.finished
    run(folder.recipe(), folder=folder.path, resume=True)  # without saying again how long it is
    assert weights(folder.policy) == weights(straight.policy)
    assert weights(folder.earlier(5) / "policy") == weights(straight.earlier(5) / "policy")
    assert numbers(folder) == numbers(straight)


def test_the_best_of_all_evaluations_is_kept(home, tmp_path):
    more = [
        *CONSTANT,
        "evaluate.every=2",
        "train.keep_best={metric: kl, better: higher}",
        "source.split=[0.6, 0.2, 0.2]",
    ]
    whole = ran(home, tmp_path / "whole", *more, "train.steps=8")
    ran(home, tmp_path / "run", *more)
    longer = ran(home, tmp_path / "run", *more, "train.steps=8", resume=True)
    assert longer.summary()["chosen"] == whole.summary()["chosen"]
    assert weights(longer.policy) == weights(whole.policy)


REFUSED = {
    "train.steps=3": "began with train.steps=4, and can only go on to more",
    "train.steps=4": "is finished: .* To train on: prefopt run .* --resume train.steps=N",
    "train.steps=8 train.lr=1": "another recipe; it differs in train.lr",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_no_longer_run_is_refused(home, tmp_path_factory, change):
    folder = tmp_path_factory.getbasetemp() / "refused"
    if not folder.exists():
        ran(home, folder)
    with pytest.raises(PrefoptError, match=REFUSED[change]):
        ran(home, folder, *change.split(), resume=True)
    assert RunFolder(folder).finished


def test_without_a_checkpoint_or_stopped_it_is_refused(home, tmp_path):
    bare = ran(home, tmp_path / "bare", "train.checkpoint_every=null")
    with pytest.raises(PrefoptError, match=r"no checkpoint.* policy\.model=.*bare .*train\.checkpoint_every"):
        ran(home, bare.path, "train.steps=8", resume=True)
    limits = ["train.limits={loss: [null, 0]}", "train.beyond=stop", "train.checkpoint_every=1"]
    stopped = ran(home, tmp_path / "stopped", *limits)
    with pytest.raises(PrefoptError, match=r"was stopped \(step 1: loss.* and would be again"):
        ran(home, stopped.path, *limits, "train.steps=8", resume=True)
    assert shutil.rmtree(stopped.path) is None
