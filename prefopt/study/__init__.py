"""Studies: arms × seeds, controlled and resumable; comparison/ has the statistics, report/ the page and tables.

May import everything above it in the list of rooms, which ends with runs.
"""

from typing import TYPE_CHECKING

from prefopt.support.lazy_names import on_first_use

if TYPE_CHECKING:
    from prefopt.study.executors import Executor, LocalProcesses, Outcome, ThisProcess
    from prefopt.study.executors.performing import perform, set_up_process
    from prefopt.study.executors.ray_tasks import RayExecutor
    from prefopt.study.executors.slurm import SlurmExecutor
    from prefopt.study.run import run_study
    from prefopt.study.spec import Arm, Budget, Range, Stage, Study, Tune, load_study

__all__ = [
    "Arm",
    "Budget",
    "Executor",
    "LocalProcesses",
    "Outcome",
    "Range",
    "RayExecutor",
    "SlurmExecutor",
    "Stage",
    "Study",
    "ThisProcess",
    "Tune",
    "load_study",
    "perform",
    "run_study",
    "set_up_process",
]

_OF_EXECUTORS = ("Executor", "LocalProcesses", "Outcome", "ThisProcess", "perform", "set_up_process")
__getattr__ = on_first_use(
    __name__,
    dict.fromkeys(__all__, f"{__name__}.spec")
    | dict.fromkeys(_OF_EXECUTORS, f"{__name__}.executors")
    | {"RayExecutor": f"{__name__}.executors.ray_tasks", "SlurmExecutor": f"{__name__}.executors.slurm"}
    | {"run_study": f"{__name__}.run"},
)
