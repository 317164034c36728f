"""prefopt's side of a measurement: a run's trainer from its first step to its last, or `prefopt study` whole."""

import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timing import BEGAN, Moment, peak, seconds_of
from workload import model_of, preferences, rows_of, saved_rows

HERE = Path(__file__).parent
LORA = {"r": 16, "alpha": 32}
"""On both sides, with the same weights to start from, on all linear layers but the head."""


def recipe_of(spec: dict, folder: Path, more: dict) -> Any:
    """A recipe for the workload; sections of `more` are laid over it."""
    from prefopt.recipe import Recipe, checked

    data = saved_rows(folder, rows_of(spec), "rows")
    tree: dict[str, Any] = {
        "name": "speed",
        "policy": {
            "model": str(model_of(spec, folder)),
            "adapter": LORA if spec.get("weights") == "lora" else None,
            "attention": spec.get("attention"),
        },
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
            "lr": spec.get("lr", 1e-4),
            "schedule": "constant",
            "warmup": 0,
            "precision": spec.get("precision", "fp32"),
            "threads": spec["threads"],
        },
        "evaluate": {"prompts": 0, "rows": 2},
        "track": {"folder": str(folder / "runs")},
    }
    for key, value in more.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) and key != "objective" else value
    return checked(Recipe, tree, "speed")


@contextmanager
def prepared(settings: Any) -> Iterator[Any]:
    """A run that is ready for its first step, with memory as the command line has it."""
    from rich.console import Console

    from prefopt.runs.preparing import prepare
    from prefopt.support.allocator import keep_freed_memory
    from prefopt.training.devices import computing

    keep_freed_memory()
    with computing(settings.train) as accelerator:
        yield prepare(settings, accelerator, Console(quiet=True))


def run(spec: dict, folder: Path, more: dict) -> dict:
    """What `prefopt run` does between its two evaluations."""
    from prefopt.runs.run import make_trainer

    settings = recipe_of(spec, folder, more)
    began = Moment()
    with prepared(settings) as ready:
        return trained(spec, ready, make_trainer(ready), began)


def trained(spec: dict, ready: Any, trainer: Any, began: Moment) -> dict:
    """The figures of a run's steps."""
    from prefopt.support.profile import profiling

    start, before = Moment(), peak()
    sections: dict = {}
    if spec.get("profile"):
        with profiling() as clock:
            steps = list(trainer)
        sections = {"/".join(path): round(section.seconds, 3) for path, section in clock.sections.items()}
    elif spec.get("trace"):
        from torch.profiler import ProfilerActivity, profile

        remaining = iter(trainer)
        first = next(remaining)  # which compares ways of laying out rows
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            steps = [first, *remaining]
        print(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=60), file=sys.stderr)
    else:
        steps = list(trainer)
    seconds = seconds_of(began, start)
    return {
        **seconds,
        "losses": [step.metrics["loss"] for step in steps],
        "seconds": [step.seconds for step in steps],
        "tokens": sum(step.tokens for step in steps),
        "sampled": getattr(ready.source, "tokens", 0),
        "padding": sum(step.metrics.get("padding", 0) for step in steps) / len(steps),
        "before": before,
        "peak": peak(),
        "sections": sections,
    }


def dpo(spec: dict, folder: Path) -> dict:
    """DPO, or any objective on the same pairs."""
    return run(spec, folder, {"reference": {"cache": spec.get("cache", True)}})


def reward(spec: dict, folder: Path) -> dict:
    """A reward model from rankings, each answer read once."""
    return run(spec, folder, of_rankings())


def of_rankings() -> dict:
    """What a recipe has for rankings."""
    return {"objective": {"name": f"{HERE / 'people.py'}:EveryPair"}}


def grpo(spec: dict, folder: Path) -> dict:
    """GRPO as TRL's default has it: DAPO's average over tokens, on K completions of each prompt."""
    rollouts = {"completions": spec["completions"], "sampling": {"max_tokens": spec["new"]}, "batch_size": 128}
    real = spec.get("data", "words") != "words"
    rows = rows_of(spec) if real else [{"prompt": row["prompt"]} for row in preferences(spec["pairs"])]
    more = {
        "source": {"data": str(saved_rows(folder, rows, "prompts")), "rollouts": rollouts},
        "objective": {"name": "GRPO", "beta": 0.05},
        "feedback": {"name": f"{HERE / 'workload.py'}:distinct_words"},
        "evaluate": {"prompts": 1, "rows": 2},
        "train": {"micro_tokens": spec.get("tokens")},  # all completions of a step at once, as on TRL's side
    }
    held_out = {"data": "chat", "pairs": 2} if real else {"completions": 2}
    return run({**spec, **held_out}, folder, more)


def start(spec: dict, folder: Path) -> dict:
    """Write the weights that start at random, an adapter's and a scorer's head, to the file from which TRL's side takes them."""
    from safetensors.torch import save_file

    more = of_rankings() if spec["data"] == "rankings" else {}
    with prepared(recipe_of(spec, folder, more)) as ready:
        weights = ready.models.trained.model.state_dict()
    drawn = {name: tensor.contiguous() for name, tensor in weights.items() if ".lora_" in name or is_head(name)}
    save_file(drawn, spec["start"])
    return {"train": 0.0}


def is_head(name: str) -> bool:
    """Whether a weight is a scorer's head, as trained."""
    return name == "score.weight" or name.endswith("score.modules_to_save.default.weight")


def study(spec: dict, folder: Path) -> dict:
    """`prefopt study` itself: whole runs of each objective and seed by several processes of one thread, with the report."""
    from rich.console import Console

    from prefopt.study import Study, run_study

    base = recipe_of(spec | {"threads": 1}, folder, {"seed": 0, "seeds": {}}).model_dump(mode="json")
    plan = Study(
        name="speed",
        recipe=base,
        arms={name: {"objective": name} for name in spec["objectives"]},
        seeds=spec["seeds"],
        metric="accuracy",
    )
    began = time.perf_counter()
    results = run_study(plan, folder / "study", jobs=spec["jobs"], console=Console(quiet=True))
    done = time.perf_counter()
    lines = [json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[-2]) for result in results]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "import": began - BEGAN,
        "setup": 0.0,
        "train": done - began,
        "cpu": time.process_time() + used.ru_utime + used.ru_stime,
        "losses": [line.get("loss", math.nan) for line in lines],
        "peak": max(peak(), used.ru_maxrss / 1024),
    }
