import pytest
import torch

from prefopt import evaluate_loss
from prefopt.objectives import DPO, SFT
from prefopt.objectives.terms import Term, merged_needs


def test_value_and_gradient_by_hand(pairs):
    """Five tokens in the two best completions, with log-probs −1, −2, −.5, −.25, −.75."""
    batch, policy, _ = pairs
    loss = evaluate_loss(SFT(), batch, policy)  # K = 2 is cut to the best
    assert loss.item() == pytest.approx(4.5 / 5, abs=1e-12)
    loss.backward()
    expected = -batch.mask.double() / 5
    expected[:, 1] = 0
    torch.testing.assert_close(policy.logps.grad, expected, rtol=0, atol=1e-12)
    assert loss.item() == evaluate_loss(SFT(), batch.first(1), policy.first(1)).item()


def test_every_token_weighs_the_same_however_rows_are_grouped(pairs):
    batch, policy, _ = pairs
    alone = [evaluate_loss(SFT(), batch.rows(slice(i, i + 1)), policy.rows(slice(i, i + 1))).item() for i in range(2)]
    assert (3 * alone[0] + 2 * alone[1]) / 5 == pytest.approx(evaluate_loss(SFT(), batch, policy).item(), abs=1e-12)


def test_nll_metric_is_the_mean_of_each(pairs):
    batch, policy, _ = pairs
    metrics = SFT().loss(batch.first(1), policy.first(1), SFT().targets(batch, None, None)).metrics
    assert metrics["nll"].tolist() == pytest.approx([3.5 / 3, 0.5])


def test_shares_a_batch_with_dpo():
    needs = merged_needs([Term(DPO()), Term(SFT(), weight=0.5)])
    assert (needs.completions, needs.ordered, needs.reference) == (2, True, True)
