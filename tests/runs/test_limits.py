"""What is known before a model is loaded is compared: refused, or said with its numbers."""

import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from _tiny import tiny_model
from rich.console import Console
from transformers import GPT2Config, LlamaConfig, RobertaConfig

from prefopt import load_recipe
from prefopt.data import load_examples, parse
from prefopt.data.selecting import AGAINST, ALONE, IDENTICAL, select_checked
from prefopt.evaluation.evaluation import Evaluation
from prefopt.evaluation.judges.report import load_rows
from prefopt.objectives import CATALOGUE, load_objective
from prefopt.policy import load_tokenizer
from prefopt.policy.positions import Positions, positions_of
from prefopt.recipe import Data
from prefopt.runs.dry_run import describe_dry_run, dry_run
from prefopt.runs.label.completions import to_label
from prefopt.runs.label.recipe import LabelRecipe
from prefopt.runs.limits import unread_keys
from prefopt.runs.planning import plan
from prefopt.runs.tokens import with_tokens
from prefopt.support.errors import PrefoptError
from prefopt.types import Needs

Overrides = dict[str, Any]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "lm")


@pytest.fixture
def make(tmp_path: Path, model_folder: Path) -> Any:
    """A recipe of a tiny model and these rows."""
    model = shutil.copytree(model_folder, tmp_path / "lm")
    (tmp_path / "rule.py").write_text("def r(p, c, rows):\n    return [[float(len(t)) for t in row] for row in c]\n")

    def recipe(*overrides: str, rows: list[dict[str, Any]] | None = None) -> Any:
        rows = rows if rows is not None else pairs()
        (tmp_path / "d.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        file = tmp_path / "r.yaml"
        file.write_text(
            f"policy: {{model: {model}}}\nsource: {{data: {tmp_path}/d.jsonl, split: [0.5, 0.25, 0.25]}}\n"
            "objective: DPO\ntrain: {steps: 10, batch_size: 4, lr: 1e-3}\nevaluate: {sampling: {max_tokens: 8}}\n"
        )
        return load_recipe(file, list(overrides))

    return recipe


def pairs(number: int = 40, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"w{i % 50} w{i // 50}", "chosen": " w1 w2", "rejected": f" w3 w{i % 50}", **more}
        for i in range(number)
    ]


@pytest.mark.parametrize(
    ("objective", "said"), [("RatingRegression", True), ("LiPO", True), ("DPO", False), ("BCO", False)]
)
def test_an_objective_of_score_gaps_on_bare_preferences_is_said(make: Any, objective: str, said: bool) -> None:
    warning = "which completion is better and not by how much"
    bare, rated = pairs(), pairs(score_chosen=5, score_rejected=2)
    assert any(warning in line for line in plan(make(f"objective={objective}", rows=bare)).warnings) == said
    assert not any(warning in line for line in plan(make(f"objective={objective}", rows=rated)).warnings)


def labelled(good: int, bad: int) -> list[dict[str, Any]]:
    rows = pairs(good + bad)
    return [{"prompt": r["prompt"], "completion": r["chosen"], "label": i < good} for i, r in enumerate(rows)]


def online(tmp_path: Path, **rollouts: Any) -> list[str]:
    return [f"source.rollouts={json.dumps(rollouts)}", f"feedback={tmp_path}/rule.py:r"]


@pytest.mark.parametrize(
    ("where", "overrides"),
    [("evaluate", ()), ("source.rollouts", ("objective=RLOO", "source.rollouts={completions: 2}"))],
)
def test_a_stop_of_several_tokens_is_refused_before_a_model_is_loaded(make, tmp_path, where, overrides):
    more = [*overrides, *([f"feedback={tmp_path}/rule.py:r"] if overrides else [])]
    plan(make(*more, f"{where}.sampling.stop=[w3]"))
    with pytest.raises(PrefoptError, match=rf"^{where}\.sampling\.stop: 'w3 w4' is 2 tokens .*a single token each"):
        plan(make(*more, f"{where}.sampling.stop=[w3 w4]"))


GROUPS = ["GRPO", "DrGRPO", "DAPO", "GSPO", "CISPO", "RLOO", "{name: ReinforcePlusPlus, baseline: group}"]


