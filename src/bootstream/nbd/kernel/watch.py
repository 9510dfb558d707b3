"""Keeps an attached device connected while its server comes and goes."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from bootstream.errors import BootstreamError
from bootstream.nbd.kernel.attach import Attachment
from bootstream.nbd.kernel.control import Control

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""How often the device is looked at for having been detached by others."""
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0
"""Seconds between two attempts to reach a server; each pause is twice the one before."""


class Watch:
    """A thread that watches one attachment, from entering the block to leaving it.

    Args:
        attachment: the device; it is not detached here.
        on_lost: called, once, when a connection died; in the watching thread, as the others.
        on_back: called when the device is connected again.
        on_gone: called when somebody else ended the device; it is watched no further.

    Raises, on entering:
        BootstreamError: as :class:`Control`.
    """

    def __init__(
        self,
        attachment: Attachment,
        *,
        on_lost: Callable[[], None] = lambda: None,
        on_back: Callable[[], None] = lambda: None,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        self._attachment = attachment
        self._on_lost, self._on_back, self._on_gone = on_lost, on_back, on_gone
        self._thread = threading.Thread(target=self._run, name="nbd-watch", daemon=True)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._notices = stack.enter_context(Control())
            self._control = stack.enter_context(Control())
            self._notices.subscribe()
            stack.pop_all()
        self._wake = os.pipe()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.write(self._wake[1], b"!")
        self._thread.join()
        for descriptor in self._wake:
            os.close(descriptor)
        self._notices.close()
        self._control.close()

    def _run(self) -> None:
        # What died before the notices were asked for was told to nobody: the first attempt
        # finds out, and changes nothing where all is well.
        lost, said = not self._reconnect(), False
        pause = _FIRST_PAUSE
        while not self._wait(pause if lost else _LOOK_SECONDS):
            lost |= self._heard()
            if not self._attachment.connected:
                self._on_gone()
                return
            if not lost:
                continue
            if not said:
                said = True
                self._on_lost()
            if self._reconnect():
                lost, said = False, False
                pause = _FIRST_PAUSE
                self._on_back()
            else:
                pause = min(2 * pause, _LAST_PAUSE)

    def _wait(self, seconds: float) -> bool:
        """Wait for a notice or for the time; True once the block is left."""
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        poll.register(self._notices.fileno(), select.POLLIN)
        return any(descriptor == self._wake[0] for descriptor, _ in poll.poll(1000 * seconds))

    def _heard(self) -> bool:
        """Whether our device may have lost a connection."""
        try:
            notices = self._notices.notices()
        except BootstreamError as error:
            log.warning("the kernel's notices cannot be read: %s", error)
            return False
        return notices is None or self._attachment.index in notices

    def _reconnect(self) -> bool:
        try:
            self._attachment.reconnect(self._control)
        except BootstreamError as error:
            log.info("%s is not connected yet: %s", self._attachment.path, error)
            return False
        return True
