"""Runs from Python: objects in the place of names, results as tables, a policy to go on with."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from _tiny import tiny_model, tiny_pairs
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import prefopt
from prefopt import PrefoptError, load_recipe
from prefopt.objectives.preference.dpo import DPO
from prefopt.support.fingerprints import fingerprint_weights

matplotlib.use("Agg")
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Shifted(DPO):
    """DPO with a name of its own."""


@dataclass
class Words:
    weight: float = 1.0

    def __call__(self, prompts: Any, completions: Any, rows: Any) -> Any:
        return [[self.weight * len(text.split()) for text in texts] for texts in completions]


@dataclass
class Patience:
    steps: int
    tokenizer: Any

    def __call__(self, step: Any) -> str | None:
        assert self.tokenizer.eos_token == "<eos>"
        return "enough" if step.number >= self.steps else None


def first_letter(prompts: Any, completions: Any, rows: Any) -> Any:
    return [[float(text.startswith("w")) for text in texts] for texts in completions]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tiny_model(tmp_path / "lm")
    tiny_pairs(tmp_path / "pairs.jsonl")
    return tmp_path


def tree(home: Path, **more: Any) -> dict[str, Any]:
    rows = [json.loads(line) for line in (home / "pairs.jsonl").read_text().splitlines()]
    return {
        "policy": {"model": home / "lm"},
        "source": {"data": rows},
        "objective": "DPO",
        "train": {"steps": 2, "batch_size": 8, "lr": 1e-3, "threads": 1},
        "evaluate": {"prompts": 3, "sampling": {"max_tokens": 4}},
        "track": {"folder": str(home / "runs")},
    } | more


def test_from_a_list_of_dicts_to_a_policy_that_transformers_samples_from(home: Path) -> None:
    result = prefopt.run(tree(home), "policy.adapter={r: 2, alpha: 4}", console=QUIET)
    history = result.metrics
    assert list(history.index) == [0, 1, 2] and history["loss"].notna().tolist() == [False, True, True]
    assert history["test/accuracy"].notna().tolist() == [True, False, True]
    assert history["loss"].plot() is not None
    samples = result.samples()
    assert len(samples) == 3 and {"prompt", "completion", "length", "kl"} <= set(samples.columns)
    policy = result.policy()
    assert policy.tokenizer is not None and not policy.training
    inputs = policy.tokenizer("w1 w2", return_tensors="pt", return_token_type_ids=False)
    model: Any = policy.model
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > 2
    assert type(model).__name__ == "LlamaForCausalLM"


def test_objects_and_names_give_the_same_run(home: Path) -> None:
    plain = tree(home, source={"data": str(home / "pairs.jsonl")})
    named = prefopt.run(plain, "objective={name: DPO, beta: 0.3}", console=QUIET)
    loaded = {
        "model": AutoModelForCausalLM.from_pretrained(home / "lm"),
        "tokenizer": AutoTokenizer.from_pretrained(home / "lm"),
    }
    before = fingerprint_weights(loaded["model"])
    given = prefopt.run(tree(home, policy=loaded), objective=DPO(beta=0.3), console=QUIET)
    assert fingerprint_weights(loaded["model"]) == before
    columns = ["loss", "grad_norm", "test/accuracy", "test/kl"]
    assert named.metrics[columns].equals(given.metrics[columns])
    assert fingerprint_weights(named.policy().model) == fingerprint_weights(given.policy().model)


def test_what_an_object_was_is_in_the_manifest_and_a_resume_wants_it_again(home: Path) -> None:
    objects: dict[str, Any] = {"objective": Shifted(0.2), "metrics": {"words": Words(2), "starts": first_letter}}
    settings = tree(home)
    result = prefopt.run(settings, "train.checkpoint_every=1", **objects, console=QUIET)
    plugins = json.loads((result.folder / "manifest.json").read_text())["plugins"]
    assert sorted(name.partition(": ")[2].partition(",")[0] for name in plugins) == [
        "40 rows of a list",
        "test_python.Shifted",
        "test_python.Words",
        "test_python.first_letter",
    ]
    text = (result.folder / "recipe.yaml").read_text()
    assert "name: '<python object: test_python.Words, " in text
    for name in ("summary.json", "trained.json"):
        (result.folder / name).unlink()
    with pytest.raises(PrefoptError, match=r"a recipe file cannot hold\. Pass the object again"):
        prefopt.run(load_recipe(result.folder / "recipe.yaml"), folder=result.folder, resume=True, console=QUIET)
    other = objects | {"objective": Shifted(0.3)}
    with pytest.raises(PrefoptError, match="another recipe; it differs in objective"):
        prefopt.run(settings, "train.checkpoint_every=1", **other, folder=result.folder, resume=True, console=QUIET)
    again = prefopt.run(
        settings, "train.checkpoint_every=1", **objects, folder=result.folder, resume=True, console=QUIET
    )
    assert again.after.keys() == result.after.keys()


class Letters:
    """Differs from sample to sample, as the number of words does not."""

    def __call__(self, prompts: Any, completions: Any, rows: Any) -> Any:
        return [[len(text) for text in texts] for texts in completions]


def test_metrics_of_ones_own_have_intervals_everywhere(home: Path) -> None:
    result = prefopt.run(
        tree(home), "evaluate.every=1", "evaluate.completions=2", metrics={"words": Letters}, console=QUIET
    )
    assert result.before["words"].low <= result.before["words"].value <= result.before["words"].high
    assert "words" in result.change and result.numbers["words_missing"] == (0, 0)
    assert result.metrics["validation/words"].notna().all()
    samples = result.samples()
    assert (samples["words"] == [len(text) for text in samples["completion"]]).all()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"length": Words}, "evaluate.metrics.length: there is a built-in metric of this name"),
        ({"a/b": Words}, "letters, digits and _ alone"),
        ({"words": len}, r"evaluate\.metrics\.words: .*len.* is called with \(prompts, completions, rows\), and its"),
        ({"words": 3}, "evaluate.metrics.words"),
        ({"words": {"name": Words, "wieght": 3}}, "has no field 'wieght'. Did you mean 'weight'"),
    ],
)
def test_metrics_that_are_refused(home: Path, metrics: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        prefopt.run(tree(home), metrics=metrics, console=QUIET)


def test_why_a_run_stops_is_shown(home: Path) -> None:
    shown = Console(record=True, file=io.StringIO(), width=100)
    prefopt.run(
        tree(home), callbacks=lambda step: "enough" if step.number == 2 else None, folder=home / "r", console=shown
    )
    assert "stopped: " in (text := shown.export_text()) and "enough" in text


def test_a_callback_stops_the_run_like_a_limit(home: Path) -> None:
    seen: list[int] = []
    callbacks = [lambda step: seen.append(step.number), {"name": Patience, "steps": 2}]
    result = prefopt.run(tree(home), "train.steps=5", callbacks=callbacks, console=QUIET)
    assert seen == [1, 2] and result.metrics.index[-1] == 2
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["stopped"] == "step 2: enough"


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: None, r"train\.callbacks\.0: .* is called with \(step\), and its parameters are \(\)"),
        (lambda step: 3, r"returned 3 at step 1; a callback returns a text, the reason to stop"),
        (lambda step: 1 / 0, r"at step 1, raised ZeroDivisionError: division by zero \(test_python\.py:\d+\)"),
    ],
)
def test_callbacks_that_are_refused(home: Path, callback: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        prefopt.run(tree(home), callbacks=callback, console=QUIET)


def test_feedback_and_samplers_are_objects_too(home: Path) -> None:
    drawn = []

    @dataclass
    class Counting:
        policy: Any
        accelerator: Any

        def __call__(self, model: Any, prompt_ids: Any, completions: Any, settings: Any, seeds: Any) -> Any:
            assert self.policy is model or not isinstance(model, type(self.policy))
            drawn.append(len(prompt_ids))
            return prefopt.policy.TransformersSampler()(model, prompt_ids, completions, settings, seeds)

    rollouts = {"sampler": Counting, "completions": 2, "sampling": {"max_tokens": 3}}
    prompts = [{"prompt": f"w{number} w2"} for number in range(40)]
    settings = tree(home, source={"data": prompts, "rollouts": rollouts}, objective="RLOO")
    result = prefopt.run(settings, feedback=Words(0.5), console=QUIET)
    assert drawn and result.metrics["rollouts/reward"].max() <= 1.5


def test_two_runs_leave_each_other_and_the_caller_alone(home: Path) -> None:
    torch.set_num_threads(1)
    state = torch.get_rng_state()
    precisions = []
    for precision, threads in (("bf16", 2), ("fp32", 1)):
        fixed = f"train.threads={{decoding: {threads}, scoring: {threads}, training: {threads}}}"
        result = prefopt.run(tree(home), f"train.precision={precision}", fixed, console=QUIET)
        device = json.loads((result.folder / "manifest.json").read_text())["device"]
        precisions.append((device["precision"], *set(device["threads"].values())))
        assert torch.get_num_threads() == 1 and torch.equal(torch.get_rng_state(), state)
    assert precisions == [("bf16", 2), ("no", 1)]


def test_overrides_and_folders_are_not_mixed_up(home: Path) -> None:
    with pytest.raises(PrefoptError, match="and a run folder as folder="):
        prefopt.run(tree(home), home / "there")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objective": 3}, r"objective= \(objective\) takes a name, a class or object with `needs`"),
        ({"data": 3}, r"data= \(source.data\) takes names of data, a list of dicts"),
        ({"callbacks": 5}, r"callbacks= \(train.callbacks\) takes a function of a Step"),
        ({"feedback": 4}, r"feedback= \(feedback\) takes a name, a function of"),
        ({"environment": 4}, r"environment= \(source.rollouts.environment\) takes a name, or a class"),
        ({"metrics": first_letter}, r"metrics= \(evaluate.metrics\) takes a mapping of names to functions"),
    ],
)
def test_what_is_nothing_of_the_kind_is_refused_with_what_would_do(home: Path, wrong: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        prefopt.run(tree(home), folder=home / "run", console=QUIET, **wrong)
    assert not (home / "run").exists()