@pytest.mark.parametrize("objective", GROUPS)
@pytest.mark.parametrize(
    ("rollouts", "message"),
    [
        ({"completions": 1}, "draw at least 2"),
        ({"completions": 4, "sampling": {"temperature": 0}}, "temperature: 0, so that all completions"),
        ({"completions": 4, "sampling": {"top_k": 1}}, "top_k: 1, so that all completions"),
    ],
)
def test_rollouts_that_teach_a_group_method_nothing_are_refused(
    make: Any, tmp_path: Path, objective: str, rollouts: Any, message: str
) -> None:
    with pytest.raises(PrefoptError, match=message):
        plan(make(f"objective={objective}", *online(tmp_path, **rollouts)))
    plan(make(f"objective={objective}", *online(tmp_path, completions=2)))


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"temperature": 1e-8}, "temperature is 1e-08: all completions of a prompt will be about the same"),
        ({"top_p": 1e-9}, "top_p is 1e-09: all completions of a prompt will be about the same"),
        ({"temperature": 0.1, "top_p": 0.1}, ""),
    ],
)
def test_sampling_that_hardly_samples_is_said(make: Any, tmp_path: Path, sampling: Any, said: str) -> None:
    warnings = plan(make("objective=GRPO", *online(tmp_path, completions=4, sampling=sampling))).warnings
    assert [said in warning for warning in warnings] == [True] * bool(said)


@pytest.mark.parametrize("name", CATALOGUE)
def test_methods_that_standardise_a_group_say_so(name: str) -> None:
    groups = {"GRPO", "DrGRPO", "DAPO", "GSPO", "CISPO", "GDPO", "RLOO"}
    assert load_objective(name).needs.contrast == (name in groups)


def test_an_order_of_equal_completions_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(PrefoptError, match="temperature: 0"):
        plan(make(*online(tmp_path, completions=2, sampling={"temperature": 0})))


def test_older_completions_that_nothing_corrects_for_are_said(make: Any, tmp_path: Path) -> None:
    old = online(tmp_path, staleness=2)
    assert "staleness is 2 and GRPO takes" in " ".join(plan(make("objective=GRPO", *old)).warnings)
    for objective in ("{name: GRPO, tis: 2}", "{name: GRPO, tis: {per: sequence}}", "DPO"):
        assert "staleness" not in " ".join(plan(make(f"objective={objective}", *old)).warnings)
    assert "staleness" not in " ".join(plan(make("objective=GRPO", *online(tmp_path))).warnings)


@pytest.mark.parametrize("objective", ["GRPO", "DAPO", "DrGRPO", "CISPO", "GSPO", "ReinforcePlusPlus", "PPO"])
@pytest.mark.parametrize("sampling", [{"top_p": 0.5}, {"top_k": 4}])
def test_truncated_supports_and_importance_weights_exclude_each_other(
    make: Any, tmp_path: Path, objective: str, sampling: Any
) -> None:
    with pytest.raises(PrefoptError, match="`tis`"):
        plan(make(f"objective={{name: {objective}, tis: 2}}", *online(tmp_path, sampling=sampling)))
    plan(make(f"objective={objective}", *online(tmp_path, sampling=sampling)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.dtype=bfloat16", "train.lr=1e-6"], "weights above 0.00026, so that about 1% of weights move"),
        (["policy.dtype=float16", "train.lr=1e-6"], "weights above 0.002, so that about 8% of weights move"),
        (["train.lr=1e-9"], "weights above 0.017, so that about 60% of weights move"),
        (["train.lr=1e-30"], "weights above 1.7e-23, so that about 0% of weights move"),
        (["train.lr=0"], "train.lr is 0: no weight will move"),
        (["objective.weight=0"], "the weight of every objective is 0"),
        (["train.warmup=40"], "warmup is 40 optimiser steps and the run has 10: the learning rate only gets to 25%"),
        (["evaluate.every=11"], "evaluate.every is 11 and the run has 10 steps"),
        (["train.checkpoint_every=11"], "train.checkpoint_every is 11"),
        (["track.every=11"], "no step is logged"),
        (["reference.every=11"], "the reference does not move"),
        (["source.split=[0.9, 0, 0.1]", "evaluate.every=5"], "there are none"),
    ],
)
def test_settings_that_cannot_mean_what_they_say_are_said(make: Any, overrides: list[str], message: str) -> None:
    assert not plan(make()).warnings
    assert message in " ".join(plan(make(*overrides)).warnings)


