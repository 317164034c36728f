"""The command line. It imports everything; heavy modules wait until a verb needs them."""

from prefopt.cli.entry import main

__all__ = ["main"]
