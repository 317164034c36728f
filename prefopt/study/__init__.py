"""Studies: arms × seeds, controlled and resumable; comparison/ has the statistics, report/ the page and tables.

May import everything above it in the list of rooms, which ends with runs.
"""

from prefopt.study.executors import Executor, LocalProcesses, Outcome, ThisProcess, perform, set_up_process
from prefopt.study.run import run_study
from prefopt.study.spec import Arm, Budget, Range, Stage, Study, Tune, load_study

__all__ = [
    "Arm",
    "Budget",
    "Executor",
    "LocalProcesses",
    "Outcome",
    "Range",
    "Stage",
    "Study",
    "ThisProcess",
    "Tune",
    "load_study",
    "perform",
    "run_study",
    "set_up_process",
]
