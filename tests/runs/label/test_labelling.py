"""Whole labellings: by a rule, the gold reward and a reward model; interrupted and resumed; what is trained on them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _forked import Forked
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

import prefopt
from prefopt import PrefoptError, load_label_recipe, load_recipe, run
from prefopt.cli import main
from prefopt.data import load_examples
from prefopt.feedback import RewardModel
from prefopt.runs.listing import listed_runs
from prefopt.runs.planning import plan
from prefopt.runs.records import find_runs
from prefopt.testbeds.pocket import gold

RECIPES = Path(__file__).parents[3] / "recipes" / "pocket" / "rlaif"

RULES = '''
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent


def even(prompts, texts, rows):
    """Share of even words; of a text that starts with w7, no opinion."""
    with (HERE / f"asked-{os.environ.get('RANK', 0)}").open("a") as file:
        file.write("".join(f"{prompt}\\n" for prompt in prompts))
    def score(text):
        words = [int(w[1:]) for w in text.split() if w[1:].isdigit()]
        return math.nan if words[:1] == [7] else sum(n % 2 == 0 for n in words) / (len(words) + 1)
    return [[score(text) for text in row] for row in texts]


def slow(prompts, texts, rows):
    time.sleep(0.2)
    return even(prompts, texts, rows)


@dataclass(frozen=True)
class Paid:
    """Counts what it is asked, and has a budget."""

    budget: int = 1000
    used: dict = field(default_factory=lambda: {"calls": 0, "tokens": 0}, init=False)

    @property
    def spent(self):
        return dict(self.used)

    def __call__(self, prompts, texts, rows):
        from prefopt import PrefoptError, Verdict
        for prompt in prompts:
            if self.used["calls"] == self.budget:
                raise PrefoptError(f"the budget of {self.budget} calls is spent.")
            self.used["calls"] += 1
            self.used["tokens"] += 10
        import torch
        return Verdict(torch.tensor(even(prompts, texts, rows)), notes=[{"why": "even words"}] * len(prompts))
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny model, prompts, completions and rules."""
    home = tmp_path_factory.mktemp("label")
    tiny_model(home / "lm")
    tiny_pairs(home / "pairs.jsonl", rows=30)
    (home / "rules.py").write_text(RULES)
    return home


@pytest.fixture
def recipe_file(home, tmp_path) -> Path:
    (tmp_path / "rules.py").write_text(RULES)
    content = {
        "policy": {"model": str(home / "lm")},
        "source": {"data": str(home / "pairs.jsonl")},
        "samples": {"completions": 3, "sampling": {"max_tokens": 4}},
        "feedback": {"name": str(tmp_path / "rules.py:even")},
        "batch_size": 4,
        "threads": 1,
    }
    file = tmp_path / "label.yaml"
    file.write_text(json.dumps(content))
    return file


def labelled(file, folder, *overrides):
    return prefopt.label(load_label_recipe(file, overrides), folder, Console(quiet=True))


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def asked(folder, rank=0):
    file = folder / f"asked-{rank}"
    return file.read_text().splitlines() if file.exists() else []


def test_samples_of_a_policy(recipe_file, home, tmp_path):
    result = labelled(recipe_file, tmp_path / "out", "prompts=10", "sharpness=3")
    rows, missing = (
        lines(result.data),
        lines(tmp_path / "out" / "missing.jsonl") if result.counts["prompts_missing"] else [],
    )
    assert len(rows) + len(missing) == 10 == result.counts["prompts"] + result.counts["prompts_missing"]
    distinct = list(dict.fromkeys(row["prompt"] for row in lines(home / "pairs.jsonl")))[:10]
    assert sorted(row["prompt"] for row in rows + missing) == sorted(distinct)
    for row in rows:
        assert len(row["completions"]) == len(row["scores"]) == len(row["ended"]) == 3
        assert row["provenance"]["weights"] and row["provenance"]["where"].startswith(str(home / "pairs.jsonl"))
        assert "given" not in row, "what the data said was of other completions"
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert made["finished"] and made["counts"] == result.counts and made["data"]["rows"] == 10
    assert labelled(recipe_file, tmp_path / "out", "prompts=10", "sharpness=3") == result, (
        "a finished one says what it came to"
    )


def test_the_same_whatever_is_labelled_together(recipe_file, tmp_path):
    one = labelled(recipe_file, tmp_path / "one", "prompts=9")
    other = labelled(recipe_file, tmp_path / "other", "prompts=9", "batch_size=2", "samples.batch_size=1")

    def known(result):
        return {row["prompt"]: (row["completions"], row["scores"]) for row in lines(result.data)}

    assert known(one) == known(other)


