"""``storage cp``: between stores, and between a store and this host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click

from bootstream.cli.base import json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.errors import from_os_error
from bootstream.cli.output import emit_json, human_size, printable
from bootstream.cli.storageplaces import Place, Places
from bootstream.cli.storagetransfer import Copied, Item, Transfer
from bootstream.errors import InvalidInput, NotFound, ObjectNotFound
from bootstream.storage.paths import is_valid_path


@verb(
    "cp",
    """
    bootstream storage cp disk.img oci://namespace@bucket/disk.img
    bootstream storage cp -r --resume s3://bucket/builds oci://namespace@bucket/builds
    bootstream storage cp store:a/b .
    """,
)
@click.argument("source")
@click.argument("destination")
@click.option("-r", "--recursive", is_flag=True, help="Everything below SOURCE.")
@click.option(
    "--resume",
    is_flag=True,
    help="Skip what is there and the same; go on with what was broken off.",
)
@click.option("--no-check", is_flag=True, help="Do not read back and compare what was written.")
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Files at a time, with -r.",
)
@json_option
@pass_cli
def cp(
    cli: Cli,
    source: str,
    destination: str,
    recursive: bool,
    resume: bool,
    no_check: bool,
    parallel: int,
    as_json: bool,
) -> None:
    """Copy objects and files, checked.

    SOURCE and DESTINATION are addresses (oci://NAMESPACE@BUCKET/PATH, s3://, gs://,
    az://), paths of this host, or store:PATH for the store that the settings name. What
    ends with a slash, or is a folder, is copied into; -r copies what is below SOURCE.

    Everything is written whole or not at all, with its sha256 where the store keeps
    metadata, and read back and compared at the end. Existing objects and files are
    replaced.

    What a run that was broken off had brought, --resume does not bring again: parts of an
    upload to OCI or S3, and the bytes of a download that had --resume, too. Without it, what
    is left of uploads goes when uploads are collected.
    """
    places = Places(cli)
    origin, target = places.any(source), places.any(destination)
    if isinstance(origin, Path) and isinstance(target, Path):
        raise InvalidInput(
            "both are on this host",
            operation="copy",
            object=source,
            remedy="use cp(1), or write store:PATH for a path in the store",
        )
    records = cli.settings.cache_dir / "uploads"
    transfer = Transfer(check=not no_check, resume=resume, records=records)
    with cli.job() as progress:
        items = list(_items(origin, target, source, destination, recursive=recursive))
        total = sum(item.size for item in items)
        progress.phase("copy", total)
        with ThreadPoolExecutor(parallel if recursive else 1) as pool:
            jobs = [pool.submit(transfer.copy, item, progress) for item in items]
            try:
                done = [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        progress.done("copy")
    _print(cli, done, as_json=as_json)


def _print(cli: Cli, done: list[Copied], *, as_json: bool) -> None:
    for one in done:
        if one.changed:
            cli.warn(f"{printable(one.source)} has changed since: its upload began anew")
        elif one.resumed:
            cli.tell(f"{printable(one.source)}: {human_size(one.resumed)} were there already")
    if as_json:
        emit_json(
            [
                {
                    "source": one.source,
                    "destination": one.destination,
                    "size": one.size,
                    "sha256": one.sha256,
                    "skipped": one.skipped,
                    "resumed": one.resumed,
                }
                for one in done
            ]
        )
        return
    skipped = sum(one.skipped for one in done)
    size = sum(one.size for one in done if not one.skipped)
    cli.tell(
        f"{len(done) - skipped} copied, {human_size(size)}"
        + (f"; {skipped} were there already" if skipped else "")
    )


class _Found(NamedTuple):
    """A source below the one that was named: its relative name, "" for the one itself."""

    origin: Place | Path
    relative: str
    size: int


def _items(
    origin: Place | Path, target: Place | Path, source: str, destination: str, *, recursive: bool
) -> Iterator[Item]:
    """Yield what is to be copied to where."""
    into = isinstance(target, Path) and target.is_dir()
    if isinstance(target, Place):
        into = target.folder
    into = into or destination.endswith("/")
    found = _sources(origin, source, recursive=recursive)
    for one in found:
        relative = one.relative
        if into and not relative:
            name = origin.name if isinstance(origin, Path) else origin.path.rpartition("/")[2]
            relative = name
        yield Item(one.origin, _join(target, relative, destination), one.size)


def _sources(origin: Place | Path, source: str, *, recursive: bool) -> Iterator[_Found]:
    if isinstance(origin, Path):
        yield from _files(origin, recursive=recursive)
        return
    single = None
    if not origin.folder:
        try:
            single = origin.storage.open_object(origin.path).size()
        except ObjectNotFound:
            if not recursive:
                raise
    if single is not None:
        yield _Found(origin, "", single)
    if not recursive:
        if single is None:
            raise _not_one(source)
        return
    count = 0
    skip = len(origin.path) + 1 if origin.path else 0
    for info in origin.storage.list_objects(origin.path):
        count += 1
        place = Place(origin.storage, info.path, f"{source.rstrip('/')}/{info.path[skip:]}")
        yield _Found(place, info.path[skip:], info.size)
    if not count and single is None:
        raise ObjectNotFound("nothing is there", operation="copy", object=source)


def _files(origin: Path, *, recursive: bool) -> Iterator[_Found]:
    """Yield a file, or with ``recursive`` all regular files of a folder; links are not followed."""
    try:
        if not origin.is_dir():
            yield _Found(origin, "", origin.stat().st_size)
            return
        if not recursive:
            raise _not_one(str(origin))
        for folder, folders, names in os.walk(origin, onerror=_raise):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file():
                    continue
                yield _Found(path, path.relative_to(origin).as_posix(), path.stat().st_size)
    except OSError as error:
        raise from_os_error(error, operation="copy", object=str(origin)) from error


def _raise(error: OSError) -> None:
    raise error


def _not_one(source: str) -> InvalidInput:
    return InvalidInput(
        "it is a folder, or ends with a slash",
        operation="copy",
        object=source,
        remedy="pass -r to copy everything below it",
    )


def _join(target: Place | Path, relative: str, destination: str) -> Place | Path:
    if isinstance(target, Path):
        if relative and not is_valid_path(relative):
            raise InvalidInput("this cannot be the name of a file", object=printable(relative))
        return target / relative if relative else target
    path = target.below(relative) if relative else target.path
    if not path:
        raise NotFound("no object is named", operation="copy to", object=destination)
    name = f"{destination.rstrip('/')}/{relative}" if relative else destination
    return Place(target.storage, path, name)
