import dataclasses
import math

import pytest
import torch
from torch.nn.functional import logsigmoid
from trl_dpo import random_pairs

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives.preference.dpo import DPO
from prefopt.objectives.preference.rpo import RPO, RPODiagonal, RPOUnpaired

# The pairs of conftest.py: Δ = (1, −.5), (2, −3), so Δ_w,i − Δ_l,j is
MARGINS = [[1.5, 4.0], [2.5, 5.0]]


def with_embeddings(batch, embeddings):
    return dataclasses.replace(batch, columns={"embeddings": torch.as_tensor(embeddings, dtype=torch.float64)})


def labelled(batch):
    return dataclasses.replace(batch, scores=torch.tensor([[0.5, -0.5]]).expand(len(batch), 2))


def random_case(prompts=5):
    batch, policy, reference = random_pairs(prompts, seed=3, scale=4.0)
    draw = torch.Generator().manual_seed(7)
    return with_embeddings(labelled(batch), torch.randn(prompts, 6, generator=draw)), policy, reference


def gradient(loss, policy):
    return torch.autograd.grad(loss, policy.logps, retain_graph=True)[0]


def nll(x):
    return math.log(1 + math.exp(-x))


@pytest.mark.parametrize(("beta", "tau"), [(0.1, 0.5), (0.7, 0.25)])
def test_value_and_gradient_by_hand(beta, tau, pairs):
    batch, policy, reference = pairs
    # cos = 3/5 whatever the lengths, so the off-diagonal logit is −.4/τ against 0 on the diagonal.
    off = 1 / (1 + math.exp(0.4 / tau))
    weights = [[1 - off, off], [off, 1 - off]]
    loss = evaluate_loss(RPO(beta, tau), with_embeddings(batch, [[2.0, 0.0], [1.5, 2.0]]), policy, reference)
    logits = [[beta * weights[i][j] * MARGINS[i][j] for j in (0, 1)] for i in (0, 1)]
    assert loss.item() == pytest.approx(sum(nll(x) for row in logits for x in row) / 4, abs=1e-10)
    pull = torch.tensor(
        [[beta * weights[i][j] / (1 + math.exp(logits[i][j])) / 4 for j in (0, 1)] for i in (0, 1)], dtype=torch.float64
    )
    by_hand = torch.stack([-pull.sum(1), pull.sum(0)], 1)[:, :, None] * batch.mask
    torch.testing.assert_close(gradient(loss, policy), by_hand, rtol=0, atol=1e-10)


def test_metrics_by_hand(pairs):
    batch, policy, reference = pairs
    objective, batch = RPO(0.5), with_embeddings(batch, [[2.0, 0.0], [1.5, 2.0]])
    metrics = objective.loss(batch, policy, objective.targets(batch, None, reference)).metrics
    assert metrics["rewards/chosen"].tolist() == pytest.approx([0.5, 1.0])
    assert metrics["rewards/margin"].tolist() == pytest.approx([0.75, 2.5])
    assert metrics["weight/own"].tolist() == pytest.approx([1 / (1 + math.exp(-0.8))] * 2)


@pytest.mark.parametrize("objective", [RPO(0.3), RPODiagonal(0.3), RPOUnpaired(0.3)])
def test_one_prompt_is_dpo(objective):
    batch, policy, reference = random_case(1)
    ours, dpo = (evaluate_loss(o, batch, policy, reference) for o in (objective, DPO(0.3)))
    torch.testing.assert_close(ours, dpo, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(ours, policy), gradient(dpo, policy), rtol=1e-12, atol=1e-15)


def test_small_tau_has_the_gradient_of_dpo_over_m():
    batch, policy, reference = random_case()
    ours, dpo = (evaluate_loss(o, batch, policy, reference) for o in (RPO(0.3, tau=1e-4), DPO(0.3)))
    assert ours.item() == pytest.approx((dpo.item() + 4 * math.log(2)) / 5, rel=1e-12)
    torch.testing.assert_close(gradient(ours, policy), gradient(dpo, policy) / 5, rtol=1e-10, atol=1e-12)


def test_large_tau_weighs_uniformly_and_m_times_beta_is_the_strength_of_dpo():
    batch, policy, reference = random_case()
    ours = evaluate_loss(RPO(5 * 0.3, tau=1e12), batch, policy, reference)
    delta = (policy.sum() - reference.sum()).detach()
    assert ours.item() == pytest.approx(-logsigmoid(0.3 * (delta[:, :1] - delta[:, 1])).mean().item(), rel=1e-10)
    uniform = evaluate_loss(RPODiagonal(0.3, diagonal=1 / 5), batch, policy, reference)
    assert ours.item() == pytest.approx(uniform.item(), rel=1e-10)


def test_prompts_with_one_embedding_share_the_weight():
    batch, policy, reference = random_case(4)
    batch = with_embeddings(batch, [[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, -1.0]])
    objective = RPO(tau=1e-3)
    own = objective.loss(batch, policy, objective.targets(batch, None, reference)).metrics["weight/own"]
    assert own.tolist() == pytest.approx([0.5, 1, 0.5, 1])


