"""The KL to the reference: what it does to rewards and losses, and how its weight moves."""

import pytest
import torch
from trl_grpo import rollouts

from prefopt.objectives import A2C, GRPO, PPO, PPOKL, REINFORCE, RLOO, DrGRPO, LagrangianPPO, ReinforcePlusPlus
from prefopt.objectives.contract import check_objective
from prefopt.objectives.maths import kl_estimate
from prefopt.objectives.online.kl import KL, doubled_or_halved, proportional
from prefopt.types import Outputs, Targets


def test_adaptive_beta_of_the_testbed():
    """From 0.15, 512 completions, target 6, horizon 10000."""
    for kl, expected in ((0.0, 0.148464), (12.0, 0.151536), (6.0, 0.15), (6.6, 0.15 * (1 + 0.1 * 0.0512))):
        metrics = {"kl/reference": kl, "episodes": 512.0}
        assert proportional(0.15, metrics, 6.0, 10_000.0) == pytest.approx(expected, abs=1e-12)
        ppo = PPO(target=6.0).adapted(metrics)
        assert ppo == PPO(beta=ppo.beta, target=6.0) and ppo.beta == pytest.approx(expected, abs=1e-12)


def test_no_target_keeps_beta():
    assert PPO(beta=0.3).adapted({}) == PPO(beta=0.3)


@pytest.mark.parametrize(("kl", "factor"), [(0.0151, 2), (0.0149, 1), (0.0067, 1), (0.0066, 0.5), (0.0, 0.5)])
def test_doubling_and_halving(kl, factor):
    assert doubled_or_halved(3.0, kl, 0.01) == 3.0 * factor
    assert PPOKL(beta_kl=3.0).adapted({"ratio/kl": kl}) == PPOKL(beta_kl=3.0 * factor)


def test_the_adaptive_beta_is_fed_the_kl_of_the_batch():
    batch, _, old, reference = rollouts(absent=((1, 2),))
    ppo = PPO(target=6.0)
    metrics = ppo.targets(batch, old, reference).metrics
    difference = [
        (old.logps - reference.logps)[b, k][batch.mask[b, k]].sum().item() for b in range(3) for k in range(4)
    ]
    assert metrics["episodes"] == 11
    assert metrics["kl/reference"] == pytest.approx(sum(difference) / 11, abs=1e-12)
    assert metrics["kl/beta"] == 0.15
    assert ppo.adapted(metrics).beta == pytest.approx(0.15 * (1 - 0.2 * 11 / 10_000), abs=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_placement(estimator):
    _, policy, old, reference = rollouts()
    of = {"reward": KL(0.5, estimator, "reward"), "loss": KL(0.5, estimator, "loss")}
    expected = 0.5 * kl_estimate(old.logps - reference.logps, estimator) * old.mask
    torch.testing.assert_close(of["reward"].penalty(old.mask, old, reference), expected)
    assert (of["loss"].penalty(old.mask, old, reference) == 0).all() and not of["reward"].rows(reference)
    targets = Targets(of["loss"].rows(reference))
    expected = 0.5 * kl_estimate(policy.logps - reference.logps, estimator) * old.mask
    torch.testing.assert_close(of["loss"].loss(policy, targets), expected)
    assert (of["reward"].loss(policy, Targets()) == 0).all()


def test_exact_is_read_from_the_policys_statistics_inside_the_mask():
    _, policy, _, reference = rollouts()
    statistic = torch.rand(policy.mask.shape, dtype=torch.float64, requires_grad=True)
    kl = KL(0.5, "exact", "loss")
    outputs = Outputs(policy.mask, policy.logps, statistics={"kl_policy_ref": statistic})
    found = kl.loss(outputs, Targets(kl.rows(reference)))
    torch.testing.assert_close(found, 0.5 * statistic * policy.mask)
    assert kl.statistics == {"kl_policy_ref"} and not KL(0.0, "exact", "loss").statistics


@pytest.mark.parametrize("cls", [PPO, PPOKL, A2C, REINFORCE, RLOO, LagrangianPPO, ReinforcePlusPlus])
def test_each_choice_of_kl_keeps_the_contract(cls):
    for fields in (("k1", "reward"), ("k2", "reward"), ("k3", "loss"), ("exact", "loss")):
        check_objective(cls(estimator=fields[0], placement=fields[1]))
    check_objective(cls(beta=0.0))


@pytest.mark.parametrize("cls", [PPO, A2C, REINFORCE, RLOO, PPOKL, LagrangianPPO, ReinforcePlusPlus])
def test_what_is_refused(cls):
    for fields, words in (
        ({"beta": -0.1}, "beta"),
        ({"estimator": "k4"}, "k1, k2, k3, exact"),
        ({"placement": "both"}, "reward, loss"),
        ({"estimator": "exact"}, "does not depend on the token"),
    ):
        with pytest.raises(ValueError, match=words):
            cls(**fields)


def test_other_fields_that_are_refused():
    for make, words in (
        (lambda: PPO(beta=0.0, target=6.0), "adaptive KL"),
        (lambda: PPO(target=-1.0), "adaptive KL"),
        (lambda: PPOKL(beta_kl=0.0), "beta_kl"),
        (lambda: GRPO(estimator="k0"), "k1"),
        (lambda: DrGRPO(length=0), "length"),
        (lambda: ReinforcePlusPlus(baseline="batch"), "none, group"),
        (lambda: LagrangianPPO(multiplier=6.0), "multiplier_max"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_needs_follow_the_fields():
    assert PPO().needs.reference and not PPO(beta=0.0).needs.reference
    assert PPO().needs.columns == () and PPO(tis=2.0).needs.columns == ("sampler_logps",)
    assert GRPO(estimator="exact").needs.statistics == {"kl_policy_ref"} and not GRPO().needs.statistics
    assert RLOO().needs.old and not RLOO(beta=0.0).needs.old
    assert LagrangianPPO(tis=2.0).needs.columns == ("cost", "sampler_logps")
