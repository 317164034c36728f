"""What a name of another library is called here: for whoever writes one in a recipe. TRL's stand in `foreign`, others' here.

As read in the sources of OpenRLHF (021d1b0) and verl (008db45; `rollout_…` in its documentation of late 2025).
"""

from collections.abc import Collection, Mapping
from typing import Any

from prefopt.recipe.foreign import CLIPPING, LOSSES, NONE, TABLES, Foreign

HF = "transformers and TRL"

OTHERS: Mapping[str, tuple[Foreign, ...]] = {
    "OpenRLHF": (
        Foreign("pretrain", "policy.model"),
        Foreign(
            "reward_pretrain remote_rm_url", "feedback", "{name: RewardModel, model: FOLDER}, or a function that asks"
        ),
        Foreign("critic_pretrain", "policy.critic.model"),
        Foreign("prompt_data input_key", "source.data"),
        Foreign("rollout_batch_size", "train.batch_size", "prompts of one generation"),
        Foreign("train_batch_size", "train.minibatch_size", "of one update; it counts completions there, prompts here"),
        Foreign("micro_train_batch_size", "train.micro_batch_size", "affects memory alone"),
        Foreign("micro_rollout_batch_size", "source.rollouts.batch_size", "affects memory alone"),
        Foreign("n_samples_per_prompt", "source.rollouts.completions"),
        Foreign("prompt_max_len", "source.max_prompt_tokens"),
        Foreign("generate_max_len", "source.rollouts.sampling.max_tokens"),
        Foreign("max_epochs", "train.passes", "passes over one batch of rollouts"),
        Foreign("actor_learning_rate", "train.lr"),
        Foreign("critic_learning_rate", "train.critic_lr"),
        Foreign("lr_warmup_ratio", "train.warmup"),
        Foreign("lr_scheduler", "train.schedule"),
        Foreign("max_norm", "train.clip_norm"),
        Foreign("l2", "train.weight_decay"),
        Foreign("init_kl_coef", "objective.beta", "and `placement: reward`, where KL is a part of the reward"),
        Foreign("kl_target kl_horizon", "objective.target objective.horizon", "of PPO"),
        Foreign("kl_estimator", "objective.estimator"),
        Foreign("eps_clip eps_clip_low_high", "objective.epsilon objective.epsilon_high", CLIPPING),
        Foreign("value_clip", "objective.epsilon_v", "of PPO"),
        Foreign("lambd", "objective.lam", "of PPO"),
        Foreign("advantage_estimator", "objective", "gae is PPO, rloo is RLOO, group_norm is GRPO, dr_grpo is DrGRPO"),
        Foreign("dynamic_filtering", "source.rollouts.refill"),
        Foreign("lora_rank", "policy.adapter.r"),
        Foreign("use_wandb wandb_project", "track.wandb track.wandb.project"),
        Foreign("use_tensorboard", "track.tensorboard"),
    ),
    "verl": (
        Foreign("train_files", "source.data"),
        Foreign("val_files", "source.test.data"),
        Foreign("max_response_length", "source.rollouts.sampling.max_tokens"),
        Foreign("ppo_mini_batch_size", "train.minibatch_size", "prompts of one update"),
        Foreign("ppo_micro_batch_size_per_gpu", "train.micro_batch_size", "affects memory alone"),
        Foreign("ppo_max_token_len_per_gpu", "train.micro_tokens", "affects memory alone"),
        Foreign("ppo_epochs", "train.passes"),
        Foreign("total_epochs", "train.epochs"),
        Foreign("total_training_steps", "train.steps"),
        Foreign("grad_clip", "train.clip_norm"),
        Foreign("lr_warmup_steps lr_warmup_steps_ratio", "train.warmup"),
        Foreign("warmup_style", "train.schedule"),
        Foreign("adv_estimator", "objective", "gae is PPO, grpo is GRPO, rloo is RLOO, …"),
        Foreign("clip_ratio clip_ratio_low clip_ratio_high", "objective.epsilon objective.epsilon_high", CLIPPING),
        Foreign("cliprange_value", "objective.epsilon_v", "of PPO"),
        Foreign("kl_loss_coef kl_coef", "objective.beta", "with `placement: loss` or `placement: reward`"),
        Foreign("kl_penalty kl_loss_type", "objective.estimator", "low_var_kl is k3"),
        Foreign(
            "rollout_is rollout_is_threshold",
            "objective.tis",
            "`token` at 2 is tis: 2, `sequence` is tis: {per: sequence, high: 2}; with bypass_mode: false",
        ),
        Foreign(
            "rollout_rs rollout_rs_threshold rollout_rs_threshold_lower",
            "objective.tis",
            "{per: token, outside: mask, low: LOWER, high: UPPER}, or per: sequence or geometric; tokens masked here stay in the "
            "denominators",
        ),
        Foreign("test_freq", "evaluate.every"),
        Foreign("save_freq", "train.checkpoint_every"),
        Foreign("project_name experiment_name", "track.wandb.project name"),
    ),
}
"""The names of OpenRLHF and verl that are used most."""

OPEN = ("objective", "feedback")
"""Sections whose fields are those of what they name, and so in no list of keys."""


def other_name(key: str, value: Any, known: Collection[str]) -> str:
    """What a name of another library is called here, as a sentence after a blank; "" where it is no such name.

    Args:
        key: that is unknown, with dots; its last word decides.
        value: given for it.
        known: keys of this kind of recipe, with dots.
    """
    word = key.rpartition(".")[2]
    tables = {HF: (*(entry for table in TABLES.values() for entry in table), *NONE), **OTHERS}
    for library, entries in tables.items():
        for entry in entries:
            if word in entry.names.split():
                return _sentence(word, library, entry, value, known)
    return ""


def _sentence(word: str, library: str, entry: Foreign, value: Any, known: Collection[str]) -> str:
    if not entry.keys:
        return f" `{word}` of {library} has no counterpart here: {entry.note}."
    losses = [by_value[str(value)] for by_value in LOSSES.values() if by_value.get(str(value))]
    if word == "loss_type" and losses:
        return f" `loss_type: {value}` of TRL is `objective: {' or '.join(dict.fromkeys(losses))}` here."
    keys = [key for key in entry.keys.split() if key in known or key.partition(".")[0] in {*OPEN} & {*known}]
    if not keys:  # of another kind of recipe
        return ""
    here = f" `{word}` of {library} is {' and '.join(f'`{key}`' for key in keys)} here"
    return f"{here} ({entry.note})." if entry.note else f"{here}."
