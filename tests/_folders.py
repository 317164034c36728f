"""Run folders as `prefopt run` leaves them, without the run: numbers that a test knows."""

import json
import os
import socket
import time
from pathlib import Path

import numpy as np
import yaml

from prefopt.evaluation.evaluation import Evaluation
from prefopt.evaluation.intervals import Observations
from prefopt.support.files import write_whole

RECIPE = {
    "name": "tiny",
    "source": {"rollouts": None},
    "objective": [{"name": "DPO", "beta": 0.1}],
    "train": {"batch_size": 4, "lr": 0.001},
    "evaluate": {"part": "test", "prompts": 3},
}


def finished_run(folder: Path, seed: int, gold: float, kl: float = 4.0, steps: int = 4, **changes) -> Path:
    """A run whose gold reward goes from 0 along √KL to `gold`, with three prompts and evaluations half way."""
    (folder / "evaluations").mkdir(parents=True)
    recipe = RECIPE | {"seed": seed} | changes.pop("recipe", {})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "manifest.json").write_text(json.dumps(manifest(seed)))
    lines = [
        {"step": 0, f"{part}/gold": 0.0, f"{part}/kl": 0.0, f"{part}/logratio_margin": 0.0}
        for part in ("test", "validation")
    ]
    lines += [
        {"step": n, "loss": 0.69 - n / 100, "tokens": 100, "seconds": 0.5, **_rewards(n)} for n in range(1, steps + 1)
    ]
    lines.insert(4, {"step": 2, "validation/gold": gold / 2, "validation/kl": kl / 4})
    lines += [
        {"step": steps, f"{part}/gold": gold, f"{part}/kl": kl, f"{part}/logratio_margin": kl / 2}
        for part in ("test", "validation")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = changes.pop("samples", [f"so {text} it was" for text in ("bright", "dull", "<b>bold</b>")])
    scores = gold + np.array([-0.1, 0.0, 0.1])
    evaluation = Evaluation(
        {"gold": Observations(scores, np.ones(3), ["a", "b", "c"])},
        samples=[
            {
                "prompt": f"the film {i}",
                "rendered": [("<|user|>", True), (f"the film {i}\n", False), ("<|end|>", True)],
                "completion": text,
                "gold": float(score),
                "length": 3.0 + i,
                "kl": kl,
            }
            for i, (text, score) in enumerate(zip(samples, scores, strict=True))
        ],
    )
    for step in (0, steps):
        write_whole(folder / "evaluations" / f"test-step-{step:06d}.json", evaluation.to_json())
    after = {"gold": estimate(gold), "kl": estimate(kl), "length": estimate(4.0), "distinct_1": 0.5}
    summary = {"steps": steps, "before": {"gold": estimate(0.0)}, "after": after} | changes
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def failed_run(folder: Path, message: str = "ValueError: the loss is nan") -> Path:
    folder.mkdir(parents=True)
    (folder / "error.txt").write_text(f"Traceback (most recent call last):\n  …\n{message}\n")
    return folder


def study(folder: Path, arms: dict[str, list[float | None]], kl: float = 4.0) -> Path:
    """arms/ARM/seed-N; a None is a run that failed."""
    for arm, golds in arms.items():
        for seed, gold in enumerate(golds):
            path = folder / "arms" / arm / f"seed-{seed}"
            if gold is None:
                failed_run(path)
            else:
                finished_run(path, seed, gold, kl)
    return folder


def begun(folder: Path, ended: float | None = None, pid: int | None = None, host: str = socket.gethostname()) -> Path:
    """A study of four arms, as it is after 100 seconds: one has finished in 40, one failed, one works, one waits."""
    now = time.time()
    process = {"pid": pid or os.getpid(), "host": host, "started": now - 100, "ended": ended, "processes": 2}
    jobs = [
        {"name": name, "seed": 0, "folder": f"arms/{name}/seed-0", "kind": "run", "steps": 4}
        for name in ("done", "broken", "working", "next")
    ]
    finished_run(folder / "arms/done/seed-0", 0, 0.5)
    failed_run(folder / "arms/broken/seed-0", "ValueError: the loss is nan")
    working = finished_run(folder / "arms/working/seed-0", 0, 0.5, steps=2)
    (working / "summary.json").unlink()
    (folder / "logs").mkdir()
    for name, start, end in (("done", 100, 60), ("broken", 90, 80), ("working", 10, 0)):
        file = folder / "logs" / f"{name}-seed-0.started"
        file.touch()
        os.utime(file, (now - start, now - start))
        for over in ("summary.json", "error.txt"):
            if (path := folder / f"arms/{name}/seed-0/{over}").exists():
                os.utime(path, (now - end, now - end))
    content = {"title": "Which?", "metric": "gold", "process": process, "jobs": jobs}
    (folder / "jobs.json").write_text(json.dumps(content))
    (folder / "study.yaml").write_text("{}")
    return folder


def manifest(seed: int) -> dict:
    return {
        "versions": {"python": "3.11", "torch": "2"},
        "git": {},
        "plugins": {},
        "device": {"type": "cpu", "name": "x86_64", "threads": 1, "precision": "fp32", "processes": 1},
        "model": {"name": "lm", "parameters": 10, "trainable": 10, "fingerprint": "f00d"},
        "data": {"train": {"rows": 12, "fingerprint": "d0d0"}},
        "seeds": dict.fromkeys(("data", "init", "order", "sampling", "evaluation"), seed),
    }


def estimate(value: float) -> dict:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "prompts": 3}


def _rewards(step: int) -> dict[str, float]:
    return {"rewards/chosen": step / 10, "rewards/rejected": -step / 10, "rewards/margin": step / 5}