def test_given_completions_of_every_number(recipe_file, tmp_path):
    rows = [
        {"prompt": f"w{i}", "completions": [f" w{j}" for j in range(i % 3 + 1)], "scores": [*range(i % 3 + 1)]}
        for i in range(8)
    ]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["policy=null", "samples=null", f"source.data={tmp_path}/rated.jsonl"]
    result = labelled(recipe_file, tmp_path / "out", *given)
    found = {row["prompt"]: row for row in lines(result.data)}
    assert set(found) == {row["prompt"] for row in rows}
    for row in rows:
        assert found[row["prompt"]]["completions"] == row["completions"]
        assert found[row["prompt"]]["given"]["scores"] == row["scores"]
        assert found[row["prompt"]]["scores"] == [(j % 2 == 0) / 2 for j in range(len(row["completions"]))]


def test_no_verdict_is_kept_apart(recipe_file, tmp_path):
    rows = [
        {"prompt": "w1", "completions": [" w7 w2", " w2", " w3"]},
        {"prompt": "w2", "completions": [" w7", " w7 w7", " w2"]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["policy=null", "samples=null", f"source.data={tmp_path}/rows.jsonl"]
    result = labelled(recipe_file, tmp_path / "out", *given)
    assert [row["scores"] for row in lines(result.data)] == [[None, 0.5, 0.0]]
    assert [row["scores"] for row in lines(tmp_path / "out" / "missing.jsonl")] == [[None, None, 0.5]]
    counts = {name: count for name, count in result.counts.items() if count}
    assert counts == {"prompts": 1, "prompts_missing": 1, "completions": 2, "completions_missing": 4}


def test_a_budget_that_ends_and_a_bigger_one_that_goes_on(recipe_file, tmp_path):
    paid = f"feedback={{name: '{tmp_path}/rules.py:Paid', budget: 10}}"
    with pytest.raises(PrefoptError, match=r"budget of 10 calls is spent.*kept in .*/out/; the same command goes on"):
        labelled(recipe_file, tmp_path / "out", "prompts=20", paid)
    assert len(lines(tmp_path / "out" / "data.jsonl")) <= 8
    (listed,) = listed_runs(tmp_path)
    assert (listed.state, listed.step, listed.steps, listed.objective[:9]) == ("unfinished", 8, 20, "labels of")
    assert listed.go_on == f"prefopt label {tmp_path}/out/recipe.yaml --out {tmp_path}/out"
    result = labelled(recipe_file, tmp_path / "out", "prompts=20", paid.replace("10}", "100}"))
    assert result.counts["prompts"] + result.counts["prompts_missing"] == 20
    (listed,) = listed_runs(tmp_path)
    assert (listed.state, listed.step, listed.result, listed.go_on) == ("finished", 20, "20 prompts labelled", "")
    with pytest.raises(PrefoptError, match="there is no run in"):
        find_runs([tmp_path])
    assert result.spent == {"calls": 10 + 12, "tokens": 220}, "the two that a broken batch had bought are in it"
    assert all(row["notes"] == {"why": "even words"} for row in lines(result.data))
    prompts = asked(tmp_path)
    assert len(prompts) == 20 == len(set(prompts)), "nothing was labelled twice"


def test_a_run_on_data_of_an_interrupted_labelling_says_how_far_it_came_and_what_goes_on(recipe_file, home, tmp_path):
    """The budget ends the labelling as a kill does: a manifest without an end, and the rows of the first batches."""
    folder = tmp_path / "out"
    paid = f"feedback={{name: '{tmp_path}/rules.py:Paid', budget: 10}}"
    with pytest.raises(PrefoptError, match="budget of 10 calls is spent"):
        labelled(recipe_file, folder, "prompts=20", paid)

    def said():
        recipe = tmp_path / "run.yaml"
        content = {
            "policy": {"model": str(home / "lm")},
            "source": {"data": str(folder / "data.jsonl")},
            "objective": "DPO",
        }
        recipe.write_text(json.dumps({**content, "train": {"steps": 1, "batch_size": 1}}))
        return [warning for warning in plan(load_recipe(recipe)).warnings if "labelling" in warning]

    (warning,) = said()
    assert f"{folder}/data.jsonl is of a labelling" in warning and "it has done 8 of 20 prompts" in warning
    command = warning.split("`")[1].split()
    assert command == ["prefopt", "label", f"{folder}/recipe.yaml", "--out", f"{folder}"]
    main([*command[1:], "feedback.budget=100"])
    assert said() == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["policy=null", "samples=null", "source.data={pocket}"], "a prompt without completions"),
        (["feedback=rules.py:evn"], "no file rules.py"),
        (["feedback={name: '{here}/rules.py:even', transforms: Normalise}"], "Normalise has numbers that move"),
        (["policy.model={here}/gone"], "gone: give a folder"),
        (["samples.sampler=vlm"], "samples.sampler: unknown sampler 'vlm'"),
        (["source.data=gone.jsonl"], "gone.jsonl: no such file"),
        (["samples.sampling.stop=[w3 w4]"], r"samples\.sampling\.stop: 'w3 w4' is 2 tokens"),
        (["policy.model={here}/encoder"], "is a BertForMaskedLM, which does not write text"),
    ],
)
def test_refused_before_anything_is_loaded(recipe_file, tmp_path, overrides, words, monkeypatch):
    monkeypatch.setattr("prefopt.runs.label.completions.load_policy", None)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w1"}\n')
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder/config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    places = {"{here}": str(tmp_path), "{pocket}": str(tmp_path / "prompts.jsonl")}
    for place, value in places.items():
        overrides = [text.replace(place, value) for text in overrides]
    with pytest.raises(PrefoptError, match=words):
        labelled(recipe_file, tmp_path / "out", *overrides)
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_serve(recipe_file, home, tmp_path):
    with pytest.raises(PrefoptError, match=r"name a folder; the rows will be its data.jsonl"):
        labelled(recipe_file, tmp_path / "out.jsonl")
    with pytest.raises(PrefoptError, match="is no labelling"):
        labelled(recipe_file, home)
    labelled(recipe_file, tmp_path / "out", "prompts=2")
    with pytest.raises(PrefoptError, match="begun with another recipe; it differs in seed"):
        labelled(recipe_file, tmp_path / "out", "prompts=2", "seed=1")


