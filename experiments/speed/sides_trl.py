"""TRL's side of a measurement, at its best: no gradient checkpointing, the reference computed once, rows of like length together.

Each trainer gets prefopt's rows in prefopt's logical batches, and the weights that prefopt starts from.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import Moment, peak, seconds_of
from workload import distinct_words, model, model_of, order, preferences, rows_of, saved_model, tokenizer

FASTER = {"gradient_checkpointing": False}
MODES: dict[str, dict[str, Any]] = {"default": {}, "best": FASTER | {"precompute_ref_log_probs": True}}


def timed(make: Callable[[], Any]) -> dict:
    """TRL's trainer, made and run."""
    began = Moment()
    trainer = make()
    start, before = Moment(), peak()
    trainer.train()
    seconds = seconds_of(began, start)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        **seconds,
        "losses": [float(entry["loss"]) for entry in entries],
        "before": before,
        "peak": peak(),
    }


def common(spec: dict, folder: Path) -> dict[str, Any]:
    """Settings of every trainer."""
    return {
        "output_dir": str(folder / "out"),
        "max_steps": spec["steps"],
        "bf16": spec.get("precision") == "bf16",
        "use_cpu": True,
        "learning_rate": spec.get("lr", 1e-4),
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }


def batches(examples: int, spec: dict) -> dict[str, Any]:
    """Settings of a logical batch of so many examples, in parts of the size that is fastest."""
    micro = min(spec.get("micro", 8), examples)
    if examples % micro:
        raise SystemExit(f"--micro {micro} does not divide the {examples} pairs of a logical batch")
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": examples // micro,
        "train_sampling_strategy": "sequential",
    }


def lora(spec: dict, task: str, **more: Any) -> Any:
    """peft's settings for the adapter that prefopt's side trains; None where all weights are trained."""
    from peft import LoraConfig
    from sides_prefopt import LORA

    if spec.get("weights") != "lora":
        return None
    return LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], target_modules="all-linear", task_type=task, **more)


def started(trainer: Any, spec: dict) -> Any:
    """A trainer with the weights that prefopt's side starts from, where some are random."""
    from safetensors.torch import load_file

    if spec.get("start"):
        unknown = trainer.model.load_state_dict(load_file(spec["start"]), strict=False).unexpected_keys
        if unknown:
            raise SystemExit(f"weights of prefopt's start that TRL's model does not have: {unknown[:3]}")
    return trainer


def lengths_of(rows: list[dict], tokens: Any) -> list[int]:
    """Tokens of each pair's prompt with both answers."""
    return [sum(len(tokens(row[key]).input_ids) for key in ("prompt", "chosen", "rejected")) for row in rows]


def loaded(spec: dict, folder: Path, kind: str) -> Any:
    """The real model in fp32, whose arithmetic the trainer may round."""
    import torch
    import transformers

    more = {"attn_implementation": spec["attention"]} if spec.get("attention") else {}
    more |= {"num_labels": 1} if "Sequence" in kind else {}
    return getattr(transformers, kind).from_pretrained(model_of(spec, folder), dtype=torch.float32, **more)


