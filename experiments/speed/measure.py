"""One measurement in a process of its own: `python measure.py '{"what": "dpo", "side": "prefopt", …}'` prints a line of JSON.

A process for each, because the peak of memory is the process's. Imports and set-up are timed apart from training.
"""

import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
BEGAN = time.perf_counter()

import torch  # noqa: E402
from workload import distinct_words, each_preference, model, preferences, saved_model, saved_rows, tokenizer  # noqa: E402

HERE = Path(__file__).parent
TRL_MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "best": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
}


def peak() -> float:
    """Megabytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def order(pairs: int, batch: int, steps: int, by_length: list[int] | None = None) -> list[int]:
    """Row numbers as prefopt's batches take them; each batch in order of length, for a trainer whose own batches are parts."""
    from prefopt.data.ordering import Shuffled

    shuffled = Shuffled(pairs, 0)
    batches = [list(shuffled.take(batch)) for _ in range(steps)]
    return [row for part in batches for row in (sorted(part, key=by_length.__getitem__) if by_length else part)]


def recipe_of(spec: dict, folder: Path, more: dict) -> Any:
    """A recipe for the workload."""
    from prefopt.recipe import Recipe, checked

    rows = each_preference(
        spec["pairs"],
        0,
        spec.get("prompt", 120),
        spec.get("completion", 60),
        spec.get("vocabulary", 8000),
        spec.get("completions", 2),
    )
    data = saved_rows(folder, rows, "rows")
    tree = {
        "name": "speed",
        "policy": {"model": str(saved_model(folder, spec.get("size", "7M"), spec.get("vocabulary", 8000)))},
        "source": {
            "data": str(data),
            "split": [1, 0, 0],
            "validation": {"data": str(data), "limit": 2},
            "test": {"data": str(data), "limit": 2},
            "max_prompt_tokens": 4096,
            "max_completion_tokens": 4096,
        },
        "objective": spec.get("objective", {"name": "DPO", "beta": 0.1}),
        "seeds": {"order": 0},
        "train": {
            "steps": spec["steps"],
            "batch_size": spec["batch"],
            "micro_batch_size": spec["batch"],
            "micro_tokens": spec.get("tokens", 2048),
            "lr": 1e-4,
            "schedule": "constant",
            "warmup": 0,
            "precision": "fp32",
            "threads": spec["threads"],
        },
        "evaluate": {"prompts": 0, "rows": 2},
        "track": {"folder": str(folder / "runs")},
    }
    for key, value in more.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return checked(Recipe, tree, "speed")


def prefopt_run(spec: dict, folder: Path, more: dict) -> dict:
    """A run's trainer, from its first step to its last: what `prefopt run` does between its two evaluations."""
    from rich.console import Console

    from prefopt.runs.preparing import prepare
    from prefopt.runs.run import make_trainer
    from prefopt.support.allocator import keep_freed_memory
    from prefopt.training.devices import computing

    settings = recipe_of(spec, folder, more)
    keep_freed_memory()  # as the command line does
    began = time.perf_counter()
    with computing(settings.train) as accelerator:
        prepared = prepare(settings, accelerator, Console(quiet=True))
        return trained(spec, prepared, make_trainer(prepared), began)


def trained(spec: dict, prepared: Any, trainer: Any, began: float) -> dict:
    """The figures of a run's steps."""
    from prefopt.support.profile import profiling

    ready, before, cpu = time.perf_counter(), peak(), time.process_time()
    sections: dict = {}
    if spec.get("profile"):
        with profiling() as clock:
            steps = list(trainer)
        sections = {"/".join(path): round(section.seconds, 3) for path, section in clock.sections.items()}
    elif spec.get("trace"):
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as trace:
            steps = list(trainer)
        print(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=30), file=sys.stderr)
    else:
        steps = list(trainer)
    done = time.perf_counter()
    return {
        "import": began - BEGAN,
        "setup": ready - began,
        "train": done - ready,
        "cpu": time.process_time() - cpu,
        "losses": [step.metrics["loss"] for step in steps],
        "seconds": [step.seconds for step in steps],
        "tokens": sum(step.tokens for step in steps),
        "sampled": getattr(prepared.source, "tokens", 0),
        "padding": sum(step.metrics.get("padding", 0) for step in steps) / len(steps),
        "before": before,
        "peak": peak(),
        "sections": sections,
    }


def prefopt_dpo(spec: dict, folder: Path) -> dict:
    """DPO, or any objective on the same pairs."""
    return prefopt_run(spec, folder, {"reference": {"cache": spec.get("cache", True)}})


def prefopt_study(spec: dict, folder: Path) -> dict:
    """`prefopt study` itself: whole runs of each objective and seed by several processes of one thread, with the report."""
    from rich.console import Console

    from prefopt.study import Study, run_study

    base = recipe_of(spec | {"threads": 1}, folder, {"seed": 0, "seeds": {}}).model_dump(mode="json")
    study = Study(
        name="speed",
        recipe=base,
        arms={name: {"objective": name} for name in spec["objectives"]},
        seeds=spec["seeds"],
        metric="accuracy",
    )
    began = time.perf_counter()
    results = run_study(study, folder / "study", jobs=spec["jobs"], console=Console(quiet=True))
    done = time.perf_counter()
    lines = [json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[-2]) for result in results]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "import": began - BEGAN,
        "setup": 0.0,
        "train": done - began,
        "cpu": time.process_time() + used.ru_utime + used.ru_stime,
        "losses": [line.get("loss", math.nan) for line in lines],
        "peak": used.ru_maxrss / 1024,
    }


