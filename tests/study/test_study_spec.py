"""What a study file may say, and what it says back when it cannot."""

from pathlib import Path

import pytest
from _tiny import tiny_recipe

from prefopt import PrefoptError, load_recipe
from prefopt.objectives import LNDPO
from prefopt.recipe import Wandb
from prefopt.recipe.flat import flat, short_value
from prefopt.study import Study, load_study
from prefopt.study.plan import StudyPlan, changed_declarations
from prefopt.study.preview import with_defaults

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tiny_recipe(tmp_path, Path("model"), Path("pairs.jsonl"))


def study_file(folder: Path, text: str) -> Path:
    file = folder / "study.yaml"
    file.write_text(text)
    return file


def jobs(study: Study, folder: Path) -> StudyPlan:
    return StudyPlan(study, folder / "out")


def test_arms_refine_the_base_recipe(recipe: Path, tmp_path: Path) -> None:
    text = """
recipe: recipe.yaml
seeds: [3, 5]
common: {train.steps: 7}
arms:
  DPO: {objective.beta: 0.3}
  IPO: {objective: IPO, train: {lr: 0.5}}
"""
    planned = jobs(load_study(study_file(tmp_path, text)), tmp_path)
    found = planned.arms()
    assert [(job.name, job.seed) for job in found] == [("DPO", 3), ("IPO", 3), ("DPO", 5), ("IPO", 5)]
    dpo, ipo = found[0].recipe, found[1].recipe
    assert (dpo.objective[0].name, dpo.objective[0].fields, dpo.train.lr) == ("DPO", {"beta": 0.3}, 1e-3)
    assert (ipo.objective[0].name, ipo.objective[0].fields, ipo.train.lr) == ("IPO", {}, 0.5)
    assert ipo.train.batch_size == 8 and dpo.train.steps == ipo.train.steps == 7
    assert found[2].folder == tmp_path / "out" / "arms" / "DPO" / "seed-5" and found[2].recipe.seed == 5


def test_an_override_that_is_wrong_is_named_and_not_the_file(recipe: Path, tmp_path: Path) -> None:
    file = study_file(tmp_path, "recipe: recipe.yaml\narms: {A: {objective: DPO}}\nseeds: 1\n")
    with pytest.raises(
        PrefoptError, match=r"^executor\.slurm\.partitions=gpu: unknown key `executor\.slurm\.partitions`"
    ):
        load_study(file, ["executor.slurm.partitions=gpu"])
    with pytest.raises(PrefoptError, match=r"^seeds=-1: `seeds`"):
        load_study(file, ["seeds=-1"])


def test_overrides_come_last_however_they_are_written(recipe: Path, tmp_path: Path) -> None:
    text = "recipe: recipe.yaml\nseeds: 1\ncommon: {train.steps: 3}\narms: {A: {objective.beta: 0.3}, B: {objective: IPO}}\n"
    changes = ["common.train.steps=9", "arms.A.objective.beta=0.5"]
    arm = jobs(load_study(study_file(tmp_path, text), changes), tmp_path).arms()[0].recipe
    assert (arm.train.steps, arm.objective[0].name, arm.objective[0].fields) == (9, "DPO", {"beta": 0.5})


def test_grids_make_an_arm_of_each_combination(recipe: Path, tmp_path: Path) -> None:
    text = """
recipe: recipe.yaml
seeds: 1
grid: {train.lr: [0.1, 0.01]}
arms:
  DPO: {grid: {objective.beta: [0.1, 1]}}
  IPO: {objective: IPO}
"""
    found = {job.name: job.recipe for job in jobs(load_study(study_file(tmp_path, text)), tmp_path).arms()}
    assert list(found) == [
        *("DPO-lr=0.1-beta=0.1", "DPO-lr=0.1-beta=1", "DPO-lr=0.01-beta=0.1", "DPO-lr=0.01-beta=1"),
        *("IPO-lr=0.1", "IPO-lr=0.01"),
    ]
    assert found["DPO-lr=0.01-beta=1"].objective[0].fields == {"beta": 1}
    assert found["DPO-lr=0.01-beta=1"].train.lr == 0.01


def test_arms_may_be_a_list_of_recipes_also_from_python(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "ipo.yaml").write_text("base: recipe.yaml\nobjective: IPO\n")
    listed = load_study(study_file(tmp_path, "arms: [recipe.yaml, ipo.yaml]\nseeds: 1\n"))
    given = Study(
        arms=[load_recipe(recipe, ["name=recipe"]), load_recipe(tmp_path / "ipo.yaml", ["name=ipo"])], seeds=1
    )
    for study in (listed, given):
        found = jobs(study, tmp_path).arms()
        assert [(job.name, job.recipe.objective[0].name) for job in found] == [("recipe", "DPO"), ("ipo", "IPO")]
    reloaded = Study.model_validate(given.model_dump(mode="json"))
    assert [j.recipe for j in jobs(reloaded, tmp_path).arms()] == [j.recipe for j in jobs(given, tmp_path).arms()]