def dpo(spec: dict, folder: Path) -> dict:
    """TRL's DPOTrainer on the same rows in the same logical batches; its time for the reference is reported apart."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    real = spec.get("data", "words") != "words"
    rows = list(rows_of(spec))
    tokens = tokenizer_of(spec, folder)
    grouped = spec["mode"] == "best"  # rows of like length together, which random batches of TRL's would not have
    chosen = order(spec["pairs"], spec["batch"], spec["steps"], lengths_of(rows, tokens) if grouped else ())
    spent = {"reference": 0.0, "reference_cpu": 0.0}

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *arguments: Any, **more: Any) -> Any:
            start = Moment()
            found = super()._precompute_ref_logps(*arguments, **more)
            spent["reference"], spent["reference_cpu"] = Moment().since(start)
            return found

    config = DPOConfig(
        **common(spec, folder),
        **batches(spec["batch"], spec),
        **MODES[spec["mode"]],
        loss_type=spec.get("loss", "sigmoid"),
        max_length=None,
    )
    data = Dataset.from_list([rows[i] for i in chosen])

    def make() -> Any:
        models = (loaded(spec, folder, "AutoModelForCausalLM"), None) if real else (model(), model())
        trainer = Timed(
            model=models[0],
            ref_model=models[1],
            args=config,
            train_dataset=data,
            processing_class=tokens,
            peft_config=lora(spec, "CAUSAL_LM"),
        )
        return started(trainer, spec)

    return timed(make) | spent


def tokenizer_of(spec: dict, folder: Path) -> Any:
    """Of the small model or the real one."""
    from transformers import AutoTokenizer

    return (
        tokenizer() if spec.get("data", "words") == "words" else AutoTokenizer.from_pretrained(model_of(spec, folder))
    )


def reward(spec: dict, folder: Path) -> dict:
    """TRL's RewardTrainer on all pairs of the same rankings, those of a logical batch together."""
    from datasets import Dataset
    from people import pairs_of
    from trl import RewardConfig, RewardTrainer

    rankings = list(rows_of(spec))
    tokens = tokenizer_of(spec, folder)
    taken = order(spec["pairs"], spec["batch"], spec["steps"])
    rows = []
    for first in range(0, len(taken), spec["batch"]):
        pairs = [pair for row in taken[first : first + spec["batch"]] for pair in pairs_of(rankings[row])]
        lengths = lengths_of(pairs, tokens)
        rows += [pairs[i] for i in sorted(range(len(pairs)), key=lengths.__getitem__)]
    of_a_batch = batches(len(rows) // spec["steps"], spec)
    config = RewardConfig(**common(spec, folder), **of_a_batch, **FASTER, max_length=None)
    data = Dataset.from_list(rows)

    def make() -> Any:
        adapter = lora(spec, "SEQ_CLS", modules_to_save=["score"])
        scorer = loaded(spec, folder, "AutoModelForSequenceClassification")
        return started(
            RewardTrainer(model=scorer, args=config, train_dataset=data, processing_class=tokens, peft_config=adapter),
            spec,
        )

    return timed(make)


def grpo(spec: dict, folder: Path) -> dict:
    """TRL's GRPOTrainer: all completions of a step in one batch, unless `--micro` says that fewer are faster."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def distinct(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [found[0] for found in distinct_words(prompts, [[text] for text in completions], [])]

    real = spec.get("data", "words") != "words"
    rows = list(rows_of(spec)) if real else preferences(spec["pairs"])
    samples = spec["batch"] * spec["completions"]
    micro = min(spec.get("micro", samples), samples)
    attention = {"attn_implementation": spec["attention"]} if spec.get("attention") else {}
    config = GRPOConfig(
        **common(spec, folder),
        **FASTER,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=samples // micro,
        num_generations=spec["completions"],
        max_completion_length=spec["new"],
        shuffle_dataset=False,
        beta=0.05,
        temperature=1.0,
        loss_type="grpo",
        model_init_kwargs={"dtype": "float32"} | attention,
    )
    data = Dataset.from_list([{"prompt": rows[i]["prompt"]} for i in order(len(rows), spec["batch"], spec["steps"])])
    place = model_of(spec, folder) if real else saved_model(folder)
    made: list[Any] = []

    def make() -> Any:
        adapter = lora(spec, "CAUSAL_LM")
        made.append(
            GRPOTrainer(model=str(place), reward_funcs=distinct, args=config, train_dataset=data, peft_config=adapter)
        )
        return made[0]

    found = timed(make)
    entries = [entry for entry in made[0].state.log_history if "completions/mean_length" in entry]
    found["sampled"] = sum(entry["completions/mean_length"] for entry in entries) * samples
    found["seconds"] = [entry["step_time"] for entry in entries]
    return found
