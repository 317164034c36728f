"""What all losses of pairs have in common: the contract, the value at the reference, the swap, their formulas by hand, TRL."""

import dataclasses
import math

import pytest
import torch
from trl_dpo import assert_same, random_pairs, trl_dpo

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives.contract import check_objective
from prefopt.objectives.preference.alphapo import AlphaPO
from prefopt.objectives.preference.apo import APODown, APOZero
from prefopt.objectives.preference.caldpo import CalDPO
from prefopt.objectives.preference.chipo import ChiPO
from prefopt.objectives.preference.cpo import CPO
from prefopt.objectives.preference.discopop import DiscoPOP
from prefopt.objectives.preference.dmpo import DMPO
from prefopt.objectives.preference.dpo import DPO
from prefopt.objectives.preference.dponll import DPONLL
from prefopt.objectives.preference.dpop import DPOP
from prefopt.objectives.preference.exo import EXO, EXOList
from prefopt.objectives.preference.fdpo import FDPO
from prefopt.objectives.preference.hinge import Hinge
from prefopt.objectives.preference.ipo import IPO, IPOMean
from prefopt.objectives.preference.lddpo import LDDPO
from prefopt.objectives.preference.lndpo import LNDPO
from prefopt.objectives.preference.noisy_labels import CDPO, RobustDPO
from prefopt.objectives.preference.rdpo import RDPO
from prefopt.objectives.preference.simpo import SimPO
from prefopt.objectives.preference.softdpo import SoftDPO
from prefopt.objectives.preference.sppo import SPPO
from prefopt.objectives.preference.tdpo import TDPO1, TDPO2
from prefopt.objectives.preference.wpo import WPO

LN2 = math.log(2)
AT_REFERENCE = {  # with defaults
    DPO(): LN2,
    CDPO(): LN2,
    RobustDPO(): LN2,
    IPO(): 25,
    IPOMean(): 25,
    Hinge(): 1,
    LNDPO(): LN2,
    LDDPO(): LN2,
    DMPO(): LN2,
    TDPO1(): LN2,
    TDPO2(): LN2,
    DPOP(): LN2,
    APOZero(): 1,
    APODown(): 1,
    ChiPO(): LN2,
    FDPO(): LN2,
    FDPO(divergence="reverse_kl"): LN2,
    FDPO(divergence="forward_kl"): LN2,
    FDPO(divergence="js"): LN2,
    CalDPO(): LN2 + 500_000,
    DiscoPOP(): (1 + LN2) / 2,
    EXO(0.1, 0.2): -LN2 - (math.log(0.8) + math.log(0.2)) / 2,
}
OTHERS = [RDPO(), WPO(), WPO(aligned=False), SoftDPO(), SPPO(), EXOList()]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    return math.log(1 + math.exp(x))


def pair(chosen, rejected):
    """One prompt, completions of one token, with these log-ratios; and labels as sure as they can be."""
    mask = torch.ones(1, 2, 1, dtype=torch.bool)
    logps = torch.tensor([[[chosen], [rejected]]], dtype=torch.float64)
    batch = Batch(((1,),), mask.long(), mask, preference=torch.tensor([[[0.5, 1], [0, 0.5]]], dtype=torch.float64))
    return batch, Outputs(mask, logps.requires_grad_()), Outputs(mask, torch.zeros_like(logps))


def with_statistics(outputs):
    return dataclasses.replace(outputs, statistics={"kl_ref_policy": torch.zeros_like(outputs.logps)})


@pytest.mark.parametrize("objective", [*AT_REFERENCE, *OTHERS], ids=repr)
def test_contract(objective):
    check_objective(objective)


@pytest.mark.parametrize(("objective", "expected"), AT_REFERENCE.items(), ids=repr)
def test_value_at_the_reference(objective, expected):
    batch, policy, _ = random_pairs()
    loss = evaluate_loss(objective, batch, with_statistics(policy), policy.detach())
    assert loss.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("objective", AT_REFERENCE, ids=repr)
