"""What a measurement reads off its process; imported first, so that the time of imports is known."""

import resource
import time

BEGAN = time.perf_counter()


def peak() -> float:
    """Megabytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Moment:
    """A moment on two clocks: of the wall, and of the processors that work for this process."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def since(self, earlier: "Moment") -> tuple[float, float]:
        """Seconds of both clocks."""
        return self.wall - earlier.wall, self.cpu - earlier.cpu


def seconds_of(began: Moment, start: Moment) -> dict[str, float]:
    """Of imports, of set-up and of training, which ends now; processor seconds beside those of the wall."""
    (setup, setup_cpu), (train, cpu) = start.since(began), Moment().since(start)
    return {"import": began.wall - BEGAN, "setup": setup, "setup_cpu": setup_cpu, "train": train, "cpu": cpu}
