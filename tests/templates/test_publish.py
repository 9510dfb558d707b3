"""Publishing, deleting and collecting, on many hosts at once and with any of them killed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bootstream.errors import (
    AlreadyExists,
    BuildNotFound,
    Conflict,
    InvalidInput,
    PreconditionFailed,
    TemplateNotFound,
)
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.catalogue import Catalogue
from bootstream.templates.collect import Collected, collect
from bootstream.templates.holder import Holder
from bootstream.templates.leases import Lease
from bootstream.templates.manifest import Manifest, read_manifest, read_published
from bootstream.templates.names import (
    dependent_path,
    heartbeat_path,
    lease_path,
    manifest_path,
    new_build_id,
)
from bootstream.templates.publish import BuildSession

NOW = timedelta(0)
NEVER = 3600.0


class Killed(BaseException):
    """Stands for kill -9: no clean-up of ours may see it."""


@pytest.fixture
def storage() -> MemoryStorageProvider:
    return MemoryStorageProvider()


@pytest.fixture
def sessions() -> Iterator[list[BuildSession]]:
    """Sessions left open by a test, whose threads have to end."""
    left: list[BuildSession] = []
    yield left
    for session in left:
        session._renewal.stop()


def objects(storage: StorageProvider) -> list[str]:
    return [info.path for info in storage.list_objects()]


def draft(session: BuildSession, **changes: object) -> Manifest:
    manifest = Manifest(
        build_id=session.build_id,
        template_id=session.template_id,
        state="published",
        created=datetime.now(UTC),
    )
    return replace(manifest, **changes)  # type: ignore[arg-type]  # the test's own fields


def start(
    storage: StorageProvider, template: str = "t", build_id: str | None = None
) -> BuildSession:
    return BuildSession(storage, template, build_id or new_build_id(), node_id="n", interval=NEVER)


def make(
    storage: StorageProvider, template: str = "t", *, parent: str | None = None, tag: str = "latest"
) -> str:
    """Publish a build with one small object of its own; return its id."""
    with start(storage, template) as session:
        if parent is not None:
            session.hold_parent(parent, [parent])
        storage.open_object(f"{session.build_id}/rootfs.ext4.pack").put(b"frames")
        session.publish(draft(session, parent=parent, depends_on=(parent,) if parent else ()))
    Catalogue(storage).set_tag(template, tag, session.build_id)
    return session.build_id


def make_dead(storage: StorageProvider, build_id: str) -> None:
    """Let the heartbeat of a session look like that of a process that was killed here."""
    holder = replace(Holder.current("n"), start_time="1")
    storage.open_object(heartbeat_path(build_id)).put(holder.to_json())


def test_published_build_is_listed_and_resolved(storage: MemoryStorageProvider) -> None:
    """What was published is found by tag and by id, with its tags."""
    build = make(storage, tag="v1")
    catalogue = Catalogue(storage)
    assert catalogue.resolve("t:v1").build_id == build
    assert catalogue.resolve(build).template_id == "t"
    [listed] = catalogue.builds()
    assert (listed.manifest.build_id, listed.tags) == (build, ("v1",))
    assert catalogue.templates() == ["t"]
    assert heartbeat_path(build) not in objects(storage)


def test_a_child_is_younger_than_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the storage's clock tells whole seconds: listings keep their order."""
    storage = MemoryStorageProvider()
    still = replace(storage.details(), now=datetime(2026, 1, 1, tzinfo=UTC))
    monkeypatch.setattr(storage, "details", lambda: still)
    builds = [make(storage)]
    for _ in range(9):
        builds.append(make(storage, parent=builds[-1]))
    assert [listed.manifest.build_id for listed in Catalogue(storage).builds()] == builds


def test_build_in_progress_is_invisible(storage: MemoryStorageProvider) -> None:
    """Nothing lists or resolves a build before its manifest."""
    with start(storage) as session:
        assert Catalogue(storage).builds() == []
        with pytest.raises(BuildNotFound):
            Catalogue(storage).resolve(session.build_id)


