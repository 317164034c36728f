"""The loop: exact updates whatever the split, schedules, running numbers, and what it must not know."""

import ast
import copy
import dataclasses
import math
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import updates
from accelerate import Accelerator
from updates import CASES, Batches, Drifting, make_policy, random_batch, seven_rows, tiny_llama, train, update, weights

import prefopt.training.loop
from prefopt import recipe
from prefopt.objectives import DPO, SFT
from prefopt.objectives.preference.betadpo import BetaDPO
from prefopt.objectives.terms import Term
from prefopt.policy import Policy, make_reference
from prefopt.support.errors import PrefoptError
from prefopt.training.loop import Trainer
from prefopt.types import Batch

EXACT = {torch.float64: 1e-9, torch.float32: 1e-3}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("micro", [1, 3])
def test_update_is_the_same_for_every_micro_batch(case: str, dtype: torch.dtype, micro: int) -> None:
    whole = update(case, dtype, 7, seven_rows(case))
    assert whole.norm() > 1e-2
    assert relative(whole, update(case, dtype, micro, seven_rows(case))) <= EXACT[dtype]


@pytest.mark.parametrize("case", ["dpo", "coupled+sft", "kto", "rloo", "grpo of episodes"])
def test_update_is_the_same_for_every_token_budget(case: str) -> None:
    whole = update(case, torch.float64, 7, seven_rows(case))
    trainer, steps = train(case, torch.float64, 7, seven_rows(case), micro_tokens=60)
    assert relative(whole, weights(trainer.model) - weights(make_policy(case, torch.float64))) <= 1e-9
    assert 0 < steps[0].metrics["padding"] < 0.5


@pytest.mark.parametrize("case", ["ppo", "ppo+sft", "grpo", "ppo of episodes"])
def test_what_was_said_before_the_only_update_is_not_asked_again(case: str) -> None:
    """One micro-batch and one pass: the forward pass before the update is that of the update, and the update is the same."""
    whole, steps = train(case, torch.float64, 7, seven_rows(case), passes=1)
    pieces, _ = train(case, torch.float64, 3, seven_rows(case), passes=1)
    assert (whole.asked_before, pieces.asked_before) == (False, True)
    assert relative(weights(pieces.model), weights(whole.model)) <= 1e-12
    assert all(step.metrics["ratio/max"] == 1 for step in steps)


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_row_is_noticed(case: str) -> None:
    batches = seven_rows(case)
    ids = batches[1].completion_ids.clone()
    ids[4, 0, 0] = ids[4, 0, 0] % 48 + 1  # one token of one row, in one of three batches
    wrong = [batches[0], dataclasses.replace(batches[1], completion_ids=ids), batches[2]]
    assert relative(update(case, torch.float64, 7, batches), update(case, torch.float64, 3, wrong)) > 1e-6


@pytest.mark.slow
def test_updates_are_the_same_for_two_processes(tmp_path: Path) -> None:
    torchrun(updates.__file__, str(tmp_path / "updates.pt"))
    found = torch.load(tmp_path / "updates.pt")
    assert len(found) == 4 * len(CASES)
    for case in CASES:
        for dtype, tolerance in EXACT.items():
            whole = update(case, dtype, 7, seven_rows(case))
            for micro in (1, 3):
                assert relative(whole, found[f"{case} {dtype} {micro}"]) <= tolerance, (case, dtype, micro)


def torchrun(*arguments: str | None) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_minibatches_and_passes_are_the_same_for_every_micro_batch() -> None:
    settings = {"minibatch_size": 2, "passes": 2, "batch_size": 6}
    batches = [random_batch(6, seed) for seed in range(3)]
    whole = update("dpo", torch.float64, 6, batches, **settings)
    assert relative(whole, update("dpo", torch.float64, 1, batches, **settings)) <= 1e-9
    assert relative(whole, update("dpo", torch.float64, 6, batches, batch_size=6)) > 1e-3


