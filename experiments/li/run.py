"""DPO against a reward model with policy gradient: the linear bandit of Li et al. (arXiv 2312.10584), table of README.md.

.venv/bin/python experiments/li/run.py
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from prefopt import evaluate_loss
from prefopt.evaluation.intervals import over_seeds
from prefopt.objectives import DPO, RLOO, BradleyTerry
from prefopt.support.seeds import generator
from prefopt.testbeds.bandit import Bandit, contexts_of, make_trainer, tabular
from prefopt.testbeds.bandit_online import Payoff, make_rollouts, make_writers, online_trainer
from prefopt.types import Batch, Needs, Outputs

SEEDS = range(10)
MORE_SEEDS = range(40)
"""For the official optimiser, where ten seeds do not decide."""
PAIRS, ACTIONS, BETA = 20, 4, 0.01
EXTRA = (10, 80)
"""Further states without preferences: the official script's, and its default."""
GRID = 1000
"""States in the middle of as many equal parts of (0, 1), on which policies are judged."""
TRUE = torch.tensor([1.0, 2.0], dtype=torch.float64)


def features(states: Tensor, swapped: bool = False) -> Tensor:
    """φ(s, a) = ((a + 1) cos πs, sin πs / (a + 1)), [C, A, 2]; `swapped` has sine and cosine in each other's place."""
    number = torch.arange(1, ACTIONS + 1, dtype=torch.float64)
    first, second = (torch.pi * states[:, None]).cos(), (torch.pi * states[:, None]).sin()
    if swapped:
        first, second = second, first
    return torch.stack([number * first, second / number], -1)


class Linear(nn.Module):
    """Logits w·φ(s, a), of a policy that is uniform at the start.

    Args:
        features: [C, A, 2].
    """

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features
        self.weights = nn.Parameter(torch.zeros(features.shape[-1], dtype=torch.float64))

    def forward(self, contexts: Tensor) -> Tensor:
        return self.features[contexts] @ self.weights


def linear(features: Tensor) -> Bandit:
    """A policy with these features, [C, A, 2]."""
    return Bandit(Linear(features), len(features))


class LinearScorer(nn.Module):
    """r(s, a) = w·φ(s, a), as a scorer. A `Model`.

    Args:
        features: [C, A, 2].
    """

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features
        self.weights = nn.Parameter(torch.zeros(features.shape[-1], dtype=torch.float64))

    def forward(self, batch: Batch, needs: Needs) -> Outputs:
        contexts = contexts_of(batch.prompt_ids)
        rewards = self.features[contexts[:, None], batch.completion_ids[..., 0]] @ self.weights
        return Outputs(batch.mask, rewards=rewards)


def preferences(states: Tensor, draw: torch.Generator) -> Batch:
    """One pair of different actions in each state, labelled by Bradley–Terry on the true reward; the winner comes first."""
    weights = torch.ones(len(states), ACTIONS)
    pair = torch.multinomial(weights, 2, generator=draw)
    rewards = (features(states) @ TRUE).gather(1, pair)
    swap = torch.rand(len(states), generator=draw, dtype=torch.float64) > (rewards[:, 0] - rewards[:, 1]).sigmoid()
    pair = torch.where(swap[:, None], pair.flip(1), pair)
    mask = torch.ones(len(states), 2, 1, dtype=torch.bool)
    scores = torch.tensor([[0.5, -0.5]]).expand(len(states), 2)
    return Batch(tuple((c,) for c in range(len(states))), pair[..., None], mask, scores=scores)


def reward_model(states: Tensor, batch: Batch) -> Tensor:
    """The weights that Bradley–Terry finds on the pairs, [2]."""
    scorer = LinearScorer(features(states))
    for _ in make_trainer(scorer, BradleyTerry(), batch, None, lr=0.1, passes=1000, betas=(0.9, 0.99)):
        pass
    return scorer.weights.detach()


def direct(states: Tensor, batch: Batch, swapped: bool) -> Tensor:
    """DPO's weights, [2]."""
    policy = linear(features(states, swapped))
    reference = policy.frozen()
    for _ in make_trainer(policy, DPO(BETA), batch, reference, lr=1.0, passes=1000, betas=(0.9, 0.99)):
        pass
    return policy.scores.weights.detach()


def through_rewards(states: Tensor, reward: Tensor, swapped: bool, seed: int) -> Tensor:
    """RLOO's weights, [2], on samples in these states, 20 states a batch, that the reward model scores."""
    policy, objective = linear(features(states, swapped)), RLOO(beta=BETA)
    reference = tabular(torch.full((len(states), ACTIONS), 1 / ACTIONS)).frozen()
    feedback = Payoff(features(states) @ reward)
    writers = make_writers(policy, reference, 8, {})
    source = make_rollouts(writers, feedback, objective.needs, range(len(states)), PAIRS, seed)
    for _ in online_trainer(policy, objective, source, reference, 300, seed, lr=0.3):
        pass
    return policy.scores.weights.detach()


