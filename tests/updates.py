"""The update that three steps make, for the tests of invariance; also a program that torchrun starts.

torchrun --standalone --nproc_per_node 2 tests/updates.py OUT
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt import recipe
from prefopt.objectives import DPO, GDPO, GRPO, PPO, REINFORCE, RLOO, SFT
from prefopt.objectives.preference.aot import AOT, AOTUnpaired
from prefopt.objectives.preference.bco import BCO
from prefopt.objectives.preference.betadpo import BetaDPO
from prefopt.objectives.preference.kto import KTO
from prefopt.objectives.preference.rpo import RPO, RPODiagonal, RPOUnpaired
from prefopt.objectives.terms import Term
from prefopt.policy import Policy, make_reference
from prefopt.policy.critic import ValueHead
from prefopt.training.loop import Trainer
from prefopt.types import ORIGINS, Batch, Loss, Needs, Outputs, Targets

VOCABULARY = 50


@dataclass(frozen=True)
class Coupled:
    """−log σ of each row's margin against the mean margin of the whole batch: rows are coupled with gradient."""

    beta: float = 0.1
    needs = Needs(completions=2, ordered=True, reference=True, whole_batch=True)

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        assert reference is not None
        return Targets({"reference": reference.sum()})

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        reward = self.beta * (policy.sum() - targets.rows["reference"])
        margin = reward[:, 0] - reward[:, 1]
        centred = margin * margin.mean().exp() + policy.mean().std()
        return Loss(-logsigmoid(centred), {"margin": margin.detach()})


@dataclass(frozen=True)
class Drifting:
    """DPO against a running mean of the margin, which moves after each logical batch."""

    beta: float = 0.1
    delta: float = 0.0
    needs = Needs(completions=2, ordered=True, reference=True)

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        assert reference is not None
        return Targets({"reference": reference.sum()})

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        reward = self.beta * (policy.sum() - targets.rows["reference"])
        margin = reward[:, 0] - reward[:, 1]
        return Loss(-logsigmoid(margin - self.delta), {"margin": margin.detach()})

    def adapted(self, metrics: Mapping[str, float]) -> "Drifting":
        return replace(self, delta=0.5 * self.delta + 0.5 * metrics["margin"])


class Batches:
    """A source of given batches."""

    def __init__(self, batches: Sequence[Batch]):
        self.batches = batches
        self.place = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.place += 1
            yield self.batches[(self.place - 1) % len(self.batches)]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def random_batch(rows: int, seed: int, completions: int = 2, longest: int = 7, turns: bool = False) -> Batch:
    """Prompts and completions of all lengths, with embeddings of the prompts; `turns` makes episodes, with holes and rewards."""
    draw = torch.Generator().manual_seed(seed)

    def number(high: int, low: int = 1) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    prompts = tuple(tuple(number(VOCABULARY) for _ in range(number(9))) for _ in range(rows))
    lengths = torch.randint(1, longest + 1, (rows, completions), generator=draw)
    mask = torch.arange(longest) < lengths[..., None]
    ids = torch.randint(1, VOCABULARY, mask.shape, generator=draw) * mask
    scores = torch.tensor([0.5, -0.5]).expand(rows, 2) if completions == 2 else None
    columns = {"embeddings": torch.randn(rows, 4, generator=draw)}
    if completions > 2:  # a group that was sampled: of scores, and of what the sampler said
        scores = torch.randn(rows, completions, generator=draw)
        columns["sampler_logps"] = -2 * torch.rand(mask.shape, generator=draw) * mask
    if completions == 2:  # to KTO, the second completion is another prompt's
        columns["origin"] = torch.tensor([0, ORIGINS.index("mismatched")]).expand(rows, 2)
    rewards = None
    if turns:  # an environment wrote about a third of the tokens before the last one
        last = torch.arange(longest) == lengths[..., None] - 1
        mask &= last | (torch.rand(mask.shape, generator=draw) > 1 / 3)
        rewards = torch.randn(mask.shape, generator=draw) * (mask & (torch.rand(mask.shape, generator=draw) < 0.5))
    return Batch(prompts, ids, mask, scores, columns=columns, rewards=rewards)


