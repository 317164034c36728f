"""Where the jobs of a study run: in this process, in local processes, on a cluster, or where an `Executor` of one's own has them.

May import study/jobs.py and the rooms above study.
"""

from prefopt.study.executors.choosing import On, executor_on
from prefopt.study.executors.executor import Executor, Outcome, checked_outcomes, record_failure
from prefopt.study.executors.local_processes import LocalProcesses
from prefopt.study.executors.performing import perform, set_up_process
from prefopt.study.executors.this_process import ThisProcess

__all__ = [
    "Executor",
    "LocalProcesses",
    "On",
    "Outcome",
    "ThisProcess",
    "checked_outcomes",
    "executor_on",
    "perform",
    "record_failure",
    "set_up_process",
]
