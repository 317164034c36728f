"""Kills processes of sharded runs, goes on with two processes and with one, and compares with runs that nobody disturbed.

`cd tests && PYTHONPATH=..:. python _sharded_kills.py 12` kills twelve times, at random moments, and prints how far all is off.
"""

import json
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from _forked import Forked
from _tiny import tiny_model, tiny_pairs, tiny_recipe

FEEDBACK = """
def even(prompts, completions, rows):
    return [[sum(w[1:].isdigit() and int(w[1:]) % 2 == 0 for w in text.split()) / 5 for text in ts] for ts in completions]
"""

STEPS = 12
VICTIMS: dict[str, Sequence[int]] = {"the main process": [0], "the other": [1], "both": [0, 1]}


def prepare(home: Path) -> Path:
    """PPO with a critic of its own: one completion of each prompt, which one process and two lay out alike."""
    (home / "feedback.py").write_text(FEEDBACK)
    file = tiny_recipe(home, tiny_model(home / "lm"), tiny_pairs(home / "pairs.jsonl"), "PPO")
    words = ["source.rollouts={completions: 1, sampling: {max_tokens: 5}}", f"feedback={home / 'feedback.py'}:even"]
    words += [f"policy.critic.model={home / 'lm'}", "policy.dtype=float64", "train.checkpoint_every=1"]
    words += [f"train.steps={STEPS}", "train.shard=fsdp2", "evaluate.every=4"]
    (home / "words.json").write_text(json.dumps([str(file), *words]))
    return home


def begin(home: Path, out: Path, processes: int, resume: bool = False) -> list[Forked]:
    """The processes of a run, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = (
        ["run", out, "--resume"] if resume else ["run", *json.loads((home / "words.json").read_text()), "--out", out]
    )
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    said = [(home / f"{out.name}-{rank}.out", home / f"{out.name}-{rank}.err") for rank in range(processes)]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [Forked(words, home, common | own, files) for own, files in zip(ranks, said, strict=True)]


def finish(home: Path, out: Path, processes: int, resume: bool = False) -> Path:
    """A run up to its end."""
    status = [process.wait(120) for process in begin(home, out, processes, resume)]
    assert status == [0] * processes, [
        (home / f"{out.name}-{rank}.err").read_text()[-2000:] for rank in range(processes)
    ]
    return out


def kill(home: Path, out: Path, victims: Sequence[int], step: int, delay: float = 0.0) -> None:
    """Begin a run of two processes and kill some of them some time after a step; whoever is left has nobody to talk to."""
    processes, deadline = begin(home, out, 2), time.monotonic() + 120
    while time.monotonic() < deadline and not any(step_of(path) >= step for path in out.glob("checkpoints/step-*")):
        assert all(process.poll() is None for process in processes), (home / f"{out.name}-0.err").read_text()[-2000:]
        time.sleep(0.002)
    time.sleep(delay)
    for victim in victims:
        processes[victim].kill()
    for process in processes:  # torchrun ends those that are left
        if process.wait(5) is None:
            process.kill()
            process.wait()
    assert not (out / "summary.json").exists(), "it was over before it could be killed"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def distance(one: Path, other: Path) -> float:
    """The largest relative difference of any number in the metrics, and of the weights; infinite where lines are missing."""
    from safetensors.torch import load_file

    mine, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)
    )
    if [(row.get("step"), {*row}) for row in mine] != [(row.get("step"), {*row}) for row in theirs]:
        return float("inf")
    worst = 0.0
    for a, b in zip(mine, theirs, strict=True):
        for name in a.keys() - {"seconds", "padding"}:
            if isinstance(a[name], int | float):
                worst = max(worst, abs(a[name] - b[name]) / max(abs(a[name]), 1e-3))
    for file in sorted((one / "policy").glob("*.safetensors")):
        weights, others = load_file(file), load_file(other / "policy" / file.name)
        worst = max(worst, *(float((w - others[name]).norm() / w.norm()) for name, w in weights.items()))
    return worst


def main(kills: int) -> None:
    """Print a line for each kill."""
    with tempfile.TemporaryDirectory() as folder:
        home, draw = prepare(Path(folder)), random.Random(0)
        whole = {number: finish(home, home / f"undisturbed by {number}", number) for number in (1, 2)}
        print(f"undisturbed, two processes against one: {distance(whole[1], whole[2]):.1e}", flush=True)
        for number in range(kills):
            who, killed = list(VICTIMS)[number % 3], home / f"killed {number}"
            step, delay = draw.randint(1, STEPS - 4), draw.uniform(0, 0.3)
            kill(home, killed, VICTIMS[who], step, delay)
            left = max(map(step_of, killed.glob("checkpoints/step-*")))
            shutil.copytree(killed, home / f"{killed.name} by one")
            by_two = distance(whole[2], finish(home, killed, 2, resume=True))
            by_one = distance(whole[1], finish(home, home / f"{killed.name} by one", 1, resume=True))
            print(f"{who} killed, checkpoint {left}: by two {by_two:.1e}, by one {by_one:.1e}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
