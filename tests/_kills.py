"""Kills work at random moments, goes on with it until it ends, and compares what it comes to with undisturbed work.

`cd tests && PYTHONPATH=..:. python _kills.py 100` kills a hundred times and prints what differs. Processes are forked from a server
that has imported everything, so that most kills meet the work itself.
"""

import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _tiny import tiny_model, tiny_pairs

SECONDS = ("seconds", "started", "at")
"""Names of what differs between any two runs."""

MOST_SECONDS = 240
"""A process that takes longer hangs."""

RULE = """
def score(prompts, completions, rows):
    return [[sum(map(ord, text)) % 7 / 7 for text in texts] for texts in completions]
"""

AGENT = """
import random

from prefopt import Turn


class Asks:
    stop = tuple("123456789")

    def reset(self, row, seed):
        self.turns, self.word = 0, row["prompt"].split()[0]

    def step(self, text, *, truncated):
        self.turns += 1
        if "w4" in text:
            raise OSError("the service is away")
        done = truncated or self.turns == 3
        return Turn(f" {self.word} w{random.randrange(9)}", float(len(text) % 7), done, {"asked": 1.0})
"""


@dataclass(frozen=True)
class Work:
    """Something that may be killed.

    Attributes:
        go_on: begins it in a folder, or goes on with what is there, or does nothing where it is over; given `home` and the folder.
        result: what it came to, without times.
        share: of a hundred kills.
    """

    go_on: Callable[[Path, Path], None]
    result: Callable[[Path], Any]
    share: int


