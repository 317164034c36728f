"""Where verbs print: results on stdout, progress and messages on stderr."""

from prefopt.support.terminal import Terminal

out, err = Terminal(), Terminal(stderr=True)