def test_running_numbers_move_once_a_logical_batch() -> None:
    trainer, steps = train("adaptive", torch.float64, 3, seven_rows())
    delta = 0.0
    for step in steps:
        delta = 0.5 * delta + 0.5 * step.metrics["margin"]
    objective = trainer.terms[0].objective
    assert isinstance(objective, Drifting)
    assert objective.delta == pytest.approx(delta, rel=1e-12)
    assert CASES["adaptive"][0].objective == Drifting()


@pytest.mark.parametrize("case", ["two adaptive", "two adaptive, own data"])
def test_two_adaptive_terms_of_one_class_each_move_by_their_own_metrics(case: str) -> None:
    trainer, steps = train(case, torch.float64, 3, seven_rows())
    deltas = [0.0, 0.0]
    for step in steps:
        margins = [step.metrics["margin"], step.metrics["Drifting-2/margin"]]
        deltas = [0.5 * delta + 0.5 * margin for delta, margin in zip(deltas, margins, strict=True)]
    moved = [vars(term.objective)["delta"] for term in trainer.terms]
    assert moved == pytest.approx(deltas, rel=1e-12)
    assert abs(moved[0] - moved[1]) > 0.1 * abs(moved[0]) > 0
    if case == "two adaptive":  # one batch and five times the β
        assert moved[1] == pytest.approx(5 * moved[0], rel=1e-12)


def adaptive_trainer(terms: list[Term]) -> Trainer:
    """Of a policy and batches that are always the same."""
    policy = Policy(tiny_llama())
    reference = make_reference(policy, recipe.Reference(), recipe.Policy(model=("none",)))
    settings = recipe.Train(steps=3, lr=3e-3, schedule="constant", warmup=0, batch_size=7)
    return Trainer(policy, terms, Batches(seven_rows()), settings, 3, Accelerator(cpu=True), reference)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("cls", [Drifting, BetaDPO])
def test_adaptive_terms_of_one_class_each_take_up_their_own_numbers_after_a_resume(cls: type, own: bool) -> None:
    def terms() -> list[Term]:
        source = Batches([random_batch(5, seed) for seed in range(20, 23)]) if own else None
        return [Term(cls(0.1)), Term(cls(0.5), 0.7), Term(cls(0.9), 0.3, source)]

    whole = adaptive_trainer(terms())
    expected = list(whole)
    first = adaptive_trainer(terms())
    next(iter(first))
    state = copy.deepcopy(first.state_dict())
    assert all(state["objectives"])  # the numbers that move, of each
    resumed = adaptive_trainer(terms())
    resumed.model.load_state_dict(first.model.state_dict())
    resumed.optimizer.load_state_dict(first.optimizer.state_dict())
    resumed.load_state_dict(state)
    assert [term.objective for term in resumed.terms] == [term.objective for term in first.terms]
    assert [step.metrics for step in resumed] == [step.metrics for step in expected[1:]]
    assert [term.objective for term in resumed.terms] == [term.objective for term in whole.terms]
    assert {term.objective.beta for term in whole.terms} == {0.1, 0.5, 0.9}  # type: ignore[attr-defined]


def test_one_term_given_twice_counts_as_two() -> None:
    term = Term(Drifting())
    twice, apart = adaptive_trainer([term, term]), adaptive_trainer([Term(Drifting()), Term(Drifting())])
    steps = list(twice)
    assert [step.metrics for step in steps] == [step.metrics for step in apart]
    assert all(step.metrics["margin"] == step.metrics["Drifting-2/margin"] for step in steps)
    assert twice.terms[0].objective == twice.terms[1].objective == apart.terms[0].objective != Drifting()


