"""Log output and telemetry of the libraries."""

import logging
import os


def quiet_imports() -> None:
    """Leave out what a library says while it is imported, and nobody can act on.

    bitsandbytes 0.50 misses a package on every import, for a kernel that is not used here (`policy.compat.keep_packing_of`).
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Print warnings as plain lines on stderr, and switch off the libraries' progress bars."""
    import transformers
    from rich.logging import RichHandler

    from prefopt.support.terminal import Terminal

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its retries twice
    handler = RichHandler(console=Terminal(stderr=True), show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def silence_telemetry() -> None:
    """Switch off telemetry of the libraries, unless the environment already says otherwise."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }.items():
        os.environ.setdefault(name, value)
