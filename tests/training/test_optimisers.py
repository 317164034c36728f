"""Optimisers by name and by path: exact whatever the split, the same after a resume; and whether weights of 16 bits move."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from _tiny import tiny_model, tiny_pairs
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from updates import make_policy, seven_rows, train, update

from prefopt import PrefoptError, load_recipe, recipe, run
from prefopt.training import optimisers
from prefopt.training.optimisers import LowPrecisionWeights, check_training, make_optimizer, parameter_groups
from prefopt.training.schedules import make_schedule


def test_the_share_of_weights_that_moved_is_that_of_weights_that_differ() -> None:
    model = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False)]).bfloat16()
    watched = LowPrecisionWeights.of(model)
    before = watched.copy()
    with torch.no_grad():
        model[0].weight[0] += 1  # 3 of 8
        model[1].weight[:] += 2**-20  # rounded away
    assert watched.moved_since(before) == 3 / 8


def test_weights_of_full_precision_and_frozen_ones_are_not_watched() -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 1).half().requires_grad_(False)])
    assert LowPrecisionWeights.of(model).copy() == []


def test_of_a_large_model_evenly_spread_weights_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisers, "WATCHED", 100)
    model = nn.Linear(64, 64, bias=False).half()
    watched = LowPrecisionWeights.of(model)
    before = watched.copy()
    assert 90 <= sum(map(len, before)) <= 100
    with torch.no_grad():
        model.weight[:32] += 1
    assert watched.moved_since(before) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("lr", "low", "high"), [(1e-12, 0, 0), (1.0, 0.8, 1)])
def test_a_step_of_low_precision_weights_logs_how_many_it_moved(lr: float, low: float, high: float) -> None:
    _, steps = train("dpo", torch.bfloat16, 7, seven_rows(), steps=2, lr=lr)
    assert all(low <= step.metrics["weights_moved"] <= high for step in steps)


def test_a_step_of_full_precision_weights_logs_none() -> None:
    assert "weights_moved" not in train("dpo", torch.float32, 7, seven_rows(), steps=1)[1][0].metrics


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 6e4), ("bfloat16", 3.38e38), ("float32", 3.4e38)])
@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_a_number_that_no_weight_can_be_is_refused_and_the_largest_one_is_a_step(dtype, largest, key) -> None:
    weight = nn.Parameter(torch.ones(2, dtype=getattr(torch, dtype)))
    weight.grad = torch.zeros_like(weight)
    groups = [{"params": [weight]}]
    make_optimizer(groups, recipe.Train(steps=1, optimizer="sgd", **{key: largest})).step()
    if dtype != "float32":  # a recipe holds no larger one
        with pytest.raises(
            PrefoptError, match=rf"train\.{key} is 3\.4e\+38, and a weight of torch\.{dtype} holds no such"
        ):
            make_optimizer(groups, recipe.Train(steps=1, optimizer="sgd", **{key: 3.4e38}))


OPTIMISERS = {
    "adamw": "adamw",
    "sgd": {"name": "sgd", "momentum": 0.9},
    "rmsprop": "rmsprop",
    "adafactor": "adafactor",
    "muon": "muon",
    "by path": "torch.optim:NAdam",
    "by path, with fields": {"name": "torch.optim:RAdam", "betas": [0.8, 0.9]},
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("micro", [2, 3])
def test_an_update_does_not_depend_on_the_split_of_its_batch(name: str, micro: int) -> None:
    settings = {"optimizer": OPTIMISERS[name], "lr": 1e-2, "weight_decay": 0.01}
    whole = update("dpo", torch.float64, 7, seven_rows(), **settings)
    pieces = update("dpo", torch.float64, micro, seven_rows(), **settings)
    assert whole.norm() > 1e-4
    # Muon orthogonalises in bf16, where rounding may go the other way.
    assert float((whole - pieces).norm() / whole.norm()) <= (1e-2 if name == "muon" else 1e-7)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_resumed_run_has_the_same_numbers_and_weights(name: str, tmp_path: Path) -> None:
    whole = resumable(tmp_path, OPTIMISERS[name])
    halfway = shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(halfway / "checkpoints" / "step-000004")
    for file in ("summary.json", "trained.json", "evaluations/test-step-000004.json"):
        (halfway / file).unlink()
    shutil.rmtree(halfway / "policy")
    run(load_recipe(halfway / "recipe.yaml"), folder=halfway, resume=True)

    def lines(folder: Path) -> list[tuple[float, ...]]:
        found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in found if "loss" in line]

    assert len(lines(whole)) == 4 and lines(halfway) == lines(whole)
    first, second = (load_file(folder / "policy" / "model.safetensors") for folder in (whole, halfway))
    assert all(torch.equal(first[key], second[key]) for key in first)


def resumable(home: Path, optimizer: object) -> Path:
    """A finished run with checkpoints at steps 2 and 4."""
    content = {
        "policy": {"model": str(tiny_model(home / "lm"))},
        "source": {"data": str(tiny_pairs(home / "pairs.jsonl", rows=60))},
        "objective": "DPO",
        "train": {
            "steps": 4,
            "batch_size": 8,
            "lr": 1e-2,
            "checkpoint_every": 2,
            "keep_checkpoints": 2,
            "schedule": "wsd",
        },
        "evaluate": {"prompts": 0},
    }
    content["train"]["optimizer"] = optimizer  # type: ignore[index]
    (home / "recipe.yaml").write_text(json.dumps(content))
    return run(load_recipe(home / "recipe.yaml"), folder=home / "run").folder


def test_muon_trains_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    policy, settings = make_policy("ppo", torch.float64), recipe.Train(steps=1, optimizer="muon", critic_lr=0.5)
    optimizer = make_optimizer(parameter_groups(policy, settings), settings)
    muon, adamw = optimizer.parts  # type: ignore[attr-defined]
    names = {id(p): name for name, p in policy.named_parameters()}
    by_muon, by_adamw = (
        {names[id(p)] for group in part.param_groups for p in group["params"]} for part in (muon, adamw)
    )
    assert "model.model.layers.0.self_attn.q_proj.weight" in by_muon and len(by_muon) == 14
    assert {"model.model.embed_tokens.weight", "model.model.norm.weight", "critic.linear.weight"} <= by_adamw
    assert by_muon | by_adamw == set(names.values()) and not by_muon & by_adamw
    assert [group["lr"] for group in optimizer.param_groups] == [settings.lr, settings.lr, 0.5]


def test_muons_step_is_torchs_and_a_schedule_moves_both() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(6, 4), nn.Embedding(5, 3)])
    twin = copy.deepcopy(layers)
    settings = recipe.Train(steps=4, optimizer="muon", lr=0.1, weight_decay=0.2, schedule="linear", warmup=0)
    optimizer = make_optimizer(parameter_groups(layers, settings), settings)
    schedule = make_schedule(optimizer, settings, 4)
    for rate in (0.1, 0.075):
        muon = torch.optim.Muon(
            [twin[0].weight], lr=rate, weight_decay=0.2, momentum=0.0, adjust_lr_fn="match_rms_adamw"
        )
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate] * 2)
        if rate == 0.1:
            for one, other in zip(layers.parameters(), twin.parameters(), strict=True):
                one.grad = torch.randn_like(one)
                other.grad = one.grad.clone()
            before = layers[1].weight.clone()
            optimizer.step()
            muon.param_groups[0]["momentum"] = 0.95
            muon.step()
            torch.testing.assert_close(layers[0].weight, twin[0].weight)
            assert not torch.equal(layers[1].weight, before)
        schedule.step()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"name": "sgd", "momentun": 0.9}, r"sgd has no field 'momentun'\. ?Did you mean 'momentum'"),
        ({"name": "sgd", "lr": 0.9}, r"has no field 'lr'\. Write train\.lr"),
        ({"name": "sgd", "momentum": -1.0}, "sgd cannot be made: Invalid momentum"),
        ("torch.nn:Linear", "no class of torch.optim.Optimizer's kind"),
        ("torch.optim:Nadam", r"no 'Nadam'\. Did you mean 'NAdam'"),
    ],
)
def test_an_optimiser_that_cannot_be_is_refused_before_a_model_is_loaded(optimizer: object, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        check_training(recipe.Train(steps=1, optimizer=optimizer))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw", "bitsandbytes.optim:Lion8bit"])
def test_an_optimiser_of_bitsandbytes_is_refused_with_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PrefoptError, match=rf"{name} needs .*pip install 'prefopt-research\[bitsandbytes\]'"):
        check_training(recipe.Train(steps=1, optimizer=name))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "instead"),
    [("paged_adamw", "adamw"), ("paged_adamw_8bit", "adamw_8bit"), ("bitsandbytes.optim:PagedLion8bit", "adamw_8bit")],
)
def test_a_paged_optimiser_is_refused_on_a_cpu(name: str, instead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    with pytest.raises(PrefoptError, match=rf"{name} keeps its averages .* this run is on a CPU: write {instead}$"):
        check_training(recipe.Train(steps=1, optimizer=name))  # type: ignore[arg-type]


def test_8_bits_without_a_kernel_for_this_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    check_training(recipe.Train(steps=1, optimizer="adamw_8bit"))  # type: ignore[arg-type]

    def missing(*given: object, **more: object) -> None:
        raise NotImplementedError("no kernel")  # as torch says it where there is none

    monkeypatch.setattr(bitsandbytes.functional, "optimizer_update_8bit_blockwise", missing)
    with pytest.raises(PrefoptError, match=r"adamw_8bit of bitsandbytes .* does not work on this CPU \(no kernel\)"):
        check_training(recipe.Train(steps=1, optimizer="adamw_8bit"))  # type: ignore[arg-type]


def test_adamw_in_8_bits_goes_on_bit_for_bit_from_what_a_checkpoint_holds(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings, accelerator = recipe.Train(steps=6, optimizer="adamw_8bit", lr=1e-2), Accelerator(cpu=True)

    def prepared(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        return accelerator.prepare(model, make_optimizer(parameter_groups(model, settings), settings))

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            draw = torch.Generator().manual_seed(number)
            model(torch.randn(16, 128, generator=draw)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model, optimizer = prepared(nn.Linear(128, 128))
    start = model.weight.clone()
    steps(model, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again, resumed = prepared(copy.deepcopy(model))
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert any(
        value.dtype == torch.uint8
        for value in optimizer.optimizer.state[model.weight].values()
        if torch.is_tensor(value)
    )  # type: ignore[attr-defined]
    for one, its in ((model, optimizer), (again, resumed)):
        steps(one, its, range(3, 6))
    assert torch.equal(model.weight, again.weight) and not torch.equal(model.weight, start)
