"""``storage ls`` and ``storage rm``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from bootstream.cli.base import json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.output import emit_json, human_size, iso, printable, short_time
from bootstream.cli.storageplaces import Place, Places
from bootstream.errors import InvalidInput, ObjectNotFound

if TYPE_CHECKING:
    from bootstream.storage.protocol import ObjectInfo


@verb(
    "ls",
    """
    bootstream storage ls
    bootstream storage ls builds/ -l
    bootstream storage ls oci://namespace@bucket/prefix --json
    """,
)
@click.argument("where", default="")
@click.option("-l", "--long", "long", is_flag=True, help="Size, time and etag, too.")
@json_option
@pass_cli
def ls(cli: Cli, where: str, long: bool, as_json: bool) -> None:
    """List objects.

    Everything below WHERE, at any depth, in the order of names; and the object WHERE
    itself. Exit code 3 where nothing is.
    """
    place = Places(cli).stored(where)
    found = 0
    documents = []
    for info in _objects(place):
        found += 1
        if as_json:
            documents.append(
                {
                    "path": info.path,
                    "size": info.size,
                    "etag": info.etag,
                    "last_modified": iso(info.last_modified),
                }
            )
        elif long:
            when = short_time(info.last_modified)
            size = human_size(info.size)
            click.echo(f"{size:>10}  {when}  {info.etag}  {printable(info.path)}")
        else:
            click.echo(printable(info.path))
    if not found and place.path:
        raise ObjectNotFound("nothing is there", operation="list objects", object=str(place))
    if as_json:
        emit_json(documents)
    elif not found:
        cli.tell("the store is empty")


def _objects(place: Place) -> Iterator[ObjectInfo]:
    """Yield the object itself, if it is one, and everything below it."""
    from bootstream.storage.protocol import ObjectInfo  # noqa: PLC0415 - a type above

    if not place.folder:
        try:
            status = place.storage.open_object(place.path).stat()
        except ObjectNotFound:
            pass
        else:
            yield ObjectInfo(place.path, status.size, status.etag, status.last_modified)
    yield from place.storage.list_objects(place.path)


@verb(
    "rm",
    """
    bootstream storage rm oci://namespace@bucket/old/object
    bootstream storage rm -r old/
    """,
)
@click.argument("where", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Everything below WHERE, too.")
@json_option
@pass_cli
def rm(cli: Cli, where: tuple[str, ...], recursive: bool, as_json: bool) -> None:
    """Remove objects.

    Nothing asks what they belong to: for templates and builds, use 'bootstream rm' and
    'gc'. WHERE is the name of an object or, with -r, a whole component: 'abc' never
    removes 'abcd/x'. Exit code 3 where nothing is. A whole store is never removed.
    """
    places = Places(cli)
    targets = [places.stored(text) for text in where]
    for place in targets:
        if not place.path:
            raise InvalidInput(
                "this would remove the whole store", operation="remove", object=str(place)
            )
        if place.folder and not recursive:
            raise InvalidInput(
                "it ends with a slash, so it is no object",
                operation="remove",
                object=str(place),
                remedy="pass -r to remove everything below it",
            )
    deleted = 0
    with cli.job() as progress:
        progress.phase("delete", None, "objects")
        for place in targets:
            count = _remove(place, recursive=recursive)
            if not count:
                raise ObjectNotFound("nothing is there", operation="remove", object=str(place))
            deleted += count
            progress.advance("delete", count)
        progress.done("delete")
    if as_json:
        emit_json({"deleted": deleted})
    else:
        cli.tell(f"{deleted} objects removed")


def _remove(place: Place, *, recursive: bool) -> int:
    count = 0
    if not place.folder:
        target = place.storage.open_object(place.path)
        if target.exists():
            target.delete()
            count = 1
    if recursive:
        count += place.storage.delete_objects_with_prefix(place.path)
    return count
