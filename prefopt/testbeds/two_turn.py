"""A bandit of two turns with an environment's answer, which is chance, in between; solved by soft dynamic programming.

The policy writes a, the environment answers e with probability P(e|a), the policy writes b, and the episode earns r(a, e, b). A
completion is [a, e, b] with the mask [True, False, True]: what the environment wrote is read, and nobody learns to write it. An
objective that treats the answer as the policy's own learns to hope for it.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from prefopt.policy.head import DIVERGENCES, STATISTICS
from prefopt.support.errors import PrefoptError
from prefopt.support.seeds import seed_for
from prefopt.testbeds.bandit import Frozen, Table, optimum
from prefopt.types import ORIGINS, Batch, Needs, Outputs


class Choices(NamedTuple):
    """What is done at each turn, or another number for each of these choices.

    Attributes:
        first: [A], of the first turn.
        second: [A, E, B], of the second one, after the first and the answer.
    """

    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class World:
    """What the policy acts in, and what it is kept near.

    Attributes:
        reference: probabilities of the reference's choices.
        chance: [A, E], P(e|a), of the environment's answers.
        rewards: [A, E, B], of whole episodes.
        answers: for each e, how many tokens the environment writes.
    """

    reference: Choices
    chance: Tensor
    rewards: Tensor
    answers: tuple[int, ...] = (1, 1)

    def trajectories(self, policy: Choices) -> Tensor:
        """[A, E, B], how probable each episode is."""
        return (policy.first[:, None] * self.chance)[..., None] * policy.second

    def best(self, beta: float) -> tuple[Choices, Tensor]:
        """π* and J*, the maximum of `value`, backwards from the last turn.

        V(a, e) = β log Σ_b π_ref(b|a, e) e^{r/β},  Q(a) = Σ_e P(e|a) V(a, e),  π*(a) ∝ π_ref(a) e^{Q/β}: chance is averaged
        over, and not chosen.
        """
        after = _soft_value(self.reference.second, self.rewards, beta)
        expected = (self.chance * after).sum(-1)
        policy = Choices(
            optimum(self.reference.first, expected, beta), optimum(self.reference.second, self.rewards, beta)
        )
        return policy, _soft_value(self.reference.first, expected, beta)

    def tilted(self, beta: float) -> Choices:
        """Where an objective goes to which an answer is one more choice: π ∝ π_ref(τ) e^{r(τ)/β}. It seeks risk."""
        after = _soft_value(self.reference.second, self.rewards, beta)
        hoped = _soft_value(self.chance, after, beta)
        return Choices(optimum(self.reference.first, hoped, beta), self.best(beta)[0].second)

    def value(self, policy: Choices, beta: float) -> Tensor:
        """J(π) = E r − β·KL(π‖π_ref), the KL of what the policy writes."""
        ratio = (policy.first / self.reference.first).log()[:, None, None]
        ratio = ratio + (policy.second / self.reference.second).log()
        return (self.trajectories(policy) * (self.rewards - beta * ratio)).sum()

    def group_optimum(self, beta: float) -> Choices:
        """Where `GRPO` with k3 stands still in large groups with e = 0.

        k3 in the loss of a token has the gradient of KL(π_ref‖π) there, and none for what comes after; advantages are rewards
        over their standard deviation σ. So each turn has w·π_ref/(w + m − Q) for w = βσ at the σ that this policy has, m the number
        at which it sums to 1, and Q the mean reward of what follows.
        """

        def policy(weight: float) -> Choices:
            second = _held_forward(self.reference.second, self.rewards, weight)
            earned = (self.chance * (second * self.rewards).sum(-1)).sum(-1)
            return Choices(_held_forward(self.reference.first, earned, weight), second)

        def spread(policy: Choices) -> float:
            chance = self.trajectories(policy)
            mean = (chance * self.rewards).sum()
            return (chance * (self.rewards - mean).square()).sum().sqrt().item()

        return policy(brentq(lambda weight: beta * spread(policy(weight)) - weight, 1e-3, 10 * beta, xtol=1e-13))


def _soft_value(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    return beta * (reference.log() + rewards / beta).logsumexp(-1)


def _held_forward(reference: Tensor, rewards: Tensor, weight: float) -> Tensor:
    """The maximum of E r − w·KL(π_ref‖π), [..., A]: w·π_ref/(w + m − r)."""
    rows = []
    for own, row in zip(
        reference.reshape(-1, reference.shape[-1]), rewards.reshape(-1, rewards.shape[-1]), strict=True
    ):
        low = row.max().item() - weight  # there a denominator is 0

        def total(m: float, own: Tensor = own, row: Tensor = row) -> float:
            return (weight * own / (weight + m - row)).sum().item() - 1

        m = brentq(total, low + 1e-12, low + 10 * weight + 10, xtol=1e-14)
        rows.append(weight * own / (weight + m - row))
    return torch.stack(rows).view(reference.shape)


def _doubles(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


WORLD = World(
    Choices(_doubles(0.5, 0.3, 0.2), _doubles(0.6, 0.4).expand(3, 2, 2)),
    _doubles([0.9, 0.1], [0.5, 0.5], [0.2, 0.8]),
    _doubles([[0, 0.2], [1, -1]], [[0.5, 1], [-0.5, 0]], [[2, 0], [-0.2, -0.4]]),
)
"""The testbed: answers x and y; the third choice pays most with the answer that it seldom gets."""


class TwoTurnPolicy(nn.Module):
    """A table of choices for each turn, one of the environment's answers, and values. A `Model`.

    Of the answers it has an opinion, as a language model has of every token; it starts at the truth, and as long as the mask is
    False there nothing reads it.

    Args:
        world: whose shape it has.
        start: where it starts; None is the reference.
    """

    def __init__(self, world: World, start: Choices | None = None):
        super().__init__()
        start = world.reference if start is None else start
        self.answers = world.answers
        self.first, self.answer = Table(start.first[None]), Table(world.chance)
        self.second = Table(start.second.flatten(0, 1))
        actions, kinds = world.chance.shape
        names = {"before": 1, "between": actions, "after": actions * kinds}
        # The trainer gives parameters under `critic` their own learning rate.
        self.critic = nn.ParameterDict({name: torch.zeros(n, dtype=torch.float64) for name, n in names.items()})
        self._reference: tuple[Frozen, ...] = ()  # in a tuple, so that it is no submodule

    @property
    def choices(self) -> Choices:
        """Its probabilities, without gradient."""
        kinds = len(self.answers)
        second = self.second.logits.detach().softmax(-1)
        return Choices(self.first.logits.detach().softmax(-1)[0], second.unflatten(0, (-1, kinds)))

    def frozen(self) -> Frozen:
        """A copy that is not trained: a reference."""
        return Frozen(copy.deepcopy(self).requires_grad_(False))  # type: ignore[arg-type]  # a policy with two turns

    def attach_reference(self, reference: Frozen) -> None:
        """The reference for exact divergences, where an objective needs them."""
        self._reference = (reference,)

    def forward(self, batch: Batch, needs: Needs) -> Outputs:
        """`logps` [B, K, T], `values` and the statistics in `needs`; 0 outside the mask.

        Raises:
            PrefoptError: `needs` asks for rewards, or for a divergence without a reference.
        """
        if needs.rewards:
            raise PrefoptError("this objective needs rewards; a bandit's policy gives none")
        ids, last = batch.completion_ids, batch.lengths - 1
        a, e = ids[..., 0], ids[..., 1] - ANSWER
        b = ids.gather(-1, last[..., None])[..., 0] - SECOND
        after = a * len(self.answers) + e
        decisions = {  # a row of each table, what was chosen there, and where that stands
            "first": (torch.zeros_like(a), a, torch.zeros_like(a)),
            "answer": (a, e, torch.ones_like(a)),
            "second": (after, b, last),
        }
        fields: dict[str, Any] = {}
        for table, (row, choice, place) in decisions.items():
            at = torch.arange(batch.mask.shape[-1]) == place[..., None]
            for name, value in self._of(table, row, choice, needs).items():
                fields[name] = fields.get(name, 0) + torch.where(at & batch.mask, value[..., None], 0.0)
        if needs.values:
            fields["values"] = self._values(a, after, last, batch.mask)
        return Outputs(batch.mask, fields.pop("logps"), fields.pop("values", None), statistics=fields)

    def _of(self, table: str, row: Tensor, choice: Tensor, needs: Needs) -> dict[str, Tensor]:
        """What one table says of these choices, [B, K] each."""
        own = getattr(self, table)(row).log_softmax(-1)
        said = {"logps": own.gather(-1, choice[..., None])[..., 0]}
        said |= {name: STATISTICS[name](own) for name in needs.statistics & STATISTICS.keys()}
        if names := needs.statistics & DIVERGENCES.keys():
            if not self._reference:
                raise PrefoptError("exact KL needs the reference: call `policy.attach_reference(reference)`")
            other = getattr(self._reference[0].policy, table)(row).log_softmax(-1).detach()
            said |= {name: DIVERGENCES[name](own, other) for name in names}
        return said

    def _values(self, a: Tensor, after: Tensor, last: Tensor, mask: Tensor) -> Tensor:
        """Of what was read before each token: nothing, the first choice, or the answer, too."""
        place = torch.arange(mask.shape[-1])
        late = torch.where(place > 1, self.critic["after"][after][..., None], self.critic["between"][a][..., None])
        return torch.where(place == 0, self.critic["before"], late).where(mask & (place <= last[..., None]), 0.0)


ANSWER, SECOND = 100, 200
"""Token ids of the first answer and of the first choice of the second turn; those of the first turn begin at 0."""


def episodes(world: World, a: Tensor, e: Tensor, b: Tensor) -> Batch:
    """A batch of these episodes, with their rewards as scores.

    Args:
        world: has the rewards, and how long answers are.
        a: [B, K], choices of the first turn.
        e: [B, K], answers.
        b: [B, K], choices of the second turn.
    """
    last = 1 + torch.tensor(world.answers)[e][..., None]
    place = torch.arange(1 + int(last.max()))
    ids = torch.where(
        place == 0, a[..., None], torch.where(place == last, SECOND + b[..., None], ANSWER + e[..., None])
    )
    return Batch(
        prompt_ids=((0,),) * len(a),
        completion_ids=ids * (place <= last),
        mask=(place == 0) | (place == last),
        scores=world.rewards[a, e, b],
        columns={"origin": torch.full_like(a, ORIGINS.index("policy"))},
    )


@dataclass
class Episodes:
    """A source of the policy's own episodes: one prompt, as many as are asked for in each logical batch.

    The noise of a batch is a function of the seed and the batch's number.

    Attributes:
        world: what answers.
        policy: who writes.
        completions: K.
        seed: of the noise.
        number: of the last batch.
    """

    world: World
    policy: TwoTurnPolicy
    completions: int
    seed: int = 0
    number: int = 0
    batch_size = 1

    def __iter__(self) -> Iterator[Batch]:
        """Batches that the policy writes as it is when they are asked for."""
        while True:
            self.number += 1
            yield self._written(torch.Generator().manual_seed(seed_for(self.seed, "two turns", self.number)))

    def _written(self, noise: torch.Generator) -> Batch:
        choices = self.policy.choices
        a = torch.multinomial(choices.first, self.completions, True, generator=noise)
        e = torch.multinomial(self.world.chance[a], 1, generator=noise)[:, 0]
        b = torch.multinomial(choices.second[a, e], 1, generator=noise)[:, 0]
        return episodes(self.world, a[None], e[None], b[None])

    def state_dict(self) -> dict[str, Any]:
        """The number of batches so far."""
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.number = state["number"]


def pairs(world: World, sampled: Tensor) -> Batch:
    """Every ordered pair of different episodes, winner first, for objectives that learn from comparisons alone.

    Args:
        world: has the rewards; preferences are Bradley–Terry on them.
        sampled: [A, E, B], how often each episode stands in a pair.

    Returns:
        Rows of two episodes; the column `weight` is how often this pair occurs with this winner, for `Weighted` objectives.
    """
    a, e, b = (sampled > 0).nonzero(as_tuple=True)
    i, j = (~torch.eye(len(a), dtype=torch.bool)).nonzero(as_tuple=True)
    pair = torch.stack([i, j], -1)
    batch = episodes(world, a[pair], e[pair], b[pair])
    assert batch.scores is not None
    wins = (batch.scores[:, 0] - batch.scores[:, 1]).sigmoid()
    return replace(batch, columns={"weight": sampled[a, e, b][pair].prod(-1) * wins})