def test_failed_build_leaves_nothing(storage: MemoryStorageProvider) -> None:
    """An error on the way removes objects, marks and heartbeat."""
    parent = make(storage)
    before = objects(storage)
    with pytest.raises(ZeroDivisionError), start(storage) as session:
        session.hold_parent(parent, [parent])
        storage.open_object(f"{session.build_id}/rootfs.ext4.pack").put(b"x")
        raise ZeroDivisionError
    assert objects(storage) == before


def test_one_of_two_builders_with_one_id_wins(storage: MemoryStorageProvider) -> None:
    """The second is refused, and the first is not disturbed."""
    build_id = new_build_id()
    with start(storage, build_id=build_id) as first:
        with pytest.raises(AlreadyExists):
            start(storage, build_id=build_id)
        first.publish(draft(first))
    with pytest.raises(AlreadyExists):
        start(storage, build_id=build_id)
    assert read_published(storage, build_id)[0].build_id == build_id
    assert heartbeat_path(build_id) not in objects(storage)


def test_many_builders_with_one_id(storage: MemoryStorageProvider) -> None:
    """Of sixteen at once exactly one publishes."""
    build_id = new_build_id()
    barrier = threading.Barrier(16)
    won: list[int] = []

    def attempt(number: int) -> None:
        barrier.wait()
        try:
            with start(storage, build_id=build_id) as session:
                storage.open_object(f"{build_id}/rootfs.ext4.pack").put(b"%d" % number)
                session.publish(draft(session))
                won.append(number)
        except AlreadyExists:
            pass

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    buffer = bytearray(8)
    count = storage.open_object(f"{build_id}/rootfs.ext4.pack").read_at(buffer, 0)
    assert bytes(buffer[:count]) == b"%d" % won[0]


def test_storage_without_create_only_is_refused() -> None:
    """Publishing needs create-only writes; a storage that ignores them is named."""

    class Careless(MemoryStorageProvider):
        def details(self):  # type: ignore[no-untyped-def]  # as the base has it
            return replace(super().details(), create_only=False)

    with pytest.raises(InvalidInput):
        start(Careless())


def test_parent_deleted_before_the_mark(storage: MemoryStorageProvider) -> None:
    """A child that comes too late fails and leaves no mark."""
    parent = make(storage)
    Catalogue(storage).delete_build(parent)
    with pytest.raises(BuildNotFound), start(storage) as session:
        session.hold_parent(parent, [parent])
    assert dependent_path(parent, session.build_id) not in objects(storage)
    collect(storage, older_than=NOW)
    assert objects(storage) == []


def test_parent_deleted_after_the_mark(storage: MemoryStorageProvider) -> None:
    """A child that was first keeps its parent's bytes until it goes itself."""
    parent = make(storage, tag="a")
    with start(storage) as session:
        session.hold_parent(parent, [parent])
        Catalogue(storage).delete_build(parent)
        assert collect(storage, older_than=NOW).builds == []
        session.publish(draft(session, parent=parent, depends_on=(parent,)))
    assert f"{parent}/rootfs.ext4.pack" in objects(storage)
    assert [b.manifest.build_id for b in Catalogue(storage).builds()] == [session.build_id]
    Catalogue(storage).delete_build(session.build_id)
    assert set(collect(storage, older_than=NOW).builds) == {parent, session.build_id}
    assert objects(storage) == []


def test_marks_that_were_not_needed_go(storage: MemoryStorageProvider) -> None:
    """A child that shares nothing after all does not hold its parent."""
    parent = make(storage)
    with start(storage) as session:
        session.hold_parent(parent, [parent])
        session.publish(draft(session))
    assert dependent_path(parent, session.build_id) not in objects(storage)


def test_publishing_what_is_not_held_is_refused(storage: MemoryStorageProvider) -> None:
    """An index that names a build without a mark would dangle one day."""
    stranger = make(storage)
    with pytest.raises(InvalidInput), start(storage, "u") as session:
        session.publish(draft(session, depends_on=(stranger,)))
    assert [b.manifest.build_id for b in Catalogue(storage).builds()] == [stranger]


