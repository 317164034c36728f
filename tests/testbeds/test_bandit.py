"""Closed forms against numbers worked out elsewhere, and what the real trainer finds against the closed forms."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from prefopt import Needs, evaluate_loss
from prefopt.objectives.preference.dpo import DPO
from prefopt.objectives.preference.ipo import IPO
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import load_object
from prefopt.testbeds.bandit import (
    best_of_n,
    best_of_n_divergence,
    best_value,
    bradley_terry,
    divergence,
    frontier,
    make_trainer,
    optimum,
    population,
    regression_optimum,
    tabular,
    total_variation,
    value,
    worst_gap,
)

FOLDER = Path(__file__).parents[2] / "experiments" / "bandit"
PROBLEMS = {problem.name: problem for problem in load_object("solve.py:problems", FOLDER)()}
PUBLISHED = {  # the numbers that the testbeds ask for, by the names of problems
    "β = 1": (0.2592, 0.3144, 0.2861, 0.1403),
    "β = 0.25": (0.7536, 0.2040, 0.0414, 0.0010),
    "β = 0.1": (0.9866, 0.0133, 0.0001, 0.0000),
    "IPO, total order, τ = 0.1": (0.9644, 0.0344, 0.0012),
    "IPO, total order, τ = 0.5": (0.5627, 0.2889, 0.1483),
    "IPO, cycle, τ = 0.1": (1 / 3, 1 / 3, 1 / 3),
    "CDPO, sure labels, β = 1": (0.9, 0.1),
    "CDPO, sure labels, β = 0.1": (1.0, 0.0),
}
REFERENCE, REWARDS = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.5, 0.0, -1.0]], dtype=torch.float64)
ORDER = torch.tensor([[[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]]], dtype=torch.float64)
UNIFORM = torch.full((1, 3), 1 / 3, dtype=torch.float64)


def random_policy(seed, contexts=2, actions=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(contexts, actions, generator=draw, dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("name", PROBLEMS)
def test_trainer_finds_the_closed_form(name):
    problem = PROBLEMS[name]
    found = problem.solve()
    assert total_variation(found, problem.expected).max() < 1e-3
    assert worst_gap(found, problem.expected, problem.beta).max() < 1e-3
    start = problem.reference if problem.start is None else problem.start
    assert total_variation(start, problem.expected).max() > 0.01  # there was a way to go


@pytest.mark.parametrize("name", PROBLEMS)
def test_closed_form_is_stationary(name):
    problem = PROBLEMS[name]
    policy = tabular(problem.expected)
    outputs = policy(problem.batch, problem.objective.needs)
    reference = tabular(problem.reference)(problem.batch, problem.objective.needs).detach()
    evaluate_loss(problem.objective, problem.batch, outputs, reference).backward()
    assert policy.scores.logits.grad.abs().max() < 1e-10 * max(1, outputs.logps.abs().max().item())


def test_closed_forms_have_the_published_numbers():
    found = {name: PROBLEMS[name].expected[0] for name in PUBLISHED if name in PROBLEMS}
    found |= {f"β = {beta}": optimum(REFERENCE, REWARDS, beta) for beta in (1, 0.25, 0.1)}
    assert found.keys() == PUBLISHED.keys()
    for name, policy in found.items():
        assert policy.tolist() == pytest.approx(PUBLISHED[name], abs=5.1e-5), name
    margins = [PROBLEMS[f"CDPO, sure labels, β = {beta}"].expected[0].log().diff().item() for beta in (1, 0.1)]
    assert margins == pytest.approx([-2.197, -21.972], abs=5e-4)
    values = [best_value(REFERENCE, REWARDS, beta).item() for beta in (1, 0.1)]
    assert values == pytest.approx([0.04757, 0.77109], abs=5e-6)
    assert [best_of_n_divergence(n) for n in (4, 16, 64)] == pytest.approx([0.6363, 1.8351, 3.1745], abs=5e-5)


def test_noise_is_corrected_by_robust_dpo_alone():
    """Probability of the first action in each context, if it really wins .6, .75 and .9 of the time and ε = .1."""
    for name, first in {
        "RobustDPO": [0.6, 0.75, 0.9],
        "DPO": [0.58, 0.70, 0.82],  # .9p + .1(1 − p)
        "CDPO": [0.564, 0.66, 0.756],  # the same again
    }.items():
        problem = PROBLEMS[f"{name}, a tenth flipped, three coins"]
        assert problem.expected[:, 0].tolist() == pytest.approx(first)


@pytest.mark.parametrize("beta", [1.0, 0.25, 0.1])
def test_the_optimum_has_the_most_value(beta):
    best = optimum(REFERENCE, REWARDS, beta)
    assert value(best, REFERENCE, REWARDS, beta) == pytest.approx(best_value(REFERENCE, REWARDS, beta).item())
    for seed in range(20):
        other = random_policy(seed, 1, 4)[0]
        lost = value(best, REFERENCE, REWARDS, beta) - value(other, REFERENCE, REWARDS, beta)
        assert lost.item() == pytest.approx(beta * divergence(other, best).item())  # J* − J(π) = β·KL(π‖π*)


def test_nothing_is_above_the_frontier():
    for seed in range(20):
        policy = random_policy(seed, 1, 4)[0]
        most = frontier(divergence(policy, REFERENCE)[None], REFERENCE, REWARDS)
        assert most > (policy * REWARDS).sum()
    best = optimum(REFERENCE, REWARDS, 0.25)
    most = frontier(divergence(best, REFERENCE)[None], REFERENCE, REWARDS)
    assert most.item() == pytest.approx((best * REWARDS).sum().item())


@pytest.mark.parametrize("eta", [0.5, 5.0, 50.0])
def test_regression_optimum_against_a_general_minimiser(eta):
    targets = eta * (bradley_terry(REWARDS) - 0.5).sum(-1) / 3

    def loss(logits):
        log_probs = logits - np.logaddexp.reduce(logits)
        return ((log_probs - REFERENCE.log().numpy() - targets.numpy()) ** 2).sum()

    starts = np.random.default_rng(0).normal(size=(3, 4)) * 4
    best = min((minimize(loss, start, tol=1e-12) for start in starts), key=lambda result: result.fun)
    expected = torch.from_numpy(best.x).softmax(-1)
    assert regression_optimum(REFERENCE, targets).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_dpo_collapses_where_ipo_stays(strength):
    """However long it has gone on, DPO's margin grows, while IPO's has its value: (1/τ)·(5/6 − 1/2)."""

    def margins(objective):
        policy, batch = tabular(UNIFORM), population(ORDER)
        settings = {"schedule": "constant", "betas": (0.5, 0.5), "lr": 0.1, "passes": 50}
        trainer = make_trainer(policy, objective, batch, tabular(UNIFORM).frozen(), 3, **settings)
        return [(-policy.probabilities[0].log().diff()[0].item(), policy.probabilities[0, 0].item()) for _ in trainer]

    (early, _), (middle, _), (late, first) = margins(DPO(strength))
    assert early + 1 < middle < late - 1
    assert first > 0.999
    (early, _), *_, (late, first) = margins(IPO(strength))
    assert late == pytest.approx(1 / (3 * strength), abs=0.05)
    assert abs(late - early) < 0.1


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_has_solutions_outside_the_support(beta):
    """Mass that the reference does not have costs DPO nothing, and the regularised value everything (2404.10719)."""
    reference, astray = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.0, 0.9]], dtype=torch.float64)
    first_beats_second = torch.tensor([[[0.5, 1, 0], [0, 0.5, 0], [0, 0, 0.5]]], dtype=torch.float64)
    batch = population(first_beats_second)
    outputs = [tabular(policy[None])(batch, DPO.needs) for policy in (astray, reference)]
    assert evaluate_loss(DPO(beta), batch, *outputs).item() == 0
    sure = torch.tensor([1e3, 0.0, 2e3], dtype=torch.float64)  # what sure labels make of a reward; the third is unseen
    assert optimum(reference, sure, beta).tolist() == [1, 0, 0]
    assert value(astray, reference, sure, beta) == -math.inf
    assert value(optimum(reference, sure, beta), reference, sure, beta).item() == pytest.approx(1e3, abs=beta)


def test_best_of_n_by_hand_and_in_the_limit():
    # Two draws, action 1 twice as good as the tied others: 1 − .9², and .81 shared as the reference shares .9.
    two = best_of_n(REFERENCE, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), 2)
    assert two.tolist() == pytest.approx([0.19, 0.18, 0.27, 0.36])
    many = torch.full((1024,), 1 / 1024, dtype=torch.float64)
    for n in (4, 16, 64):
        kl = divergence(best_of_n(many, torch.arange(1024), n), many).item()
        assert kl == pytest.approx(best_of_n_divergence(n), rel=1e-2)
        assert divergence(best_of_n(REFERENCE, REWARDS, n), REFERENCE).item() < best_of_n_divergence(n)


def test_distances_by_hand():
    one, other = torch.tensor([[0.5, 0.4, 0.1], [0.25, 0.4, 0.35]], dtype=torch.float64)
    assert total_variation(one, other).item() == pytest.approx(0.25)
    # Between the first and the third action: log 2 in one direction, log 3.5 in the other.
    assert worst_gap(one, other, 0.5).item() == pytest.approx(0.5 * math.log(7))
    assert divergence(one, other).item() == pytest.approx(0.5 * math.log(2) - 0.1 * math.log(3.5))


def test_population_has_every_label_at_its_probability():
    rewards = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 2.0]], dtype=torch.float64)
    preference = bradley_terry(rewards)
    batch = population(preference, rewards)
    assert len(batch) == 2 * 3 * 2
    for row, ((context,), pair) in enumerate(zip(batch.prompt_ids, batch.completion_ids[..., 0].tolist(), strict=True)):
        assert batch.scores[row].tolist() == rewards[context, pair].tolist()
        assert torch.equal(batch.preference[row], preference[context][pair][:, pair])
        assert batch.columns["weight"][row] == preference[context][pair[0], pair[1]]
    assert population(ORDER).completion_ids[..., 0].tolist() == [
        [0, 1],
        [0, 2],
        [1, 2],
    ]  # impossible labels are left out


def test_policy_says_what_the_table_says(make_batch):
    table, other = random_policy(0), random_policy(1)
    policy = tabular(table)
    policy.attach_reference(tabular(other).frozen())
    batch = population(bradley_terry(table.log()))
    names = frozenset({"entropy", "log_sum_squares", "kl_policy_ref", "kl_ref_policy"})
    outputs = policy(batch, Needs(statistics=names))
    contexts = [context for (context,) in batch.prompt_ids]
    rows = table[contexts]
    torch.testing.assert_close(outputs.sum().exp(), rows.gather(1, batch.completion_ids[..., 0]))
    expected = {
        "entropy": torch.distributions.Categorical(table).entropy(),
        "log_sum_squares": table.square().sum(-1).log(),
        "kl_policy_ref": divergence(table, other),
        "kl_ref_policy": divergence(other, table),
    }
    for name, numbers in expected.items():
        torch.testing.assert_close(outputs.statistics[name], numbers[contexts][:, None, None].expand(-1, 2, 1))
    assert [name for name, _ in policy.named_parameters()] == [
        "scores.logits",
        "critic.value",
    ]  # nothing of the reference


def test_temperature_divides_the_logits_of_both(make_batch):
    table, other = random_policy(0), random_policy(1)
    policy = tabular(table)
    policy.attach_reference(tabular(other).frozen())
    batch = population(bradley_terry(table.log()))
    batch = replace(batch, columns=batch.columns | {"temperature": torch.full((len(batch),), 0.5)})
    outputs = policy(batch, Needs(statistics=frozenset({"kl_policy_ref"})))
    warm, beside = (2 * table.log()).softmax(-1), (2 * other.log()).softmax(-1)
    contexts = [context for (context,) in batch.prompt_ids]
    torch.testing.assert_close(outputs.sum().exp(), warm[contexts].gather(1, batch.completion_ids[..., 0]))
    torch.testing.assert_close(outputs.statistics["kl_policy_ref"][:, 0, 0], divergence(warm, beside)[contexts])


def test_a_reference_says_nothing_of_values_or_its_distance():
    batch = population(ORDER)
    needs = Needs(values=True, statistics=frozenset({"kl_policy_ref", "entropy"}))
    outputs = tabular(UNIFORM).frozen()(batch, needs)
    assert outputs.values is None and outputs.statistics.keys() == {"entropy"}
    assert not outputs.logps.requires_grad


def test_absent_completions_are_0():
    batch = population(ORDER)
    mask = batch.mask.clone()
    mask[0, 1] = False
    outputs = tabular(UNIFORM)(type(batch)(batch.prompt_ids, batch.completion_ids, mask), Needs(statistics={"entropy"}))
    assert (outputs.logps[~mask] == 0).all() and (outputs.statistics["entropy"][~mask] == 0).all()
    assert (outputs.logps[mask] != 0).all()


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (Needs(rewards=True), "gives none"),
        (Needs(statistics=frozenset({"surprise"})), "unknown statistics"),
        (Needs(statistics=frozenset({"kl_policy_ref"})), "attach_reference"),
    ],
)
def test_refuses_what_it_cannot_say(needs, message):
    with pytest.raises(PrefoptError, match=message):
        tabular(UNIFORM)(population(ORDER), needs)


def test_refuses_completions_of_several_tokens(make_batch):
    with pytest.raises(PrefoptError, match="one token"):
        tabular(UNIFORM)(make_batch(), Needs())
