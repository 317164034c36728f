import torch

from prefopt.functional import generator, pair_metrics, seed_for


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
