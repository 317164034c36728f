"""TRL 1.16 as an independent oracle: every loss type of its DPO, KTO, CPO and ORPO trainers, values and gradients.

Float64 to 1e-10 and float32 to 1e-6, relative. Where TRL differs from the paper, or from itself at another batch size, the
difference is pinned, so that a TRL that changes is noticed.
"""

import dataclasses
import inspect
import re

import pytest
import torch
from trl_dpo import assert_same, random_pairs, trl_dpo
from trl_others import trl_cpo, trl_kto, trl_orpo, trl_whole

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives import (
    AOT,
    BCO,
    CPO,
    DPO,
    EXO,
    FDPO,
    IPO,
    KTO,
    LDDPO,
    LNDPO,
    NCA,
    ORPO,
    SFT,
    SPPO,
    AlphaPO,
    AOTUnpaired,
    APODown,
    APOZero,
    DiscoPOP,
    Hinge,
    IPOMean,
    RobustDPO,
    SimPO,
    SLiC,
)
from prefopt.objectives.terms import Term, counts, targets_of, total
from prefopt.types import ORIGINS

PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-6)]
NO_DELTA = {"delta": 0.0, "seen": 1e14}  # δ stays 0: one batch is nothing beside so many rewards of mean 0

DPO_TYPES = [
    (DPO(0.3), "sigmoid", {"beta": 0.3}),
    (RobustDPO(0.3, 0.2), "robust", {"beta": 0.3, "label_smoothing": 0.2}),
    (IPOMean(0.2), "ipo", {"beta": 0.2}),
    (Hinge(0.3), "hinge", {"beta": 0.3}),
    (LNDPO(5.0), "sigmoid_norm", {"beta": 5.0}),
    (LDDPO(0.3, 0.4), "sigmoid", {"beta": 0.3, "ld_alpha": 0.4}),
    (APOZero(0.3), "apo_zero", {"beta": 0.3}),
    (APODown(0.3), "apo_down", {"beta": 0.3}),
    (DiscoPOP(0.3, 0.1), "discopop", {"beta": 0.3, "discopop_tau": 0.1}),
    (EXO(0.3, 0.01), "exo_pair", {"beta": 0.3, "label_smoothing": 0.01}),
    (FDPO(0.3, "forward_kl"), "sigmoid", {"beta": 0.3, "f_divergence_type": "forward_kl"}),
    (FDPO(0.3, "js"), "sigmoid", {"beta": 0.3, "f_divergence_type": "js_divergence"}),
    (NCA(0.3, alpha=1e-3), "nca_pair", {"beta": 0.3}),  # a sure pair: α → 0 makes p = (1, 0)
    (BCO(0.3, **NO_DELTA), "bco_pair", {"beta": 0.3}),  # TRL drops δ
    (AOT(0.3), "aot", {"beta": 0.3}),
    (AOTUnpaired(0.3), "aot_unpaired", {"beta": 0.3}),
    (SPPO(10.0), "sppo_hard", {"beta": 0.1}),
    (SFT(), "sft", {}),
]
TWICE = (SPPO,)
"""TRL leaves out the mean over the two completions."""

UNIFORM = {"ipo": IPOMean(0.2), "hinge": Hinge(0.3), "sigmoid": DPO(0.3)}
"""Loss types of TRL's CPO trainer that are a loss of log-ratios to a reference which calls everything equally likely."""


def sure(batch):
    """Scores and preferences that say chosen over rejected, for objectives that read them."""
    certain = torch.tensor([[0.5, 1], [0, 0.5]], dtype=torch.float64)
    scores = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return dataclasses.replace(batch, scores=scores.expand(len(batch), 2), preference=certain.expand(len(batch), 2, 2))


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=str)
@pytest.mark.parametrize(("objective", "loss_type", "config"), DPO_TYPES, ids=repr)
def test_dpo_types(objective, loss_type, config, dtype, rtol):
    batch, policy, reference = random_pairs(7, dtype=dtype)
    ours = evaluate_loss(objective, sure(batch), policy, reference)
    scale = 2 if isinstance(objective, TWICE) else 1
    assert_same(scale * ours, trl_dpo(loss_type, policy, reference, **config), policy, rtol)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_alpha_divergence(alpha):
    """Which knows no float64 in TRL."""
    batch, policy, reference = random_pairs(dtype=torch.float32)
    config = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": alpha}
    theirs = trl_dpo("sigmoid", policy, reference, beta=0.3, **config)
    assert_same(evaluate_loss(FDPO(0.3, "alpha", alpha), batch, policy, reference), theirs, policy, 1e-6)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=str)