def prefopt_grpo(spec: dict, folder: Path) -> dict:
    """GRPO as TRL's default has it: DAPO's average over tokens, on K completions of each prompt."""
    rollouts = {"completions": spec["completions"], "sampling": {"max_tokens": spec["new"]}, "rows": 128}
    rows = [{"prompt": row["prompt"]} for row in preferences(64)]
    more = {
        "source": {"data": str(saved_rows(folder, rows, "prompts")), "rollouts": rollouts},
        "objective": {"name": "GRPO", "beta": 0.05},
        "feedback": {"name": f"{HERE / 'workload.py'}:distinct_words"},
        "evaluate": {"prompts": 1, "rows": 2},
        "train": {
            "steps": spec["steps"],
            "batch_size": spec["batch"],
            "micro_batch_size": spec["batch"],
            "micro_tokens": None,  # all completions of a step at once, as on TRL's side
            "lr": 1e-5,
            "schedule": "constant",
            "warmup": 0,
            "precision": "fp32",
            "threads": spec["threads"],
        },
    }
    return prefopt_run({**spec, "pairs": 64, "completions": 2}, folder, more)


def timed_trl(make: Callable[[], Any]) -> dict:
    """TRL's trainer, made and run."""
    began = time.perf_counter()
    trainer = make()
    ready, before, cpu = time.perf_counter(), peak(), time.process_time()
    trainer.train()
    done, cpu = time.perf_counter(), time.process_time() - cpu
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "import": began - BEGAN,
        "setup": ready - began,
        "train": done - ready,
        "cpu": cpu,
        "losses": [float(entry["loss"]) for entry in entries],
        "before": before,
        "peak": peak(),
    }


def trl_dpo(spec: dict, folder: Path) -> dict:
    """TRL's DPOTrainer on the same rows in the same logical batches; its time for the reference is reported apart."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = preferences(spec["pairs"])
    lengths = [sum(len(row[k].split()) for k in ("prompt", "chosen", "rejected")) for row in rows]
    grouped = spec["mode"] == "best"  # rows of like length together, which random batches of TRL's would not have
    chosen = order(spec["pairs"], spec["batch"], spec["steps"], lengths if grouped else None)
    spent = {"reference": 0.0, "reference_cpu": 0.0}

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *arguments: Any, **more: Any) -> Any:
            start, cpu = time.perf_counter(), time.process_time()
            found = super()._precompute_ref_logps(*arguments, **more)
            spent["reference"] += time.perf_counter() - start
            spent["reference_cpu"] += time.process_time() - cpu
            return found

    micro = min(spec.get("micro", 8), spec["batch"])
    config = DPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=spec["batch"] // micro,
        max_steps=spec["steps"],
        train_sampling_strategy="sequential",
        bf16=False,
        use_cpu=True,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        loss_type=spec.get("loss", "sigmoid"),
        **TRL_MODES[spec["mode"]],
    )
    data = Dataset.from_list([rows[i] for i in chosen])
    found = timed_trl(
        lambda: Timed(model=model(), ref_model=model(), args=config, train_dataset=data, processing_class=tokenizer())
    )
    return found | spent


def trl_grpo(spec: dict, folder: Path) -> dict:
    """TRL's GRPOTrainer: all completions of a step in one batch, its fastest here."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def distinct(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [found[0] for found in distinct_words(prompts, [[text] for text in completions], [])]

    place = saved_model(folder)
    config = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=spec["batch"] * spec["completions"],
        num_generations=spec["completions"],
        max_completion_length=spec["new"],
        max_steps=spec["steps"],
        bf16=False,
        use_cpu=True,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        beta=0.05,
        temperature=1.0,
        loss_type="grpo",
        model_init_kwargs={"dtype": "float32"},
    )
    data = Dataset.from_list([{"prompt": row["prompt"]} for row in preferences(64)])
    made: list[Any] = []

    def make() -> Any:
        made.append(GRPOTrainer(model=str(place), reward_funcs=distinct, args=config, train_dataset=data))
        return made[0]

    found = timed_trl(make)
    entries = [entry for entry in made[0].state.log_history if "completions/mean_length" in entry]
    found["sampled"] = sum(entry["completions/mean_length"] for entry in entries) * spec["batch"] * spec["completions"]
    found["seconds"] = [entry["step_time"] for entry in entries]
    return found


def matmul(spec: dict, folder: Path) -> dict:
    """Floating-point operations a second of the best of many large products."""
    n = spec.get("n", 1536)
    a, b = torch.randn(n, n), torch.randn(n, n)
    times = []
    for _ in range(spec.get("times", 12)):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return {"flops": 2 * n**3 / min(times), "median": 2 * n**3 / sorted(times)[len(times) // 2]}


MEASURES: dict[str, Callable[[dict, Path], dict]] = {
    "prefopt_dpo": prefopt_dpo,
    "trl_dpo": trl_dpo,
    "prefopt_study": prefopt_study,
    "prefopt_grpo": prefopt_grpo,
    "trl_grpo": trl_grpo,
    "matmul": matmul,
}


def main() -> None:
    """Measure what the argument says."""
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    with tempfile.TemporaryDirectory() as folder:
        found = MEASURES[spec["what"]](spec, Path(folder))
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
