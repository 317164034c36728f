"""Recipes: what is read, inherited, overridden, replaced; and that what is written can be read again."""

from pathlib import Path

import pytest
import yaml

from prefopt.recipe import BUILT_IN, Recipe, describe, load_recipe
from prefopt.support.errors import PrefoptError

LEAST = "policy: {model: m}\nsource: {data: d.jsonl}\nobjective: DPO\ntrain: {steps: 1}\n"


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(PrefoptError) as caught:
        load_recipe(file, overrides)
    return str(caught.value)


def test_least_recipe_has_defaults_and_a_name(tmp_path):
    recipe = load_recipe(write(tmp_path / "movies", LEAST, "dpo.yaml"))
    assert recipe.name == "movies-dpo"
    assert (recipe.policy.model, recipe.train.batch_size, recipe.track.wandb) == (("m",), 64, None)
    assert [term.name for term in recipe.objective] == ["DPO"]


def test_name_does_not_depend_on_how_the_file_is_reached(tmp_path, monkeypatch):
    write(tmp_path / "movies", LEAST, "dpo.yaml")
    monkeypatch.chdir(tmp_path / "movies")
    assert load_recipe("dpo.yaml").name == load_recipe("../movies/dpo.yaml").name == "movies-dpo"


def test_written_recipe_is_the_same_when_read(tmp_path):
    text = LEAST.replace("DPO", "[{name: DPO, beta: 1e-2}, {name: SFT, weight: 0.5}]") + "variables: {size: 135}\n"
    recipe = load_recipe(write(tmp_path, text), ["track.wandb={}", "policy.adapter.r=4"])
    assert load_recipe(write(tmp_path / "run", recipe.to_yaml())) == recipe


def test_base_is_refined_and_objective_replaced_whole(tmp_path):
    write(tmp_path, LEAST.replace("DPO", "{name: DPO, beta: 0.3}") + "seed: 3\n", "base.yaml")
    child = write(tmp_path / "sub", "base: ../base.yaml\nobjective: SFT\ntrain: {lr: 1e-5}\n")
    recipe = load_recipe(child)
    assert (recipe.seed, recipe.train.lr, recipe.train.steps) == (3, 1e-5, 1)
    assert (recipe.objective[0].name, recipe.objective[0].fields) == ("SFT", {})


def test_a_feedback_may_be_its_name_and_is_replaced_whole(tmp_path):
    text = LEAST + "feedback: {name: RewardModel, model: m, timeout: 5}\ncost: lab:cost\nevaluate: {gold: lab:gold}\n"
    write(tmp_path, text, "base.yaml")
    base = load_recipe(tmp_path / "base.yaml")
    assert (base.feedback.name, base.feedback.fields, base.feedback.timeout) == ("RewardModel", {"model": "m"}, 5)
    assert (base.cost.name, base.evaluate.gold.name) == ("lab:cost", "lab:gold")
    members = "[lab:gold, {name: RewardModel, model: n}]"
    child = f"base: base.yaml\nfeedback: {{name: Ensemble, members: {members}, transforms: Normalise}}\n"
    child += "evaluate: {rows: 3, gold: a:b}\n"
    recipe = load_recipe(write(tmp_path, child))
    assert (recipe.feedback.fields, recipe.feedback.timeout) == ({}, None)
    assert [(m.name, m.fields) for m in recipe.feedback.members] == [("lab:gold", {}), ("RewardModel", {"model": "n"})]
    assert [transform.name for transform in recipe.feedback.transforms] == ["Normalise"]
    assert (recipe.evaluate.rows, recipe.evaluate.gold.name) == (3, "a:b")
    assert load_recipe(write(tmp_path / "run", recipe.to_yaml())) == recipe


@pytest.mark.parametrize("key", ["feedback", "cost", "evaluate.gold"])
def test_overrides_of_a_feedback(tmp_path, key):
    *outer, last = key.split(".")
    section = f"{outer[0]}: {{{last}: lab:rule}}\n" if outer else f"{key}: lab:rule\n"
    file = write(tmp_path, LEAST + section)

    def found(*overrides):
        recipe = load_recipe(file, overrides)
        return getattr(getattr(recipe, outer[0]) if outer else recipe, last)

    assert found(f"{key}.timeout=5").timeout == 5
    assert found(f"{key}.transforms=Clip", f"{key}.limit=3").fields == {"limit": 3}
    assert found(f"{key}=lab:other").name == "lab:other"
    assert found(f"{key}=null") is None
    assert f"`{key}.timeout` must be greater than 0, got 0" in refusal(file, f"{key}.timeout=0")
    assert f"`{key}.name` is missing" in refusal(file, f"{key}={{timeout: 1}}")


