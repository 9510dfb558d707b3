"""A few threads for a few long tasks, which stop soon when one fails or the caller must.

The threads are daemons: a task that waits in the network when the work is called
off is told to stop and left behind after a moment; it may not keep the process
from ending.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 2.0

Task = Callable[[threading.Event], None]
"""A task looks at the event between two steps and returns once it is set."""


def run_all(tasks: Sequence[Task], *, workers: int, poll: Callable[[], object]) -> None:
    """Run all tasks; return once they are done.

    Args:
        tasks: each is called once, in order, in one of the threads.
        workers: how many threads at most.
        poll: called in this thread some times a second; what it raises ends the work.

    Raises:
        Exception: the first that a task or ``poll`` raised; the others were told to stop.
    """
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    stop = threading.Event()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        outcome: BaseException | None = None
        try:
            while not stop.is_set():
                waiting.get_nowait()(stop)
        except queue.Empty:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            outcome = error
        ended.put(outcome)

    threads = [
        threading.Thread(target=work, name=f"fetch-{number}", daemon=True)
        for number in range(min(workers, len(tasks)))
    ]
    try:
        for thread in threads:
            thread.start()
        left = len(threads)
        while left:
            try:
                error = ended.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                poll()
                continue
            left -= 1
            if error is not None:
                raise error
    finally:
        stop.set()
        deadline = time.monotonic() + _GRACE_SECONDS
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