@dataclasses.dataclass(frozen=True)
class Claiming(DPO):
    """Calls its metrics like the run's own numbers, and reports one from its targets."""

    def targets(self, batch, old, reference):
        return dataclasses.replace(super().targets(batch, old, reference), metrics={"beta": self.beta, "lr": 5.0})

    def loss(self, batch, policy, targets):
        loss = super().loss(batch, policy, targets)
        return dataclasses.replace(
            loss, metrics={"loss": torch.full((len(batch),), 7.0), "margin": loss.total.detach()}
        )


@pytest.mark.parametrize("terms", [[Term(Claiming(0.1))], [Term(Claiming(0.1)), Term(Claiming(0.2))]])
def test_metrics_of_terms_are_all_kept_and_never_take_the_runs_names(terms: list[Term], monkeypatch) -> None:
    monkeypatch.setitem(CASES, "claiming", terms)
    _, steps = train("claiming", torch.float64, 3, seven_rows(), steps=1)
    metrics = steps[0].metrics
    assert metrics["loss"] == pytest.approx(len(terms) * math.log(2)) and metrics["lr"] == 3e-3
    assert (metrics["Claiming/loss"], metrics["Claiming/lr"], metrics["beta"]) == (7, 5, 0.1)
    assert metrics["margin"] == pytest.approx(math.log(2))
    if len(terms) > 1:
        assert (metrics["Claiming-2/loss"], metrics["Claiming-2/lr"], metrics["Claiming-2/beta"]) == (7, 5, 0.2)
        assert metrics["loss/Claiming-2"] == pytest.approx(math.log(2))


def test_first_loss_is_ln_2_and_metrics_are_means_over_prompts() -> None:
    _, steps = train("dpo", torch.float64, 2, seven_rows())
    assert steps[0].metrics["loss"] == pytest.approx(math.log(2), abs=1e-14)
    assert steps[0].metrics["rewards/margin"] == 0
    assert steps[-1].metrics["rewards/margin"] != 0


def test_sft_beside_dpo_counts_the_tokens_of_the_best_completions_only() -> None:
    _, steps = train("dpo+sft", torch.float64, 2, seven_rows())
    batch = seven_rows()[0]
    policy = Policy(tiny_llama())
    best = policy(batch.first(1), SFT.needs)
    nll = -best.sum().sum() / batch.mask[:, 0].sum()
    assert steps[0].metrics["loss"] == pytest.approx(0.8 * math.log(2) + 0.7 * float(nll.detach()), rel=1e-12)


def test_a_term_with_its_own_source_brings_a_batch_to_every_step() -> None:
    policy = Policy(tiny_llama())
    spec = recipe.Train(
        steps=2, lr=1e-2, schedule="constant", warmup=0, batch_size=4, minibatch_size=2, micro_batch_size=1
    )
    extra = Batches([random_batch(3, seed, completions=1) for seed in range(10, 14)])
    terms = [Term(DPO()), Term(SFT(), 0.5, extra)]
    reference = make_reference(policy, recipe.Reference(), recipe.Policy(model=("none",)))
    source = Batches([random_batch(4, seed) for seed in range(2)])
    steps = list(Trainer(policy, terms, source, spec, 2, Accelerator(cpu=True), reference))
    assert (source.place, extra.place) == (2, 4)
    for step in steps:
        assert step.metrics["nll"] > 0
        expected = step.metrics["loss/DPO"] + 0.5 * step.metrics["loss/SFT"]
        assert step.metrics["loss"] == pytest.approx(expected, rel=1e-12)


def test_clipping_bounds_the_update_of_sgd() -> None:
    settings = {"optimizer": "sgd", "lr": 1.0, "steps": 1, "clip_norm": 1e-3}
    assert update("dpo", torch.float64, 7, seven_rows(), **settings).norm() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("linear", [0, 0.5, 1, 0.5]), ("constant", [0, 0.5, 1, 1]), ("cosine", [0, 0.5, 1, 0.5])]
)
def test_schedules_warm_up_and_decay(schedule: str, expected: list[float]) -> None:
    _, steps = train(
        "dpo", torch.float64, 7, seven_rows(), steps=4, lr=1.0, schedule=schedule, warmup=2, clip_norm=1e-6
    )
    assert [step.metrics["lr"] for step in steps] == pytest.approx(expected)


