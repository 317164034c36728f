"""Dropout of an adapter is on in updates alone, the same rows of an update get the same noise, and a resume draws it again."""

import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from _tiny import tiny_model, tiny_pairs
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from updates import Batches, random_batch, tiny_llama

from prefopt import load_recipe, recipe, run
from prefopt.objectives import DPO, GRPO
from prefopt.objectives.terms import Term
from prefopt.policy import Policy, make_reference
from prefopt.training.loop import Trainer
from prefopt.training.noise import Noisy, has_noise
from prefopt.types import Needs


@dataclass(frozen=True)
class Cached(DPO):
    """DPO that asks for the whole batch at once, and so goes through gradient caching."""

    needs = Needs(completions=2, ordered=True, reference=True, whole_batch=True)


def policy_with(dropout):
    model = tiny_llama()
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=False)
    return Policy(get_peft_model(model, config).double())


def trainer_of(objective, dropout, micro=7, completions=2, **settings):
    policy = policy_with(dropout)
    spec = recipe.Train(
        **{"steps": 2, "lr": 1e-2, "schedule": "constant", "warmup": 0, "batch_size": 7, "micro_batch_size": micro}
        | settings
    )
    reference = make_reference(policy, recipe.Reference(cache=False), recipe.Policy(model=("none",)))
    batches = Batches([random_batch(7, seed, completions) for seed in range(2)])
    return Trainer(policy, [Term(objective)], batches, spec, 2, Accelerator(cpu=True), reference)


def trained(*arguments, **settings):
    trainer = trainer_of(*arguments, **settings)
    steps = list(trainer)
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]), steps


def test_dropout_changes_updates():
    assert not torch.equal(trained(DPO(), 0.0)[0], trained(DPO(), 0.5)[0])
    assert torch.equal(trained(DPO(), 0.5)[0], trained(DPO(), 0.5)[0])


@pytest.mark.parametrize("micro", [2, 3])
def test_gradient_caching_draws_the_noise_of_the_first_pass_again(micro):
    direct, cached = trained(DPO(), 0.5, micro)[0], trained(Cached(), 0.5, micro)[0]
    torch.testing.assert_close(cached, direct, rtol=1e-9, atol=1e-12)


def test_the_old_policy_has_no_dropout_and_the_ratio_has():
    policy = policy_with(0.5).eval()
    batch = random_batch(7, 0, 4)
    seen = {}

    @dataclass(frozen=True)
    class Watching(GRPO):
        def targets(self, batch, old, reference):
            seen.setdefault("old", old.logps)
            return super().targets(batch, old, reference)

    _, steps = trained(Watching(), 0.5, completions=4)
    with torch.no_grad():
        torch.testing.assert_close(seen["old"], policy(batch, Needs()).logps, rtol=1e-9, atol=1e-9)
    assert steps[0].metrics["ratio/max"] > 1.001
    assert trained(GRPO(), 0.0, completions=4)[1][0].metrics["ratio/max"] == pytest.approx(1, abs=1e-9)


def test_noise_belongs_to_the_rows_and_the_update():
    policy, batch = policy_with(0.5).train(), random_batch(3, 0)
    before = torch.get_rng_state()
    first = Noisy(policy, 1)(batch, Needs()).logps
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(Noisy(policy, 1)(batch, Needs()).logps, first)
    assert not torch.equal(Noisy(policy, 2)(batch, Needs()).logps, first)
    assert not torch.equal(policy.eval()(batch, Needs()).logps, first)


def test_only_an_adapter_with_dropout_is_noisy():
    assert has_noise(policy_with(0.1)) and not has_noise(policy_with(0.0)) and not has_noise(Policy(tiny_llama()))


def test_a_resumed_run_draws_the_same_noise(tmp_path):
    content = {
        "policy": {"model": str(tiny_model(tmp_path / "lm")), "adapter": {"r": 2, "dropout": 0.5}},
        "source": {"data": str(tiny_pairs(tmp_path / "pairs.jsonl", rows=60))},
        "objective": "DPO",
        "train": {"steps": 4, "batch_size": 8, "micro_batch_size": 3, "lr": 1e-2, "checkpoint_every": 2},
        "evaluate": {"prompts": 0},
    }
    content["train"]["keep_checkpoints"] = 2
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    whole = run(load_recipe(tmp_path / "recipe.yaml"), folder=tmp_path / "run").folder
    assert json.loads((whole / "policy" / "adapter_config.json").read_text())["lora_dropout"] == 0.5
    halfway = shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(halfway / "checkpoints" / "step-000004")
    for name in ("summary.json", "trained.json", "evaluations/test-step-000004.json"):
        (halfway / name).unlink()
    shutil.rmtree(halfway / "policy")
    run(load_recipe(halfway / "recipe.yaml"), folder=halfway, resume=True)

    def numbers(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]

    assert len(numbers(whole)) == 4 and numbers(halfway) == numbers(whole)