def prepare(home: Path) -> Path:
    """The models, data and recipes of all work."""
    model, pairs = str(tiny_model(home / "lm")), str(tiny_pairs(home / "pairs.jsonl", rows=60))
    (home / "rule.py").write_text(RULE)
    (home / "agent.py").write_text(AGENT)
    prompts = [{"prompt": f"w{i % 7} w{i % 5} w{i}"} for i in range(80)]
    (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    policy, evaluate = {"model": model}, {"prompts": 4, "every": 10, "sampling": {"max_tokens": 4}}
    train = {"steps": 30, "batch_size": 8, "lr": 1e-3, "threads": 1, "checkpoint_every": 5}
    rollouts = {"completions": 2, "sampling": {"max_tokens": 4}}
    split = [0.6, 0.2, 0.2]
    dpo = {"policy": policy, "source": {"data": pairs, "split": split}, "objective": "DPO", "train": train}
    ppo = {
        "policy": policy,
        "source": {"data": str(home / "prompts.jsonl"), "rollouts": rollouts, "split": split},
        "feedback": {"name": f"{home}/rule.py:score"},
        "objective": "PPO",
        "train": train | {"minibatch_size": 4},
    }
    environment = {"name": f"{home}/agent.py:Asks", "max_tokens": 24}
    agent = {
        "policy": policy,
        "source": {"data": ppo["source"]["data"], "rollouts": rollouts | {"environment": environment}, "split": split},
        "objective": "GRPO",
        "train": train,
    }
    label = {
        "policy": policy,
        "source": {"data": str(home / "prompts.jsonl")},
        "samples": rollouts,
        "feedback": {"name": f"{home}/rule.py:score"},
        "batch_size": 2,
        "threads": 1,
    }
    study = {
        "name": "duel",
        "recipe": str(home / "dpo.json"),
        "seeds": 1,
        "metric": "accuracy",
        "arms": {"A": {}, "B": {"objective": "IPO"}},
    }
    for name, content in {"dpo": dpo, "ppo": ppo, "agent": agent, "label": label, "study": study}.items():
        whole = content | ({"evaluate": evaluate} if name in ("dpo", "ppo", "agent") else {})
        (home / f"{name}.json").write_text(json.dumps(whole))
    return home


# What is killed


def go_on_with_dpo(home: Path, folder: Path) -> None:
    _run(home / "dpo.json", folder)


def go_on_with_ppo(home: Path, folder: Path) -> None:
    _run(home / "ppo.json", folder)


def go_on_with_an_agent(home: Path, folder: Path) -> None:
    _run(home / "agent.json", folder)


def _run(file: Path, folder: Path) -> None:
    from prefopt import load_recipe, run
    from prefopt.runs.folder import RunFolder

    if not RunFolder(folder).finished:
        run(load_recipe(file), folder=folder, resume=RunFolder(folder).begun)


def go_on_with_labels(home: Path, folder: Path) -> None:
    from prefopt import label, load_label_recipe

    label(load_label_recipe(home / "label.json"), folder)


def go_on_with_a_study(home: Path, folder: Path) -> None:
    from prefopt.study import load_study, run_study

    time.sleep(0.5)  # until workers have seen that the process which started them is gone
    run_study(load_study(home / "study.json"), folder, jobs=2)


def go_on_with_logps(home: Path, folder: Path) -> None:
    """Put vectors that are not there yet into the store below the log-prob cache."""
    from prefopt.support.disk_store import Store

    store = Store(folder / "model", 10**9)
    for first in range(0, VECTORS, 8):
        numbers = [n for n in range(first, first + 8) if not store.get(_store_keys([n]))[0].all()]
        store.put(_store_keys(numbers), [_vector(n) for n in numbers])


def go_on_with_a_memory(home: Path, folder: Path) -> None:
    """Ask a judge; what it has answered is remembered."""
    from prefopt.feedback.judges import Question
    from prefopt.feedback.judges.memory import Memory

    for n in range(ANSWERS):
        Memory(Parrot(), folder).answers([Question((("user", f"q{n}"),))])


class Parrot:
    """Answers in capitals."""

    @property
    def identity(self) -> dict[str, str]:
        return {"kind": "parrot", "model": "grey"}

    def check(self) -> None:
        """It is there."""

    def ask(self, questions: Any) -> Any:
        """An answer for each question."""
        from prefopt.feedback.judges import Answer

        for i, question in enumerate(questions):
            yield i, Answer(None, question.turns[-1][1].upper(), 3, 1, 1)


VECTORS, ANSWERS = 5000, 60


def _store_keys(numbers: list[int]) -> Any:
    import numpy as np

    from prefopt.support.disk_store import KEY

    halves = np.array([[n * 0x9E3779B97F4A7C15 % 2**64, n] for n in numbers], np.uint64)
    return halves.reshape(-1, 2).view(KEY)[:, 0]


def _vector(number: int) -> Any:
    import numpy as np

    return np.float32(number) + np.arange(number % 7 + 1, dtype=np.float32) / 8


# What it comes to


def run_result(folder: Path) -> dict[str, Any]:
    """Metrics, summary, evaluations and weights of a run, and the log-probs in its cache."""
    from prefopt.runs.folder import RunFolder

    run = RunFolder(folder)
    return {
        "metrics": [_untimed(line) for line in run.history()],
        "summary": _untimed(run.summary()),
        "evaluations": {file.name: _hash(file) for file in (folder / "evaluations").iterdir()},
        "weights": {file.name: _hash(file) for file in run.policy.glob("*.safetensors")},
        "log-probs": _cached_logps(cache_of(folder)),
    }


def labels_result(folder: Path) -> list[Any]:
    """The rows that were labelled, in order, and the summary."""
    rows = [_untimed(json.loads(line)) for line in (folder / "data.jsonl").read_text().splitlines()]
    return [*rows, *sorted(file.name for file in folder.iterdir())]


def study_result(folder: Path) -> dict[str, Any]:
    """Every run, and the table."""
    with (folder / "results.csv").open(newline="") as file:
        table = [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]
    runs = {str(one.parent): run_result(folder / one.parent) for one in _below(folder, "arms/*/*/summary.json")}
    errors = [str(one) for one in _below(folder, "**/error.txt")]
    return {"table": table, "runs": {k: v | {"log-probs": None} for k, v in runs.items()}, "errors": errors}


def logps_result(folder: Path) -> bool:
    """Whether every vector is there, as it was put."""
    import numpy as np

    from prefopt.support.disk_store import Store

    found, values = Store(folder / "model", 10**9).get(_store_keys(list(range(VECTORS))))
    return bool(found.all()) and np.array_equal(values, np.concatenate([_vector(n) for n in range(VECTORS)]))


def memory_result(folder: Path) -> list[Any]:
    """What is remembered, and that the file is whole."""
    with contextlib.closing(sqlite3.connect(folder / "answers.sqlite")) as disk:
        rows = disk.execute("SELECT key, judge, answer FROM answers ORDER BY key").fetchall()
        return [*rows, *disk.execute("PRAGMA integrity_check").fetchall()]


def cache_of(folder: Path) -> Path:
    """The cache of the work in a folder, which no other work shares."""
    return next(parent for parent in (folder, *folder.parents) if parent.name.startswith("out-")).with_suffix(".cache")


def _cached_logps(cache: Path) -> dict[str, str]:
    from prefopt.support.disk_store import Store, blocks, keys_of, segments

    content = {}
    for model in cache.glob("logps/*"):
        store = Store(model, 10**9)
        for file in segments(model):
            for block in blocks(file):
                for key in keys_of(block.entries):
                    found, values = store.get(key)
                    content[key.tobytes().hex()] = values.tobytes().hex() if found.all() else "damaged"
    return content


def _untimed(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _untimed(value) for key, value in tree.items() if key not in SECONDS}
    return [_untimed(item) for item in tree] if isinstance(tree, list) else tree


def _hash(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


def _below(folder: Path, pattern: str) -> list[Path]:
    return sorted(file.relative_to(folder) for file in folder.glob(pattern))


WORK = {
    "DPO": Work(go_on_with_dpo, run_result, 22),
    "PPO": Work(go_on_with_ppo, run_result, 22),
    "agent": Work(go_on_with_an_agent, run_result, 8),
    "label": Work(go_on_with_labels, labels_result, 20),
    "study of two jobs": Work(go_on_with_a_study, study_result, 8),
    "log-prob cache": Work(go_on_with_logps, logps_result, 10),
    "memory of a judge": Work(go_on_with_a_memory, memory_result, 10),
}


# Killing


class Killer:
    """Kills one kind of work.

    Args:
        name: of the work.
        home: where `prepare` put what it needs.
        seed: of the moments.

    Attributes:
        seconds: that undisturbed work takes.
        kills: so far.
        pieces: of work that were killed and gone on with so far.
    """

    def __init__(self, name: str, home: Path, seed: int = 0):
        self.work, self.name, self.home = WORK[name], name, home
        self.draw, self.kills, self.pieces = random.Random(f"{name} {seed}"), 0, 0
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["prefopt.study.run", "prefopt.runs.label.labelling", "prefopt.policy", "peft"]
        )
        first = self._folder("warm")
        self._to_its_end(first)  # imports that come late are made
        begun = time.monotonic()
        undisturbed = self._folder("undisturbed")
        self._to_its_end(undisturbed)
        self.seconds = time.monotonic() - begun
        self.expected = self.work.result(undisturbed)
        if self.work.result(first) != self.expected:
            raise AssertionError(
                f"{name}: two undisturbed ones differ: {differences(self.work.result(first), self.expected)}"
            )

    def differences(self, kills: int) -> list[str]:
        """What work that was killed so many times came to otherwise than undisturbed work; empty where nothing differs."""
        self.pieces += 1
        folder, moments = self._folder(str(self.pieces)), []
        while len(moments) < kills:
            moment = self.draw.uniform(0, self.seconds)
            process = self._started(folder)
            process.join(moment)
            process.kill()
            process.join()
            if process.exitcode == 0:  # it was over before
                break
            if process.exitcode != -signal.SIGKILL:
                return [f"after kills at {moments}: {self._last_line(folder)}"]
            moments.append(round(moment, 2))
        self.kills += len(moments)
        try:
            self._to_its_end(folder)
        except AssertionError as error:
            return [f"after kills at {moments}: {error}"]
        return [f"after kills at {moments}: {what}" for what in differences(self.work.result(folder), self.expected)]

    def _folder(self, name: str) -> Path:
        return self.home / f"out-{self.name.replace(' ', '-')}-{name}"

    def _started(self, folder: Path) -> Any:
        process = self.context.Process(target=_in_a_process, args=(self.work.go_on, self.home, folder))
        process.start()
        return process

    def _to_its_end(self, folder: Path) -> None:
        process = self._started(folder)
        process.join(MOST_SECONDS)
        hangs = process.exitcode is None
        process.kill()
        process.join()
        assert not hangs, f"{self.name}: it hangs"
        assert process.exitcode == 0, f"{self.name}: {self._last_line(folder)}"

    def _last_line(self, folder: Path) -> str:
        return (["", *_stderr(folder).read_text(errors="replace").strip().splitlines()])[-1]


def _in_a_process(go_on: Callable[[Path, Path], None], home: Path, folder: Path) -> None:
    with _stderr(folder).open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ |= {"PREFOPT_CACHE": str(cache_of(folder)), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    go_on(home, folder)


def _stderr(folder: Path) -> Path:
    return folder.with_suffix(".stderr")


def differences(mine: Any, expected: Any, where: str = "") -> list[str]:
    """Where two results differ, and how."""
    if isinstance(mine, dict) and isinstance(expected, dict):
        keys = sorted({*mine, *expected}, key=str)
        return [line for key in keys for line in differences(mine.get(key), expected.get(key), f"{where}.{key}")]
    if isinstance(mine, list) and isinstance(expected, list) and len(mine) == len(expected):
        return [
            line
            for i, pair in enumerate(zip(mine, expected, strict=True))
            for line in differences(*pair, f"{where}.{i}")
        ]
    return [] if mine == expected else [f"{where.lstrip('.')}: {str(mine)[:100]} instead of {str(expected)[:100]}"]


def main(kills: int, seed: int = 0) -> int:
    """Kill all kinds of work, each piece of it at most twice; the number of pieces that came to something else."""
    failed = done = 0
    with tempfile.TemporaryDirectory() as home:
        prepare(Path(home))
        for name, work in WORK.items():
            killer = Killer(name, Path(home), seed)
            print(f"{name}: {killer.seconds:.1f} s undisturbed", flush=True)
            while (left := round(kills * work.share / 100) - killer.kills) > 0:
                found = killer.differences(min(2, left))
                failed += bool(found)
                print(*(f"  {killer.pieces}: {line}\n" for line in found), sep="", end="", flush=True)
            print(f"  {killer.kills} kills, {killer.pieces} pieces of work", flush=True)
            done += killer.kills
    print(f"{done} kills, {failed} pieces of work came to something else")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(*map(int, sys.argv[1:])) else 0)
