"""Batches that were written by the policy of n batches ago, with and without a correction: the second table of README.md.

.venv/bin/python experiments/bandit_online/staleness.py
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from prefopt.evaluation.intervals import over_seeds
from prefopt.objectives import GRPO, PPO, REINFORCE, RLOO
from prefopt.objectives.online.correction import Correction
from prefopt.support.plugins import load_object
from prefopt.testbeds.bandit import optimum, tabular, total_variation
from prefopt.testbeds.bandit_online import make_rollouts, make_writers, online_trainer
from prefopt.types import Objective

SEEDS = range(5)
AGES = (0, 1, 4)
LAST = 50
"""Updates at the end over which the policy's distance is averaged."""
TABLE = Path(__file__).parent
REFERENCE, REWARDS, GROUP = (load_object(f"run.py:{name}", TABLE) for name in ("REFERENCE", "REWARDS", "group_optimum"))


@dataclass(frozen=True)
class Run:
    """What is trained, where it should arrive, and how it is written and updated."""

    name: str
    objective: Objective
    expected: Tensor
    completions: int = 256
    passes: int = 1


def runs() -> list[Run]:
    best = optimum(REFERENCE, REWARDS, 1.0)
    return [
        Run("REINFORCE", REINFORCE(beta=1.0), best),
        Run("RLOO, exact KL in the loss", RLOO(beta=1.0, estimator="exact", placement="loss"), best),
        Run("PPO, 4 passes", PPO(beta=1.0), best, passes=4),
        Run("GRPO, k3", GRPO(beta=1.0, e=0.0), GROUP("forward"), 512),
    ]


def distances(run: Run, age: int, seed: int, steps: int = 300) -> tuple[float, float]:
    """Total variation from the expected policy: the mean of the updates 21 to 70, on the way, and of the last ones."""
    policy = tabular(REFERENCE[None])
    reference = policy.frozen()
    writers = make_writers(policy, reference, run.completions, {})
    source = make_rollouts(
        writers, load_object("run.py:Problem", TABLE).feedback, run.objective.needs, seed=seed, staleness=age
    )
    trainer = online_trainer(policy, run.objective, source, reference, steps, seed, passes=run.passes, lr=0.1)
    away = [total_variation(policy.probabilities[0], run.expected).item() for _ in trainer]
    return sum(away[20:70]) / 50, sum(away[-LAST:]) / LAST


def main() -> None:
    torch.set_num_threads(1)
    print("| objective | age | on the way, `tis` off | on | at the end, `tis` off | on |\n" + "|---" * 6 + "|")
    for run in runs():
        for age in AGES:
            found = []
            for correction in (None, Correction(per="sequence")) if age else (None,):
                one = replace(run, objective=replace(run.objective, tis=correction))  # type: ignore[type-var]
                found.append(zip(*(distances(one, age, seed) for seed in SEEDS), strict=True))
            cells = [[f"{mean:.4f} ± {half:.4f}" for mean, half in map(over_seeds, pair)] for pair in found]
            cells = cells if age else [*cells, ["", ""]]
            columns = [cells[column][place] for place in (0, 1) for column in (0, 1)]
            print(f"| {run.name} | {age} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
