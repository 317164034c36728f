#!/usr/bin/env bash
# Seen in submitit 1.5.4 (Linux).
#
# `LocalJob._interrupt()` "sends preemption / timeout signal to the job (for testing purpose)", as `SlurmJob._interrupt` does on a
# cluster. The signal goes to the controller above the job, which has no handler for it, and dies of it. The job itself never hears of
# it: `checkpoint()` is not called, nothing is queued again, and the job works on without anybody above it, while `job.done()` is
# True at once. `job.result()` waits 15 s for it and then raises, though the result comes later.
#
# Why it matters here: a rehearsal of preemption that calls `_interrupt()` and starts the job again has two processes in one folder
# of checkpoints. A job must notice that its parent is gone, or the signal be sent to the job's own process.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check submitit==1.5.4
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time
from pathlib import Path

import submitit


class Work:
    def __call__(self, log):
        for step in range(6):
            with open(log, "a") as file:
                file.write(f"step {step}\n")
            time.sleep(1)
        return "whole"

    def checkpoint(self, log):
        with open(log, "a") as file:
            file.write("checkpoint\n")
        return submitit.helpers.DelayedSubmission(self, log)


executor = submitit.AutoExecutor("jobs", cluster="local")
executor.update_parameters(timeout_min=2)
job = executor.submit(Work(), "log")
log = Path("log")
while not log.exists() or log.read_text().count("step") < 2:
    time.sleep(0.1)
job._interrupt()
time.sleep(0.5)
done, result, then = job.done(), job.paths.result_pickle.exists(), log.read_text().count("step")
print(f"half a second after _interrupt(): done() is {done}, a result is there: {result}, state {job.state}")
time.sleep(8)
lines = log.read_text().splitlines()
print(f"8 s later: {lines.count('checkpoint')} checkpoints, {len(lines)} steps where there were {then}, result {job.result()!r}")
sys.exit(0 if done and not result and "checkpoint" not in lines and len(lines) == 6 > then else 1)
PYTHON
