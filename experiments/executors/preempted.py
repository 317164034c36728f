"""A study on submitit's local executor, of which one job is preempted and another loses its controller, midway.

`python preempted.py STUDY FOLDER [key=value …]`. The first job of an arm that passes step AT gets the signal that SLURM sends at
preemption (USR2); the next one is hit by submitit's own `_interrupt`, which ends the process above it.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from prefopt.study import SlurmExecutor, load_study, run_study
from prefopt.study.cluster_settings import Slurm
from prefopt.study.places import read_place, started_file
from prefopt.study.status import read_status

AT = 5


def disturb(folder: Path, executor: SlurmExecutor, over: threading.Event) -> None:
    hit: list[str] = []
    while len(hit) < 2 and not over.wait(0.1):
        if not (folder / "jobs.json").exists():
            continue
        for job in read_status(folder).of("running"):
            if str(job) in hit or job.name.startswith("stage") or not job.steps or not AT <= job.step < job.steps:
                continue
            sent = next(sent for sent in executor.sent if str(sent.job) == str(job))
            if not hit:
                pid = read_place(started_file(folder, job.name, job.seed))["pid"]
                os.kill(pid, signal.SIGUSR2)
            else:
                sent.handle._interrupt()
            print(
                f"{time.strftime('%X')} {'_interrupt of' if hit else 'USR2 to'} {job}, at step {job.step}: {job.where}",
                flush=True,
            )
            hit.append(str(job))
            break


def main(study: str, folder: str, *overrides: str) -> None:
    executor = SlurmExecutor(Slurm(cluster="local"), jobs=2)
    over = threading.Event()
    thread = threading.Thread(target=disturb, args=(Path(folder), executor, over))
    thread.start()
    try:
        run_study(load_study(study, overrides), folder, executor=executor)
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
