"""TRL's own GRPO and RLOO loss code, run on given log-probs: the oracle of the online objectives' tests."""

import inspect
import textwrap
import warnings
from collections import defaultdict
from types import SimpleNamespace

import torch

from prefopt import Batch, Outputs


def trl_grpo(loss_type, policy, old, advantages, *, reference=None, beta=0.0, weights=None, **config):
    """The scalar loss of `GRPOTrainer._compute_loss` for one whole batch, with gradient to `policy.logps`.

    Args:
        loss_type: "grpo", "dr_grpo", "dapo" or "cispo".
        policy: [B, K, T].
        old: the outputs before the update.
        advantages: [B, K].
        reference: the reference's outputs, with `beta`.
        beta: the weight of k3.
        weights: [B, K, T] importance weights of the sampler.
        config: epsilon_low, epsilon_high, importance_sampling_level, max_completion_length.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.trainer.grpo_trainer import GRPOTrainer
    settings = {
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "importance_sampling_level": "token",
        "max_completion_length": 1,
    }
    unknown = set(config) - set(settings)
    assert not unknown, f"not a setting of this helper: {unknown}"
    trainer = _stub(GRPOTrainer, policy, settings | config)
    vars(trainer).update(
        loss_type=loss_type,
        beta=beta,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=weights is not None,
        vllm_importance_sampling_correction=weights is not None,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
    )
    trainer.args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    inputs = _inputs(policy) | {
        "advantages": advantages.flatten(),
        "old_per_token_logps": old.logps.flatten(0, 1),
        "num_items_in_batch": policy.mask.sum(),
    }
    if reference is not None:
        inputs["ref_per_token_logps"] = reference.logps.flatten(0, 1)
    if weights is not None:
        inputs["importance_sampling_ratio"] = weights.flatten(0, 1)
    return trainer._compute_loss(trainer.model, inputs)


def trl_rloo(policy, old, advantages, epsilon=0.2):
    """The scalar loss of `RLOOTrainer._compute_loss`, of the ratio of whole completions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.trainer.rloo_trainer import RLOOTrainer
    trainer = _stub(RLOOTrainer, policy, {"epsilon_low": epsilon, "epsilon_high": epsilon})
    inputs = _inputs(policy) | {"advantages": advantages.flatten(), "old_logps": old.sum().flatten()}
    return trainer._compute_loss(trainer.model, inputs)


def trl_gdpo(rewards, weights):
    """Advantages [B, K] of rewards [B, K, N], by the lines of `GRPOTrainer` for `normalize_then_sum`.

    They stand in the method that writes completions and asks for their rewards, too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.trainer import grpo_trainer
    source = inspect.getsource(grpo_trainer.GRPOTrainer)
    branch = source[source.index('elif self.multi_objective_aggregation == "normalize_then_sum"') :]
    lines = branch[: branch.index("is_std_zero")].splitlines()[1:]
    names = {
        "self": SimpleNamespace(reward_funcs=weights, reward_weights=torch.tensor(weights).double()),
        "num_generations": rewards.shape[1],
        "device": rewards.device,
        "rewards_per_func": rewards.flatten(0, 1),
        "unscorable_mask": torch.zeros(rewards.shape[:2].numel(), dtype=torch.bool),
    }
    exec(textwrap.dedent("\n".join(lines)), {**vars(grpo_trainer), **names}, names)
    return names["advantages"].view(rewards.shape[:2])


def rollouts(prompts=3, completions=4, tokens=6, seed=0, absent=(), dtype=torch.float64, moved=0.3):
    """A scored batch, and what policy, old policy and reference say of it; lengths differ, masks have holes.

    The policy's `logps` and `values` are leaves with gradient; `moved` is how far its log-probs are from the old ones.
    """
    draw = torch.Generator().manual_seed(seed)
    shape = (prompts, completions, tokens)
    lengths = torch.randint(1, tokens + 1, shape[:2], generator=draw)
    for b, k in absent:
        lengths[b, k] = 0
    mask = torch.arange(tokens) < lengths[..., None]
    mask[..., 1] &= (torch.rand(shape[:2], generator=draw) < 0.5) | (lengths == 2)
    batch = Batch(
        ((1, 2),) * prompts,
        torch.randint(3, 9, shape, generator=draw) * mask,
        mask,
        scores=torch.randn(shape[:2], generator=draw, dtype=torch.float64).to(dtype),
    )

    def rand():
        return torch.rand(shape, generator=draw, dtype=torch.float64)

    def outputs(logps):
        return Outputs(mask, (logps * mask).to(dtype), ((rand() - 0.5) * mask).to(dtype))

    before = -rand() - 0.1
    old, reference = outputs(before), outputs(-rand())
    policy = outputs(before + moved * (rand() - 0.5))
    policy.logps.requires_grad_()
    policy.values.requires_grad_()
    return batch, policy, old, reference


def _stub(trainer_class, policy, settings):
    trainer = trainer_class.__new__(trainer_class)
    vars(trainer).update(settings)
    trainer.model = torch.nn.Module()
    trainer.aux_loss_enabled = False
    trainer._metrics = {"train": defaultdict(list)}
    trainer.accelerator = SimpleNamespace(
        num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x
    )
    logps = policy.logps.masked_fill(~policy.mask, 0).flatten(0, 1)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logps, torch.zeros_like(logps), None)
    return trainer


def _inputs(policy):
    mask = policy.mask.flatten(0, 1).long()
    prompt = torch.ones(len(mask), 1, dtype=torch.long)
    return {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": torch.ones_like(mask),
        "completion_mask": mask,
    }
