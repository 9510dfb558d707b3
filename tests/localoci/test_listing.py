"""Listings, compared with a plain model over the same names; and pages of versions."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.localoci.client import Client

from bootstream.localoci.app import Application
from bootstream.localoci.http import Body, BytesSource, Request
from bootstream.localoci.listing import after_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

LIST = "/n/local/b/b/o"
NAMES = st.text(st.sampled_from("ab/é\U0010ffff\ud7ff0"), min_size=1, max_size=6)


def expected(names: set[str], query: dict[str, str]) -> list[str]:
    """What a listing without a limit has: names, and prefixes, in order."""
    result: list[str] = []
    prefix = query.get("prefix", "")
    for name in sorted(names, key=str.encode):
        if not name.startswith(prefix) or name < query.get("start", ""):
            continue
        if "startAfter" in query and name <= query["startAfter"]:
            continue
        if query.get("end") and name >= query["end"]:
            continue
        end = name.find("/", len(prefix)) if query.get("delimiter") else -1
        entry = name if end < 0 else name[: end + 1]
        if entry not in result:
            result.append(entry)
    return result


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    """An application without a server, for many small listings."""
    with TemporaryDirectory() as folder:
        application = Application(Path(folder), clock=time.time)
        yield application
        application.close()


def ask(application: Application, method: str, target: str, body: bytes = b"") -> Any:
    headers = {"host": "x", "content-length": str(len(body))}
    request = Request(method, target, headers, Body(BytesSource(body), len(body)))
    return application.handle(request)


@settings(max_examples=60, deadline=None)
@given(
    names=st.sets(NAMES, max_size=12),
    query=st.fixed_dictionaries(
        {},
        optional={
            "prefix": NAMES, "start": NAMES, "end": NAMES, "startAfter": NAMES,
            "delimiter": st.just("/"),
        },
    ),
    limit=st.integers(1, 5),
)  # fmt: skip
def test_pages_are_the_model(
    application: Application, names: set[str], query: dict[str, str], limit: int
) -> None:
    """Page by page, a listing has every entry once, in order, and no other."""
    service = application.service
    with service.database.write() as rows:
        rows.execute("DELETE FROM objects")
    application.ensure_bucket("b", "c")
    bucket = service.buckets.get("b")
    for name in names:
        service.store.put(bucket, name, "", 0, md5="", tier="Standard", headers={})
    found: list[str] = []
    asked = {**query, "limit": str(limit)}
    for _ in range(20):
        answer = ask(application, "GET", f"{LIST}?{urlencode(asked, quote_via=quote)}")
        page = json.loads(answer.body)
        entries = [item["name"] for item in page["objects"]] + page.get("prefixes", [])
        assert len(entries) <= limit
        found += sorted(entries, key=str.encode)
        if "nextStartWith" not in page:
            break
        asked["start"] = page["nextStartWith"]
        asked.pop("startAfter", None)
    assert found == expected(names, query)


@given(st.text(min_size=1), st.text())
def test_after_prefix(prefix: str, rest: str) -> None:
    """No name of a prefix is at or above what follows the prefix, and nothing lies between."""
    above = after_prefix(prefix)
    if above is not None:
        assert prefix + rest < above
        assert not above.startswith(prefix)


def test_a_large_folder_is_one_step(client: Client) -> None:
    """More names than a run under one prefix fold to it; fields are those asked for."""
    for number in range(300):
        client.ask("PUT", f"/n/local/b/b/o/d/{number:04d}", b"x")
    client.ask("PUT", "/n/local/b/b/o/e", b"xy")
    page = client.ask("GET", f"{LIST}?delimiter=/&limit=2&fields=name,size,etag,md5").json()
    assert page["prefixes"] == ["d/"]
    assert [item["size"] for item in page["objects"]] == [2]
    assert "timeCreated" not in page["objects"][0]
    assert "nextStartWith" not in page
    assert len(client.ask("GET", f"{LIST}?prefix=d/").json()["objects"]) == 300
    page = client.ask("GET", f"{LIST}?prefix=d/&limit=299").json()
    assert page["nextStartWith"] == "d/0299"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "delimiter=x", "fields=q"])
def test_questions_that_cannot_be(client: Client, query: str) -> None:
    """Limits, delimiters and fields that the service does not know are 400."""
    assert client.ask("GET", f"{LIST}?{query}").status == 400


def test_pages_of_versions(client: Client) -> None:
    """Pages of versions have each once, the newest of a name first."""
    client.ask("POST", "/n/local/b/b", {"versioning": "Enabled"})
    made = []
    for name in ("a", "b", "a", "a", "c"):
        made.append((name, client.ask("PUT", f"{LIST}/{name}", b"").headers["version-id"]))
    found: list[tuple[str, str]] = []
    page = ""
    while True:
        answer = client.ask("GET", f"/n/local/b/b/objectversions?limit=2{page}")
        found += [(item["name"], item["versionId"]) for item in answer.json()["items"]]
        if "opc-next-page" not in answer.headers:
            break
        page = "&page=" + quote(answer.headers["opc-next-page"])
    a, b, c = ([entry for entry in reversed(made) if entry[0] == name] for name in ("a", "b", "c"))
    assert found == a + b + c
    for name in ("d/1", "d/2", "d/2", "e"):
        client.ask("PUT", f"{LIST}/{name}", b"")
    entries: list[str] = []
    page = "&start=b"
    while True:
        answer = client.ask("GET", f"/n/local/b/b/objectversions?limit=1&delimiter=/{page}")
        shown = answer.json()
        entries += [item["name"] for item in shown["items"]] + shown["prefixes"]
        if "opc-next-page" not in answer.headers:
            break
        page = "&page=" + quote(answer.headers["opc-next-page"])
    assert entries == ["b", "c", "d/", "e"]
    bad = client.ask("GET", "/n/local/b/b/objectversions?page=%21")
    assert bad.status == 400
