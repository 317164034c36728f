"""Training in fp16: as in fp32 to rounding; gradients that overflow are left out of the update, and what cannot be helped stops."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from _tiny import tiny_model, tiny_pairs
from accelerate import Accelerator
from safetensors.torch import load_file
from updates import CASES, Batches, make_policy, random_batch, seven_rows, weights

from prefopt import PrefoptError, load_recipe, recipe, run
from prefopt.objectives.terms import Term
from prefopt.policy import make_reference
from prefopt.support.errors import DivergenceError
from prefopt.training.devices import computing, end_processes
from prefopt.training.loop import Trainer
from prefopt.types import Batch, Loss, Needs, Outputs, Targets

FIRST = 2.0**16
"""The first scale."""


@dataclass(frozen=True)
class Weighted:
    """−score · log-prob of each completion: as large a gradient as its score."""

    needs = Needs(completions=2)

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        return Targets()

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        assert batch.scores is not None
        return Loss(-(batch.scores * policy.sum()).sum(-1))


def scored(seed: int, first: float = 1.0) -> Batch:
    """Seven rows whose scores are ±½ but that of the first completion."""
    batch = random_batch(7, seed)
    assert batch.scores is not None
    scores = batch.scores.clone()
    scores[0, 0] = first
    return replace(batch, scores=scores)


def trainer(
    accelerator: Accelerator, terms: Sequence[Term], batches: Sequence[Batch], case: str, **settings: Any
) -> Trainer:
    """Of weights in fp32, with a step for each batch."""
    policy = make_policy(case, torch.float32)
    reference = make_reference(policy, recipe.Reference(), recipe.Policy(model=("none",)))
    defaults = {"lr": 3e-3, "schedule": "constant", "warmup": 0, "batch_size": 7, "micro_batch_size": 7}
    spec = recipe.Train(steps=len(batches), **(defaults | settings))  # type: ignore[arg-type]
    return Trainer(policy, terms, Batches(batches), spec, len(batches), accelerator, reference)


@pytest.fixture
def fp16() -> Iterator[Accelerator]:
    with computing(recipe.Train(steps=1, precision="fp16")) as accelerator:
        yield accelerator


def test_arithmetic_is_in_fp16_on_cpus_too(fp16: Accelerator) -> None:
    """accelerate 1.15 computes in fp32 there, without a word."""
    with fp16.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16
    made = trainer(fp16, CASES["dpo"], seven_rows(), "dpo")
    kinds = []
    made.model.causal.lm_head.register_forward_hook(lambda *call: kinds.append(call[-1].dtype))
    made.model.causal.model.layers[0].mlp.register_forward_hook(lambda *call: kinds.append(call[-1].dtype))
    next(iter(made))
    assert kinds and set(kinds) == {torch.float16}
    assert {weight.dtype for weight in made.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("case", ["dpo", "coupled+sft", "ppo"])
def test_fp16_learns_as_fp32_does_whatever_the_split(case: str) -> None:
    found = {}
    for precision, micro in (("fp32", 7), ("fp16", 7), ("fp16", 2)):
        with computing(recipe.Train(steps=1, precision=precision)) as accelerator:
            made = trainer(accelerator, CASES[case], seven_rows(case), case, micro_batch_size=micro, passes=2)
            lines = [[step.metrics[name] for name in ("loss", "grad_norm")] for step in made]
            found[precision, micro] = (
                torch.tensor(lines),
                weights(made.model) - weights(make_policy(case, torch.float32)),
            )
    (exact, moved), *others = found.values()
    for lines, update in others:
        assert torch.allclose(lines, exact, rtol=5e-3)
        assert 0 < (update - moved).norm() < 0.05 * moved.norm()


def test_gradients_that_overflow_change_no_weight_and_are_counted(fp16: Accelerator) -> None:
    batches = [random_batch(7, 0).rows(torch.zeros(0, dtype=torch.long)), scored(1), scored(2, 1e9), scored(3)]
    made = trainer(fp16, [Term(Weighted(), 0.1)], batches, "dpo", schedule="linear")
    after = []
    steps = []
    for step in made:
        made.check_finite()
        after.append(weights(made.model).clone())
        steps.append(step.metrics)
    assert torch.equal(after[0], weights(make_policy("dpo", torch.float32)))
    moved = [not torch.equal(a, b) for a, b in pairwise(after)]
    assert moved == [True, False, True]
    assert [step["overflow"] for step in steps[1:]] == [0, 1, 0]
    assert [step["loss_scale"] for step in steps[1:]] == [FIRST, FIRST, FIRST / 2]
    assert math.isnan(steps[2]["grad_norm"]) and math.isfinite(steps[2]["loss"])
    assert [step["lr"] for step in steps] == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3])  # as of any other run


def test_an_update_after_one_that_was_left_out_is_as_if_that_had_not_been(fp16: Accelerator) -> None:
    plain, late = (
        trainer(fp16, [Term(Weighted(), 0.1)], batches, "dpo") for batches in ([scored(1)], [scored(2, 1e9), scored(1)])
    )
    assert list(plain)[-1].metrics["loss"] == list(late)[-1].metrics["loss"]
    start = weights(make_policy("dpo", torch.float32))
    assert (weights(plain.model) - weights(late.model)).norm() < 1e-3 * (weights(plain.model) - start).norm()


def test_gradients_too_large_for_every_scale_stop_the_run(fp16: Accelerator) -> None:
    """At the scale 1, which is 2^16 halved 16 times."""
    made = trainer(fp16, [Term(Weighted(), 0.1)], [scored(0, 1e9)] * 20, "dpo")
    with pytest.raises(
        DivergenceError, match=r"step 17: .* the gradient's norm (inf|nan): .*65504.*train\.precision: fp32"
    ):
        list(made)
    assert torch.equal(weights(made.model), weights(make_policy("dpo", torch.float32)))


def test_a_loss_that_is_not_finite_stops_the_run_at_once(fp16: Accelerator) -> None:
    with pytest.raises(DivergenceError, match="step 1: the loss is"):
        list(trainer(fp16, [Term(Weighted(), 0.1)], [scored(0, math.inf)], "dpo"))


def test_a_weight_of_16_bits_that_is_trained_is_refused(fp16: Accelerator) -> None:
    policy = make_policy("dpo", torch.float32)
    policy.causal.model.norm.half()
    with pytest.raises(
        PrefoptError, match=r"weights of 32 bits, and \S*norm.weight is torch.float16: set policy.dtype"
    ):
        Trainer(policy, CASES["dpo"], Batches(seven_rows()), recipe.Train(steps=1), 1, fp16)


@pytest.mark.parametrize("policy", [{}, {"adapter": {"r": 4}, "dtype": "float16"}], ids=["whole", "LoRA on fp16"])
def test_a_resumed_run_has_the_same_numbers_and_scale(policy: dict[str, Any], tmp_path: Path) -> None:
    content = {
        "policy": {"model": str(tiny_model(tmp_path / "lm"))} | policy,
        "source": {"data": str(tiny_pairs(tmp_path / "pairs.jsonl", rows=60))},
        "objective": {"name": "DPO", "weight": 50},  # the first updates overflow
        "train": {
            "steps": 8,
            "batch_size": 8,
            "lr": 1e-2,
            "checkpoint_every": 4,
            "keep_checkpoints": 2,
            "precision": "fp16",
        },
        "evaluate": {"prompts": 2, "sampling": {"max_tokens": 4}},
    }
    content["train"]["limits"] = {"loss_scale": [1, None], "overflow": [None, 1]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    whole = run(load_recipe(tmp_path / "recipe.yaml"), folder=tmp_path / "run").folder
    halfway = shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(halfway / "checkpoints" / "step-000008")
    for file in (
        "summary.json",
        "trained.json",
        *(f.relative_to(halfway) for f in halfway.glob("evaluations/*-step-000008*")),
    ):
        (halfway / file).unlink()
    shutil.rmtree(halfway / "policy")
    run(load_recipe(halfway / "recipe.yaml"), folder=halfway, resume=True)

    def lines(folder: Path) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "seconds"} for line in found if "loss" in line]

    steps = lines(whole)
    assert len(steps) == 8 and lines(halfway) == steps
    assert steps[0]["overflow"] == 1 and 0 in [step["overflow"] for step in steps] and steps[-1]["loss_scale"] < FIRST
    assert json.loads((whole / "manifest.json").read_text())["device"]["precision"] == "fp16"
    for file in (whole / "policy").glob("*.safetensors"):
        first, second = (load_file(folder / "policy" / file.name) for folder in (whole, halfway))
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_processes_leave_an_update_out_together(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        __file__,
        str(tmp_path),
    ]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["own"] != second["own"]  # the row whose gradient overflows is with one of them
    assert first["steps"] == second["steps"] == [(0, FIRST), (1, FIRST), (0, FIRST / 2)]
    assert torch.equal(first["weights"], second["weights"])


def main() -> None:
    """Of one process: which loss it had for the batch that overflows, what its steps reported, and its weights."""
    with computing(recipe.Train(steps=1, precision="fp16")) as accelerator:
        made = trainer(accelerator, [Term(Weighted(), 0.1)], [scored(1), scored(2, 1e9), scored(3)], "dpo")
        own, scaled = [], made.loss_scale.scaled
        made.loss_scale.scaled = lambda loss: (own.append(float(loss)), scaled(loss))[1]  # type: ignore[method-assign]
        steps = [(step.metrics["overflow"], step.metrics["loss_scale"]) for step in made]
        found = {"own": own[1], "steps": steps, "weights": weights(made.model)}
        torch.save(found, Path(sys.argv[1]) / f"{accelerator.process_index}.pt")
    end_processes()


if __name__ == "__main__":
    main()
