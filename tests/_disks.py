"""Runs verbs on file systems that are full or read-only, for real: small ones in memory, in a mount namespace of its own.

`unshare --user --map-root-user --mount python _disks.py HOME` writes HOME/outcomes.json and copies of the run folders. Verbs are
forked from this process, which has imported everything.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _tiny import tiny_model, tiny_pairs

PLUGIN = """
import subprocess
from pathlib import Path

def fill(when):
    if when and not Path("filled").exists():
        Path("filled").touch()
        subprocess.run(["dd", "if=/dev/zero", "of=disk/ballast", "bs=1k"], capture_output=True)

def at_step_5(step):
    fill(step.number == 5)

def once_trained(prompts, completions, rows):
    fill(Path("disk/run/policy").exists())
    return score(prompts, completions, rows)

def at_the_third(prompts, completions, rows):
    with Path("calls").open("a") as file:
        file.write("x")
    fill(len(Path("calls").read_text()) == 3)
    return score(prompts, completions, rows)

def score(prompts, completions, rows):
    return [[sum(map(ord, text)) % 7 / 7 for text in texts] for texts in completions]
"""


class Disk:
    """A file system in memory at `home`/disk, and what verbs came to on it.

    Args:
        home: with what recipes name; the working directory of verbs.
    """

    def __init__(self, home: Path):
        self.home, self.place = home, home / "disk"
        self.outcomes: dict[str, Any] = {}
        self.place.mkdir()

    def mount(self, size: str = "4m") -> None:
        """A new one, empty."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.place)], check=True)

    def unmount(self) -> None:
        """Without it."""
        subprocess.run(["umount", str(self.place)], check=True)
        for name in ("filled", "calls"):
            (self.home / name).unlink(missing_ok=True)

    def read_only(self) -> None:
        """From now on."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.place)], check=True)

    def verb(self, name: str, *arguments: str, **variables: str) -> None:
        """Run a verb of prefopt; its exit status, its stderr and the names in the file system afterwards are kept."""
        file = self.home / f"{name}.stderr"
        child = os.fork()
        if child == 0:
            self._become(file, arguments, variables)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        there = sorted(str(path.relative_to(self.place)) for path in self.place.rglob("*"))
        self.outcomes[name] = {"status": status, "stderr": file.read_text(), "there": there}

    def _become(self, file: Path, arguments: tuple[str, ...], variables: dict[str, str]) -> None:
        from prefopt.cli import main

        status = 1
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)
            for number in (1, 2):
                os.dup2(descriptor, number)
            os.environ |= {"COLUMNS": "1000"} | variables
            os.chdir(self.home)
            main(arguments)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        finally:
            sys.stdout.flush()
            os._exit(status)

    def room(self) -> None:
        """Make room again."""
        (self.place / "ballast").unlink()

    def keep(self, folder: str, name: str) -> None:
        """A copy outside of the file system."""
        shutil.copytree(self.place / folder, self.home / "kept" / name)


def on_a_full_disk(disk: Disk) -> None:
    """A run, its last evaluation, a labelling and a study; each goes on once there is room."""
    for name, recipe, folder in (
        ("run", ("run", "training.json"), "run"),
        ("evaluation", ("run", "evaluating.json"), "run"),
        ("label", ("label", "label.json"), "labels"),
        ("study", ("study", "study.json"), "study"),
    ):
        disk.mount()
        disk.verb(f"{name}, full", *recipe, "--out", f"disk/{folder}")
        disk.room()
        again = ("run", "disk/run", "--resume") if folder == "run" else (*recipe, "--out", f"disk/{folder}")
        disk.verb(f"{name}, room", *again)
        disk.keep(folder, f"{name}, full")
        disk.unmount()
        disk.mount()
        (disk.home / "filled").touch()  # it is not filled
        disk.verb(f"{name}, undisturbed", *recipe, "--out", f"disk/{folder}")
        disk.keep(folder, name)
        disk.unmount()


def on_a_read_only_one(disk: Disk) -> None:
    """Verbs that write there, and a run whose cache is there."""
    disk.mount()
    (disk.home / "filled").touch()
    disk.verb("begun", "run", "training.json", "train.steps=2", "--out", "disk/run")
    (disk.place / "run" / "summary.json").unlink()
    disk.read_only()
    disk.verb("run, read-only", "run", "training.json", "--out", "disk/other")
    disk.verb("resume, read-only", "run", "disk/run", "--resume")
    disk.verb("label, read-only", "label", "label.json", "--out", "disk/labels")
    disk.verb("study, read-only", "study", "study.json", "--out", "disk/study")
    disk.verb("cache, read-only", "run", "training.json", "--out", "beside", PREFOPT_CACHE="disk/cache")
    disk.unmount()


def with_a_full_cache(disk: Disk) -> None:
    """A run whose cache has no room."""
    disk.mount("64k")
    (disk.home / "filled").touch()
    subprocess.run(["dd", "if=/dev/zero", f"of={disk.place}/ballast", "bs=1k"], capture_output=True, check=False)
    disk.verb("cache, full", "run", "training.json", "--out", "beside-full", PREFOPT_CACHE="disk/cache")
    disk.unmount()


def prepare(home: Path) -> None:
    """Models, data and recipes."""
    (home / "plugin.py").write_text(PLUGIN)
    model, pairs = str(tiny_model(home / "lm")), str(tiny_pairs(home / "pairs.jsonl"))
    train = {"steps": 8, "batch_size": 8, "lr": 1e-3, "threads": 1, "checkpoint_every": 2}
    evaluate = {"prompts": 4, "sampling": {"max_tokens": 4}}
    base = {"policy": {"model": model}, "source": {"data": pairs}, "objective": "DPO"}
    contents = {
        "training": base | {"train": train | {"callbacks": ["./plugin.py:at_step_5"]}, "evaluate": evaluate},
        "evaluating": base | {"train": train, "evaluate": evaluate | {"gold": "./plugin.py:once_trained"}},
        "label": {"source": {"data": pairs}, "feedback": "./plugin.py:at_the_third", "batch_size": 4, "threads": 1},
        "study": {"name": "duel", "recipe": "training.json", "seeds": 1, "metric": "nll", "arms": {"A": {}, "B": {}}},
    }
    for name, content in contents.items():
        (home / f"{name}.json").write_text(json.dumps(content))


def main(home: Path) -> None:
    """All of it."""
    import prefopt.cli.training
    import prefopt.study.run  # noqa: F401

    prepare(home)
    disk = Disk(home)
    parts: tuple[Callable[[Disk], None], ...] = (on_a_full_disk, on_a_read_only_one, with_a_full_cache)
    for part in parts:
        part(disk)
    (home / "outcomes.json").write_text(json.dumps(disk.outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
