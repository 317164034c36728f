"""One measurement in a process of its own: `python measure.py '{"what": "prefopt_dpo", …}'` prints a line of JSON.

A process for each, because the peak of memory is the process's. Imports and set-up are timed apart from training.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import timing  # noqa: F401, I001  # first: from here on imports are timed
import sides_prefopt
import sides_trl
import torch


def matmul(spec: dict, folder: Path) -> dict:
    """Floating-point operations a second of the best of many large products."""
    n = spec.get("n", 1536)
    a, b = torch.randn(n, n), torch.randn(n, n)
    if spec.get("precision") == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    times = []
    for _ in range(spec.get("times", 12)):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return {"flops": 2 * n**3 / min(times), "median": 2 * n**3 / sorted(times)[len(times) // 2]}


MEASURES: dict[str, Callable[[dict, Path], dict]] = {
    "matmul": matmul,
    "start": sides_prefopt.start,
    "prefopt_dpo": sides_prefopt.dpo,
    "prefopt_study": sides_prefopt.study,
    "prefopt_grpo": sides_prefopt.grpo,
    "prefopt_reward": sides_prefopt.reward,
    "trl_dpo": sides_trl.dpo,
    "trl_grpo": sides_trl.grpo,
    "trl_reward": sides_trl.reward,
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
