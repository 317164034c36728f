"""The command line as people use it: what it prints, what it refuses, and that it never shows a traceback for that."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console
from transformers import GenerationConfig

from prefopt.cli import consoles, main

HINGE = '''
"""A loss of one's own: the example of the README."""

from dataclasses import dataclass

from prefopt import Loss, Needs, log_ratios, pair_metrics, reference_sums


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 − β(Δ_w − Δ_l)), Δ = log π(y|x) − log π_ref(y|x), summed over tokens."""

    beta: float = 0.1
    needs = Needs(completions=2, ordered=True, reference=True)
    targets = reference_sums

    def loss(self, batch, policy, targets):
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        return Loss((1 - reward[:, 0] + reward[:, 1]).relu(), pair_metrics(reward))


@dataclass(frozen=True)
class Whole(Hinge):
    """The same, with rows that are coupled."""

    needs = Needs(completions=2, ordered=True, reference=True, whole_batch=True)


@dataclass(frozen=True)
class Embedded(Hinge):
    """One that wants a column."""

    needs = Needs(completions=2, ordered=True, reference=True, columns=("embeddings",))


def gold(prompts, completions, rows):
    return [[float(len(text.split())) for text in row] for row in completions]
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tiny_model(folder / "model")
    tiny_model(folder / "chatty", chat=True)
    tiny_pairs(folder / "pairs.jsonl")
    (folder / "losses.py").write_text(HINGE)
    return folder


@pytest.fixture
def recipe(home, tmp_path) -> Path:
    return tiny_recipe(tmp_path, home / "model", home / "pairs.jsonl")


@pytest.fixture(scope="module")
def finished(home) -> Path:
    """A run folder."""
    folder = home / "finished"
    folder.mkdir()
    file = tiny_recipe(folder, home / "model", home / "pairs.jsonl")
    main(["run", str(file), "--out", str(folder / "run")])
    return folder / "run"


def wide(monkeypatch, width: int) -> None:
    """Consoles of this width, whatever COLUMNS was when they were made."""
    monkeypatch.setattr(consoles, "out", Console(highlight=False, width=width))
    monkeypatch.setattr(consoles, "err", Console(stderr=True, highlight=False, width=width))


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model, or a tokenizer, blows up."""
    import transformers

    def explode(*arguments, **more):
        raise AssertionError("loaded too early")

    for name in ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", explode)