def test_a_mixture_is_terms(dtype, rtol):
    """MPO's weights."""
    batch, policy, reference = random_pairs(dtype=dtype)
    batch = sure(batch)
    terms = [Term(DPO(0.3), weight=0.8), Term(BCO(0.3, **NO_DELTA), weight=0.2), Term(SFT())]
    ours = total(terms, batch, policy, [targets_of(t, batch, None, reference) for t in terms], counts(terms, batch))[0]
    types = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
    assert_same(ours, trl_dpo(policy=policy, reference=reference, beta=0.3, **types), policy, rtol)


def test_aot_of_a_batch_is_not_the_mean_of_its_parts():
    """TRL sorts what a process forwards at once."""
    batch, policy, reference = random_pairs(6, scale=3.0)
    halves = [[o.rows(slice(i, i + 3)) for o in (policy, reference)] for i in (0, 3)]
    parts = sum(trl_dpo("aot", *half, beta=0.3).item() for half in halves) / 2
    whole = trl_dpo("aot", policy, reference, beta=0.3).item()
    assert evaluate_loss(AOT(0.3), batch, policy, reference).item() == pytest.approx(whole, rel=1e-12)
    assert abs(whole - parts) > 1e-3


def labelled(batch, *label):
    """The first completion has the label; the second is another prompt's."""
    scores = torch.stack([torch.tensor(label, dtype=torch.float64), torch.zeros(len(batch), dtype=torch.float64)], 1)
    origin = torch.tensor([0, ORIGINS.index("mismatched")]).expand(len(batch), 2)
    return dataclasses.replace(batch, scores=scores, columns={"origin": origin})


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=str)
@pytest.mark.parametrize("settings", [{}, {"beta": 0.7}, {"desirable_weight": 1.5, "undesirable_weight": 0.5}], ids=str)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_kto(settings, scale, dtype, rtol):
    batch, policy, reference = random_pairs(6, scale=scale, dtype=dtype)
    batch = labelled(batch, 1, -1, -1, 1, 1, -1)
    names = {"beta": "beta", "desirable_weight": "lam_d", "undesirable_weight": "lam_u"}
    objective = KTO(**{names[name]: value for name, value in settings.items()})
    ours = evaluate_loss(objective, batch, policy, reference)
    assert_same(ours, trl_kto(batch, policy, reference, **settings), policy, rtol)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=str)
def test_apo_zero_of_single_completions_is_that_of_pairs(dtype, rtol):
    """TRL's is a mean over completions, of which a pair has two."""
    batch, policy, reference = random_pairs(dtype=dtype)

    def apart(outputs):  # each completion a row of its own; the mismatched one is not read
        mask, logps = (x.flatten(0, 1)[:, None].expand(-1, 2, -1) for x in (outputs.mask, outputs.logps))
        return Outputs(mask, logps)

    single = apart(policy)
    rows = Batch(((1,),) * len(single.mask), single.mask.long(), single.mask)
    rows = labelled(rows, *[1, -1] * len(batch))
    theirs = trl_kto(rows, single, apart(reference), beta=0.3, loss_type="apo_zero_unpaired", calculate_KL=False)
    assert_same(evaluate_loss(APOZero(0.3), batch, policy, reference), 2 * theirs, policy, rtol)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=str)
@pytest.mark.parametrize(("loss_type", "objective"), UNIFORM.items())
def test_cpo_types_that_are_dpo_types_against_a_uniform_reference(loss_type, objective, dtype, rtol):
    batch, policy, _ = random_pairs(dtype=dtype)
    beta = getattr(objective, "tau", 0.3)
    theirs = trl_cpo(policy.mean() if loss_type == "ipo" else policy.sum(), loss_type=loss_type, beta=beta)
    uniform = Outputs(policy.mask, torch.zeros_like(policy.logps.detach()))
    assert_same(evaluate_loss(objective, batch, policy, uniform), theirs, policy, rtol)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=str)
