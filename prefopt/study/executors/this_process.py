"""Jobs one after another in this process."""

from collections.abc import Iterator, Sequence

from prefopt.study.executors.executor import Executor, Outcome
from prefopt.study.executors.performing import perform
from prefopt.study.jobs import Job
from prefopt.support.sharing import sharing


class ThisProcess(Executor):
    """Runs one job after another here, and keeps models and data from job to job."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Run the jobs in their order."""
        with sharing():
            for job in jobs:
                yield perform(job)
