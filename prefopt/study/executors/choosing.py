"""The executor that `--on` names."""

from typing import Literal, get_args

from prefopt.study.cluster_settings import Clusters
from prefopt.study.executors.executor import Executor
from prefopt.study.executors.local_processes import LocalProcesses
from prefopt.study.executors.this_process import ThisProcess
from prefopt.support.errors import PrefoptError, nearest

On = Literal["local", "slurm", "ray"]
"""Where jobs run: processes of this machine, or a cluster."""


def executor_on(name: Executor | str, clusters: Clusters, jobs: int | None = None) -> Executor:
    """An executor by its name.

    Args:
        name: one of `On`; an executor is returned as it is.
        clusters: what the study asks clusters for.
        jobs: at most how many run at once; None is one here, and what the settings say on a cluster.

    Raises:
        PrefoptError: there is no such executor.
    """
    if not isinstance(name, str):
        return name
    if name == "local":
        return ThisProcess() if jobs in (None, 1) else LocalProcesses(jobs or 1)
    if name == "slurm":
        from prefopt.study.executors.slurm import SlurmExecutor

        return SlurmExecutor(clusters.slurm, jobs)
    if name == "ray":
        from prefopt.study.executors.ray_tasks import RayExecutor

        return RayExecutor(clusters.ray, jobs)
    known = get_args(On)
    raise PrefoptError(f"there is no executor {name!r}.{nearest(name, known)} Executors: {', '.join(known)}")