def test_non_finite_loss_stops_before_the_update_and_keeps_the_batch(tmp_path: Path) -> None:
    policy = Policy(tiny_llama())
    spec = recipe.Train(steps=3, batch_size=7, lr=1e-3, schedule="constant", warmup=0)
    reference = make_reference(policy, recipe.Reference(), recipe.Policy(model=("none",)))
    trainer = Trainer(
        policy,
        [Term(DPO(beta=math.nan))],
        Batches(seven_rows()),
        spec,
        3,
        Accelerator(cpu=True),
        reference,
        folder=tmp_path,
    )
    before = weights(trainer.model)
    with pytest.raises(PrefoptError, match=r"step 1: the loss is nan.*nonfinite-step-1\.pt"):
        list(trainer)
    assert torch.equal(before, weights(trainer.model))
    saved = torch.load(tmp_path / "nonfinite-step-1.pt")
    assert torch.equal(saved["completion_ids"], seven_rows()[0].completion_ids)
    assert tuple(map(tuple, saved["prompt_ids"])) == seven_rows()[0].prompt_ids


@pytest.mark.parametrize(("value", "diverged"), [(math.nan, True), (math.inf, True), (1e20, True), (1e15, False)])
def test_what_an_update_left_without_finite_numbers_is_said_to_have_diverged(value: float, diverged: bool) -> None:
    trainer, _ = train("dpo", torch.float32, 7, seven_rows(), steps=1)
    trainer.check_finite()
    state = torch.get_rng_state()
    next(trainer.model.parameters()).data[-1, -1] = value  # of a word that no row has
    with pytest.raises(PrefoptError, match="step 1 the model computes no finite") if diverged else nullcontext():
        trainer.check_finite()
    assert torch.equal(state, torch.get_rng_state()) and trainer.model.training


def test_draws_in_targets_do_not_depend_on_the_global_state() -> None:
    torch.manual_seed(1)
    one = update("dpo", torch.float64, 7, seven_rows(), minibatch_size=None)
    torch.manual_seed(2)
    assert torch.equal(one, update("dpo", torch.float64, 7, seven_rows(), minibatch_size=None))


def test_the_loop_names_no_algorithm() -> None:
    tree = ast.parse(Path(str(prefopt.training.loop.__file__)).read_text())
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert not {n for n in imported if "objectives" in n and not n.startswith("prefopt.objectives.terms")}
    words = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)
    }
    assert not words & {"DPO", "SFT", "PPO", "BradleyTerry"}


def test_empty_model_is_refused() -> None:
    policy = Policy(tiny_llama())
    policy.requires_grad_(False)
    with pytest.raises(PrefoptError, match="no weight of this model is trainable"):
        Trainer(policy, [Term(SFT())], Batches(seven_rows()), recipe.Train(steps=1), 1, Accelerator(cpu=True))


def test_batches_are_untouched() -> None:
    batches: list[Batch] = seven_rows()
    before = [batch.completion_ids.clone() for batch in batches]
    update("coupled", torch.float64, 3, batches)
    assert all(torch.equal(a, b.completion_ids) for a, b in zip(before, batches, strict=True))


@pytest.mark.parametrize(("minibatch", "sizes"), [(None, [5]), (8, [5]), (4, [3, 2]), (2, [2, 1, 1, 1])])
def test_a_batch_that_lost_prompts_makes_as_many_updates_as_a_full_one(minibatch, sizes) -> None:
    """Five of eight: without minibatches it stays whole, and with them no update is dropped."""
    trainer, _ = train("dpo", torch.float64, 7, seven_rows(), batch_size=8, minibatch_size=minibatch, steps=0)
    found = [5 if rows is None else len(rows) for rows in trainer._minibatches(5, minibatch, 0)]
    assert found == sizes