@pytest.mark.parametrize(
    "overrides",
    [
        ["policy.dtype=bfloat16", "train.lr=1e-3"],
        ["policy.dtype=bfloat16", "train.lr=1e-6", "policy.adapter={}"],
        ["policy.dtype=bfloat16", "train.lr=1e-6", "train.steps=0"],
        ["train.lr=1e-6"],
        ["train.lr=1e-8"],
        ["train.warmup=10"],
        ["evaluate.every=10"],
    ],
)
def test_settings_that_work_are_not_warned_of(make: Any, overrides: list[str]) -> None:
    assert not plan(make(*overrides)).warnings


def test_more_processes_than_prompts_of_a_step_are_said(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert "4 prompts for 8 processes: 4 of them have nothing" in plan(make()).warnings[0]


def test_sharding_on_one_process_is_said_to_divide_nothing(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "holds everything whole: start several with `torchrun" in plan(make("train.shard=fsdp2")).warnings[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not plan(make("train.shard=fsdp2")).warnings


@pytest.mark.parametrize("objective", ["KTO", "BCO"])
@pytest.mark.parametrize(("good", "bad", "warned"), [(40, 0, True), (0, 40, True), (39, 1, True), (30, 10, False)])
def test_one_class_of_labels_is_said_with_its_numbers(
    make: Any, objective: str, good: int, bad: int, warned: bool
) -> None:
    more = ["source.writers=mismatched"] if objective == "KTO" else []
    settings = make(f"objective={objective}", "source.split=[1, 0, 0]", *more, rows=labelled(good, bad))
    text = " ".join(plan(settings).warnings)
    assert (f"{good} completions to train on are desirable and {bad} undesirable" in text) == warned


@pytest.mark.parametrize("objective", ["EXOList", "AOTUnpaired", "BCO", "PRO", "LiPO"])
@pytest.mark.parametrize(
    ("scores", "count"),
    [
        ([1700000003.0, 1700000002.0, 1700000001.0], 40),
        ([1e9 - 10, 1e9 - 100, 1e9 - 150], 40),  # told apart, but 150 becomes 128
        ([3.0, 2.0, 1.0], 0),
        ([1e5 + 3, 1e5 + 2, 1e5 + 1], 0),
        ([0.3 + 1e-16, 0.3, 0.2], 0),
        ([1e-30, 2e-30, 3e-30], 0),
        ([1e-45, 2e-46, 3e-46], 40),  # 0, 0 and the smallest number
    ],
)
def test_scores_that_batches_cannot_tell_apart_are_counted(
    make: Any, objective: str, scores: list[float], count: int
) -> None:
    rows = [{"prompt": f"w{i}", "completions": [" w1", " w2", f" w3 w{i}"], "scores": scores} for i in range(40)]
    warnings = plan(make(f"objective={objective}", "source.split=[1, 0, 0]", rows=rows)).warnings
    assert [w for w in warnings if "float32" in w] == [
        w for w in warnings if w.startswith(f"{count} of 40 rows to train on have scores whose differences are lost")
    ]
    assert any("float32" in warning for warning in warnings) == (count > 0)


def test_scores_that_no_objective_reads_and_near_ties_are_not_warned_of(make: Any) -> None:
    rows = [{"prompt": f"w{i}", "completions": [" w1", f" w3 w{i}"], "scores": [1.7e9 + 1, 1.7e9]} for i in range(200)]
    assert not [w for w in plan(make(rows=rows)).warnings if "float32" in w]
    for row in rows[1:]:
        row["scores"] = [2, 1]
    warnings = plan(make("objective=PRO", "source.split=[1, 0, 0]", rows=rows)).warnings
    assert not [w for w in warnings if "float32" in w]


def test_held_out_rows_of_one_completion_measure_no_order(make: Any) -> None:
    settings = make("objective=KTO", "source.writers=mismatched", rows=labelled(20, 20))
    assert "have one completion each" in " ".join(plan(settings).warnings)


def test_one_prompt_goes_to_one_part_and_that_is_said(make: Any) -> None:
    """Which part it is depends on the prompt."""
    outcomes = Counter[str]()
    for prompt in ("w1", "w2", "w3 w4", "w5", "w6"):
        settings = make(rows=pairs(40, prompt=prompt))
        try:
            warnings = plan(settings).warnings
        except PrefoptError as error:
            outcomes[str(error).partition(":")[0]] += 1
        else:
            outcomes["said"] += any("test part has no row" in warning for warning in warnings)
    assert outcomes == {"said": 3, "source.split [0.5, 0.25, 0.25] leaves nothing to train on": 2}


def test_another_prompts_completion_wants_another_prompt(make: Any) -> None:
    rows = [row | {"prompt": "w1"} for row in labelled(20, 20)]
    with pytest.raises(PrefoptError, match="all 40 rows to train on have one prompt"):
        plan(make("objective=KTO", "source.writers=mismatched", "source.split=[1, 0, 0]", rows=rows))
    tasks = [{**row, "task": number} for number, row in enumerate(rows)]  # of that prompt, all the same
    with pytest.raises(PrefoptError, match="have one prompt"):
        plan(make("objective=KTO", "source.writers=mismatched", "source.split=[1, 0, 0]", rows=tasks))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completions": [" bad"], "scores": [1]},
        {"prompt": "p", "completions": [" best"], "ranks": [1]},
        {"prompt": "p", "completions": [" best", " unknown"], "scores": [9, None]},
    ],
)
def test_a_single_rating_is_neither_good_nor_bad(row: dict[str, Any]) -> None:
    counts: Counter[str] = Counter()
    for name in ("KTO", "BCO", "AOTUnpaired", "RPOUnpaired"):
        assert load_objective(name).needs.signs
    assert not list(select_checked([parse(row)], Needs(completions=1, scores=True, signs=True), "drop", counts))
    assert counts == {ALONE: 1}


@pytest.mark.parametrize(("label", "score"), [(True, 0.5), (False, -0.5)])
def test_a_label_is_its_own_sign(label: bool, score: float) -> None:
    row = parse({"prompt": "p", "completion": " c", "label": label})
    (kept,) = select_checked([row], Needs(completions=1, scores=True, signs=True), "drop", Counter())
    assert kept.scores == (score,)


def test_pairs_that_their_scores_turn_round_and_equal_ones_are_counted() -> None:
    rows = [
        parse({"prompt": "p", "chosen": " a", "rejected": " b", "score_chosen": s, "score_rejected": 0.5})
        for s in (0.1, 0.9)
    ]
    rows.append(parse({"prompt": "p", "chosen": " a", "rejected": " a"}))
    counts: Counter[str] = Counter()
    kept = list(select_checked(rows, Needs(completions=2, ordered=True), "drop", counts))
    assert [row.completions for row in kept] == [(" b", " a"), (" a", " b"), (" a", " a")]
    assert +counts == {AGAINST: 1, IDENTICAL: 1}


def test_epochs_are_of_the_rows_that_are_left(make: Any) -> None:
    rows = [row | ({"rejected": ""} if i % 4 else {}) for i, row in enumerate(pairs(80))]
    settings = make("source.split=[1, 0, 0]", "train.steps=null", "train.epochs=1", rows=rows)
    assert dry_run(settings).plan.steps == 5
    screen = io.StringIO()
    with_tokens(plan(settings), load_tokenizer(settings.policy), Console(file=screen, width=200))
    assert "20 rows, which are left to train on: 5 steps" in screen.getvalue()
    with pytest.raises(PrefoptError, match="batch_size is 32, and the data have 20 rows"):
        dry_run(make("source.split=[1, 0, 0]", "train.batch_size=32", rows=rows))


SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=16), Positions(16, True)),
        (RobertaConfig(**SMALL, max_position_embeddings=18), Positions(16, True)),
        (LlamaConfig(**SMALL, max_position_embeddings=16), Positions(16, False)),
    ],
    ids=lambda x: getattr(x, "model_type", ""),
)
def test_positions_are_those_that_can_be_used(tmp_path: Path, config: Any, positions: Positions) -> None:
    config.bos_token_id = config.eos_token_id = None
    config.save_pretrained(tmp_path)
    assert positions_of(str(tmp_path)) == positions


