"""Listings: names in the order of their bytes, in pages, folded at a delimiter.

A page is read from the index in runs. Where a delimiter folds names to a prefix, the next run
starts behind everything that has the prefix: a folder of a million objects costs one step.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from bootstream.localoci.errors import invalid
from bootstream.localoci.http import Response, json_response
from bootstream.localoci.objects import summary
from bootstream.localoci.service import timestamp
from bootstream.localoci.store import COLUMNS, read_row

if TYPE_CHECKING:
    import sqlite3

    from bootstream.localoci.service import Call
    from bootstream.localoci.store import Bucket

FIELDS = frozenset(
    ["name", "size", "etag", "md5", "timeCreated", "timeModified", "storageTier", "archivalState"]
)
_RUN = 256


def after_prefix(prefix: str) -> str | None:
    """The lowest name above all that start with a prefix; None where there is none."""
    while prefix:
        point = ord(prefix[-1]) + 1
        if point == 0xD800:  # surrogates are no characters
            point = 0xE000
        if point <= 0x10FFFF:
            return prefix[:-1] + chr(point)
        prefix = prefix[:-1]
    return None


class _Page:
    """Collects a page of entries, which are objects or prefixes."""

    def __init__(self, call: Call, bucket: Bucket) -> None:
        parameters = call.parameters
        self._database = call.service.database
        self._bucket = bucket
        self.limit = call.limit()
        self.prefix = parameters.get("prefix", "")
        self.delimiter = parameters.get("delimiter") or ""
        if self.delimiter not in {"", "/"}:
            raise invalid("the delimiter is '/'", "InvalidDelimiter")
        self.end = parameters.get("end") or None
        above = after_prefix(self.prefix)
        if above is not None and (self.end is None or above < self.end):
            self.end = above  # the order of code points is that of UTF-8's bytes
        self.rows: list[sqlite3.Row] = []
        self.prefixes: list[str] = []
        self.next: str | None = None

    def collect(self, start: str, after: str | None) -> None:
        """Fill the page from the first name that is at least ``start`` and above ``after``."""
        lowest, strict = max(start, self.prefix), False
        if after is not None and after >= lowest:
            lowest, strict = after, True
        while True:
            rows = self._run(lowest, strict)
            for row in rows:
                name = row["name"]
                if len(self.rows) + len(self.prefixes) == self.limit:
                    self.next = name
                    return
                folded = self._folded(name) if self.delimiter else None
                if folded is None:
                    self.rows.append(row)
                    lowest, strict = name, True
                else:
                    self.prefixes.append(folded)
                    behind = after_prefix(folded)
                    assert behind is not None, "it ends with the delimiter"
                    lowest, strict = behind, False
                    break
            else:
                if len(rows) < _RUN:
                    return

    def _folded(self, name: str) -> str | None:
        if not name.startswith(self.prefix):
            return None
        end = name.find(self.delimiter, len(self.prefix))
        return name[: end + len(self.delimiter)] if end >= 0 else None

    def _run(self, lowest: str, strict: bool) -> list[sqlite3.Row]:
        bound = ">" if strict else ">="
        query = f"SELECT {COLUMNS} FROM objects WHERE bucket=? AND name{bound}?"  # noqa: S608 - constants
        values: list[object] = [self._bucket.id, lowest]
        if self.end is not None:
            query += " AND name<?"
            values.append(self.end)
        return self._database.rows(f"{query} ORDER BY name LIMIT {_RUN}", *values)


def fields(call: Call) -> frozenset[str]:
    """The fields that a listing has.

    Raises:
        ApiError: 400, one of them is unknown.
    """
    asked = frozenset(part for part in call.parameters.get("fields", "name").split(",") if part)
    if unknown := asked - FIELDS:
        raise invalid(f"unknown fields: {', '.join(sorted(unknown))}")
    return asked | {"name"}


def list_objects(call: Call, bucket_name: str) -> Response:
    """GET /n/{n}/b/{b}/o."""
    call.permit(bucket_name, None, "OBJECT_INSPECT")
    bucket = call.bucket(bucket_name)
    wanted = fields(call)
    page = _Page(call, bucket)
    page.collect(call.parameters.get("start", ""), call.parameters.get("startAfter"))
    result: dict[str, Any] = {
        "objects": [summary(call, read_row(row), wanted) for row in page.rows]
    }
    if page.delimiter:
        result["prefixes"] = page.prefixes
    if page.next is not None:
        result["nextStartWith"] = page.next
    return json_response(result)


def list_object_versions(call: Call, bucket_name: str) -> Response:
    """GET /n/{n}/b/{b}/objectversions: of each name the newest first."""
    call.permit(bucket_name, None, "OBJECT_INSPECT")
    bucket = call.bucket(bucket_name)
    wanted = fields(call)
    page = _Versions(call, bucket)
    # What stands before the page: of the name ``seen`` all whose number is at least ``number``.
    seen, number = "", 1 << 62
    if given := call.parameters.get("page"):
        seen, number = _decode_page(given)
    elif after := call.parameters.get("startAfter"):
        seen, number = after, -1
    page.collect_versions(call.parameters.get("start", ""), seen, number)
    items = []
    for row in page.rows:
        item = read_row(row)
        items.append(
            {
                **summary(call, item, wanted),
                "versionId": item.version,
                "isDeleteMarker": not item.file,
                "timeModified": timestamp(item.modified),
            }
        )
    headers = {} if page.next is None else {"opc-next-page": page.next}
    return json_response({"items": items, "prefixes": page.prefixes}, headers=headers)


class _Versions(_Page):
    """Collects a page of versions and prefixes."""

    def collect_versions(self, start: str, seen: str, number: int) -> None:
        """Fill the page from ``start``, behind a version that was given."""
        lowest = max(start, self.prefix, seen)
        while True:
            rows = self._run_versions(lowest, seen, number)
            for row in rows:
                folded = self._folded(row["name"]) if self.delimiter else None
                if len(self.rows) + len(self.prefixes) == self.limit:
                    self.next = _encode_page(seen, number)
                    return
                if folded is None:
                    self.rows.append(row)
                    lowest = seen = row["name"]
                    number = row["number"]
                else:
                    self.prefixes.append(folded)
                    behind = after_prefix(folded)
                    assert behind is not None, "it ends with the delimiter"
                    lowest = seen = behind
                    number = 1 << 62
                    break
            else:
                if len(rows) < _RUN:
                    return

    def _run_versions(self, lowest: str, seen: str, number: int) -> list[sqlite3.Row]:
        each = f"SELECT bucket, {COLUMNS}, {{}} AS number FROM {{}}"  # noqa: S608 - constants
        both = f"{each.format('1<<60', 'objects')} UNION ALL {each.format('number', 'versions')}"
        query = (
            f"SELECT {COLUMNS}, number FROM ({both})"  # noqa: S608 - constants
            " WHERE bucket=? AND name>=? AND (? IS NULL OR name<?) AND NOT (name=? AND number>=?)"
            f" ORDER BY name, number DESC LIMIT {_RUN}"
        )
        values = (self._bucket.id, lowest, self.end, self.end, seen, number)
        return self._database.rows(query, *values)


def _encode_page(name: str, number: int) -> str:
    return base64.urlsafe_b64encode(f"{number} {name}".encode()).decode().rstrip("=")


def _decode_page(page: str) -> tuple[str, int]:
    try:
        text = base64.urlsafe_b64decode(page + "=" * (-len(page) % 4)).decode()
        number, _, name = text.partition(" ")
        return name, max(-1, min(int(number[:40]), 1 << 62))  # what the database can hold
    except (binascii.Error, ValueError):
        raise invalid("the page is not one that was given", "InvalidPage") from None
