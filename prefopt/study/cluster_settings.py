"""The schema of the `executor` section of a study: what its jobs ask a cluster for. `--on` chooses which."""

from typing import Any, Literal

from pydantic import Field

from prefopt.recipe import Section

Interrupt = Literal["cancel", "leave"]


class Slurm(Section):
    """What a job asks SLURM for; `prefopt study S --on slurm` submits through submitit."""

    cluster: Literal["slurm", "local"] = Field(
        "slurm", description="local rehearses it on this machine: submitit's local executor in place of sbatch"
    )
    jobs: int | None = Field(
        None,
        gt=0,
        description="at most so many submitted at once; null submits all, and the queue decides; of a rehearsal, one",
    )
    partition: str | None = Field(None, description="partition; null is the cluster's default")
    minutes: int = Field(
        60, gt=0, description="time limit of a job; one that needs longer is submitted again, and goes on"
    )
    grace: int = Field(
        120, ge=0, description="seconds before the limit at which a job is told to save a checkpoint and make room"
    )
    gpus: int = Field(0, ge=0, le=1, description="GPUs of a job: a run of a study is one process, and uses one")
    cpus: int = Field(1, gt=0, description="CPU cores of a job")
    memory: float | None = Field(None, gt=0, description="GB of a job; null is the cluster's default")
    account: str | None = Field(None, description="whom the time is charged to")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features that a node must have")
    sbatch: dict[str, Any] = Field(
        default_factory=dict, description="further options of sbatch, by their long names: `{exclude: node7}`"
    )
    setup: tuple[str, ...] = Field((), description="shell commands before the job's own, such as `module load cuda`")
    retries: int = Field(
        3, ge=0, description="how often in a row a job is submitted again that was lost without a new checkpoint"
    )
    interrupt: Interrupt = Field(
        "cancel", description="what Ctrl-C does with submitted jobs: cancel them, or leave them to go on"
    )


class RayCluster(Section):
    """What a job asks Ray for; `prefopt study S --on ray` runs each as a task of Ray Core."""

    address: str = Field(
        "auto",
        description="HOST:PORT of the cluster; auto is RAY_ADDRESS, or one that runs on this machine; local starts one here for "
        "as long as the study takes",
    )
    timeout: float = Field(60, gt=0, description="seconds in which the cluster must answer")
    jobs: int | None = Field(
        None, gt=0, description="at most so many tasks at once; null hands over all, and Ray decides"
    )
    gpus: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPUs of a job, or a fraction of one that jobs share; null is 1 where the cluster has any, else 0",
    )
    cpus: float = Field(1, gt=0, description="CPU cores of a job")
    memory: float | None = Field(None, gt=0, description="GB that a job reserves; null reserves none")
    resources: dict[str, float] = Field(
        default_factory=dict, description="custom resources of the cluster that a job takes: `{big_node: 1}`"
    )
    environment: dict[str, Any] = Field(
        default_factory=dict, description="Ray's runtime_env: `{env_vars: {HF_HOME: /data/hf}}`"
    )
    elastic: bool = Field(
        False, description="nodes may be added later: do not refuse what no node can hold now, and wait"
    )
    retries: int = Field(
        3, ge=0, description="how often in a row a job is started again that was lost without a new checkpoint"
    )


class Clusters(Section):
    """Settings of the clusters on which jobs may run; those that `--on` does not name are not read."""

    slurm: Slurm | None = Field(None, description="of `--on slurm`")
    ray: RayCluster | None = Field(None, description="of `--on ray`")
