"""Whole runs in which the policy learns from what it writes: a killed one resumes, two processes do what one does, limits stop."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _forked import Forked
from _tiny import tiny_model, tiny_pairs
from rich.console import Console
from test_runs import metrics, weights

import prefopt.runs.preparing
from prefopt import PrefoptError, load_recipe, run
from prefopt.data import tokenise_to_disk
from prefopt.runs.inspecting import evaluate, sample
from prefopt.runs.planning import plan
from prefopt.runs.preparing import prepare
from prefopt.runs.step_metrics import step_metrics
from prefopt.support.plugins import load_object
from prefopt.support.sharing import sharing
from prefopt.training.devices import computing

ONE_UPDATE = ("train.passes=1", "train.minibatch_size=null")
NASH = ("source.writers=[mixture]", *ONE_UPDATE)

FEEDBACK = '''
import os
import time
from pathlib import Path

calls = 0


def vowels(prompts, completions, rows):
    """Share of even words; leaves the number of the process that asked."""
    (Path(__file__).parent / f"asked-by-{os.environ.get('RANK', 0)}").touch()
    return [[sum(int(w[1:]) % 2 == 0 for w in text.split() if w[1:].isdigit()) / (len(text.split()) + 1) for text in row]
            for row in completions]


def fails_at_the_third(prompts, completions, rows):
    global calls
    calls += 1
    if calls == 3:
        raise RuntimeError("out of paper")
    return vowels(prompts, completions, rows)


def hangs(prompts, completions, rows):
    time.sleep(60)


def wrong(prompts, completions, rows):
    return [[0.0]]
'''


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """PPO with everything that moves: a critic, an adaptive KL, running normalisation, a curriculum by reward."""
    (tmp_path / "feedback.py").write_text(FEEDBACK)
    content = {
        "policy": {"model": str(tiny_model(tmp_path / "lm"))},
        "source": {
            "data": str(tiny_pairs(tmp_path / "pairs.jsonl", rows=60)),
            "rollouts": {"completions": 3, "order": "reward", "sampling": {"max_tokens": 5}},
        },
        "feedback": {
            "name": f"{tmp_path / 'feedback.py'}:vowels",
            "transforms": [{"name": "ReferenceNormalise"}, {"name": "Normalise"}],
        },
        "objective": {"name": "PPO", "target": 0.1, "horizon": 100},
        "train": {"steps": 12, "batch_size": 6, "minibatch_size": 3, "passes": 2, "lr": 1e-3, "checkpoint_every": 3},
        "evaluate": {"prompts": 4, "sampling": {"max_tokens": 6}, "gold": f"{tmp_path / 'feedback.py'}:vowels"},
        "track": {"folder": str(tmp_path / "runs")},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(content))
    return file


def planned_metrics(file, *overrides):
    """What `metrics` reads of a step, by what is known before."""
    settings = load_recipe(file, overrides)
    return {*step_metrics(settings, plan(settings).objectives), "step", "tokens", "batch"} - {"padding"}


def quiet(file, tmp_path, *overrides):
    return run(load_recipe(file, overrides), folder=tmp_path / "run", console=Console(quiet=True)).folder


def test_what_a_run_of_rollouts_logs_and_keeps(recipe_file, tmp_path):
    folder = quiet(recipe_file, tmp_path, "train.steps=3")
    steps = [line for line in metrics(folder) if "loss" in line]
    assert len(steps) == 3
    assert set(steps[0]) == set(steps[2]) == planned_metrics(recipe_file)
    for name in ("reward", "gold", "kl", "kl_k3", "entropy", "length", "ended", "repetition", "sampler_kl", "dropped"):
        assert all(f"rollouts/{name}" in line for line in steps), name
    assert all(abs(line["rollouts/sampler_kl"]) < 1e-5 for line in steps)
    assert steps[0]["rollouts/kl"] == pytest.approx(0, abs=1e-6)
    assert steps[0]["kl/beta"] != steps[-1]["kl/beta"]
    assert {"ratio/clipped", "values/loss", "values/explained_variance"} <= steps[0].keys()
    assert (folder / "policy" / "critic.safetensors").exists()
    assert (folder / "policy" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_sampler_where_it_was(recipe_file: Path, tmp_path: Path) -> None:
    whole = run(load_recipe(recipe_file), folder=tmp_path / "whole").folder
    killed = tmp_path / "killed"
    child = Forked(["run", recipe_file, "--out", killed], tmp_path)
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        lines = (killed / "metrics.jsonl").read_text().splitlines() if (killed / "metrics.jsonl").exists() else []
        if len(lines) > 5:  # after a checkpoint, before the end
            break
        time.sleep(0.002)
    child.kill()
    child.wait()
    assert not (killed / "summary.json").exists(), "it was over before it could be killed"
    run(load_recipe(killed / "recipe.yaml"), folder=killed, resume=True)
    assert metrics(killed) == metrics(whole)
    assert weights(killed / "policy") == weights(whole / "policy")


@pytest.mark.slow
def test_two_processes_do_what_one_does(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["train.steps=3", "policy.dtype=float64", "source.rollouts.staleness=1"]
    one = run(load_recipe(recipe_file, overrides), folder=tmp_path / "one").folder
    two = tmp_path / "two"
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "prefopt.cli",
    ]
    arguments = ["run", str(recipe_file), *overrides, "--out", str(two)]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [*launch, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [f.name for f in tmp_path.glob("asked-by-*")] == ["asked-by-0"]  # a judge that is paid is asked once
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if name != "padding":  # of the micro-batches, which are others
                close = None if value is None else pytest.approx(b[name], rel=1e-6, abs=1e-7, nan_ok=True)
                assert (b[name] if value is None else value) == close, name


def test_a_limit_warns_once_or_stops_and_keeps_what_was_learnt(recipe_file, tmp_path, capsys):
    console = Console(width=200, force_terminal=False)
    limits = "train.limits={rollouts/entropy: [100, null], rollouts/kl: [null, 1000]}"
    run(load_recipe(recipe_file, [limits, "train.steps=3"]), folder=tmp_path / "warned", console=console)
    assert capsys.readouterr().out.count("below 100 (train.limits)") == 1
    folder = run(
        load_recipe(recipe_file, [limits, "train.beyond=stop"]), folder=tmp_path / "stopped", console=console
    ).folder
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 1
    assert "rollouts/entropy is" in summary["stopped"]
    assert (folder / "policy" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ("fails_at_the_third", "raised RuntimeError: out of paper"),
        ("wrong", "expected one number for each completion"),
        ("hangs", "was not back after 0.2 seconds"),
    ],
)
def test_feedback_that_fails_stops_the_run_with_its_name(recipe_file, tmp_path, feedback, message):
    spec = f"{{name: '{tmp_path / 'feedback.py'}:{feedback}', timeout: {0.2 if feedback == 'hangs' else 30}}}"
    overrides = [f"feedback={spec}", "train.checkpoint_every=1", "evaluate.prompts=0"]  # which would ask it, too
    with pytest.raises(PrefoptError, match=f"(?s){feedback}.*{message}.*feedback-failed-batch") as caught:
        quiet(recipe_file, tmp_path, *overrides)
    kept = Path(str(caught.value).rpartition("The batch is in ")[2].rstrip("."))
    assert len(json.loads(kept.read_text().splitlines()[0])["completions"]) == 3
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert [f.name for f in saved] == (["step-000002"] if feedback == "fails_at_the_third" else [])
    if saved:  # the first two batches are not lost: what can be mended goes on from there
        run(
            load_recipe(tmp_path / "run" / "recipe.yaml"),
            folder=tmp_path / "run",
            resume=True,
            console=Console(quiet=True),
        )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source.rollouts=null", "feedback=null"], "needs completions from the current policy"),
        (["feedback=null"], "PPO learns from scores of what the policy writes; say where they come from"),
        (
            ["objective=DPO", "source.rollouts=null"],
            "`feedback` is given, and the run learns from recorded completions",
        ),
        (["objective=XPO"], "XPO compares with completions .* `source.writers`"),
        (["objective=XPO", "source.writers=[reference]"], "XPO takes 2 completions .* is 3 with 1 more"),
        (["objective=LagrangianPPO"], "LagrangianPPO keeps a cost low; .* `cost: file.py:function`"),
        (["objective=BradleyTerry"], "BradleyTerry trains a scorer, which writes nothing"),
        (["source.writers=[greedily]"], "unknown writer 'greedily'; rollouts data can have mismatched, reference"),
        (["source.rollouts.order=lenght"], "order.* must be 'shuffled', 'length', 'reward' or 'self-paced'"),
        (["train.batch_size=60"], "train.batch_size is 60, and the data have"),
        (["feedback=nowhere.py:f"], "feedback: no file nowhere.py"),
        (["source.writers=[greedy]"], "PPO does not look at who wrote a completion"),
        (["objective=RLOO"], "RLOO has no ratio to the policy that wrote a batch"),
        (["source.rollouts.refill=true", "source.rollouts.completions=1"], "draw at least 2 of each"),
        (["source.rollouts.sampler=vlm"], "unknown sampler 'vlm'. Did you mean 'vllm'"),
        (["source.rollouts.sampler=vllm"], "source.rollouts.server is not given"),
        (["source.rollouts.server=http://localhost:8000"], "sampler is transformers, which asks no server"),
        (["evaluate.server=http://localhost:8000"], "evaluate.sampler is transformers, which asks no server"),
        (["objective=RPO", *ONE_UPDATE], "no column 'embeddings'"),
        (["objective=SFT", "feedback=null", *ONE_UPDATE], "SFT learns from scores of what the policy writes"),
        (["train.limits={rollouts/kl: [9, 1]}"], "the bounds of rollouts/kl are"),
        (["train.limits={rollout/kl: [null, 9]}"], "no metric 'rollout/kl'. Did you mean 'rollouts/kl'"),
        (["train.limits={rollouts/gold: [0, 1]}", "evaluate.gold=null"], "no metric 'rollouts/gold'"),
        (["train.limits={rollouts/cost: [0, 1]}"], "no metric 'rollouts/cost'"),
        (["train.limits={kl/beta: [0, 1]}", "objective=NashMD", *NASH], "no metric 'kl/beta'"),
    ],
)
def test_refused_before_any_model_is_loaded(recipe_file, overrides, message):
    with pytest.raises(PrefoptError, match=message):
        plan(load_recipe(recipe_file, overrides))


def test_a_limit_may_be_on_what_an_objective_measures_because_rollouts_are_watched(recipe_file):
    planned = planned_metrics(recipe_file, "objective={name: RLOO, placement: loss}", *ONE_UPDATE)
    assert {"kl/reference", "kl/beta", "kl/loss"} <= planned


def test_a_reference_that_cannot_be_measured_first_stops_and_keeps_its_texts(recipe_file, tmp_path):
    (tmp_path / "alike.py").write_text("def alike(prompts, texts, rows):\n    return [[1.0] * len(t) for t in texts]\n")
    spec = f"{{name: '{tmp_path / 'alike.py'}:alike', transforms: ReferenceNormalise}}"
    with pytest.raises(PrefoptError, match=r"12 equal scores.*feedback-failed-batch"):
        quiet(recipe_file, tmp_path, f"feedback={spec}")
    assert (tmp_path / "run" / "recipe.yaml").exists()


def test_pairs_of_the_current_policy_teach_dpo(recipe_file, tmp_path):
    overrides = ["objective=DPO", "train.passes=1", "train.minibatch_size=null", "source.ties=keep", "train.steps=2"]
    steps = [line for line in metrics(quiet(recipe_file, tmp_path, *overrides)) if "loss" in line]
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert {"rewards/chosen", "rollouts/reward"} <= steps[0].keys() == planned_metrics(recipe_file, *overrides)


def test_runs_that_share_read_their_prompts_once(recipe_file, monkeypatch):
    read = []
    monkeypatch.setattr(
        prefopt.runs.tokens,
        "tokenise_to_disk",
        lambda rows, *more, **fields: read.append(len(rows)) or tokenise_to_disk(rows, *more, **fields),
    )
    with sharing():
        for seed in (0, 1):
            settings = load_recipe(recipe_file, ("train.steps=1", f"seed={seed}", "seeds.data=0"))
            with computing(settings.train) as accelerator:
                prepare(settings, accelerator, Console(quiet=True))
    assert len(read) == 3, "train, validation and test"


PARROT = """
import torch
from prefopt.types import Sampled