def test_files_of_feedbacks_are_found_beside_the_recipe(tmp_path):
    write(tmp_path, "", "rules.py")
    (tmp_path / "reward").mkdir()
    text = "feedback: {name: Ensemble, members: [rules.py:a, {name: RewardModel, model: ./reward}]}\n"
    rule, model = load_recipe(write(tmp_path, LEAST + text)).feedback.members
    assert (rule.name, model.fields["model"]) == (f"{tmp_path}/rules.py:a", str(tmp_path / "reward"))


def test_bases_that_cannot_be(tmp_path):
    write(tmp_path, "base: b.yaml", "a.yaml")
    write(tmp_path, "base: a.yaml", "b.yaml")
    assert "inherits from itself" in refusal(tmp_path / "a.yaml")
    missing = refusal(write(tmp_path, "base: bb.yaml"))
    assert "the base of" in missing and "Did you mean 'b.yaml'?" in missing
    assert "`base` must name one other recipe" in refusal(write(tmp_path, "base: [a.yaml]"))


def test_a_folder_in_the_place_of_a_recipe_is_named(tmp_path):
    (tmp_path / "child.yaml").write_text("base: folder\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        PrefoptError, match=r"folder \(the base of .*child\.yaml\) is a folder: name the recipe, a YAML file"
    ):
        load_recipe(tmp_path / "child.yaml")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.lr=1e-6", "train.lr", 1e-6),
        ("seeds.data=7", "seeds.data", 7),
        ("track.wandb.project=x", "track.wandb.project", "x"),
        ("policy.adapter.r=4", "policy.adapter.r", 4),
        ("source.split.0=0.8", "source.split", (0.8, 0.1, 0.1)),
        ("objective.beta=0.3", "objective.0.beta", 0.3),
        ("objective.0.beta=0.3", "objective.0.beta", 0.3),
        ("objective=SFT", "objective.0.name", "SFT"),
        ("policy.model=[a, b]", "policy.model", ("a", "b")),
    ],
)
def test_overrides(tmp_path, override, key, value):
    file = write(tmp_path, LEAST + "track: {wandb: null}\n")
    found = load_recipe(file, ["source.split=[0.7, 0.1, 0.1]"] * ("split" in override) + [override])
    for part in key.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value


@pytest.mark.parametrize("key", ["objective.beta", "objective.0.beta"])
def test_an_objective_by_its_name_alone_has_fields_to_override(tmp_path, key):
    """As in `prefopt run dpo.yaml objective=mine.py:Mine objective.beta=0.3`, for a base with a name alone too."""
    for objective in ("DPO", "{name: SFT}"):
        file = write(tmp_path, LEAST.replace("DPO", objective))
        (term,) = load_recipe(file, ["objective=IPO", f"{key.replace('beta', 'tau')}=0.3"]).objective
        assert (term.name, term.fields) == ("IPO", {"tau": 0.3})


def test_override_of_one_term_of_several(tmp_path):
    file = write(tmp_path, LEAST.replace("DPO", "[SFT, DPO]"))
    assert load_recipe(file, ["objective.1.beta=0.3", "objective.0.weight=2"]).objective[1].fields == {"beta": 0.3}
    assert "is a list; say which item, as in objective.0.beta" in refusal(file, "objective.beta=0.3")
    assert "has 2 items, numbered from 0" in refusal(file, "objective.2.beta=0.3")


