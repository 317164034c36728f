"""What can be answered without torch is answered without it, in a fraction of the seconds that its import takes."""

import subprocess
import sys

import pytest
from _folders import finished_run

ASKED = """
import sys
from prefopt.cli.entry import main
status = 0
try:
    main(sys.argv[1:])
except SystemExit as end:
    status = end.code
heavy = {"torch", "transformers", "scipy", "pandas", "datasets", "wandb"} & set(sys.modules)
assert not heavy, heavy
sys.exit(status)
"""


RUN = {
    "policy": {"model": "an/id"},
    "source": {"data": "x.jsonl"},
    "train": {"steps": 3},
    "evaluate": {"prompts": 3},
}
"""What a finished run was made of."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "typo.yaml").write_text(
        "source: {data: x.jsonl}\nobjective: DPO\ntrain: {stepps: 3}\npolicy: {model: m}\n"
    )
    (tmp_path / "good.yaml").write_text(
        "source: {data: x.jsonl}\nobjective: DPO\ntrain: {steps: 3}\npolicy: {model: an/id}\n"
    )
    (tmp_path / "x.jsonl").touch()
    (tmp_path / "odd-study.yaml").write_text("recipe: good.yaml\narms: {a: {}}\nseedz: 2\n")
    (tmp_path / "study.yaml").write_text("recipe: good.yaml\narms: {mild: {objective.beta: 0.1}, firm: {}}\n")
    (tmp_path / "tuned.yaml").write_text("base: study.yaml\ntune: {trials: 1, fields: {objective.betta: [1]}}\n")
    (tmp_path / "staged.yaml").write_text(
        "recipe: good.yaml\nstages: {first: {objective: {name: SFT}}}\narms: {late: {policy.model: '${stages.first}/policy'}}\n"
    )
    (tmp_path / "label.yaml").write_text("source: {data: x.jsonl}\nfeedback: {name: RewardModel, model: an/id}\n")
    (tmp_path / "m.py").write_text("import torch\ndef short(prompts, completions, rows):\n    return completions\n")
    (tmp_path / "torn.py").write_text("x = 1\ndef f(\n")
    finished_run(tmp_path / "ended", 0, 0.5, recipe=RUN)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "status", "answer"),
    [
        ("run nowhere.yaml", 2, "no recipe nowhere.yaml"),
        ("run typo.yaml", 2, "unknown key `train.stepps`. Did you mean 'steps'?"),
        ("run good.yaml train.stepps=3", 2, "unknown key `train.stepps`"),
        ("run good.yaml objective=DPOO", 2, "Did you mean 'DPO'?"),
        ("run good.yaml objective.betta=1", 2, "has no field 'betta'"),
        ("run good.yaml source.data=nowhere.jsonl", 2, "no such file"),
        ("run good.yaml policy.model=no/such/model", 2, "no model at no/such/model"),
        ("evaluate good.yaml evaluate.gold=nowhere.py:f", 2, "no file nowhere.py"),
        ("evaluate good.yaml evaluate.gold=m.py:shrt", 2, "m.py has no 'shrt'. Did you mean 'short'?"),
        (
            "run good.yaml evaluate.metrics.x=m.py:shrt",
            2,
            "m.py has no 'shrt'. Did you mean 'short'?",
        ),
        ("run good.yaml objective=m.py:shrt", 2, "m.py has no 'shrt'. Did you mean 'short'?"),
        ("run good.yaml evaluate.gold=torn.py:f", 2, "torn.py:2 fails to import: SyntaxError"),
        ("run good.yaml source.adapt=argila", 2, "source.adapt: unknown dialect 'argila'. Did you mean 'argilla'?"),
        ("evaluate ended evaluate.metrics.x=m.py:shrt --add", 2, "m.py has no 'shrt'"),
        ("evaluate ended evaluate.gold=m.py:shrt", 2, "m.py has no 'shrt'"),
        ("run good.yaml --out taken", 2, "taken is there already, and nothing is overwritten"),
        ("run good.yaml --resume", 2, "nothing to resume: no unfinished run"),
        ("run taken --resume", 2, "taken is no run folder"),
        ("study odd-study.yaml", 2, "unknown key `seedz`. Did you mean 'seeds'?"),
        ("study study.yaml arms.firm.trian.lr=1", 2, "arm firm: unknown key `trian`. Did you mean 'train'?"),
        ("study study.yaml arms.firm.objective=DPOO", 2, "firm: unknown objective 'DPOO'. Did you mean 'DPO'?"),
        ("study study.yaml arms.firm.objective.betta=1", 2, "firm: DPO has no field 'betta'. Did you mean 'beta'?"),
        ("study study.yaml arms.firm.source.data=nowhere.jsonl", 2, "firm: nowhere.jsonl: no such file"),
        ("study study.yaml arms.firm.recipe=nowhere.yaml", 2, "no recipe nowhere.yaml"),
        ("study study.yaml grid={train.rl:[1,2]}", 2, "unknown key `train.rl`"),
        ("study tuned.yaml", 2, "mild trial 0: DPO has no field 'betta'"),
        ("study staged.yaml arms.late.objective=DPOO", 2, "late: unknown objective 'DPOO'"),
        ("study staged.yaml arms.late.source.data=nowhere.jsonl", 2, "late: nowhere.jsonl: no such file"),
        ("study staged.yaml stages.first.objective.betta=1", 2, "stage first: SFT has no field 'betta'"),
        ("study staged.yaml stages.first.label=nowhere.yaml", 2, "no recipe nowhere.yaml"),
        ("study study.yaml metric=gould", 2, "metric is gould, and there is no such metric. Did you mean 'gold'?"),
        (
            "study study.yaml measure=[hard/lenght]",
            2,
            "measure is hard/lenght, and there is no such metric. Did you mean 'length'?",
        ),
        ("export m taken", 2, "taken is there already, and nothing is overwritten"),
        ("study taken --status", 2, "taken holds no study that has begun"),
        ("study taken --stop", 2, "taken holds no study"),
        ("evaluate typo.yaml", 2, "unknown key `train.stepps`"),
        ("evaluate taken", 2, "taken is no run folder"),
        ("sample typo.yaml", 2, "unknown key `train.stepps`"),
        ("label typo.yaml --out labels", 2, "unknown key"),
        ("label label.yaml --out labels source.data=nowhere.jsonl", 2, "nowhere.jsonl: no such file"),
        ("label label.yaml --out labels feedback=RewardModl", 2, "unknown feedback 'RewardModl'"),
        ("label label.yaml --out labels policy.model=no/such/model", 2, "no model at no/such/model"),
        ("label label.yaml --out taken", 2, "taken is there already, and is no labelling"),
        ("benchmark taken --tasks arc_easy --add", 2, "taken is no run folder"),
        ("benchmark taken --data rows.jsonl --name a/b --add", 2, "'a/b' is no name for a result"),
        ("report nowhere", 2, "nowhere is no folder"),
        ("report taken", 2, "taken"),
        ("run --help", 0, "source.data"),
        ("label --help", 0, "feedback"),
        ("recipes", 0, "pocket/dpo"),
        ("recipes pocket/dpo", 0, "beta: 0.1"),
        ("recipes pocket/dpoo", 2, "Did you mean"),
        ("runs", 2, "there is no folder runs"),
        ("runs taken", 0, "no run in taken"),
        ("cache", 0, ""),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(folder, asked, status, answer):
    done = subprocess.run(
        [sys.executable, "-c", ASKED, *asked.split()], capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert answer in done.stdout + done.stderr