def test_stages_are_known_to_arms_and_later_stages(recipe: Path, tmp_path: Path) -> None:
    text = """
recipe: recipe.yaml
seeds: [4, 7]
stages:
  sft: {objective: SFT}
  reward: {objective: BradleyTerry, policy.model: "${stages.sft}", per: seed}
arms:
  A: {policy.model: "${stages.sft}"}
  B: {reference.model: "${stages.reward}"}
  C: {}
"""
    planned = jobs(load_study(study_file(tmp_path, text)), tmp_path)
    sft, reward = planned.stages()
    assert [(job.folder, job.seed) for job in sft] == [(tmp_path / "out/stages/sft", 4)]
    assert [(job.folder, job.seed) for job in reward] == [(tmp_path / f"out/stages/reward/seed-{s}", s) for s in (4, 7)]
    assert reward[1].after == (sft[0].folder,)
    assert {(job.name, job.seed): job.after for job in planned.arms()} == {
        **{("A", seed): (sft[0].folder,) for seed in (4, 7)},
        **{("B", job.seed): (job.folder,) for job in reward},
        **{("C", seed): () for seed in (4, 7)},
    }


def test_a_budget_decides_the_steps(recipe: Path, tmp_path: Path) -> None:
    rollouts = "{source.rollouts: {completions: 2}, feedback: 'rules.py:f', objective: RLOO}"
    text = f"recipe: recipe.yaml\nseeds: 1\nbudget: {{labels: 96}}\narms: {{D: {{}}, R: {rollouts}, S: {{train.steps: 0}}}}\n"
    file = study_file(tmp_path, text)
    steps = {job.name: job.recipe.train.steps for job in jobs(load_study(file), tmp_path).arms()}
    assert steps == {"D": 12, "R": 6, "S": 0}  # 8 pairs a batch; 8 prompts × 2 judged completions
    with pytest.raises(PrefoptError, match=r"arm D: a batch takes 8 labels, and budget\.labels = 99 is not a multiple"):
        jobs(load_study(file, ["budget.labels=99"]), tmp_path).arms()
    with pytest.raises(PrefoptError, match="tokens cannot be a budget: the policy decides how long"):
        load_study(file, ["budget={tokens: 5}"])


def test_arms_are_logged_to_wandb_as_a_group_and_trials_are_not(recipe: Path, tmp_path: Path) -> None:
    arms = {"A": {}, "B": {"track.wandb": {"project": "own"}}}
    tune = {"fields": {"train.lr": [1e-4, 1e-3]}, "trials": 2}
    planned = jobs(Study(name="duel", recipe=str(recipe), arms=arms, tune=tune, wandb={"project": "p"}), tmp_path)
    logged = {job.name: job.recipe.track.wandb for job in planned.arms()}
    assert [(w.project, w.group) for w in logged.values() if w] == [("p", "duel"), ("own", "duel")]
    for arm in arms:
        assert planned.trial(arm, 0, 1000, {"train.lr": 1e-4}).recipe.track.wandb is None
        assert planned.trial(arm, 0, 1000, {"evaluate.sets.hard": {"data": "x.jsonl"}}).recipe.evaluate.sets == {}


@pytest.mark.parametrize("name", ["WANDB_SWEEP_ID", "WANDB_LAUNCH"])
def test_a_study_in_a_sweep_of_wandb_whose_runs_would_share_an_id_is_refused(recipe: Path, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "x")
    study = Study(name="duel", recipe=str(recipe), arms={"A": {}, "B": {}}, seeds=1)
    assert len(jobs(study, tmp_path).arms()) == 2
    with pytest.raises(PrefoptError, match=f"{name} in the environment: .* unset it, leave `wandb` out"):
        jobs(study.model_copy(update={"wandb": Wandb()}), tmp_path).arms()