@pytest.mark.parametrize("override", ["train.lr", "=5", "train.=5", "train..lr=1", "--x"])
def test_override_that_is_none(tmp_path, override):
    assert "is no override; write key=value" in refusal(write(tmp_path, LEAST), override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.learning_rat=1", "unknown key `train.learning_rat`. `train` has: steps, epochs"),
        ("train.bach_size=1", "Did you mean 'batch_size'?"),
        ("lr=1", "Did you mean 'train.lr'?"),
        ("source.validation.dta=x", "unknown key `source.validation.dta`. Did you mean 'data'?"),
        ("train.batch_size=many", "`train.batch_size` must be an integer, got 'many'"),
        ("train.batch_size=0", "`train.batch_size` must be greater than 0, got 0"),
        ("train=5", "`train` must hold keys and values, got 5"),
        ("train.steps.x=5", "`train.steps` is 1, which has no keys"),
        (
            "train.lr=1e39",
            "`train.lr`: weights are multiplied by it in 32 bits, where a number is at most 3.4e+38; got 1e+39",
        ),
        *((f"train.{key}=1e39", f"`train.{key}`: weights are") for key in ("critic_lr", "weight_decay", "eps")),
        ("train.schedule=cosin", "`train.schedule.name`: unknown schedule 'cosin'. Did you mean 'cosine'?"),
        ("train.optimizer=adam", "`train.optimizer.name`: unknown optimizer 'adam'. Did you mean 'adamw'?"),
        ("train.epochs=1", "give exactly one of train.steps and train.epochs"),
        ("train.steps=null", "give exactly one of train.steps and train.epochs"),
        ("train.minibatch_size=5", "minibatch_size 5 does not divide batch_size 64"),
        ("source.split=[1, 1, 1]", "three shares of 0 or more that add up to 1"),
        ("source.split=[1.5, -0.25, -0.25]", "three shares of 0 or more that add up to 1"),
        ("policy.adapter.targets=5", "`policy.adapter.targets` must be text or list, got 5"),
        ("reference.cache=3", "`reference.cache` must be true | false, got 3"),
        ("source.data={a: b}", "`source.data` must be text or list, got {'a': 'b'}"),
        ("source.data=[]", "`source.data`: is an empty list: name at least one"),
        ("policy.model=[]", "`policy.model`: is an empty list: name at least one"),
        ("seeds.order=-1", "`seeds.order` must be greater than or equal to 0, got -1"),
        ("train={null: 1}", "`train` has the key None; keys are text"),
        ("objective=[]", "`objective`"),
        ("objective=5", "`objective` must hold keys and values, got 5"),
        ("objective.1=SFT", "has 1 items"),
        ("variables=[a]", "`variables` must hold keys and values"),
        ("policy.model=null", "`policy.model`"),
        ("name=a/b", "`name`"),
        ("train.lr=[1", "not YAML"),
        ("policy.model=${pocke}", "unknown variable ${pocke}. Did you mean 'pocket'?"),
        ("policy.model=${env:PREFOPT_NOT_SET}", "environment variable PREFOPT_NOT_SET is not set"),
        ("variables={a: '${b}', b: '${a}'}", "${a} is made of itself: a → b → a"),
    ],
)
def test_values_that_cannot_be(tmp_path, override, expected):
    overrides = [override, "policy.model=${a}"] if "made of itself" in expected else [override]
    assert expected in refusal(write(tmp_path, LEAST), *overrides)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must hold keys and values, got nothing"),
        ("- a", "must hold keys and values, got a list"),
        ("a: [", "line 1, column 5: not YAML"),
        ("seed: 1\nseed: 2", "line 2, column 1: not YAML: 'seed' is there twice"),
        ("seed: 1", "`policy` is missing: the model that is trained"),
        ("1: 2", "r.yaml"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, expected):
    assert expected in refusal(write(tmp_path, text))