def test_collector_takes_over_a_dead_build(
    storage: MemoryStorageProvider, sessions: list[BuildSession]
) -> None:
    """What a killed builder left goes, and its mark no longer holds the parent."""
    parent = make(storage)
    session = start(storage)
    sessions.append(session)
    session.hold_parent(parent, [parent])
    storage.open_object(f"{session.build_id}/rootfs.ext4.pack").put(b"half")
    make_dead(storage, session.build_id)
    assert collect(storage, older_than=timedelta(hours=1)).builds == []
    dry = collect(storage, older_than=NOW, dry_run=True)
    assert dry.taken_over == [session.build_id]
    assert f"{session.build_id}/rootfs.ext4.pack" in objects(storage)
    result = collect(storage, older_than=NOW)
    assert result.taken_over == [session.build_id]
    assert (dry.objects, dry.size, dry.builds) == (result.objects, result.size, result.builds)
    assert not [path for path in objects(storage) if session.build_id in path]
    Catalogue(storage).delete_build(parent)
    collect(storage, older_than=NOW)
    assert objects(storage) == []


def test_living_build_is_never_collected(storage: MemoryStorageProvider) -> None:
    """A fresh heartbeat holds whatever age limit is asked for."""
    with start(storage) as session:
        storage.open_object(f"{session.build_id}/rootfs.ext4.pack").put(b"half")
        result = collect(storage, older_than=NOW)
        assert result.builds == []
        assert result.held[session.build_id] == "in progress"
        session.publish(draft(session))
    assert Catalogue(storage).resolve(session.build_id).build_id == session.build_id


def test_builder_that_was_taken_over_stops(storage: MemoryStorageProvider) -> None:
    """A builder that was only slow cannot publish what was collected."""
    with pytest.raises(Conflict), start(storage) as session:
        make_dead(storage, session.build_id)  # to the collector it looks dead
        collect(storage, older_than=NOW)
        session.publish(draft(session))
    with pytest.raises(BuildNotFound):
        read_published(storage, session.build_id)
    assert Catalogue(storage).builds() == []


def test_builder_taken_over_from_afar_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that is old for the storage's clock is taken over; the manifest stays."""
    storage = MemoryStorageProvider()
    with pytest.raises(Conflict), start(storage) as session:
        tomorrow = replace(storage.details(), now=datetime.now(UTC) + timedelta(days=1))
        monkeypatch.setattr(storage, "details", lambda: tomorrow)
        assert collect(storage, older_than=timedelta(hours=1)).taken_over == [session.build_id]
        session.publish(draft(session))
    assert objects(storage) == [manifest_path(session.build_id)]
    week = replace(tomorrow, now=tomorrow.now + timedelta(days=8))
    assert collect(storage).builds == []
    monkeypatch.setattr(storage, "details", lambda: week)
    collect(storage)
    assert objects(storage) == []


def test_lost_answers_do_not_lose_the_build(storage: MemoryStorageProvider) -> None:
    """A renewal or manifest that was stored although its answer was lost is recognised."""
    with start(storage) as session:
        body = session._body
        storage.open_object(heartbeat_path(session.build_id)).put(body)  # another etag, our bytes
        assert session._renew()
        session.publish(draft(session))
    assert read_published(storage, session.build_id)[0].build_id == session.build_id


def test_builder_wins_against_a_late_collector(storage: MemoryStorageProvider) -> None:
    """If the manifest is there first, collection leaves the build alone."""
    build = make(storage)
    storage.open_object(heartbeat_path(build)).put(
        replace(Holder.current("n"), start_time="1").to_json()
    )
    result = collect(storage, older_than=NOW)
    assert result.builds == []
    assert read_manifest(storage, build)[0].state == "published"
    assert heartbeat_path(build) not in objects(storage)


