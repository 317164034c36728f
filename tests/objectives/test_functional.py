import dataclasses

import pytest
import torch

from prefopt import Batch
from prefopt.objectives.maths import list_metrics, masked_log_softmax, pair_metrics
from prefopt.support.seeds import generator, seed_for


def test_pair_metrics_by_hand():
    reward = torch.tensor([[2.0, 0.5], [-1.0, 1.0], [0.25, 0.25]], requires_grad=True)
    metrics = pair_metrics(reward)
    assert {name: value.tolist() for name, value in metrics.items()} == {
        "rewards/chosen": [2.0, -1.0, 0.25],
        "rewards/rejected": [0.5, 1.0, 0.25],
        "rewards/margin": [1.5, -2.0, 0.0],
        "rewards/accuracy": [1.0, 0.0, 0.5],
    }
    assert not any(value.requires_grad for value in metrics.values())


def test_shapes_are_checked_in_every_test():
    with pytest.raises(TypeError, match="reward"):
        pair_metrics(torch.zeros(4, 3))
    with pytest.raises(TypeError, match="present"):
        masked_log_softmax(torch.zeros(4, 3), torch.ones(4, 2, dtype=torch.bool))


def test_seeds_depend_on_every_part():
    parts = [(a, b) for a in range(20) for b in range(20)]
    seeds = {seed_for(*p) for p in parts} | {seed_for(0, "init"), seed_for("init", 0), seed_for("0", "init")}
    assert len(seeds) == 403
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = [torch.rand(1, generator=generator(1, "order")).item() for _ in range(2)]
    assert draws[0] == draws[1] != torch.rand(1, generator=generator(2, "order")).item()


def test_seeds_are_the_same_in_every_process_and_version():
    """Python's own hash of a string is not. A change here would change every run."""
    assert seed_for(3, "init") == 6147536578255749391


def test_masked_log_softmax_leaves_out_what_is_absent():
    values = torch.tensor([[1.0, 50.0, 2.0], [0.5, 0.0, 0.0]], dtype=torch.float64)
    present = torch.tensor([[True, False, True], [True, False, False]])
    found = masked_log_softmax(values, present)
    torch.testing.assert_close(found[0, [0, 2]], values[0, [0, 2]].log_softmax(-1))
    assert found[0, 1] == 0
    assert found[1].tolist() == [0, 0, 0]


def test_list_metrics_are_of_the_best_and_the_worst():
    mask = torch.ones(3, 3, 1, dtype=torch.bool)
    mask[1, 2] = mask[2, 1:] = False
    scores = torch.tensor([[0.0, 2.0, 1.0], [1.0, 2.0, 9.0], [1.0, 0.0, 0.0]])
    batch = Batch(((1,),) * 3, mask.long(), mask, scores)
    reward = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 9.0], [1.0, 0.0, 0.0]])
    found = list_metrics(reward, batch)
    torch.testing.assert_close(found["rewards/chosen"], torch.tensor([0.2, 0.5, torch.nan]), equal_nan=True)
    torch.testing.assert_close(found["rewards/rejected"], torch.tensor([0.1, 0.4, torch.nan]), equal_nan=True)
    ranked = list_metrics(reward, dataclasses.replace(batch, scores=None))
    torch.testing.assert_close(ranked["rewards/margin"], torch.tensor([-0.2, -0.1, torch.nan]), equal_nan=True)