@pytest.mark.parametrize("objective", [RPO(0.4, 0.3), RPOUnpaired(0.4, 0.3), RPODiagonal(0.4, 0.6)])
def test_the_order_of_rows_does_not_matter(objective):
    batch, policy, reference = random_case()
    order = torch.tensor([3, 0, 4, 1, 2])
    one = evaluate_loss(objective, batch, policy, reference)
    other = evaluate_loss(objective, batch.rows(order), policy.rows(order), reference.rows(order))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(one, policy), gradient(other, policy), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("objective", [RPO(1.0), RPODiagonal(1.0), RPOUnpaired(1.0)])
def test_rows_are_coupled(objective):
    """So that the invariances above are about something: a prompt's loss depends on the others."""
    batch, policy, reference = random_case()
    alone = evaluate_loss(objective, batch.rows(slice(2)), policy.rows(slice(2)), reference.rows(slice(2)))
    rest = evaluate_loss(objective, batch.rows(slice(2, 5)), policy.rows(slice(2, 5)), reference.rows(slice(2, 5)))
    whole = evaluate_loss(objective, batch, policy, reference)
    assert abs((2 * alone + 3 * rest) / 5 - whole).item() > 1e-3


def test_unpaired_on_pairs_is_rpo():
    batch, policy, reference = random_case()
    ours, paired = (evaluate_loss(cls(0.4, 0.3), batch, policy, reference) for cls in (RPOUnpaired, RPO))
    torch.testing.assert_close(ours, paired, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(ours, policy), gradient(paired, policy), rtol=1e-12, atol=1e-15)


def single_completions(scores, sums, embeddings):
    rows = len(scores)
    mask = torch.ones(rows, 1, 1, dtype=torch.bool)
    batch = Batch(((1,),) * rows, mask.long(), mask, scores=torch.tensor(scores)[:, None])
    policy = Outputs(mask, torch.tensor(sums, dtype=torch.float64)[:, None, None].requires_grad_())
    return with_embeddings(batch, embeddings), policy, Outputs(mask, torch.zeros(rows, 1, 1, dtype=torch.float64))


def test_unpaired_by_hand():
    """One desirable completion against two undesirable ones, at cosines .6 and 0; the softmax is over these two alone."""
    embeddings = [[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [5.0, 5.0]]
    batch, policy, reference = single_completions([0.5, -0.5, -0.5, 0.0], [-1.0, -2.0, -4.0, -9.0], embeddings)
    objective = RPOUnpaired(beta=0.5, tau=0.5)
    near = 1 / (1 + math.exp(-0.6 / 0.5))
    expected = (nll(0.5 * near * 1) + nll(0.5 * (1 - near) * 3)) / 2
    loss = objective.loss(batch, policy, objective.targets(batch, None, reference))
    assert loss.total.tolist() == pytest.approx([4 * expected, 0, 0, 0], abs=1e-12)
    assert evaluate_loss(objective, batch, policy, reference).item() == pytest.approx(expected, abs=1e-12)
    assert loss.metrics["rewards/chosen"].tolist() == pytest.approx([-0.5, math.nan, math.nan, math.nan], nan_ok=True)
    assert loss.metrics["rewards/rejected"].tolist() == pytest.approx([math.nan, -1, -2, math.nan], nan_ok=True)


@pytest.mark.parametrize("label", [0.5, -0.5])
def test_unpaired_learns_nothing_from_one_kind_alone(label):
    batch, policy, reference = single_completions([label] * 3, [-1.0, -2.0, -3.0], [[1.0], [2.0], [3.0]])
    loss = evaluate_loss(RPOUnpaired(), batch, policy, reference)
    assert loss.item() == 0
    assert gradient(loss, policy).abs().max() == 0


def test_diagonal_by_hand(pairs):
    batch, policy, reference = pairs
    loss = evaluate_loss(RPODiagonal(0.7, 0.8), batch, policy, reference)
    each = [[nll(0.7 * m) for m in row] for row in MARGINS]
    assert loss.item() == pytest.approx(
        (0.8 * (each[0][0] + each[1][1]) + 0.2 * (each[0][1] + each[1][0])) / 2, abs=1e-12
    )
    torch.testing.assert_close(
        evaluate_loss(RPODiagonal(0.7, 1.0), batch, policy, reference),
        evaluate_loss(DPO(0.7), batch, policy, reference),
        rtol=1e-12,
        atol=0,
    )


def test_single_precision_agrees():
    batch, policy, reference = random_case()
    narrow = [dataclasses.replace(o, logps=o.logps.detach().float()) for o in (policy, reference)]
    for objective in (RPO(), RPOUnpaired(), RPODiagonal()):
        wide = evaluate_loss(objective, batch, policy, reference)
        assert evaluate_loss(objective, batch, *narrow).item() == pytest.approx(wide.item(), rel=1e-6)


def test_without_embeddings_says_so(pairs):
    with pytest.raises(ValueError, match="embeddings"):
        evaluate_loss(RPO(), *pairs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RPO(tau=0), "tau must be above 0"),
        (lambda: RPOUnpaired(tau=-1), "tau must be above 0"),
        (lambda: RPODiagonal(diagonal=1.2), "between 0 and 1"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