@pytest.fixture
def no_weights(monkeypatch):
    """Loading a model blows up; planning may read the tokenizer, to compare vocabularies."""
    import transformers

    def explode(*arguments, **more):
        raise AssertionError("loaded too early")

    for name in ("AutoModelForCausalLM", "AutoModelForSequenceClassification"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", explode)


def refusal(capsys, *arguments: object) -> str:
    """What is printed when the arguments are refused."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert any(line.startswith(("error ", "usage:")) for line in printed.err.splitlines())
    assert "Traceback" not in printed.err
    return printed.err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.btach_size=4", "Did you mean 'batch_size'?"),
        ("objective=DPOO", "unknown objective 'DPOO'. Did you mean 'DPO'?"),
        ("objective.bta=1", "has no field 'bta'. Did you mean 'beta'?"),
        ("objective.beta=0,1", "field 'beta' must be a valid number, got '0,1'"),
        ("objective=losses.py:Hinge", "no file losses.py"),
        ("objective={home}/losses.py:Hnge", "Did you mean 'Hinge'?"),
        ("objective={home}/losses.py:gold", "must be a dataclass"),
        ("objective={home}/losses.py:Embedded", "has no column 'embeddings'"),
        ("objective=[DPO, BradleyTerry]", "one term trains a scorer and another a language model"),
        ("evaluate.gold=nowhere.py:gold", "no file nowhere.py"),
        ("evaluate.gold={home}/losses.py:silver", "has no 'silver'"),
        ("evaluate.gold=math:pi", "math:pi cannot be called: a float is no function"),
        ("train.batch_size=41", "train.batch_size is 41, and the data have"),
        ("policy.model={home}/gone", "gone: give a folder with config.json"),
        ("policy.model=[{home}/gone, gone]", "a hub id such as"),
        ("reference.model={home}/gone", "gone: give a folder with config.json"),
        ("source.data={home}/gone.jsonl", "gone.jsonl: no such file"),
        ("source.data={home}/losses.py:rows", "has no 'rows'"),
        ("source.limit=2", "train.batch_size is 8, and the data have"),
        ("train.steps", "is no override"),
    ],
)
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "run"])
def test_refused_before_anything_is_loaded(recipe, home, capsys, no_model, override, expected, dry):
    message = refusal(capsys, "run", recipe, override.format(home=home), *["--dry-run"] * dry)
    assert expected in message
    assert not (recipe.parent / "runs").exists()


def test_whole_batch_refuses_minibatches(recipe, home, capsys, no_weights):
    whole = f"objective={home}/losses.py:Whole"
    assert "Whole couples the rows" in refusal(capsys, "run", recipe, whole, "train.minibatch_size=4")
    main(["run", str(recipe), whole, "train.minibatch_size=8", "--dry-run"])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['{"prompt": "w1", "chosen": " w2", "rejected": " w3"}', '{"prompt": "w1", "cho'], "rows.jsonl:2"),
        (
            [
                '{"prompt": "w1", "chosen": " w2", "rejected": " w3"}',
                '{"prompt": "w1", "chosen": 5, "rejected": " w3"}',
            ],
            ":2",
        ),
        (['{"prompt": "w1", "better": " w2", "worse": " w3"}'], "the other columns ['better', 'worse']"),
        (['{"prompt": "w1", "completion": " w2"}'], "the data have 1 completion,"),
        ([], "no rows"),
    ],
)
def test_data_that_cannot_serve(recipe, tmp_path, capsys, no_model, lines, expected):
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    message = refusal(capsys, "run", recipe, f"source.data={tmp_path}/rows.jsonl")
    assert expected in message


def test_files_and_folders_that_are_in_the_way(recipe, tmp_path, home, capsys, no_model, finished):
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    assert "nothing is overwritten" in refusal(capsys, "run", recipe, "--out", tmp_path / "used")
    assert "is finished" in refusal(capsys, "run", finished, "--resume")
    assert f"prefopt run {finished} --resume" in refusal(capsys, "run", finished)
    assert "is no run folder" in refusal(capsys, "run", home)
    assert "nothing to resume" in refusal(capsys, "run", recipe, "--resume")
    assert "no recipe" in refusal(capsys, "run", tmp_path / "gone.yaml")
    assert "is no run folder" in refusal(capsys, "evaluate", home)
    assert "no recipe" in refusal(capsys, "sample", tmp_path / "gone.yaml")
    assert "nothing is overwritten" in refusal(capsys, "evaluate", recipe, "--out", tmp_path / "used/notes.txt")
    below = tmp_path / "used/notes.txt/numbers.json"
    assert f"{tmp_path}/used/notes.txt is a file and holds no others" in refusal(
        capsys, "evaluate", recipe, "--out", below
    )
    assert (tmp_path / "used/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["fly"],
        [],
        ["objectives", "--fast"],
        ["run", "r.yaml", "--fast"],
        ["sample", "r.yaml", "--number", "0"],
    ],
)
def test_usage(capsys, arguments):
    assert "usage: prefopt" in refusal(capsys, *arguments)


def test_a_word_in_the_place_of_an_override_is_told_the_form(capsys):
    assert "unrecognized arguments: fast; what follows the file is written key=value" in refusal(
        capsys, "run", "r.yaml", "--out", "x", "fast"
    )


def test_a_model_that_is_broken(recipe, home, tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{}")
    message = refusal(capsys, "run", recipe, f"policy.model={tmp_path}/broken")[-2000:]
    assert "cannot load the" in message and "give a folder with config.json" in message


@pytest.mark.parametrize("width", [80, 120])
def test_result_is_readable(recipe, capsys, monkeypatch, width):
    wide(monkeypatch, width)
    main(["run", str(recipe), "train.steps=2", "evaluate.every=1"])
    printed = capsys.readouterr()
    folder = recipe.parent / "runs" / f"{recipe.parent.name}-recipe-seed0"
    lines = printed.out.splitlines()
    assert max(map(len, (line for line in lines if str(folder) not in line))) <= width
    rows = {line.split()[0]: line for line in lines if line.strip()}
    summary = json.loads((folder / "summary.json").read_text())
    for name, after in summary["after"].items():  # each on one line: before, after, change
        value = after["value"] if isinstance(after, dict) else after
        assert f"{value:.3f}" in rows[name], name
    before, change = summary["before"]["nll"], summary["change"]["nll"]
    shown = f"[{before['low']:.3f}, {before['high']:.3f}]" if width == 120 else "±"
    assert shown in rows["nll"] and f"[{change['low']:+.3f}, {change['high']:+.3f}]" in rows["nll"]
    assert f"results   {folder}/" in printed.out
    assert "DPO(beta=0.1) · 2 steps of 8 prompts" in printed.err and "⟦what the loss counts⟧" in printed.err
    assert "step 2/2 · loss 0." in printed.err and "validation at step 1: accuracy" in printed.err


def test_own_objective_and_gold_beside_the_recipe(home, tmp_path, capsys, monkeypatch):
    (tmp_path / "losses.py").write_text(HINGE)
    file = tiny_recipe(tmp_path, home / "model", home / "pairs.jsonl", "{name: 'losses.py:Hinge', beta: 0.2}")
    monkeypatch.chdir(home / "model")  # not where the recipe is
    main(
        ["run", str(file), f"evaluate.gold={tmp_path}/losses.py:gold", "--out", str(tmp_path / "run"), "train.steps=1"]
    )
    assert "Hinge(beta=0.2)" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[1])["loss"] == pytest.approx(1.0)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["after"]["gold"]["value"] >= 0
    plugins = json.loads((tmp_path / "run/manifest.json").read_text())["plugins"]
    assert f"{tmp_path / 'losses.py'}:Hinge" in plugins


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        (
            ".relu(), pair",
            ".relu().mean(), pair",
            r"“shapes”: expected total of shape \[4\].* leave that to the trainer",
        ),
        (
            "ordered=True, reference=True",
            "ordered=True",
            r"“runs”: expected no exception; got AssertionError. Likely .* it runs with Needs\(reference=True\)",
        ),
        ("pair_metrics(reward)", "{'margin': reward}", r"“shapes”: expected margin of shape \[4\]; got \[4, 2\]"),
    ],
)
def test_own_objective_that_is_wrong_is_refused_before_loading(
    wrong, right, message, recipe, tmp_path, capsys, no_model
):
    (tmp_path / "broken.py").write_text(HINGE.replace(wrong, right, 1))
    assert re.search(message, refusal(capsys, "run", recipe, f"objective={tmp_path}/broken.py:Hinge"))


def test_own_objective_is_listed_like_the_others(home, capsys, monkeypatch):
    wide(monkeypatch, 120)
    main(["objectives", "DPO", f"{home}/losses.py:Hinge"])
    printed = capsys.readouterr().out
    assert "needs pairs, reference · beta=0.1" in printed.split("Hinge")[1] and "SFT" not in printed


def test_check(home, capsys):
    main(["check", f"{home}/losses.py:Hinge", "beta=0.2"])
    assert "✓" in (printed := capsys.readouterr().out) and "Hinge keeps the contract" in printed
    assert "has no field 'bta'" in refusal(capsys, "check", f"{home}/losses.py:Hinge", "bta=1")
    assert "must be a valid number" in refusal(capsys, "check", "DPO", "beta=x")
    assert "write field=value" in refusal(capsys, "check", "DPO", "beta")
    broken = home / "broken.py"
    broken.write_text(HINGE.replace(".relu(), pair", ".relu().mean(), pair"))
    assert "breaks the contract" in refusal(capsys, "check", f"{broken}:Hinge")


def test_dry_run_prints_a_recipe_that_can_be_run(recipe, tmp_path, capsys, no_weights):
    main(["run", str(recipe), "--dry-run", "train.lr=1e-5"])  # an override may stand after an option
    printed = capsys.readouterr().out
    assert "lr: 1.0e-05" in printed and "# 4 steps on" in printed
    (tmp_path / "again.yaml").write_text(printed)
    main(["run", str(tmp_path / "again.yaml"), "--dry-run"])
    assert capsys.readouterr().out == printed


def test_evaluate_recipe_and_run(recipe, finished, tmp_path, capsys):
    main(["evaluate", str(finished), "--out", str(tmp_path / "e.json"), "evaluate.prompts=2"])
    trained = capsys.readouterr().out
    summary = json.loads((finished / "summary.json").read_text())
    assert f"{summary['after']['logratio_margin']['value']:.3f}" in trained and "distinct_1" in trained
    assert len(json.loads((tmp_path / "e.json").read_text())["samples"]) == 2
    main(["evaluate", str(recipe)])
    untrained = capsys.readouterr().out
    assert next(line.split()[1] for line in untrained.splitlines() if "logratio_margin" in line) == "0.000"
    assert max(map(len, trained.splitlines()[1:])) <= 80


@pytest.mark.parametrize("model", ["model", "chatty"])
def test_sample_recipe(recipe, home, capsys, model):
    own = f"policy.model={home}/{model}"
    main(["sample", str(recipe), own, "--prompt", "w3 w4", "--prompt", "w5", "--completions", "2"])
    lines = capsys.readouterr().out.splitlines()
    expected = ["w3 w4", "w5"] if model == "model" else ["user w3 w4 w0", "user w5 w0"]
    found = [line.replace("<unk>", "user") for line in lines if not line.startswith("  ")]
    assert [" ".join(line.split()) for line in found] == expected
    assert sum(line.startswith("  → ") for line in lines) == 4


def test_sample_run(finished, recipe, capsys):
    main(["sample", str(finished), "--number", "2", "evaluate.sampling.temperature=0"])
    greedy = capsys.readouterr().out
    assert greedy.count("→") == 2
    main(["sample", str(finished), "--number", "2", "evaluate.sampling.temperature=0"])
    assert capsys.readouterr().out == greedy
    assert "trains a scorer, which writes nothing" in refusal(capsys, "sample", recipe, "objective=BradleyTerry")


def test_a_sample_that_was_cut_says_so_and_one_that_ended_does_not(home, recipe, capsys):
    ends = f"policy.model={shutil.copytree(home / 'model', home / 'ends')}"
    most = "evaluate.sampling.max_tokens=3"
    main(["sample", str(recipe), ends, "--prompt", "w3", "--completions", "4", most])
    assert capsys.readouterr().out.count("… (cut at 3 tokens)") > 0
    words = json.loads((home / "ends" / "config.json").read_text())["vocab_size"]
    GenerationConfig(eos_token_id=list(range(words)), pad_token_id=0).save_pretrained(home / "ends")
    main(["sample", str(recipe), ends, "--prompt", "w3", "--completions", "4", most])
    assert "cut at" not in capsys.readouterr().out


def test_objectives(capsys, monkeypatch):
    wide(monkeypatch, 80)
    main(["objectives"])
    printed = capsys.readouterr().out
    assert "DPO  arXiv 2305.18290" in printed and "beta=0.1" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_explains_every_field(capsys, monkeypatch, width):
    from prefopt.recipe import Recipe, describe

    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    printed = capsys.readouterr().out
    fields = printed.partition("fields of a recipe")[2]
    assert max(map(len, printed.splitlines())) <= width
    flat = "".join(fields.split())
    for field in describe(Recipe):
        if not field.key.startswith(("source.validation.", "source.test.")):
            assert f"\n  {field.key} " in fields
            assert "".join(field.description.split()) in flat, field.key


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=os.environ | environment
    )


def test_import_and_help_need_no_torch():
    code = (
        "import sys, prefopt, prefopt.cli\n"
        "try: prefopt.cli.main(['run', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "sys.exit(bool({'torch', 'transformers', 'scipy', 'wandb', 'numpy'} & set(sys.modules)))"
    )
    assert python("-c", code).returncode == 0


def test_a_real_process_is_refused_without_a_traceback(recipe):
    done = python("-m", "prefopt.cli", "run", str(recipe), "objective=DPOO")
    assert done.returncode == 2 and done.stdout == ""
    # Variables of this machine that change arithmetic are said before.
    (told,) = [line for line in done.stderr.splitlines() if " in the environment changes " not in line]
    assert told.startswith("error unknown objective 'DPOO'. Did you mean 'DPO'?")


def test_on_a_terminal_there_is_a_bar(recipe):
    import pty

    main_end, process_end = pty.openpty()
    command = [sys.executable, "-m", "prefopt.cli", "run", str(recipe)]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdout=process_end, stderr=process_end, env=environment)
    os.close(process_end)
    seen = b""
    while True:
        try:
            part = os.read(main_end, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    assert process.wait(timeout=60) == 0
    text = seen.decode()
    assert "4/4 loss" in text.replace("\x1b[0m", "").replace("\x1b[32m", "") and "left" in text
    assert "step 4/4" not in text
