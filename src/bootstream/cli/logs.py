"""The library's log, on stderr: warnings; with ``-v`` what it does, with ``-vv`` everything."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bootstream.cli.context import Cli

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class _Handler(logging.Handler):
    """A line for each record, without breaking a progress bar."""

    def __init__(self, cli: Cli) -> None:
        super().__init__()
        self._cli = cli

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; trouble in doing so never reaches whoever logs."""
        try:
            self._cli.print_line(self.format(record))
        except Exception:  # noqa: BLE001 - logging's own way to deal with its trouble
            self.handleError(record)


def configure_logging(cli: Cli) -> None:
    """Set the log up for one invocation."""
    handler = _Handler(cli)
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s" if cli.verbose else "%(message)s"
    handler.setFormatter(logging.Formatter(line))
    logger = logging.getLogger("bootstream")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.ERROR if cli.quiet else _LEVELS[min(cli.verbose, 2)])
    logger.propagate = False