def tiny_llama(dtype: torch.dtype = torch.float64, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(dtype)
    for parameter in model.parameters():  # weights large enough that every row matters
        parameter.data.mul_(5 if parameter.ndim == 2 else 1)
    return model


OTHER_DATA = Batches([random_batch(5, seed) for seed in range(20, 23)])

CASES: dict[str, list[Term]] = {
    "dpo": [Term(DPO())],
    "dpo+sft": [Term(DPO(), 0.8), Term(SFT(), 0.7)],
    "coupled": [Term(Coupled())],
    "coupled+sft": [Term(Coupled(), 0.8), Term(SFT(), 0.7)],
    "adaptive": [Term(Drifting())],
    "two adaptive": [Term(Drifting(0.1)), Term(Drifting(0.5), 0.7)],
    "two adaptive, own data": [Term(Drifting(0.5)), Term(Drifting(0.5), 0.7, OTHER_DATA)],
    "kto": [Term(KTO(2.0))],
    "bco": [Term(BCO(2.0))],
    "aot": [Term(AOT(0.5))],
    "aot unpaired": [Term(AOTUnpaired(0.5))],
    "betadpo": [Term(BetaDPO(2.0))],
    "rpo": [Term(RPO(2.0))],
    "rpo unpaired": [Term(RPOUnpaired(2.0))],
    "rpo diagonal": [Term(RPODiagonal())],
    "ppo": [Term(PPO(tis=2.0))],
    "ppo+sft": [Term(PPO(target=0.1), 0.8), Term(SFT(), 0.7)],
    "grpo": [Term(GRPO())],
    "rloo": [Term(RLOO())],
    "dpo of episodes": [Term(DPO())],
    "ppo of episodes": [Term(PPO(tis=2.0))],
    "grpo of episodes": [Term(GRPO(credit="reward_to_go"))],
    "reinforce of episodes": [Term(REINFORCE(credit="reward_to_go"))],
    "gdpo of episodes": [Term(GDPO(beta=0.1))],
}

GROUPS = {
    "ppo",
    "ppo+sft",
    "grpo",
    "rloo",
    "ppo of episodes",
    "grpo of episodes",
    "reinforce of episodes",
    "gdpo of episodes",
}
"""Cases of several scored completions, gone through twice in minibatches where a ratio allows it."""


def make_policy(case: str, dtype: torch.dtype) -> Policy:
    """The tiny Llama, with a critic that says something where one is needed."""
    policy = Policy(tiny_llama(dtype))
    if any(term.objective.needs.values for term in CASES[case]):
        policy.critic = ValueHead(16, dtype)
        torch.nn.init.normal_(policy.critic.linear.weight, generator=torch.Generator().manual_seed(1))
    return policy


def train(
    case: str, dtype: torch.dtype, micro: int, batches: Sequence[Batch], **settings: Any
) -> tuple[Trainer, list[Any]]:
    """Three steps; the trainer and what each step reported."""
    policy = make_policy(case, dtype)
    defaults: dict[str, Any] = {
        "steps": 3,
        "lr": 3e-3,
        "schedule": "constant",
        "warmup": 0,
        "batch_size": len(batches[0]),
        "passes": 2 if case in GROUPS - {"rloo", "reinforce of episodes"} else 1,
    }
    spec = recipe.Train(**(defaults | settings), micro_batch_size=micro)
    reference = make_reference(policy, recipe.Reference(), recipe.Policy(model=("none",)))
    if case in GROUPS:  # a reference that is the policy has a KL of 0
        with torch.no_grad():
            for weight in reference.policy.parameters():
                weight.mul_(0.9)
    assert spec.steps is not None
    terms = [replace(t, source=Batches(t.source.batches)) if isinstance(t.source, Batches) else t for t in CASES[case]]
    trainer = Trainer(policy, terms, Batches(batches), spec, spec.steps, Accelerator(cpu=True), reference)
    return trainer, list(trainer)


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def update(case: str, dtype: torch.dtype, micro: int, batches: Sequence[Batch], **settings: Any) -> Tensor:
    """θ_3 − θ_0."""
    return weights(train(case, dtype, micro, batches, **settings)[0].model) - weights(make_policy(case, dtype))


def seven_rows(case: str = "dpo") -> list[Batch]:
    return [random_batch(7, seed, 4 if case in GROUPS else 2, turns="episodes" in case) for seed in range(3)]


def main() -> None:
    torch.set_num_threads(1)
    found = {
        f"{case} {dtype} {micro}": update(case, dtype, micro, seven_rows(case))
        for case in CASES
        for dtype in (torch.float64, torch.float32)
        for micro in (1, 3)
    }
    if Accelerator().is_main_process:
        torch.save(found, Path(sys.argv[1]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