def _with_positions(folder: Path, table: bool) -> None:
    """Another configuration for the tiny model, with 16 positions; its weights are not read while planning."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"max_position_embeddings": 16}
    gpt2 = {"model_type": "gpt2", "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 60}
    file.write_text(json.dumps(gpt2 | {"architectures": ["GPT2LMHeadModel"]} if table else config))


LONG = " w1" * 20
LONG_PAIRS = [{**row, "chosen": LONG} for row in pairs()]


@pytest.mark.parametrize(
    ("rows", "more", "words"),
    [
        (
            [{**row, "chosen": LONG} for row in pairs()],
            [],
            r"row \S*d.jsonl:\d+: a prompt of 2 and a completion of 21 are 23 tokens",
        ),
        (
            pairs(),
            ["evaluate.sampling.max_tokens=15"],
            r"samples of \w+ rows: a prompt of 2 and up to 15 sampled are 17 tokens",
        ),
        (pairs(), ["rollouts"], r"rollouts: a prompt of 2 and up to 15 sampled are 17 tokens"),
    ],
)
def test_more_tokens_than_positions_are_refused_of_a_table_and_said_of_others(
    make: Any, tmp_path: Path, rows: Any, more: list[str], words: str
) -> None:
    if more == ["rollouts"]:
        more = ["objective=RLOO", *online(tmp_path, sampling={"max_tokens": 15})]
    settings = make(*more, rows=rows)
    _with_positions(tmp_path / "lm", table=False)
    lines = [line for line in describe_dry_run(dry_run(settings)) if "16 positions" in line]
    assert len(lines) >= 1
    assert all(line.startswith("warning: policy.model") for line in lines)
    _with_positions(tmp_path / "lm", table=True)
    with pytest.raises(PrefoptError, match=f"has 16 positions, and .*{words}"):
        dry_run(settings)
    shorter = ["source.max_completion_tokens=8", "evaluate.sampling.max_tokens=14"]
    more = [item.replace('"max_tokens": 15', '"max_tokens": 14') for item in more]
    assert not dry_run(make(*more, *shorter, rows=rows)).plan.warnings or rows[0]["chosen"] == LONG


def test_prompts_that_all_lose_their_beginning_are_said(make: Any) -> None:
    assert "prompts of train rows lose their beginning" in " ".join(
        dry_run(make("source.max_prompt_tokens=1")).plan.warnings
    )


def test_an_encoder_reads_no_more_than_it_has_positions_for(make: Any, tmp_path: Path) -> None:
    config = RobertaConfig(**SMALL, max_position_embeddings=18)
    config.save_pretrained(tmp_path / "encoder")
    more = [f"source.embeddings={{model: {tmp_path}/encoder}}", "objective=RPO"]
    with pytest.raises(PrefoptError, match=r"embeddings.max_tokens is 256, .* has 16 positions: write 16"):
        plan(make(*more))


def test_a_run_to_compare_with_must_share_a_prompt(make: Any, tmp_path: Path) -> None:
    more = [f"evaluate.judge={tmp_path}/rule.py:r", f"evaluate.against={tmp_path}/other"]
    for prompt, shared in (("w9 w9 w9", False), (None, True)):
        settings = make(*more)
        held_out = plan(make()).data.test
        sample = {"prompt": prompt or held_out[0].prompt, "completion": " w1", "ended": True}
        folder = tmp_path / "other" / "evaluations"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test-step-1.json").write_text(Evaluation({}, {}, samples=[sample]).to_json())
        if shared:
            plan(settings)
        else:
            with pytest.raises(PrefoptError, match=r"none of the \d+ test rows has a prompt of"):
                plan(settings)


def test_pairs_that_agree_as_far_as_they_are_read_are_said(make: Any) -> None:
    same = " w5 w6 w7 w8"
    rows = [{**row, "chosen": same + row["chosen"], "rejected": same + row["rejected"]} for row in pairs()]
    assert not dry_run(make(rows=rows)).plan.warnings
    warnings = dry_run(make("source.max_completion_tokens=4", rows=rows)).plan.warnings
    assert any("rows to train on have completions that are the same" in warning for warning in warnings)


def test_a_batch_of_rollouts_counts_distinct_prompts(make: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "w1 w2"} for _ in range(40)]
    with pytest.raises(PrefoptError, match="the data have 1 distinct prompt: make it smaller, or draw more"):
        plan(make("objective=RLOO", "source.split=[1, 0, 0]", *online(tmp_path), rows=rows))


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({}, ""),
        ({"question": "x", "system": "y"}, "question, system"),
        ({"label": 0}, "label"),  # of a pair, whose better answer is the chosen one
        ({"tools": "[]"}, "tools"),  # of a text prompt, which no template writes
        ({"votes": [[1, 0], [1, 0]]}, ""),  # which are what orders the answers
        ({"origin": ["dataset", "policy"], "notes": "seen", "group": "a", "split": "train"}, ""),
    ],
)
def test_columns_that_nothing_reads_are_named_once(make: Any, columns: dict[str, Any], names: str) -> None:
    rows = [row | columns | ({"group": str(i)} if "group" in columns else {}) for i, row in enumerate(pairs())]
    said = [warning for warning in plan(make(rows=rows)).warnings if "nothing reads" in warning]
    assert [warning.partition(". ")[0] for warning in said] == [f"nothing reads the columns {names}"] * bool(names)
    assert all("source: {adapt" in warning for warning in said)


def test_what_an_environment_of_evaluations_may_read_is_not_named(make: Any, tmp_path: Path) -> None:
    (tmp_path / "guess.py").write_text(
        "from prefopt import Turn\n\n\nclass Guess:\n    def reset(self, row, seed):\n        self.number = row['number']\n\n"
        "    def step(self, text, *, truncated):\n        return Turn(done=True)\n"
    )
    rows = [row | {"number": number} for number, row in enumerate(pairs())]
    warnings = plan(make(f"evaluate.environment={{name: '{tmp_path}/guess.py:Guess'}}", rows=rows)).warnings
    assert not any("nothing reads" in warning for warning in warnings)


def test_a_column_that_nothing_reads_and_one_that_it_may_be(make: Any) -> None:
    rows = [{"promtp" if name == "prompt" else name: value for name, value in row.items()} for row in pairs()]
    assert any("the columns promtp. Did you mean 'prompt'? If" in warning for warning in plan(make(rows=rows)).warnings)


def test_feedback_may_read_any_column(make: Any, tmp_path: Path) -> None:
    settings = make(f"evaluate.gold={tmp_path}/rule.py:r", rows=pairs(question="x"))
    assert not any("nothing reads" in warning for warning in plan(settings).warnings)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({}, ""),
        ({"name": "Ann"}, ""),
        ({"weight": 0, "name": "Ann", "refusal": "no"}, "refusal, weight"),
        ({"reasoning_content": ""}, ""),  # these are counted word by word
    ],
)
def test_keys_of_messages_that_the_template_does_not_read_are_named(
    make: Any, keys: dict[str, Any], named: str
) -> None:
    template = "{% for m in messages %}{{ m.role }} {{ m.name }} {{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2", **keys}]
    for settings in (make(), make("evaluate.metrics.m=rule.py:r")):
        said = list(unread_keys(settings, template, [parse({"messages": messages})]))
        expected = [f"messages have the keys {named}, which the chat template does not read"]
        assert [one.partition(":")[0] for one in said] == expected * bool(named and not settings.evaluate.metrics)


@pytest.mark.parametrize(
    ("prompt", "warned"),
    [
        (json.dumps([{"role": "user", "content": "w1"}]), True),
        (str([{"content": "w1", "role": "user"}]), True),
        ('[{"city": "Rome"}] is a list', False),
        ("write [{'role': 'user'}] down", False),
    ],
)
def test_messages_that_are_written_down_as_text_are_said(make: Any, prompt: str, warned: bool) -> None:
    warnings = plan(make(rows=[{**row, "prompt": f"{prompt} {i}"} for i, row in enumerate(pairs())])).warnings
    assert any("looks like a list of messages" in warning for warning in warnings) == warned


def judged(model: Any, words: int, *, key: str = "evaluate.judge", **more: Any) -> str:
    """An override: a judge by a rubric of so many words beside the prompt and a completion."""
    rubric = {"question": "w1 " * words + "{{ prompt }} {{ completion }}", "labels": ["w3", "w4"], "answer": " "}
    return f"{key}={json.dumps({'name': 'Judge', 'mode': 'pointwise', 'model': str(model), 'rubric': rubric} | more)}"


def test_a_local_judge_is_held_against_its_positions_with_the_number_of_tokens(make: Any, model_folder: Path) -> None:
    # A prompt of 2 words, a completion of at most 8, and room for a label of 2 characters, in 64 positions.
    assert not [w for w in plan(make(judged(model_folder, 52))).warnings if "judge" in w]
    (warning,) = [w for w in plan(make(judged(model_folder, 53))).warnings if "judge" in w]
    assert re.search(
        r"has 64 positions, and a question about .* may take 65 tokens.*lower evaluate.sampling.max_tokens", warning
    )
    with pytest.raises(
        PrefoptError, match="64 positions, and its shortest question takes 65 tokens, so that there would be no"
    ):
        plan(make(judged(model_folder, 60)))


def test_a_local_judge_in_a_panel_that_scores_rollouts_is_held_against_its_positions(
    make: Any, model_folder: Path
) -> None:
    member = json.loads(judged(model_folder, 60).partition("=")[2])
    panel = json.dumps({"name": "Panel", "members": [member, member]})
    rollouts = ("objective=RLOO", "source.rollouts={completions: 2}", f"feedback={panel}")
    with pytest.raises(PrefoptError, match=r"feedback: the judge .* its shortest question takes 65 tokens"):
        plan(make(*rollouts))


@pytest.mark.parametrize(("table", "said"), [(True, "it reads a part"), (False, "beyond its positions it computes")])
def test_a_reward_model_of_rollouts_is_held_against_its_positions(
    make: Any, tmp_path: Path, table: bool, said: str
) -> None:
    reward = shutil.copytree(tmp_path / "lm", tmp_path / "reward")
    _with_positions(reward, table)
    config = json.loads((reward / "config.json").read_text())
    kind = "GPT2" if table else "Llama"
    config |= {"architectures": [f"{kind}ForSequenceClassification"], "id2label": {"0": "r"}, "label2id": {"r": 0}}
    (reward / "config.json").write_text(json.dumps(config))
    member = {"name": "RewardModel", "model": str(reward)}
    feedback = json.dumps({"name": "Panel", "members": [{"name": f"{tmp_path}/rule.py:r"}, member]})

    def warnings(most: int) -> list[str]:
        rollouts = json.dumps({"completions": 2, "sampling": {"max_tokens": most}})
        settings = make("objective=RLOO", f"source.rollouts={rollouts}", f"feedback={feedback}")
        return [one for one in dry_run(settings).plan.warnings if "reward model" in one]

    assert not warnings(14)
    (warning,) = warnings(15)
    assert "has 16 positions, and rollouts: a prompt of 2 and up to 15 sampled are 17 tokens" in warning
    assert said in warning and "lower source.rollouts.sampling.max_tokens" in warning


ELSEWHERE: dict[str, dict[str, Any]] = {
    "HelpSteer2 in part": {"response": "a", "helpfulness": 3, "correctness": 4},
    "a pair with a margin": {"answer_a": "a", "answer_b": "b", "margin_of_a": 1},
    "a list": {"replies": [{"text": "a", "model": "m", "place": 1.0}], "turns": 1},
    "PKU-SafeRLHF in part": {"response_0": "a", "response_1": "b", "better_response_id": 0},
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_rows_with_their_completions_in_other_columns_are_refused_with_the_columns_and_adapt(
    make: Any, name: str
) -> None:
    rows = [{"prompt": f"w{i}", **ELSEWHERE[name]} for i in range(30)]
    named = rf"(?s){re.escape(str(sorted(ELSEWHERE[name])))}.*source: \{{adapt: mine\.py:pair\}}"
    for objective in ("DPO", "SFT", "BradleyTerry"):
        with pytest.raises(PrefoptError, match=named):
            plan(make(f"objective={objective}", rows=rows))
    file = Path(make(rows=rows).source.data[0])
    with pytest.raises(PrefoptError, match=named):
        to_label(load_examples(file), LabelRecipe(source={"data": str(file)}, feedback="rule.py:r"))
    with pytest.raises(PrefoptError, match=named):
        load_rows(Data(data=str(file)))


def test_a_judge_is_held_against_rows_as_adapt_makes_them(make: Any, tmp_path: Path) -> None:
    file = make(rows=[{"prompt": f"w{i}", **ELSEWHERE["PKU-SafeRLHF in part"]} for i in range(3)]).source.data[0]
    change = tmp_path / "change.py"
    change.write_text(
        "def pair(row):\n    return {'prompt': row['prompt'], 'chosen': row['response_0'], 'rejected': row['response_1']}"
    )
    rows = load_rows(Data(data=file, adapt=f"{change}:pair"))
    assert [row.completions for row in rows] == [("a", "b")] * 3
