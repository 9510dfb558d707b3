"""One refresh for many threads, ahead of the end, and never a failed request."""

from __future__ import annotations

import gc
import logging
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from bootstream.clouds.oci import Credentials
from bootstream.clouds.oci.refresher import Refresher
from bootstream.errors import PermissionDenied, Unavailable

KEY = rsa.generate_private_key(65537, 2048)


class World:
    """A clock that is set by hand, and a source of tokens that can be held or fail."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lifetime = 100.0
        self.count = 0
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.left = threading.Semaphore(0)

    def clock(self) -> float:
        return self.now

    def acquire(self) -> Credentials:
        self.entered.release()
        assert self.gate.wait(10)
        try:
            self.count += 1
            if self.error is not None:
                raise self.error
            return Credentials(f"ST${self.count}", KEY, self.now + self.lifetime)
        finally:
            self.left.release()


@pytest.fixture
def world() -> World:
    """A new world."""
    return World()


@pytest.fixture
def refresher(world: World) -> Refresher:
    """A refresher in that world, which has its first token."""
    made = Refresher(world.acquire, name="test", clock=world.clock)
    made.credentials()
    assert world.entered.acquire(timeout=10)
    assert world.left.acquire(timeout=10)
    return made


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    pause = threading.Event()
    for _ in range(1000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came")


def test_a_token_is_used_until_two_thirds_of_its_life(world: World, refresher: Refresher) -> None:
    """No renewal before 0.6 of the lifetime, one by 2/3, and the old one serves meanwhile."""
    first = refresher.credentials()
    world.now += 59
    assert refresher.credentials() is first
    assert world.count == 1
    world.gate.clear()
    world.now += 8
    assert refresher.credentials() is first
    assert world.entered.acquire(timeout=10)
    for _ in range(100):
        assert refresher.credentials() is first
    world.gate.set()
    eventually(lambda: refresher.credentials() is not first)
    assert world.count == 2


def test_an_expired_token_is_waited_for(world: World, refresher: Refresher) -> None:
    """Nobody gets a token that has ended, not even shortly before its end."""
    first = refresher.credentials()
    world.now += 99
    assert refresher.credentials() is not first


def test_refused_by_many_refreshed_once(world: World, refresher: Refresher) -> None:
    """Sixteen threads that were refused with one token make one request for another."""
    stale = refresher.credentials()
    world.gate.clear()
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(refresher.refresh, stale) for _ in range(16)]
        assert world.entered.acquire(timeout=10)
        world.gate.set()
        fresh = {id(each.result(10)) for each in waiting}
    assert len(fresh) == 1
    assert world.count == 2
    assert refresher.refresh(stale) is refresher.credentials()
    assert world.count == 2


def test_a_failed_renewal_is_only_logged(
    world: World, refresher: Refresher, caplog: pytest.LogCaptureFixture
) -> None:
    """While the old token is good it is used; the next try comes later, and succeeds."""
    first = refresher.credentials()
    world.error = Unavailable("nobody answers")
    world.now += 70
    with caplog.at_level(logging.WARNING):
        assert refresher.credentials() is first
        assert world.left.acquire(timeout=10)
        eventually(lambda: "nobody answers" in caplog.text)
    tries = world.count
    assert refresher.credentials() is first
    assert world.count == tries, "it does not try again at once"
    world.error = None
    world.now += 8
    refresher.credentials()
    eventually(lambda: refresher.credentials() is not first)


def test_who_has_to_wait_gets_the_error(world: World, refresher: Refresher) -> None:
    """Each thread gets an error of its own with the cause's words; later it can succeed."""
    stale = refresher.credentials()
    world.error = PermissionDenied("refused", operation="get token", remedy="a policy")
    world.now += 101
    with pytest.raises(PermissionDenied, match="refused") as first:
        refresher.credentials()
    with pytest.raises(PermissionDenied, match="refused") as second:
        refresher.refresh(stale)
    assert first.value is not second.value
    assert first.value.remedy == "a policy"
    world.error = None
    assert refresher.credentials() is not stale


def test_errors_of_other_kinds_become_ours(world: World) -> None:
    """A defect in what acquires tokens is an error of the tree for who waits, with its cause."""
    world.error = ZeroDivisionError("secret")
    refresher = Refresher(world.acquire, name="test", clock=world.clock)
    with pytest.raises(Unavailable, match="ZeroDivisionError") as caught:
        refresher.credentials()
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_tokens_that_are_old_when_they_come(world: World) -> None:
    """An expired token is refused with a word about the clock."""
    world.lifetime = -400
    with pytest.raises(PermissionDenied, match="400 seconds ago") as caught:
        Refresher(world.acquire, name="test", clock=world.clock).credentials()
    assert "clock" in str(caught.value.remedy)


def test_refreshes_cannot_be_forced_without_end(world: World, refresher: Refresher) -> None:
    """Requests refused for another reason do not become a storm on the federation service."""
    for _ in range(100):
        refresher.refresh(refresher.credentials())
    assert world.count == 11
    stale = refresher.credentials()
    assert refresher.refresh(stale) is stale
    world.now += 11
    assert refresher.refresh(stale) is not stale


def test_no_memory_is_kept(world: World) -> None:
    """Two thousand refreshes later there is as much memory in use, and no thread more."""
    refresher = Refresher(world.acquire, name="test", clock=world.clock, forced_within=0)
    threads = threading.active_count()

    def refresh(times: int) -> None:
        for _ in range(times):
            refresher.refresh(refresher.credentials())

    refresh(200)
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        refresh(2000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 64 << 10
    eventually(lambda: threading.active_count() <= threads)


def test_keys_without_an_end_are_kept(world: World) -> None:
    """Credentials that do not expire are acquired once."""
    refresher = Refresher(lambda: Credentials("a/b/c", KEY), name="test", clock=world.clock)
    first = refresher.credentials()
    world.now += 1e9
    assert refresher.credentials() is first
