"""Who may touch a repository of the real registry: many who read, or one who writes.

The real registry notes in small files, one a blob or manifest of a repository, that it is there. It
writes such a file anew whenever the same is pushed again, and not in one step: who reads it at
that moment finds it empty, and is told that there is no such blob (404), or that digests do not
match (400 ``DIGEST_INVALID``). So nobody reads in a repository while something there gets its name.
Bodies pass outside of turns: only names are given, and looked up, within.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


class Turns:
    """Turns by repository. Thread safe; a thread takes several at once by ``taking`` alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reading: Counter[str] = Counter()
        self._writing: set[str] = set()
        self._waiting: Counter[str] = Counter()  # to write; they come before who wants to read

    @contextmanager
    def reading(self, folder: str) -> Iterator[None]:
        """Wait until nobody writes there; nobody does before the context's end."""
        with self._changed:
            while folder in self._writing or self._waiting[folder]:
                self._changed.wait()
            self._reading[folder] += 1
        try:
            yield
        finally:
            with self._changed:
                self._reading[folder] -= 1
                if not self._reading[folder]:
                    del self._reading[folder]
                self._changed.notify_all()

    @contextmanager
    def writing(self, folder: str) -> Iterator[None]:
        """Wait until nobody reads or writes there; nobody does before the context's end."""
        with self._changed:
            self._waiting[folder] += 1
            try:
                while folder in self._writing or self._reading[folder]:
                    self._changed.wait()
                self._writing.add(folder)
            finally:
                self._waiting[folder] -= 1
                if not self._waiting[folder]:
                    del self._waiting[folder]
        try:
            yield
        finally:
            with self._changed:
                self._writing.remove(folder)
                self._changed.notify_all()

    @contextmanager
    def taking(self, source: str, target: str) -> Iterator[None]:
        """Write in ``target`` what is read in ``source``; everybody takes turns in one order."""
        with ExitStack() as stack:
            for folder in sorted({source, target}):
                turn = self.writing if folder == target else self.reading
                stack.enter_context(turn(folder))
            yield
