"""Names by which TRL and transformers call what a recipe has: for whoever writes one of them here, and for docs/trl.md.

As read in the sources of TRL 1.16 and transformers 5.23.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Foreign(NamedTuple):
    """What one or more names of another library are here.

    Attributes:
        names: there, separated by spaces.
        keys: here, separated by spaces; none where there is no counterpart.
        note: how values translate; of names without a counterpart, why there is none.
    """

    names: str
    keys: str
    note: str = ""


BATCH = (
    "batch_size is what one update learns from: per_device_train_batch_size × gradient_accumulation_steps × processes"
)
LENGTHS = "prompts and completions have limits of their own; max_length was of both together"
SAMPLED = "of rollouts; evaluation has its own, evaluate.sampling"
CLIPPING = "a field of the objectives that clip a ratio: PPO, GRPO, DAPO, …"

TABLES: Mapping[str, tuple[Foreign, ...]] = {
    "Models": (
        Foreign("model_name_or_path", "policy.model"),
        Foreign("model_revision revision", "policy.model", "after an @: `owner/name@revision`"),
        Foreign("ref_model", "reference.model", "leave it out for the policy as it starts"),
        Foreign("dtype torch_dtype", "policy.dtype"),
        Foreign("attn_implementation", "policy.attention"),
        Foreign("trust_remote_code", "policy.remote_code"),
        Foreign("model_init_kwargs", "policy.dtype policy.attention policy.remote_code", "one by one"),
        Foreign("gradient_checkpointing activation_checkpointing", "policy.gradient_checkpointing", "off by default"),
        Foreign("use_peft peft_config", "policy.adapter", "a section instead of a switch: `policy.adapter: {r: 16}`"),
        Foreign("lora_r", "policy.adapter.r"),
        Foreign("load_in_4bit bnb_4bit_quant_type", "policy.quantization", "nf4 or fp4, under policy.adapter alone"),
        Foreign("use_bnb_nested_quant", "policy.quantization.double", "on by default"),
        Foreign("lora_alpha", "policy.adapter.alpha"),
        Foreign("lora_target_modules target_modules", "policy.adapter.targets", "all-linear unless you say otherwise"),
        Foreign("lora_dropout", "policy.adapter.dropout", "0 by default; on in updates alone"),
        Foreign("lora_modules_to_save", "policy.adapter.modules_to_save"),
        Foreign("use_dora", "policy.adapter.dora"),
        Foreign(
            "use_rslora lora_target_parameters lora_task_type lora_bias init_lora_weights",
            "policy.adapter.method",
            "`{method: LORA, …}` takes every field of peft's LoraConfig by its name there",
        ),
        Foreign(
            "chat_template_path eos_token pad_token", "policy.tokenizer", "save a tokenizer with it, and name that"
        ),
        Foreign("reward_model_path", "feedback", "`feedback: {name: RewardModel, model: FOLDER}`"),
    ),
    "Data": (
        Foreign("dataset_name dataset_path", "source.data", "a hub id, files, or a function"),
        Foreign("dataset_config", "source.arguments", "`source.arguments: {name: CONFIG}`"),
        Foreign("dataset_train_split", "source.hub_split"),
        Foreign("dataset_test_split", "source.test.data source.test.hub_split"),
        Foreign("test_split_size", "source.split", "shares of train, validation and test: [0.9, 0, 0.1]"),
        Foreign("datasets", "source.data", "a list of files is read as one; a function mixes anything else"),
        Foreign("dataset_text_field dataset_kwargs", "source.adapt", "a function that turns a row into a known format"),
        Foreign("max_length max_seq_length", "source.max_prompt_tokens source.max_completion_tokens", LENGTHS),
        Foreign("max_prompt_length", "source.max_prompt_tokens", "source.too_long says what becomes of longer ones"),
        Foreign(
            "max_completion_length max_new_tokens",
            "source.rollouts.sampling.max_tokens source.max_completion_tokens",
            "the first of what is sampled, the second of what is recorded",
        ),
    ),
    "Batches and length of training": (
        Foreign("per_device_train_batch_size", "train.batch_size train.micro_batch_size", BATCH),
        Foreign(
            "gradient_accumulation_steps",
            "train.batch_size train.micro_batch_size",
            f"it follows from the two; {BATCH}",
        ),
        Foreign("num_train_epochs", "train.epochs"),
        Foreign("max_steps", "train.steps", "logical batches; with several minibatches a step is several updates"),
        Foreign("num_iterations", "train.passes"),
        Foreign(
            "generation_batch_size steps_per_generation",
            "train.batch_size train.minibatch_size",
            "the first is prompts per generation, the second prompts per update; both count prompts, TRL counts completions",
        ),
        Foreign(
            "shuffle_dataset train_sampling_strategy", "source.rollouts.order", "recorded rows are always shuffled"
        ),
        Foreign("data_seed", "seeds.order seeds.data", "of the order of batches, and of the split"),
    ),
    "Optimiser": (
        Foreign("learning_rate", "train.lr"),
        Foreign("lr_scheduler_type", "train.schedule", "the same names; `constant` has the warm-up of train.warmup"),
        Foreign("lr_scheduler_kwargs", "train.schedule", "in one section: {name: polynomial, power: 2}"),
        Foreign("warmup_ratio", "train.warmup", "a number below 1 is a share of all updates"),
        Foreign("warmup_steps", "train.warmup", "a number from 1 on counts updates, one below 1 is their share"),
        Foreign(
            "optim",
            "train.optimizer",
            "adamw_torch and adamw_torch_fused are adamw, adamw_bnb_8bit is adamw_8bit, paged_adamw_32bit is paged_adamw; others "
            "by path, `torch.optim:NAdam`",
        ),
        Foreign("optim_args", "train.optimizer", "in one section: {name: sgd, momentum: 0.9}"),
        Foreign("adam_beta1 adam_beta2 adam_betas", "train.betas", "both in one list: [0.9, 0.999]"),
        Foreign("adam_epsilon", "train.eps"),
        Foreign("max_grad_norm", "train.clip_norm", "0 there is null here"),
        Foreign("bf16 fp16", "train.precision", "the name is the value; both false: fp32; left out: auto"),
    ),
    "Offline objectives": (
        Foreign("loss_type loss_weights", "objective", "each loss is an objective of its own; weights are of terms"),
        Foreign("beta", "objective.beta", "of IPO it is tau, of SPPO 1 / eta"),
        Foreign("label_smoothing", "objective.epsilon", "of CDPO, RobustDPO and EXO; TRL's `sigmoid` ignores its own"),
        Foreign("f_divergence_type f_alpha_divergence_coef", "objective.divergence objective.alpha", "of FDPO"),
        Foreign("ld_alpha", "objective.alpha", "of LDDPO"),
        Foreign("discopop_tau", "objective.tau", "of DiscoPOP"),
        Foreign("use_weighting", "objective", "`objective: {name: WPO, beta: 0.1}`"),
        Foreign("desirable_weight undesirable_weight", "objective.lam_d objective.lam_u", "of KTO"),
        Foreign("simpo_gamma", "objective.gamma", "of SimPO, and of AlphaPO"),
        Foreign("cpo_alpha", "objective.alpha", "of CPO"),
        Foreign("rpo_alpha", "objective.alpha", "of DPONLL"),
        Foreign("center_rewards_coefficient", "objective.centering", "of BradleyTerry"),
        Foreign("reference_free", "objective", "an objective without a reference: SimPO, CPO, ORPO, SLiC"),
        Foreign("sync_ref_model ref_model_sync_steps", "reference.every", "a number of steps is the switch, too"),
        Foreign("ref_model_mixup_alpha", "reference.mix"),
        Foreign(
            "precompute_ref_log_probs precompute_ref_batch_size",
            "reference.cache",
            "on by default: log-probs of recorded rows are computed once, kept on disk, and shared by runs",
        ),
    ),
    "Rollouts and online objectives": (
        Foreign("num_generations", "source.rollouts.completions"),
        Foreign("num_generations_eval", "evaluate.completions"),
        Foreign("temperature", "source.rollouts.sampling.temperature", SAMPLED),
        Foreign("top_p", "source.rollouts.sampling.top_p", SAMPLED),
        Foreign("top_k", "source.rollouts.sampling.top_k", SAMPLED),
        Foreign("use_vllm", "source.rollouts.sampler", "`vllm`, with source.rollouts.server"),
        Foreign("vllm_server_base_url vllm_server_host vllm_server_port", "source.rollouts.server", "one address"),
        Foreign("reward_funcs", "feedback", "a function, `file.py:name`, or {name: RewardModel, model: FOLDER}"),
        Foreign("reward_weights", "feedback", "{name: WeightedSum, weights: {NAME: 1, OTHER: 0.5}, members: […]}"),
        Foreign("reward_clip_range", "feedback.transforms", "[{name: Clip, low: -5, high: 5}]"),
        Foreign("epsilon", "objective.epsilon", CLIPPING),
        Foreign("epsilon_high", "objective.epsilon_high", "of DAPO, GSPO and CISPO; TRL's for `cispo` is 1 + ours"),
        Foreign("importance_sampling_level", "objective", "`sequence` is GSPO, `token` is GRPO"),
        Foreign("scale_rewards multi_objective_aggregation", "objective", "`none`: DrGRPO; normalised first: GDPO"),
        Foreign("normalize_advantages", "objective.whiten_advantages", "of PPO"),
        Foreign(
            "vllm_importance_sampling_correction vllm_importance_sampling_cap vllm_importance_sampling_clip_max "
            "vllm_importance_sampling_clip_min vllm_importance_sampling_mode",
            "objective.tis",
            "{per: sequence, outside: mask, low: MIN, high: MAX} is `sequence_mask`, TRL's default; `token_truncate` is tis: MAX",
        ),
    ),
    "Evaluation, checkpoints, tracking": (
        Foreign("eval_steps eval_strategy", "evaluate.every", "between start and end, which are always evaluated"),
        Foreign("per_device_eval_batch_size eval_accumulation_steps", "evaluate.batch_size"),
        Foreign("save_steps save_strategy", "train.checkpoint_every", "the trained model is always saved"),
        Foreign("save_total_limit", "train.keep_checkpoints"),
        Foreign(
            "load_best_model_at_end metric_for_best_model",
            "train.keep_best",
            "the metric's name is the switch, too: `keep_best: accuracy`, on validation rows every evaluate.every steps",
        ),
        Foreign("greater_is_better", "train.keep_best.better", "known of built-in metrics"),
        Foreign("early_stopping_patience", "train.patience"),
        Foreign("output_dir", "track.folder", "where run folders go; `--out DIR` names that of one run"),
        Foreign("trackio_space_id", "track.trackio.space"),
        Foreign("run_name", "name track.wandb.name", "of the folder, and of the run in W&B"),
        Foreign("logging_steps logging_strategy", "track.every"),
        Foreign(
            "report_to",
            "track.wandb track.tensorboard track.mlflow track.trackio track.comet",
            "a section for each; metrics.jsonl is always written",
        ),
        Foreign("project", "track.wandb.project track.trackio.project"),
        Foreign(
            "log_completions log_unique_prompts num_completions_to_print",
            "evaluate.prompts",
            "every sample of an evaluation is in the run folder's evaluations/",
        ),
        Foreign("full_determinism", "seed", "runs of one seed on one machine are alike as they are"),
    ),
}
"""By the subject of a recipe's section: what TRL's trainers and scripts can be told, and where it stands here."""

NONE: tuple[Foreign, ...] = (
    Foreign(
        "packing packing_strategy eval_packing padding_free pad_to_multiple_of group_by_length length_column_name",
        "",
        "rows of like length share a forward pass, and completions of one prompt share its tokens, without a switch",
    ),
    Foreign(
        "completion_only_loss assistant_only_loss",
        "",
        "only what the assistant wrote is learnt, and a prompt never is (docs/data.md)",
    ),
    Foreign(
        "truncation_mode",
        "",
        "source.too_long says what becomes of what is too long; all is counted before training",
    ),
    Foreign(
        "disable_dropout",
        "",
        "the models' own dropout is always off, so that policy and reference differ by their weights alone",
    ),
    Foreign(
        "activation_offloading activation_checkpointing_kwargs gradient_checkpointing_kwargs",
        "",
        "policy.gradient_checkpointing is the one switch for activations",
    ),
    Foreign(
        "use_liger_kernel liger_kernel_config cast_lm_head_to_fp32",
        "",
        "log-probs are always computed in chunks and reduced in fp32, with no [tokens × vocabulary] kept",
    ),
    Foreign(
        "min_p repetition_penalty generation_kwargs cache_implementation use_cache",
        "",
        "the log-probs of rollouts must be those of the policy that is trained; only temperature, top_p and top_k are known to it",
    ),
    Foreign(
        "mask_truncated_completions",
        "",
        "a completion that was cut is scored like any other; the transform MissingEOS takes a penalty off it",
    ),
    Foreign(
        "average_tokens_across_devices num_items_in_batch",
        "",
        "a loss is always normalised over the whole logical batch, whatever the micro-batches and processes",
    ),
    Foreign(
        "auto_find_batch_size torch_empty_cache_steps",
        "",
        "a batch that does not fit is refused before training, with "
        "what would; micro_batch_size and micro_tokens change memory alone",
    ),
    Foreign("neftune_noise_alpha label_smoothing_factor", "", "an objective adds no noise of its own"),
    Foreign("router_aux_loss_coef", "", "the balancing loss of experts is no part of any objective here"),
    Foreign(
        "load_in_8bit bnb_4bit_quant_storage",
        "",
        "under an adapter linear layers are held in 4 bits (policy.quantization) or in policy.dtype",
    ),
    Foreign(
        "delta sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg "
        "top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta "
        "entropy_target off_policy_mask_threshold use_bias_correction_kl",
        "",
        "a variant of a loss is a class here, and this one is not in the catalogue: `prefopt objectives` lists it, and your "
        "own is a file of twenty lines",
    ),
    Foreign(
        "teacher_model_name_or_path teacher_model_revision teacher_model_init_kwargs", "", "there is no distillation"
    ),
    Foreign(
        "max_tool_calling_iterations", "", "your environment says when an episode ends (source.rollouts.environment)"
    ),
    Foreign("chat_template_kwargs", "", "rows bring them: the column `chat_template_kwargs` (docs/data.md)"),
    Foreign("optim_target_modules", "", "an optimiser trains all weights that are trained, at one rate"),
    Foreign("tf32", "", "train.precision has no such kind: fp32 is as torch multiplies, by default without TF32"),
    Foreign("streaming dataset_streaming", "", "rows are kept on disk, not in memory, and an order needs all of them"),
    Foreign(
        "dataset_num_proc dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
        "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order dataloader_drop_last "
        "remove_unused_columns accelerator_config ignore_data_skip",
        "",
        "rows are tokenised once and kept on disk, and a batch of them takes no time beside an update",
    ),
    Foreign(
        "fsdp fsdp_config deepspeed parallelism_config ds3_gather_for_generation ddp_find_unused_parameters ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout local_rank use_cpu ignore_bias_buffers",
        "",
        "processes are the launcher's: `torchrun -m prefopt.cli run RECIPE` or `accelerate launch`",
    ),
    Foreign(
        "vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_timeout vllm_group_port "
        "vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size use_transformers_continuous_batching "
        "transformers_continuous_batching_config use_transformers_paged",
        "",
        "the vLLM server is started with these settings by `vllm serve`, apart from the run (docs/vllm.md)",
    ),
    Foreign("torch_compile torch_compile_backend torch_compile_mode", "", "models run as they are"),
    Foreign(
        "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision log_completions_hub_repo "
        "trackio_bucket_id trackio_static_space_id",
        "",
        "a run sends numbers to trackers alone; `prefopt push RUN owner/name` uploads its policy with its card (docs/models.md)",
    ),
    Foreign(
        "do_train do_eval do_predict resume_from_checkpoint",
        "",
        "these are commands: `prefopt run`, `prefopt evaluate`, `prefopt sample`, `prefopt run RUN --resume`",
    ),
    Foreign(
        "logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica "
        "disable_tqdm debug skip_memory_metrics log_multimodal",
        "",
        "every number of a step is always in metrics.jsonl",
    ),
    Foreign(
        "eval_delay prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object include_for_metrics "
        "batch_eval_metrics bf16_full_eval fp16_full_eval label_names",
        "",
        "an evaluation measures everything it can at the start and at the end; evaluate.metrics adds your own",
    ),
    Foreign(
        "save_only_model save_on_each_node enable_jit_checkpoint restore_callback_states_from_checkpoint",
        "",
        "a checkpoint is all that a resume needs, and policy/ is the model alone",
    ),
)
"""Settings that have no counterpart here, and why."""

LOSSES: Mapping[str, Mapping[str, str]] = {
    "DPOConfig": {
        "sigmoid": "DPO",
        "sigmoid_norm": "LNDPO",
        "hinge": "Hinge",
        "ipo": "{name: IPOMean, tau: BETA}",
        "exo_pair": "{name: EXO, epsilon: LABEL_SMOOTHING}",
        "nca_pair": "NCA",
        "robust": "{name: RobustDPO, epsilon: LABEL_SMOOTHING}",
        "bco_pair": "BCO",
        "sppo_hard": "{name: SPPO, eta: 1/BETA}",
        "aot": "AOT",
        "aot_unpaired": "AOTUnpaired",
        "apo_zero": "APOZero",
        "apo_down": "APODown",
        "discopop": "{name: DiscoPOP, tau: DISCOPOP_TAU}",
        "sft": "SFT",
    },
    "KTOConfig": {"kto": "KTO", "apo_zero_unpaired": ""},
    "CPOConfig": {
        "sigmoid": "CPO",
        "hinge": "SLiC",
        "ipo": "",
        "simpo": "SimPO",
        "alphapo": "AlphaPO",
    },
    "GRPOConfig": {
        "grpo": "GRPO",
        "bnpo": "",
        "dr_grpo": "{name: DrGRPO, length: MAX_COMPLETION_LENGTH}",
        "dapo": "DAPO",
        "cispo": "CISPO",
        "sapo": "",
        "luspo": "",
        "vespo": "",
    },
    "SFTConfig": {"nll": "SFT", "chunked_nll": "SFT", "dft": ""},
}
"""TRL's `loss_type`, by the class that has it, and the `objective` that it is; "" where the catalogue has none."""
