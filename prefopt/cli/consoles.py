"""Where verbs print: results on stdout, progress and messages on stderr."""

from rich.console import Console

out, err = Console(highlight=False), Console(stderr=True, highlight=False)