def test_missing_file_and_one_that_is_not_text(tmp_path):
    write(tmp_path, LEAST, "dpo.yaml")
    assert "Did you mean 'dpo.yaml'?" in refusal(tmp_path / "dop.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in refusal(tmp_path / "b.yaml")


def test_several_errors_are_all_named(tmp_path):
    message = refusal(write(tmp_path, LEAST), "train.lr=-1", "sed=1")
    assert "`train.lr`" in message and "Did you mean 'seed'?" in message and "\n" in message


def test_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_SIZE", "135")
    text = LEAST.replace("model: m", "model: '${root}/${size}-${env:PREFOPT_SIZE}'").replace(
        "steps: 1", "steps: '${size}'"
    )
    recipe = load_recipe(write(tmp_path, text + "variables: {root: '~/x', size: 3}\n"))
    assert recipe.policy.model == (str(Path("~/x/3-135").expanduser()),)
    assert recipe.train.steps == 3
    pocket = load_recipe(write(tmp_path, LEAST.replace("model: m", "model: '${pocket}'")))
    assert pocket.policy.model == (BUILT_IN["pocket"],)


def test_files_beside_the_recipe_are_made_absolute(tmp_path, monkeypatch):
    for name in ("d.jsonl", "loss.py", "more/a.jsonl"):
        write((tmp_path / "r" / name).parent, "", Path(name).name)
    (tmp_path / "model").mkdir()
    text = "policy: {model: ../model}\nsource: {data: [d.jsonl, 'more/*.jsonl', gone.jsonl]}\n"
    file = write(tmp_path / "r", text + "objective: loss.py:Hinge\ntrain: {steps: 1}\n")
    recipe = load_recipe(file)
    here = tmp_path / "r"
    assert recipe.policy.model == (str(tmp_path / "model"),)
    assert recipe.source.data == (str(here / "d.jsonl"), str(here / "more/*.jsonl"), "gone.jsonl")
    assert recipe.objective[0].name == f"{here / 'loss.py'}:Hinge"
    monkeypatch.chdir(here)  # overrides are typed where the user is
    write(tmp_path / "r", "", "own.jsonl")
    assert load_recipe(file, ["source.data=own.jsonl"]).source.data == (str(here / "own.jsonl"),)


def test_seeds_are_derived_unless_given(tmp_path):
    recipe = load_recipe(write(tmp_path, LEAST), ["seed=5", "seeds.order=0"])
    assert (recipe.seed_of("data"), recipe.seed_of("order")) == (5, 0)


def test_every_field_is_described_and_its_default_can_be_given(tmp_path):
    fields = {field.key: field for field in describe(Recipe)}
    assert len(fields) > 60
    for key, field in fields.items():
        assert field.description and field.kind, key
        if field.default not in ("", "required") and not key.startswith(
            (
                "objective.",
                "feedback.",
                "source.validation",
                "source.test",
                "train.keep_best.",
                "evaluate.sets.",
                "evaluate.metrics.",
                "evaluate.environment.",
                "source.rollouts.environment.",
            )
        ):
            alone = {"train.steps": ["train.epochs=1"]}.get(key, [])
            load_recipe(write(tmp_path, LEAST), [f"{key}={field.default}", *alone])
    assert yaml.safe_load(fields["source.split"].default) == [0.8, 0.1, 0.1]
    assert fields["train.beyond"].kind == "warn | stop"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.step=3"], r"^train\.step=3: unknown key `train\.step`\. Did you mean 'steps'\?$"),
        (["seed=1", "train.lr=-1"], r"^train\.lr=-1: `train\.lr` must be"),
        (["train.lr=0.5", "train.lr=-1"], r"^train\.lr=-1: `train\.lr` must be"),
        (["policy.adapter.r=0"], r"^policy\.adapter\.r=0: `policy\.adapter\.r` must be"),
        (["train.batch_size=8"], r"overridden\.yaml: `train\.lr` must be"),
    ],
)
def test_what_an_override_says_wrong_is_put_down_to_it_and_not_to_the_file(tmp_path, overrides, message):
    file = tmp_path / "overridden.yaml"
    wrong = "lr: -1" if overrides == ["train.batch_size=8"] else "lr: 1"
    file.write_text(f"source: {{data: d.jsonl}}\nobjective: DPO\npolicy: {{model: m}}\ntrain: {{steps: 1, {wrong}}}\n")
    with pytest.raises(PrefoptError, match=message):
        load_recipe(file, overrides)


def test_an_override_that_takes_keys_away_with_their_section_says_so(tmp_path, caplog):
    file = tmp_path / "r.yaml"
    file.write_text(
        "policy: {model: m}\nsource: {data: d}\nobjective: {name: DPO, beta: 0.3}\ntrain: {steps: 1}\n"
        "evaluate: {environment: {name: a.py:A, max_turns: 3}, gold: {name: g.py:g, a: 1}}\n"
    )
    quiet = ["evaluate.environment.max_tokens=9", "objective={name: DPO}", "evaluate.gold={name: h.py:h}", "track={}"]
    load_recipe(file, [*quiet, "evaluate.environment={name: b.py:B}"])  # another class has other keys
    assert not caplog.text
    recipe = load_recipe(file, ["evaluate.environment={name: a.py:A, max_tokens: 9}"])
    assert recipe.evaluate.environment.max_turns == 8
    assert "replaces all of `evaluate.environment`, and with it the recipe's max_turns" in caplog.text