def gap(weights: Tensor, swapped: bool) -> float:
    """How much true reward the policy with these weights lacks to the best action in each state, averaged over the grid."""
    states = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    rewards = features(states) @ TRUE
    policy = (features(states, swapped) @ weights).softmax(-1)
    return (rewards.amax(-1) - (policy * rewards).sum(-1)).mean().item()


def gaps(seed: int, swapped: bool) -> dict[str, float]:
    """Optimality gaps by method."""
    draw = generator(seed, "li")
    states = torch.rand(PAIRS + max(EXTRA), generator=draw, dtype=torch.float64)
    batch = preferences(states[:PAIRS], draw)
    reward = reward_model(states[:PAIRS], batch)
    found = {
        "uniform": gap(torch.zeros(2, dtype=torch.float64), swapped),
        "DPO": gap(direct(states[:PAIRS], batch, swapped), swapped),
        "RLOO on the reward model, the pairs' states": gap(
            through_rewards(states[:PAIRS], reward, swapped, seed), swapped
        ),
    }
    for extra in EXTRA:
        weights = through_rewards(states[: PAIRS + extra], reward, swapped, seed)
        found[f"RLOO on the reward model, and {extra} more states"] = gap(weights, swapped)
    # Not learnt: as if the states were all, and as if the reward were known.
    grid = (torch.arange(0, GRID, 10, dtype=torch.float64) + 0.5) / GRID
    found["RLOO on the true reward, 100 states"] = gap(through_rewards(grid, TRUE, swapped, seed), swapped)
    return found


def published(seed: int, swapped: bool) -> dict[str, float]:
    """Optimality gaps on the same data with the official optimiser, exact policy gradients, and its random starts."""
    draw = generator(seed, "li")
    states = torch.rand(PAIRS + max(EXTRA), generator=draw, dtype=torch.float64)
    batch = preferences(states[:PAIRS], draw)
    reward = reward_model(states[:PAIRS], batch)
    start = torch.rand(2, 2, generator=draw, dtype=torch.float64)
    policy = linear(features(states[:PAIRS], swapped))
    said = policy.frozen()(batch, DPO.needs)  # uniform: its weights are 0

    def direct_loss() -> Tensor:
        return evaluate_loss(DPO(BETA), batch, policy(batch, DPO.needs), said)

    found = {}
    for steps in (200, 2000):
        found[f"DPO, {steps} steps"] = gap(adagrad_norm(policy, direct_loss, start[0], steps), swapped)
    found["DPO, the project's trainer"] = gap(direct(states[:PAIRS], batch, swapped), swapped)
    for number in (PAIRS, *(PAIRS + extra for extra in EXTRA)):
        policy = linear(features(states[:number], swapped))
        rewards = features(states[:number]) @ reward
        loss = partial(regularised_loss, policy, rewards)
        found[f"policy gradient, {number} states"] = gap(adagrad_norm(policy, loss, start[1], 1000), swapped)
    return found


def regularised_loss(policy: Bandit, rewards: Tensor) -> Tensor:
    """−E r + β·KL(π‖uniform), the mean over all states, exact."""
    logps = policy.scores(torch.arange(len(rewards))).log_softmax(-1)
    return (logps.exp() * (BETA * (logps + math.log(ACTIONS)) - rewards)).sum(-1).mean()


def adagrad_norm(policy: Bandit, loss: Callable[[], Tensor], start: Tensor, steps: int) -> Tensor:
    """Weights after gradient steps of length 1/√(Σ of all squared norms so far), [2]: the official optimiser."""
    policy.scores.weights.data = start.clone()
    total = 0.0
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(), policy.scores.weights)
        total += gradient.square().sum().item()
        policy.scores.weights.data -= gradient / math.sqrt(total)
    return policy.scores.weights.detach().clone()


def best_gap(swapped: bool) -> float:
    """The least gap of any policy with these features and weights of norm 300, over 720 directions."""
    angles = torch.arange(720, dtype=torch.float64) * torch.pi / 360
    return min(gap(300 * torch.stack([angle.cos(), angle.sin()]), swapped) for angle in angles)


def shown(values: Sequence[float]) -> str:
    mean, half = over_seeds(values)
    return f"{mean:.3f} ± {half:.3f}"


def report(runs: Sequence[Mapping[str, float]], base: str) -> None:
    print(f"| | gap | less that of {base} | seeds better than it |\n|---|---|---|---|")
    for name in runs[0]:
        values = [run[name] for run in runs]
        less = [run[name] - run[base] for run in runs]
        print(f"| {name} | {shown(values)} | {shown(less)} | {sum(d < 0 for d in less)} of {len(runs)} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    for swapped in (True, False):
        print(
            f"\npolicy's features {'swapped' if swapped else 'as in the reward'}: the best has {best_gap(swapped):.3f}\n"
        )
        runs = [published(seed, swapped) for seed in MORE_SEEDS]
        for seeds in (SEEDS, MORE_SEEDS):
            report(runs[: len(seeds)], "DPO, 200 steps")
            print()
        report([gaps(seed, swapped) for seed in SEEDS], "DPO")


if __name__ == "__main__":
    main()
