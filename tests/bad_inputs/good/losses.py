"""A user's objective: the hinge on log-ratios."""

from dataclasses import dataclass

from prefopt import Loss, Needs, log_ratios, pair_metrics, reference_sums


@dataclass(frozen=True)
class Hinge:
    needs = Needs(completions=2, ordered=True, reference=True)
    targets = reference_sums
    beta: float = 0.1

    def loss(self, batch, policy, targets):
        rewards = self.beta * log_ratios(policy, targets)
        return Loss((1 - rewards[:, 0] + rewards[:, 1]).relu(), pair_metrics(rewards))