def test_foreign_objects_are_left_alone(storage: MemoryStorageProvider) -> None:
    """A prefix with neither manifest nor heartbeat belongs to another tool."""
    path = f"{new_build_id()}/rootfs.ext4"
    storage.open_object(path).put(b"raw")
    storage.open_object("notes/readme.txt").put(b"x")
    collect(storage, older_than=NOW)
    assert objects(storage) == sorted([path, "notes/readme.txt"])


def test_lease_holds_a_deleted_build(storage: MemoryStorageProvider) -> None:
    """What is served stays until it is no longer served."""
    build = make(storage)
    with Lease(storage, build, "host", interval=NEVER) as lease:
        assert lease.manifest.build_id == build
        Catalogue(storage).delete_build(build)
        assert build in collect(storage, older_than=NOW).held
        assert f"{build}/rootfs.ext4.pack" in objects(storage)
    collect(storage, older_than=NOW)
    assert objects(storage) == []


def test_lease_of_a_killed_server_does_not_hold(storage: MemoryStorageProvider) -> None:
    """On the host where it ran, a dead server's lease is seen to be one."""
    build = make(storage)
    dead = replace(Holder.current("host"), start_time="1")
    storage.open_object(lease_path(build, "host.1")).put(dead.to_json())
    Catalogue(storage).delete_build(build)
    collect(storage, older_than=NOW)
    assert objects(storage) == []


def test_lease_of_another_host_holds(storage: MemoryStorageProvider) -> None:
    """Of a process elsewhere only the age is known."""
    build = make(storage)
    other = replace(Holder.current("far"), boot_id="another")
    storage.open_object(lease_path(build, "far.1")).put(other.to_json())
    Catalogue(storage).delete_build(build)
    assert build in collect(storage, older_than=NOW).held


def test_no_lease_on_a_build_that_is_gone(storage: MemoryStorageProvider) -> None:
    """Serving a deleted build fails and leaves no lease."""
    build = make(storage)
    Catalogue(storage).delete_build(build)
    with pytest.raises(BuildNotFound):
        Lease(storage, build, "host")
    assert not [path for path in objects(storage) if path.startswith("leases/")]


def test_tags_move_and_drop(storage: MemoryStorageProvider) -> None:
    """The last writer wins, unless a condition is given; a dropped tag is gone."""
    catalogue = Catalogue(storage)
    first, second = make(storage, tag="v"), make(storage, tag="w")
    catalogue.set_tag("t", "v", second, if_current=first)
    with pytest.raises(PreconditionFailed):
        catalogue.set_tag("t", "v", first, if_current=first)
    assert catalogue.tags("t") == {"v": second, "w": second}
    assert catalogue.remove("t:v") == []
    with pytest.raises(TemplateNotFound):
        catalogue.resolve("t:v")
    assert catalogue.remove("t:w") == [second]
    assert [b.manifest.build_id for b in catalogue.builds()] == [first]
    with pytest.raises(TemplateNotFound):
        catalogue.remove("t:w")


def test_tag_of_another_template_is_refused(storage: MemoryStorageProvider) -> None:
    """A build belongs to one template."""
    build = make(storage)
    with pytest.raises(BuildNotFound):
        Catalogue(storage).set_tag("other", "v", build)


def test_tag_to_a_build_that_is_gone_says_so(storage: MemoryStorageProvider) -> None:
    """The error names the build and the remedy."""
    build = make(storage)
    Catalogue(storage).delete_build(build)
    storage.open_object("templates/t/tags/latest").put(build.encode())
    with pytest.raises(BuildNotFound, match=build):
        Catalogue(storage).resolve("t")


def test_remove_a_template(storage: MemoryStorageProvider) -> None:
    """All its builds go, unless other tags name some of them."""
    catalogue = Catalogue(storage)
    first, second = make(storage), make(storage)
    assert set(catalogue.remove("t")) == {first, second}
    third = make(storage, tag="keep")
    with pytest.raises(Conflict):
        catalogue.remove("t")
    assert catalogue.remove("t", everything=True) == [third]
    collect(storage, older_than=NOW)
    assert objects(storage) == []


