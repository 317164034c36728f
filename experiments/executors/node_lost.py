"""A study on a Ray cluster of two nodes on this machine, one of which is killed in the middle of a job.

`python node_lost.py STUDY FOLDER [key=value …]`. Once a job of an arm has passed step AT, the node that it runs on is killed
(SIGKILL to its raylet); what was on it goes on on the other node from its last checkpoint (train.checkpoint_every), or from step 0.
"""

import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster

from prefopt.study.status import read_status

AT = 5


def kill_a_node(cluster: Cluster, folder: Path, study: subprocess.Popen[bytes]) -> None:
    while study.poll() is None:
        time.sleep(0.1)
        jobs = read_status(folder).of("running") if (folder / "jobs.json").exists() else []
        for job in jobs:
            if job.name.startswith("stage") or not job.steps or not AT <= job.step < job.steps:
                continue
            node = next(node for node in cluster.worker_nodes if node.node_id[:8] in job.where)
            print(f"{time.strftime('%X')} killed the node of {job}, at step {job.step}: {job.where}", flush=True)
            cluster.remove_node(node, allow_graceful=False)
            return


def main(study: str, folder: str, *overrides: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    command = [sys.executable, "-m", "prefopt.cli", "study", study, "--out", folder, "--on", "ray"]
    running = subprocess.Popen([*command, f"executor.ray.address={cluster.address}", *overrides])
    try:
        kill_a_node(cluster, Path(folder), running)
        sys.exit(running.wait())
    finally:
        running.kill()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