def test_a_swap_negates_the_margin(objective):
    batch, policy, reference = random_pairs()
    policy = with_statistics(policy.detach())

    def swap(record):
        fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
        tensors = {n: v.flip(1) for n, v in fields.items() if isinstance(v, torch.Tensor)}
        return dataclasses.replace(record, **tensors)

    def margin(*inputs):
        batch, policy, reference = inputs
        return objective.loss(batch, policy, objective.targets(batch, None, reference)).metrics["rewards/margin"]

    one, other = margin(batch, policy, reference), margin(swap(batch), swap(policy), swap(reference))
    assert one.abs().min() > 0
    torch.testing.assert_close(one, -other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "objective",
    [
        *(DPO(0.3), RDPO(0.3, 0.2), LNDPO(), LDDPO(0.3, 0.4), DMPO(0.3), TDPO1(0.3), TDPO2(0.3), ChiPO(0.3)),
        *(
            FDPO(0.3, "js"),
            FDPO(0.3, "alpha", 3.0),
            FDPO(0.3, "forward_kl"),
            SimPO(gamma=0),
            AlphaPO(gamma=0),
            CPO(0.3, alpha=0),
        ),
        *(DPOP(0.3, 0.0), DPONLL(0.3, 0.0)),
    ],
    ids=repr,
)
def test_a_swap_negates_the_logit(objective):
    """So the two orders of a pair, as probabilities e^−L, have the sum 1."""
    assert chances(objective).tolist() == pytest.approx([1] * 5, rel=1e-12)


def test_a_swap_does_not_negate_the_logit_of_dpo_positive():
    """Its penalty is on whichever is chosen: a pair and its swap may both have a negative logit."""
    found = chances(DPOP(0.3, 5.0))
    assert (found <= 1).all() and (found < 0.99).any()