def test_delete_is_idempotent(storage: MemoryStorageProvider) -> None:
    """A second delete changes nothing."""
    build = make(storage)
    catalogue = Catalogue(storage)
    when = catalogue.delete_build(build).deleted
    assert catalogue.delete_build(build).deleted == when
    with pytest.raises(BuildNotFound):
        catalogue.delete_build(new_build_id())


def test_long_history_is_reclaimed_in_one_run(storage: MemoryStorageProvider) -> None:
    """Ancestors go once nothing reads from them, however long the chain."""
    builds = [make(storage)]
    for _ in range(8):
        builds.append(make(storage, parent=builds[-1]))
    catalogue = Catalogue(storage)
    for build in builds[:-1]:
        catalogue.delete_build(build)
    assert collect(storage, older_than=NOW).builds == []
    catalogue.delete_build(builds[-1])
    assert set(collect(storage, older_than=NOW).builds) == set(builds)
    assert objects(storage) == []


def test_grace_keeps_what_was_deleted_just_now(storage: MemoryStorageProvider) -> None:
    """The age limit is also the grace after a delete."""
    build = make(storage)
    Catalogue(storage).delete_build(build)
    result = collect(storage, older_than=timedelta(hours=1))
    assert result.builds == []
    assert result.held == {build: "deleted too recently"}


class Dying(MemoryStorageProvider):
    """A store whose user is killed at the n-th change."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 1 << 30

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize("steps", range(24))
def test_killed_at_any_change(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish, delete and collect, killed at every change: what is published is whole."""
    storage = Dying()
    parent = make(storage)
    handle = type(storage.open_object("x"))
    for name in ("put", "delete"):
        monkeypatch.setattr(handle, name, _counted(storage, getattr(handle, name)))
    session: BuildSession | None = None
    child: str | None = None
    storage.left = steps
    try:
        session = start(storage)
        session.hold_parent(parent, [parent])
        storage.open_object(f"{session.build_id}/rootfs.ext4.pack").put(b"mine")
        session.publish(draft(session, parent=parent, depends_on=(parent,)))
        child = session.build_id
        Catalogue(storage).delete_build(child)
        collect(storage, older_than=NOW)
    except Killed:
        pass
    storage.left = 1 << 30
    if session is not None:
        session._renewal.stop()
    for info in list(storage.list_objects()):
        if info.path.endswith("/heartbeat"):
            make_dead(storage, info.path.partition("/")[0])
    for listed in Catalogue(storage).builds():
        build = listed.manifest.build_id
        present = objects(storage)
        assert f"{build}/rootfs.ext4.pack" in present
        for ancestor in listed.manifest.depends_on:
            assert f"{ancestor}/rootfs.ext4.pack" in present
            assert dependent_path(ancestor, build) in present
    for listed in Catalogue(storage).builds():
        Catalogue(storage).delete_build(listed.manifest.build_id)
    collect(storage, older_than=NOW)
    assert objects(storage) == []


def _counted(storage: Dying, method: Callable[..., object]) -> Callable[..., object]:
    def counted(*args: object, **kwargs: object) -> object:
        storage.step()
        return method(*args, **kwargs)

    return counted


def test_holder_knows_a_dead_process() -> None:
    """This process lives; one with its pid and another start does not; elsewhere, unknown."""
    here = Holder.current("n")
    assert Holder.from_json(here.to_json()) == here
    assert not here.is_surely_dead()
    assert replace(here, start_time="1").is_surely_dead()
    assert not replace(here, start_time="1", boot_id="other").is_surely_dead()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert replace(here, pid=pid).is_surely_dead()
    assert Holder.from_json(b"junk") is None
    assert Holder.from_json(b"[]") is None


def test_result_defaults() -> None:
    """A run over an empty store does nothing."""
    result = collect(MemoryStorageProvider(), older_than=NOW)
    assert result == Collected()
    assert manifest_path(new_build_id()).endswith("/manifest.json")
