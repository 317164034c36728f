"""What libraries may print and send."""

import os

from rich.console import Console


def quiet_libraries() -> None:
    """Warnings of libraries and ours as lines for people, their progress bars off."""
    import logging

    import transformers
    from rich.logging import RichHandler

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of its retries, twice
    handler = RichHandler(console=Console(stderr=True, highlight=False), show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def silence_telemetry() -> None:
    """Ask the libraries that phone home not to; whoever has set these already is not overruled."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }.items():
        os.environ.setdefault(name, value)