def begun(file, folder, *overrides):
    """A labelling that broke off before its end."""
    paid = f"feedback={{name: '{file.parent}/rules.py:Paid', budget: 6}}"
    with pytest.raises(PrefoptError, match="is spent"):
        labelled(file, folder, *overrides, paid)
    return paid.replace("budget: 6", "budget: 600")


def test_other_data_or_rules_do_not_go_on(recipe_file, tmp_path):
    data = tiny_pairs(tmp_path / "own.jsonl", rows=12)
    own = f"source.data={data}"
    more = begun(recipe_file, tmp_path / "out", own)
    rules, text = tmp_path / "rules.py", data.read_text()
    data.write_text(text.replace("w1", "w2"))
    with pytest.raises(PrefoptError, match=r"begun with other data \(manifest.json\)"):
        labelled(recipe_file, tmp_path / "out", own, more)
    data.write_text(text)
    rules.write_text(RULES + "\n# edited\n")
    with pytest.raises(PrefoptError, match="begun with other plugins"):
        labelled(recipe_file, tmp_path / "out", own, more)


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_damaged_manifest_is_named_and_nothing_is_written(recipe_file, tmp_path, content):
    labelled(recipe_file, tmp_path / "out", "prompts=8")
    manifest, data = tmp_path / "out" / "manifest.json", tmp_path / "out" / "data.jsonl"
    manifest.write_text(content)
    before = data.read_bytes()
    with pytest.raises(PrefoptError, match=r"manifest\.json is damaged .*restore it, or remove it"):
        labelled(recipe_file, tmp_path / "out", "prompts=8")
    assert (manifest.read_text(), data.read_bytes()) == (content, before)
    manifest.unlink()
    assert labelled(recipe_file, tmp_path / "out", "prompts=8").counts["prompts"] == 8


def test_two_at_once_are_refused(recipe_file, tmp_path):
    from filelock import FileLock

    more = begun(recipe_file, tmp_path / "out")
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(PrefoptError, match="being worked on by another process"):
        labelled(recipe_file, tmp_path / "out", more)


OBJECTIVES = ["SoftDPO", "DPO", "KTO", "BradleyTerry", "SoftBradleyTerry", "PlackettLuceDPO", "SFT"]


GOLD = "feedback=prefopt.testbeds.pocket:compared"


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    """The shipped recipe, small, with the gold reward for a judge."""
    folder = tmp_path_factory.mktemp("pocket") / "labels"
    main(["label", str(RECIPES / "label.yaml"), "--out", str(folder), "prompts=24", "batch_size=24", "threads=1", GOLD])
    return folder


def test_labels_of_the_gold_reward_are_the_gold_rewards(pocket):
    rows = lines(pocket / "data.jsonl")
    expected = gold([row["prompt"] for row in rows], [row["completions"] for row in rows]).scores
    assert len(rows) == 24 and [row["scores"] for row in rows] == [pytest.approx(row) for row in expected.tolist()]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_learn_from_what_was_labelled(pocket, objective, tmp_path):
    small = [
        *(f"objective={objective}", f"variables.labels={pocket}", "source.test.arguments.n=4", "evaluate.prompts=0"),
        *("train.steps=1", "train.batch_size=8", "train.threads=1", "source.split=[1, 0, 0]"),
        *(["source.writers=[mismatched]"] if objective == "KTO" else []),
    ]
    settings = load_recipe(RECIPES / "softdpo.yaml", small)
    steps = lines(run(settings, folder=tmp_path / "run", console=Console(quiet=True)).folder / "metrics.jsonl")
    assert [line["step"] for line in steps if "loss" in line] == [1]
    assert all(line["grad_norm"] > 0 for line in steps if "loss" in line)