@pytest.mark.parametrize(
    ("objective", "of", "settings"),
    [
        (CPO(0.3, alpha=0.0), Outputs.sum, {"loss_type": "sigmoid", "beta": 0.3}),
        (SLiC(1.0, lam=0.0), Outputs.sum, {"loss_type": "hinge", "beta": 1.0}),
        (SimPO(2.0, 0.5), Outputs.mean, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5}),
        (SimPO(10.0, 3.0), Outputs.mean, {"loss_type": "simpo", "beta": 10.0, "simpo_gamma": 3.0}),
        *(
            (AlphaPO(2.5, 0.4, a), Outputs.mean, {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.4, "alpha": a})
            for a in (0.25, -0.5, 1.5)
        ),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_cpo_types(objective, of, settings, dtype, rtol):
    batch, policy, _ = random_pairs(dtype=dtype)
    assert_same(evaluate_loss(objective, batch, policy), trl_cpo(of(policy), **settings), policy, rtol)


@pytest.mark.parametrize("lam", [0.1, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_odds_ratio_of_orpo(lam, dtype):
    """TRL's function returns λ log σ, to be subtracted, in float32 whatever it is given."""
    batch, policy, _ = random_pairs(dtype=dtype)
    ours = evaluate_loss(ORPO(lam), batch, policy) + policy.mean()[:, 0].mean()
    assert_same(ours, -trl_orpo(policy.mean(), lam), policy, 1e-6)


def texts(prompt, chosen, rejected, dtype=torch.float64):
    """Random logits of rows of these lengths; our view of them and the arguments of `trl_whole`."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([*chosen, *rejected])
    size = prompt + int(lengths.max())
    logits = torch.randn(len(lengths), size, 11, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.randint(1, 11, (len(lengths), size), generator=draw)
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    place = torch.arange(1, size)
    mask = (place >= prompt) & (place < prompt + lengths[:, None])

    def pairs(x):  # all chosen first, to [B, 2, T]
        return x.unflatten(0, (2, -1)).transpose(0, 1)

    batch = Batch(((1,),) * len(chosen), pairs(ids[:, 1:] * mask), pairs(mask))
    return batch, Outputs(pairs(mask), pairs(logps * mask)), (logits, ids, prompt, lengths)


def assert_same_of_logits(ours, theirs, logits, rtol):
    assert_same(ours, theirs, Outputs(torch.ones_like(logits, dtype=torch.bool), logits), rtol)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=str)
def test_whole_cpo_where_chosen_completions_are_of_one_length(dtype, rtol):
    batch, policy, arguments = texts(3, (4, 4, 4), (2, 6, 5), dtype)
    ours = evaluate_loss(CPO(0.3, 0.7), batch, policy)
    assert_same_of_logits(ours, trl_whole("cpo", *arguments, beta=0.3, cpo_alpha=0.7), arguments[0], rtol)


def test_whole_cpo_weighs_tokens_where_lengths_differ():
    batch, policy, arguments = texts(3, (4, 2, 6), (2, 6, 5))
    ours = evaluate_loss(CPO(0.3, 0.7), batch, policy)
    theirs = trl_whole("cpo", *arguments, beta=0.3, cpo_alpha=0.7)
    by_token = -policy.sum()[:, 0].sum() / 12
    by_completion = -policy.mean()[:, 0].mean()
    assert abs(by_token - by_completion) > 1e-3
    assert (theirs - ours).item() == pytest.approx(0.7 * (by_token - by_completion).item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_whole_orpo_where_chosen_completions_are_of_one_length_and_prompts_of_one_token(dtype):
    """TRL's likelihood begins with the second token of the prompt."""
    batch, policy, arguments = texts(1, (4, 4, 4), (2, 6, 5), dtype)
    ours = evaluate_loss(ORPO(0.3), batch, policy)
    assert_same_of_logits(ours, trl_whole("orpo", *arguments, beta=0.3), arguments[0], 1e-6)


def test_whole_orpo_imitates_the_prompt():
    batch, policy, arguments = texts(3, (4, 4, 4), (2, 6, 5))
    ours = evaluate_loss(ORPO(0.3), batch, policy)
    logits, ids, *_ = arguments
    prompt = logits[:3, :2].log_softmax(-1).gather(-1, ids[:3, 1:3, None]).sum() / 3
    with_prompt = -(prompt + policy.sum()[:, 0].mean()) / 6
    expected = ours + policy.mean()[:, 0].mean() + with_prompt
    theirs = trl_whole("orpo", *arguments, beta=0.3)
    assert abs(theirs - ours).item() > 1e-3
    assert theirs.item() == pytest.approx(expected.item(), rel=1e-6)


def test_ipo_of_sums_is_not_trls():
    batch, policy, reference = random_pairs()
    theirs = trl_dpo("ipo", policy, reference, beta=0.2)
    assert abs(evaluate_loss(IPO(0.2), batch, policy, reference).item() - theirs.item()) > 1e-3


def test_every_loss_type_of_trl_is_here():
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer

    def named(function):
        return set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(function)))

    assert named(DPOTrainer._compute_loss) == {loss_type for _, loss_type, _ in DPO_TYPES}
    assert named(KTOTrainer._compute_loss) == {"kto", "apo_zero_unpaired"}
    assert named(CPOTrainer.cpo_loss) == {*UNIFORM, "simpo"}
    assert "alphapo" in inspect.getsource(CPOConfig)
