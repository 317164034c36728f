"""Where verbs print: results on stdout, progress and messages on stderr."""

import os

from prefopt.support.terminal import Terminal

out, err = Terminal(), Terminal(stderr=True)

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where launchers put the number of processes, and which of them this one is."""


def is_main_process() -> bool:
    """Whether this is the only process, or of several that a launcher started the first, which alone prints and writes results.

    It goes by the environment, because verbs ask before torch is imported.
    """
    size, rank = (next((os.environ[name] for name in names if name in os.environ), "") for names in (SIZES, RANKS))
    return size.strip() in ("", "1") or rank.strip() in ("", "0")


def hush_other_processes() -> None:
    """Results are printed by the main process; what goes wrong is said by each that it happens to."""
    out.quiet = not is_main_process()