def test_splits_are_those_of_the_prompts(pocket):
    groups = {example.group for example in load_examples(pocket / "data.jsonl")}
    assert groups == {row["prompt"] for row in lines(pocket / "data.jsonl")}


def test_a_reward_model_labels(recipe_file, home, tmp_path):
    file = tiny_recipe(
        tmp_path, home / "lm", home / "pairs.jsonl", train="{steps: 2, batch_size: 8, lr: 1e-2, threads: 1}"
    )
    run(load_recipe(file, ["objective=BradleyTerry"]), folder=tmp_path / "reward", console=Console(quiet=True))
    spec = f"feedback={{name: RewardModel, model: {tmp_path}/reward}}"
    result = labelled(recipe_file, tmp_path / "out", spec, "sharpness=1", "prompts=8")
    alone = RewardModel(f"{tmp_path}/reward")
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(made["feedback"]) == [f"{tmp_path}/reward"]
    for row in lines(result.data):
        scores = alone([row["prompt"]], [row["completions"]], [{}]).scores[0].tolist()
        assert [s for s in row["scores"] if s is not None] == pytest.approx([s for s in scores if s == s], abs=1e-5)


def test_the_command_line(recipe_file, tmp_path, capsys):
    main(["label", str(recipe_file), "prompts=8", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert f"data      {tmp_path}/out/data.jsonl" in printed.out and "8 prompts" in printed.out.replace("  ", " ")
    assert "prompt 8/8 · no cost" in printed.err
    with pytest.raises(SystemExit):
        main(["label", str(recipe_file), "--out", str(tmp_path / "out"), "promts=8"])
    assert "Did you mean 'prompts'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["label", "--help"])
    assert "samples.sampling.temperature" in capsys.readouterr().out


def test_no_verdict_at_all_is_a_failure(recipe_file, tmp_path, capsys):
    (tmp_path / "silent.py").write_text(
        "def score(p, c, r):\n    return [[float('nan')] * len(texts) for texts in c]\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(
            ["label", str(recipe_file), "prompts=4", f"feedback={tmp_path}/silent.py:score", "--out", f"{tmp_path}/out"]
        )
    printed = capsys.readouterr()
    assert ended.value.code == 1 and "4 prompts missing" in printed.out and "data.jsonl" not in printed.out
    assert f"no prompt got a verdict; {tmp_path}/out/missing.jsonl has each" in printed.err.replace("\n", " ")


@pytest.mark.slow
def test_killed_again_and_again_it_labels_everything_once(recipe_file, tmp_path):
    """Kill −9 at many moments; the result is that of an uninterrupted labelling."""
    slow = [f"feedback={tmp_path}/rules.py:slow", "batch_size=2"]
    whole = labelled(recipe_file, tmp_path / "whole", *slow)
    folder, kills = tmp_path / "killed", 0
    for wait in (0.3, 0.05, 0.5, 0.15):
        process = Forked(["label", recipe_file, "--out", folder, *slow], tmp_path)
        before = sum(len(f.read_bytes()) for f in folder.glob("*.jsonl")) if folder.exists() else 0
        while process.poll() is None:
            now = sum(len(f.read_bytes()) for f in folder.glob("*.jsonl")) if folder.exists() else 0
            if now > before:
                time.sleep(wait)
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 3
    again = labelled(recipe_file, folder, *slow)

    def known(result, name):
        return sorted(
            (row["provenance"]["row"], row["completions"], row["scores"]) for row in lines(result.folder / name)
        )

    for name in ("data.jsonl", "missing.jsonl"):
        assert (whole.folder / name).exists() == (folder / name).exists()
        if (whole.folder / name).exists():
            assert known(again, name) == known(whole, name)


@pytest.mark.slow
def test_two_processes_label_what_one_does(recipe_file, tmp_path):
    one = labelled(recipe_file, tmp_path / "one", "prompts=13")
    (tmp_path / "asked-0").unlink()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29653"]
    subprocess.run(
        [*launch, "-m", "prefopt.cli", "label", str(recipe_file), "--out", str(tmp_path / "two"), "prompts=13"],
        check=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )

    def known(folder):
        return sorted((row["prompt"], row["completions"], row["scores"]) for row in lines(folder / "data.jsonl"))

    assert known(one.folder) == known(tmp_path / "two")
    assert len(asked(tmp_path)) == 13 and not asked(tmp_path, 1), "the main process alone asks"