def test_sources_of_randomness_that_are_fixed_keep_the_first_seed(recipe: Path, tmp_path: Path) -> None:
    file = study_file(
        tmp_path, "recipe: recipe.yaml\nseeds: [4, 7]\nrandomness: [order]\narms: {A: {}, B: {objective: IPO}}\n"
    )
    last = jobs(load_study(file), tmp_path).arms()[-1].recipe
    assert {name: last.seed_of(name) for name in ("data", "init", "order", "sampling", "evaluation")} == {
        **dict.fromkeys(("data", "init", "sampling", "evaluation"), 4),
        "order": 7,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.steps=4", "unknown key `train`. Recipes have it: `common.train`"),
        ("nonsense=4", "A study has: name, question"),
        ("arm={}", "unknown key `arm`. Did you mean 'arms'?"),
        ("baseline=B", "baseline 'B' is not an arm"),
        ("seeds=[1, 1]", "seeds must be distinct"),
        ("randomness=[odrer]", "unknown source of randomness 'odrer'. Did you mean 'order'?"),
        ("arms={}", "there is nothing to compare"),
        ("arms={A: {}, '': {}}", "an arm has no name"),
        ("arms={a/b: {}}", "cannot name a folder"),
        ("tune={trials: 2, seeds: [0]}", "which is a seed of the study"),
        ("arms.A.tune={train.lr: [1]}", "arm A has fields to tune"),
        ("tune={trials: 2, fields: {train.lr: {low: 2, high: 1}}}", "low below high"),
        ("recipe=null", "arm A has no recipe"),
        ("better=more", "must be 'higher' or 'lower'"),
    ],
)
def test_refusals(recipe: Path, tmp_path: Path, change: str, message: str) -> None:
    file = study_file(tmp_path, "recipe: recipe.yaml\nseeds: 1\narms: {A: {}, C: {objective: IPO}}\n")
    load_study(file)
    with pytest.raises(PrefoptError) as caught:
        load_study(file, [change])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("{train.stepz: 3}", "arm A: unknown key `train.stepz`. Did you mean 'steps'?"),
        ("{objektive: IPO}", "arm A: unknown key `objektive`. Did you mean 'objective'?"),
        ("{train.lr.x: 3}", "arm A: `train.lr.x`: `train.lr` is 0.001, which has no keys"),
        ('{policy.model: "${stages.rewrd}"}', "unknown variable ${stages.rewrd}. Did you mean 'stages.reward'?"),
        ("{recipe: nowhere.yaml}", "no recipe nowhere.yaml"),
    ],
)
def test_refusals_of_arms_name_the_arm(recipe: Path, tmp_path: Path, arm: str, message: str) -> None:
    text = f"recipe: recipe.yaml\nseeds: 1\nstages: {{reward: {{}}}}\narms: {{A: {arm}, C: {{objective: IPO}}}}\n"
    with pytest.raises(PrefoptError) as caught:
        jobs(load_study(study_file(tmp_path, text)), tmp_path).arms()
    assert message in str(caught.value)


def test_a_default_is_a_difference_and_naming_it_is_none() -> None:
    """LNDPO's β is 5 where DPO's is .1, whether a recipe says so or not."""
    named, left, other = (
        with_defaults({"objective": [{"name": name, "weight": 1.0, "source": None, **fields}]})
        for name, fields in (("LNDPO", {"beta": LNDPO().beta}), ("LNDPO", {}), ("DPO", {}))
    )
    assert {k: short_value(v) for k, v in flat(named).items()} == {k: short_value(v) for k, v in flat(left).items()}
    assert (flat(left)["objective.beta"], flat(other)["objective.beta"]) == (LNDPO().beta, 0.1)


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*/study.yaml")), ids=lambda file: file.parent.name)
def test_studies_that_come_along_resolve(file: Path, tmp_path: Path) -> None:
    planned = jobs(load_study(file), tmp_path)
    assert len(planned.arms()) == len(planned.study.seeds) * len(planned.study.all_arms())


def test_keys_of_the_previous_version_are_read_by_their_new_names(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "recipe: recipe.yaml\nseeds: 2\nchance: [order]\nhold: {labels: 96}\narms: {A: {}, B: {objective: IPO}}\n"
    old = load_study(study_file(tmp_path, text))
    assert (old.randomness, old.budget and old.budget.labels) == (("order",), 96)
    assert "`chance` is now called `randomness`" in caplog.text and "`hold` is now called `budget`" in caplog.text
    assert Study(recipe=str(recipe), arms={"A": {}}, chance=["order"]).randomness == ("order",)  # type: ignore[call-arg]


def test_a_folder_of_the_previous_version_has_declared_the_same(recipe: Path, tmp_path: Path) -> None:
    study = Study(recipe=str(recipe), arms={"A": {}, "B": {"objective": "IPO"}}, budget={"labels": 96})
    saved = study.to_yaml().replace("\nbudget:", "\nhold:").replace("\nrandomness:", "\nchance:")
    (tmp_path / "study.yaml").write_text(saved)
    assert "hold:" in saved and "chance:" in saved and changed_declarations(study, tmp_path) == []
    other = study.model_copy(update={"budget": None, "randomness": ("order",)})
    assert changed_declarations(other, tmp_path) == ["budget", "randomness"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("name=..", "cannot name a folder"),
        ("name=.x", "cannot name a folder"),
        ('name="a\\nb"', "cannot name a folder"),
        (f"name={'n' * 300}", "300 bytes"),
        (f"arms={{{'n' * 300}: {{}}}}", "300 bytes"),
        ("arms={..: {}}", "cannot name a folder"),
        ("stages={..: {}}", "cannot name a folder"),
        ("grid={objective.beta: []}", "grid.objective.beta has no values"),
        ("arms.A.grid={objective.beta: []}", "grid.objective.beta has no values"),
        ("varies=[objectve]", "'objectve' is no section of a recipe. Did you mean 'objective'?"),
        ("common={train.lr: .nan}", "`common.train.lr` is nan"),
    ],
)
def test_a_study_that_would_write_elsewhere_or_compare_nothing_is_refused(
    recipe: Path, tmp_path: Path, change: str, message: str
) -> None:
    file = study_file(tmp_path, "recipe: recipe.yaml\nseeds: 1\narms: {A: {}, C: {objective: IPO}}\n")
    with pytest.raises(PrefoptError) as caught:
        load_study(file, [change])
    assert message in str(caught.value)
