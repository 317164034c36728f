"""Jobs on a Ray cluster, each a task of Ray Core."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from prefopt.study.cluster_settings import RayCluster
from prefopt.study.executors.executor import Outcome, record_failure
from prefopt.study.executors.remote import Lost, RemoteExecutor, Sent, SentJob
from prefopt.support.errors import PrefoptError
from prefopt.support.extras import extra

LOOK_EVERY = 0.5
"""Seconds between two looks for results."""


class RayExecutor(RemoteExecutor):
    """Hands each job to Ray; one whose worker or node dies is handed over again, and goes on from its last checkpoint.

    Ray ends what a driver handed over when the driver ends, so Ctrl-C cancels the study's jobs.

    Args:
        settings: what a job asks for.
        jobs: at most how many are handed over at once; None is what the settings say.
    """

    def __init__(self, settings: RayCluster | None = None, jobs: int | None = None):
        self.settings = settings or RayCluster()
        super().__init__("ray", jobs or self.settings.jobs, self.settings.retries, LOOK_EVERY)
        self.ray: Any = None
        self.ours = False

    def check(self) -> None:
        """Connect to the cluster, and refuse what no node of it could hold.

        Raises:
            PrefoptError: no Ray, no answer from the address, or no node that is large enough; says what to do.
        """
        self._connect()
        asked = {name: amount for name, amount in self._asked().items() if amount}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if self.settings.elastic or any(all(node.get(k, 0) >= v for k, v in asked.items()) for node in nodes):
            return
        largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in asked}
        self.__exit__()
        raise PrefoptError(
            f"no node of the Ray cluster can hold a job, which asks for {_amounts(asked)}; the most that one node has is "
            f"{_amounts(largest)}: ask for less in executor.ray, or set executor.ray.elastic=true where nodes are still to come"
        )

    def __enter__(self) -> "RayExecutor":
        self._connect()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the cluster, which ends the jobs that still run there."""
        if self.ours and self.ray is not None:
            self.ray.shutdown()
        self.sent, self.ours = [], False

    def send(self, job: SentJob) -> Any:
        """Hand it over."""
        asked = self._asked()
        # Ray's own retries are off: whether a lost job has come further since decides whether it is tried again.
        task = self.ray.remote(max_retries=0, max_calls=1)(_perform).options(
            name=str(job.job),
            num_cpus=asked.pop("CPU"),
            num_gpus=asked.pop("GPU"),
            memory=asked.pop("memory", None),
            resources=asked,
        )
        return task.remote(job)

    def describe(self, handle: Any) -> tuple[str, str]:
        """Its task."""
        return handle.task_id().hex(), f"Ray task {handle.task_id().hex()[:8]}"

    def look(self, sent: Sent) -> Outcome | Lost | None:
        """Fetch its result where there is one."""
        errors = self.ray.exceptions
        if not self.ray.wait([sent.handle], timeout=0)[0]:
            return None
        try:
            return Outcome(sent.job, self.ray.get(sent.handle))
        except errors.RayTaskError as error:  # before or after the job itself, which raises nothing
            return record_failure(sent.job, str(error.cause), str(error))
        except errors.RayError as error:  # its worker or node is gone, or it was killed for memory
            sentence = str(error).strip().partition(". ")[0].partition("\n")[0]
            return Lost(f"Ray lost it ({type(error).__name__}: {sentence})", str(error))

    def _asked(self) -> dict[str, float]:
        """The resources of a job, by Ray's names."""
        settings = self.settings
        gpus = settings.gpus
        if gpus is None:
            gpus = 1.0 if self.ray.cluster_resources().get("GPU") else 0.0
        memory = {"memory": settings.memory * 1024**3} if settings.memory else {}
        return {"CPU": settings.cpus, "GPU": gpus, **memory, **settings.resources}

    def _connect(self) -> None:
        """Join the cluster, unless this process has: a script may have called `ray.init` in its own way."""
        self.ray = extra("ray", "ray", "--on ray")
        if self.ray.is_initialized():
            return
        settings, address = self.settings, self.settings.address
        if address not in ("auto", "local"):
            _reach(address, settings.timeout)
        try:
            with _within(settings.timeout):
                self.ray.init(
                    address=address,
                    runtime_env=settings.environment or None,
                    log_to_driver=False,
                    logging_level="ERROR",
                    **({"include_dashboard": False} if address == "local" else {}),
                )
        except Exception as error:  # of many kinds: no cluster, another version of Ray or Python, no grpcio
            said = " ".join(str(error).split()).rstrip(".")
            raise PrefoptError(
                f"executor.ray.address is {address}, and Ray answers: {said}. `ray start --head` starts a "
                "cluster, executor.ray.address=local one on this machine for as long as the study takes"
            ) from error
        self.ours = True


class _Late(BaseException):
    """No Exception, which `ray.init` would catch, and try again."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where it takes longer, in the main thread: `ray.init` tries for minutes where something else answers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> NoReturn:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Late:
        raise TimeoutError(f"nothing within {seconds:g} s (executor.ray.timeout)") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reach(address: str, timeout: float) -> None:
    """Refuse an address at which nobody listens, at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise PrefoptError(
            f"executor.ray.address is {address!r}: it is HOST:PORT, such as head-node:6379, auto or local"
        )
    try:
        socket.create_connection((host, int(port)), timeout).close()
    except OSError as error:
        raise PrefoptError(
            f"executor.ray.address is {address}, and nobody answers there ({error}; waited {timeout:g} s at most): is the cluster "
            "up, and its port open? `ray status` on its head node says so"
        ) from error


def _amounts(resources: dict[str, float]) -> str:
    names = {"CPU": "CPU cores", "GPU": "GPUs", "memory": "GB of memory"}
    scaled = {name: amount / (1024**3 if name == "memory" else 1) for name, amount in resources.items()}
    return ", ".join(f"{amount:g} {names.get(name, name)}" for name, amount in scaled.items())


def _perform(job: SentJob) -> str | None:
    """What a worker does."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return job.perform(f"Ray node {node[:8]}").error