def chances(objective):
    """e^−L of a pair + e^−L of its swap, [B]."""
    batch, policy, reference = random_pairs()
    kl = torch.rand(policy.logps.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    policy = dataclasses.replace(policy.detach(), statistics={"kl_ref_policy": kl * policy.mask})

    def flip(value):
        return value.flip(1) if isinstance(value, torch.Tensor) else value

    def swap(record):
        fields = {f.name: flip(getattr(record, f.name)) for f in dataclasses.fields(record)}
        if "statistics" in fields:
            fields["statistics"] = {name: flip(value) for name, value in record.statistics.items()}
        return type(record)(**fields)

    def total(batch, policy, reference):
        return objective.loss(batch, policy, objective.targets(batch, None, reference)).total

    one, other = total(batch, policy, reference), total(*map(swap, (batch, policy, reference)))
    return (-one).exp() + (-other).exp()


def cdpo(w, lo):
    x = 0.5 * (w - lo)
    pull = 0.5 * (-0.8 * sigmoid(-x) + 0.2 * sigmoid(x))
    return 0.8 * softplus(-x) + 0.2 * softplus(x), pull, -pull


def robust(w, lo):
    x = 0.5 * (w - lo)
    pull = 0.5 * (-0.7 * sigmoid(-x) - 0.3 * sigmoid(x)) / 0.4
    return (0.7 * softplus(-x) - 0.3 * softplus(x)) / 0.4, pull, -pull


def ipo(w, lo):
    return (w - lo - 2) ** 2, 2 * (w - lo - 2), -2 * (w - lo - 2)


def hinge(w, lo):
    inside = w - lo < 2
    return inside * (1 - 0.5 * (w - lo)), -0.5 * inside, 0.5 * inside


def dpop(w, lo):
    x = 0.5 * (w - lo - 3 * max(0, -w))
    return softplus(-x), -0.5 * sigmoid(-x) * (4 if w < 0 else 1), 0.5 * sigmoid(-x)


def chipo(w, lo):
    x = 0.3 * (math.exp(w) + w - math.exp(lo) - lo)
    inside = abs(x) < 2
    x = max(-2, min(2, x))
    return softplus(-x), *(s * inside * 0.3 * sigmoid(-x) * (math.exp(d) + 1) for s, d in ((-1, w), (1, lo)))


def caldpo(w, lo):
    pull = sigmoid(lo - w)
    return softplus(lo - w) + (w - 2) ** 2 + (lo + 2) ** 2, 2 * (w - 2) - pull, 2 * (lo + 2) + pull


def fdpo(w, lo):
    """α = 3: f′ = (ρ² − 1)/2."""
    x = 0.5 * (math.exp(2 * w) - math.exp(2 * lo)) / 2
    return softplus(-x), *(s * 0.5 * sigmoid(-x) * math.exp(2 * d) for s, d in ((-1, w), (1, lo)))


def sppo(w, lo):
    return ((w - 1.5) ** 2 + (lo + 1.5) ** 2) / 2, w - 1.5, lo + 1.5


BY_HAND = [
    (CDPO(0.5, 0.2), cdpo),
    (RobustDPO(0.5, 0.3), robust),
    (IPO(0.25), ipo),
    (Hinge(0.5), hinge),
    (DPOP(0.5, 3), dpop),
    (ChiPO(0.3, 1), chipo),
    (CalDPO(0.25), caldpo),
    (FDPO(0.5, "alpha", 3), fdpo),
    (SPPO(3), sppo),
]


@pytest.mark.parametrize(("objective", "formula"), BY_HAND, ids=lambda x: getattr(x, "__name__", None))
@pytest.mark.parametrize(("chosen", "rejected"), [(1.0, -0.5), (-0.75, 0.5), (-0.5, -3.0), (2.0, 1.0), (-1.0, 2.0)])
def test_value_and_gradient_by_hand(objective, formula, chosen, rejected):
    batch, policy, reference = pair(chosen, rejected)
    loss = evaluate_loss(objective, batch, policy, reference)
    value, *gradient = formula(chosen, rejected)
    assert loss.item() == pytest.approx(value, rel=1e-10)
    loss.backward()
    assert policy.logps.grad.flatten().tolist() == pytest.approx(gradient, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(
    ("objective", "same"),
    [
        (CDPO(0.3, 0.0), DPO(0.3)),
        (RobustDPO(0.3, 0.0), DPO(0.3)),
        (RDPO(0.3, 0.0), DPO(0.3)),
        (LDDPO(0.3, 1.0), DPO(0.3)),
        (DPOP(0.3, 0.0), DPO(0.3)),
        (FDPO(0.3, "reverse_kl"), DPO(0.3)),
        (FDPO(0.3, "alpha", 1.0), DPO(0.3)),
        (FDPO(0.3, "alpha", 1 + 1e-12), DPO(0.3)),
        (FDPO(0.3, "alpha", 0.0), FDPO(0.3, "forward_kl")),
        (TDPO2(0.3, 0.0), DPO(0.3)),
    ],
    ids=repr,
)
def test_identities(objective, same):
    batch, policy, reference = random_pairs(scale=3.0)
    policy = with_statistics(policy)
    assert_same(
        evaluate_loss(objective, batch, policy, reference), evaluate_loss(same, batch, policy, reference), policy
    )


def test_conservative_dpo_is_what_trl_smooths_under_another_name():
    """TRL's `sigmoid` ignores label_smoothing; its `aot`, which sorts over the batch, applies it, and sorts nothing at B = 1."""
    batch, policy, reference = random_pairs(prompts=1)
    ours = evaluate_loss(CDPO(0.3, 0.2), batch, policy, reference)
    assert_same(ours, trl_dpo("aot", policy, reference, beta=0.3, label_smoothing=0.2), policy)
    ignored = trl_dpo("sigmoid", policy, reference, beta=0.3, label_smoothing=0.2)
    assert ignored.item() == pytest.approx(evaluate_loss(DPO(0.3), batch, policy, reference).item(), rel=1e-12)
    assert abs(ours.item() - ignored.item()) > 1e-3


def test_ipo_differs_from_trl_by_the_length():
    batch, policy, reference = random_pairs()
    theirs = trl_dpo("ipo", policy, reference, beta=0.2)
    assert abs(evaluate_loss(IPO(0.2), batch, policy, reference).item() - theirs.item()) > 1e-3
    first = [
        dataclasses.replace(o, mask=o.mask[..., :1], logps=o.logps[..., :1], statistics={}) for o in (policy, reference)
    ]
    one = dataclasses.replace(batch, mask=batch.mask[..., :1], completion_ids=batch.completion_ids[..., :1])
    assert_same(evaluate_loss(IPO(0.2), one, *first), trl_dpo("ipo", *first, beta=0.2), policy)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (CDPO, {"epsilon": 0.5}, "share of wrong labels"),
        (RobustDPO, {"epsilon": 0.5}, "share of wrong labels"),
        (RobustDPO, {"epsilon": -0.1}, "share of wrong labels"),
        (IPO, {"tau": 0}, "tau"),
        (IPOMean, {"tau": 0}, "tau"),
        (RDPO, {"alpha": -1}, "alpha"),
        (LDDPO, {"alpha": 1.5}, "from 0 to 1"),
        (DPOP, {"lam": -1}, "lam"),
        (ChiPO, {"bound": 0}, "bound"),
        (FDPO, {"divergence": "kl"}, "reverse_kl, forward_kl, js, alpha"),
        (CalDPO, {"beta": 0}, "beta"),
        (DiscoPOP, {"tau": 2}, "tau"),
        (SPPO, {"eta": 0}, "eta"),
        (EXO, {"epsilon": 0}, "infinite"),
        (EXOList, {"beta_r": 0}, "beta_r"),
    ],
)
def test_refuses_values_that_make_no_sense(cls, fields, message):
    with pytest.raises(ValueError, match=message):
        cls(**fields)