class Parrot:
    '''Writes the last token of the prompt, and ends.'''
    versions = []

    def __init__(self, tokenizer):
        self.eos = tokenizer.eos_token_id

    def sync(self, policy, version):
        Parrot.versions.append(version)

    def __call__(self, model, prompt_ids, completions, settings, seeds):
        ids = torch.tensor([[[prompt[-1], self.eos]] * completions for prompt in prompt_ids])
        return Sampled(ids, torch.ones_like(ids, dtype=torch.bool))
"""


@pytest.fixture
def parrot(tmp_path):
    (tmp_path / "parrot.py").write_text(PARROT)
    path = f"{tmp_path}/parrot.py:Parrot"
    versions = load_object(path).versions
    versions.clear()
    return path, versions


def test_a_sampler_of_ones_own_writes_rollouts_and_has_each_updates_weights(recipe_file, tmp_path, parrot):
    path, versions = parrot
    folder = quiet(recipe_file, tmp_path, f"source.rollouts.sampler={path}", "train.steps=3")
    steps = [line for line in metrics(folder) if "loss" in line]
    assert [line["rollouts/length"] for line in steps] == [2, 2, 2]
    assert [line["rollouts/stop_eos"] for line in steps] == [1, 1, 1]
    assert versions == [None, 0, 1, 2]  # first to measure the reference's rewards


def test_a_sampler_of_ones_own_writes_what_is_evaluated_and_sampled(recipe_file, tmp_path, parrot):
    path, versions = parrot
    settings = load_recipe(recipe_file, [f"evaluate.sampler={path}", "train.steps=1"])
    evaluation = evaluate(settings, Console(quiet=True))
    assert [one["length"] for one in evaluation.samples] == [2] * 4
    assert [one["stop"] for one in evaluation.samples] == ["eos"] * 4
    assert versions == [None]
    ((prompt, completions, task),) = sample(settings, ["the film w1"], 1, 2)
    assert prompt.split()[-1] == "w1" and [one.text.strip() for one in completions] == ["w1"] * 2 and task is None


def test_an_unknown_sampler_of_evaluation_is_refused_before_anything_is_loaded(recipe_file, tmp_path):
    with pytest.raises(PrefoptError, match=r"evaluate.sampler: unknown sampler 'vlm'. Did you mean 'vllm'"):
        quiet(recipe_file, tmp_path, "evaluate.sampler=vlm")
