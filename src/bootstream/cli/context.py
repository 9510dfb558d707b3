"""What every verb has at hand: settings, the store, progress, and how to speak."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import click

from bootstream.cli.interrupt import Interruption
from bootstream.cli.output import human_size, say

if TYPE_CHECKING:
    from bootstream.cli.progress import Silent
    from bootstream.config import Settings
    from bootstream.storage.metrics import Metrics
    from bootstream.storage.protocol import StorageProvider
    from bootstream.templates.catalogue import Catalogue


class Cli:
    """One invocation of the command line."""

    def __init__(self) -> None:
        self.quiet = False
        self.verbose = 0
        self.debug = False
        self.store: str | None = None
        self.verb: str | None = None
        self.interruption = Interruption()
        self._progress: Silent | None = None
        self._metrics: Metrics | None = None

    @cached_property
    def settings(self) -> Settings:
        """The environment, with ``--store`` in the place of its variables."""
        from bootstream.config import Settings  # noqa: PLC0415 - not needed for --help

        settings = Settings.from_environment(os.environ)
        if self.store is not None:
            from bootstream.wiring import with_store  # noqa: PLC0415 - as above

            settings = with_store(settings, self.store)
        return settings

    @cached_property
    def storage(self) -> StorageProvider:
        """The store; with ``-v`` its operations are counted."""
        from bootstream.wiring import (  # noqa: PLC0415 - not needed for --help
            get_template_storage_provider,
        )

        if self.verbose:
            from bootstream.storage.metrics import Metrics  # noqa: PLC0415 - as above

            self._metrics = Metrics()
        return get_template_storage_provider(self.settings, metrics=self._metrics)

    @cached_property
    def catalogue(self) -> Catalogue:
        """What the store holds."""
        from bootstream.templates.catalogue import Catalogue  # noqa: PLC0415 - as above

        return Catalogue(self.storage)

    @contextmanager
    def job(self) -> Iterator[Silent]:
        """Yield progress for work that takes a while and can be interrupted."""
        with self.interruption, self._make_progress() as progress:
            self._progress = progress
            try:
                yield progress
            finally:
                self._progress = None

    def _make_progress(self) -> Silent:
        from bootstream.cli.progress import Bars, Lines, Silent  # noqa: PLC0415 - not for --help

        check = self.interruption.check
        if self.quiet:
            return Silent(check)
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            return Bars(check)
        return Lines(check, say) if self.verbose else Silent(check)

    def tell(self, message: str) -> None:
        """Say what was done, for people: on stderr if it is a terminal or with ``-v``."""
        if self.quiet or not (sys.stderr.isatty() or self.verbose):
            return
        self.print_line(message)

    def warn(self, message: str) -> None:
        """Say what somebody must know, unless ``--quiet``."""
        if not self.quiet:
            self.print_line(f"warning: {message}")

    def tell_metrics(self) -> None:
        """With ``-v``, say what was asked of the store and how long it took."""
        if self._metrics is None or self.quiet:
            return
        for operation, counts in sorted(self._metrics.snapshot().items()):
            mean = 1e3 * counts["seconds"] / counts["calls"]
            parts = [f"{counts['calls']} calls, {mean:.1f} ms each"]
            if counts["bytes"]:
                parts.append(human_size(counts["bytes"]))
            parts += [f"{count} {name}" for name, count in sorted(counts["errors"].items())]
            say(f"storage {operation}: {', '.join(parts)}")

    def print_line(self, message: str) -> None:
        """Write to stderr without breaking a progress bar."""
        if self._progress is not None and sys.stderr.isatty():
            self._progress.log(message)
        else:
            say(message)


pass_cli = click.make_pass_decorator(Cli)
