"""The command line: the one place that reads the environment and speaks to people.

``app`` holds the root command and loads verbs when they are used; each verb, or
small group of verbs, is a module of its own. Exit codes and error texts are made in
``errors``, signals are handled in ``interrupt``, progress is drawn in ``progress``.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # While modules load there is nothing to clean up: Ctrl-C ends it without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bootstream.cli.app import run  # noqa: PLC0415 - importing the package costs nothing

    sys.exit(run(sys.argv[1:]))
