"""Policies: statements in the cloud's policy language that say who may do what.

Source: "Policy Syntax", "Verbs", "Details for Object Storage" and "Details for Registry" in
Oracle's documentation of IAM. A statement is ::

    Allow SUBJECT to VERB RESOURCE in PLACE [where CONDITION]

SUBJECT is ``any-user``, ``group NAME``, ``dynamic-group NAME`` or ``service NAME``; several
names are separated by commas. VERB is ``inspect``, ``read``, ``use`` or ``manage``, or a list of
permissions in braces without a RESOURCE: ``{OBJECT_READ, OBJECT_INSPECT}``. RESOURCE is
``buckets``, ``objects``, ``object-family``, ``repos`` or ``all-resources``. PLACE is ``tenancy`` or
``compartment NAME``; a compartment holds all there is but the repositories of the root
compartment. CONDITION compares ``target.bucket.name``, ``target.object.name``,
``target.repo.name``, ``request.permission`` or ``request.principal.type`` with a text (``=``,
``!=``, ``*`` at its ends) or with ``/pattern/``, and ``all {…}`` and ``any {…}`` combine.

Statements are in ``policies.json`` of the data folder, with the members of groups::

    {"groups": {"readers": ["ocid1.user…", "instance"]}, "statements": ["Allow …"]}

A member is an OCID, a kind of principal (``user``, ``instance``, ``resource``, ``workload``) or
``*``; a user is also in the groups that ``identity.json`` names. Without the file everybody
who is signed in may do everything.
"""

from __future__ import annotations

import fnmatch
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstream.errors import InvalidInput
from bootstream.localoci.errors import ApiError, not_found_or_not_authorized
from bootstream.localoci.keys import write_secret
from bootstream.localoci.protocols import Caller

FILE = "policies.json"

_BUCKETS = {
    "inspect": {"BUCKET_INSPECT"},
    "read": {"BUCKET_READ"},
    "use": {"BUCKET_UPDATE"},
    "manage": {"BUCKET_CREATE", "BUCKET_DELETE", "PAR_MANAGE", "RETENTION_RULE_MANAGE"},
}
_OBJECTS = {
    "inspect": {"OBJECT_INSPECT"},
    "read": {"OBJECT_READ"},
    "use": {"OBJECT_OVERWRITE", "OBJECT_UPDATE_TIER"},
    "manage": {"OBJECT_CREATE", "OBJECT_DELETE", "OBJECT_RESTORE", "OBJECT_VERSION_DELETE"},
}
_REPOS: dict[str, set[str]] = {
    "inspect": {"REPOSITORY_INSPECT"},
    "read": {"REPOSITORY_READ"},
    "use": set(),
    "manage": {"REPOSITORY_CREATE", "REPOSITORY_UPDATE", "REPOSITORY_DELETE", "REPOSITORY_MANAGE"},
}
_LADDER = ("inspect", "read", "use", "manage")
_RESOURCES = {
    "buckets": (_BUCKETS,),
    "objects": (_OBJECTS,),
    "object-family": (_BUCKETS, _OBJECTS),
    "objectstorage-namespaces": (),
    "repos": (_REPOS,),
    "all-resources": (_BUCKETS, _OBJECTS, _REPOS),
}
_TOKEN = re.compile(
    r"\s*(?:'((?:[^'\\]|\\.)*)'|/((?:[^/\\]|\\.)+)/|(!=|[={},()])|([^\s'={},()!]+))"
)
_MAX_DEPTH = 16


Condition = Callable[[Mapping[str, str]], bool]


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, parsed."""

    subject: str  # any-user, group, dynamic-group, service
    names: frozenset[str]
    permissions: frozenset[str] | None  # None: all
    condition: Condition
    tenancy: bool = False  # whether it holds in the root compartment too

    @classmethod
    def parse(cls, text: str) -> Statement:
        """Parse a statement.

        Raises:
            ValueError: what is wrong with it.
        """
        return _Parser(text).statement()


class _Parser:
    """Reads one statement from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0

    def statement(self) -> Statement:
        self._word("allow")
        subject, names = self._subject()
        self._word("to")
        permissions = self._permissions()
        self._word("in")
        place = self._any_word().lower()
        if place == "compartment":
            if self._peek().lower() == "id":
                self._any_word()
            self._any_word()
        elif place != "tenancy":
            raise ValueError(f"'in tenancy' or 'in compartment NAME' is expected, not {place!r}")
        condition: Condition = _always
        if self._peek().lower() == "where":
            self._any_word()
            condition = self._condition(0)
        if self._next < len(self._tokens):
            raise ValueError(f"nothing is expected after the end, but there is {self._peek()!r}")
        return Statement(subject, names, permissions, condition, place == "tenancy")

    def _subject(self) -> tuple[str, frozenset[str]]:
        kind = self._any_word().lower()
        if kind in {"any-user", "any-group"}:
            return "any-user", frozenset()
        if kind not in {"group", "dynamic-group", "service"}:
            raise ValueError(f"no such subject: {kind!r}")
        names = set()
        while True:
            name = self._any_word()
            if name.lower() == "id":
                name = self._any_word()
            names.add(name.rpartition("/")[2])
            if self._peek() != ",":
                return kind, frozenset(names)
            self._next += 1

    def _permissions(self) -> frozenset[str] | None:
        verb = self._any_word()
        if verb == "{":
            permissions = set()
            while (word := self._any_word()) != "}":
                if word != ",":
                    permissions.add(word.upper())
            return frozenset(permissions)
        if verb.lower() not in _LADDER:
            raise ValueError(f"no such verb: {verb!r}")
        resource = self._any_word().lower()
        tables = _RESOURCES.get(resource)
        if tables is None:  # another service's: it grants nothing here
            return frozenset()
        if resource == "all-resources" and verb.lower() == "manage":
            return None
        steps = _LADDER[: _LADDER.index(verb.lower()) + 1]
        return frozenset(name for table in tables for step in steps for name in table[step])

    def _condition(self, depth: int) -> Condition:
        if depth > _MAX_DEPTH:
            raise ValueError("the condition is nested too deeply")
        word = self._any_word()
        if word.lower() in {"all", "any"}:
            self._word("{")
            parts = [self._condition(depth + 1)]
            while self._peek() == ",":
                self._next += 1
                parts.append(self._condition(depth + 1))
            self._word("}")
            return _combined(parts, every=word.lower() == "all")
        operator = self._any_word()
        if operator not in {"=", "!="}:
            raise ValueError(f"'=' or '!=' is expected, not {operator!r}")
        kind, value = self._token()
        if kind not in {"text", "pattern"}:
            raise ValueError(f"a quoted text is expected, not {value!r}")
        return _comparison(word.lower(), value, equal=operator == "=", exact=kind == "text")

    def _token(self) -> tuple[str, str]:
        if self._next >= len(self._tokens):
            raise ValueError("the statement ends too early")
        self._next += 1
        return self._tokens[self._next - 1]

    def _any_word(self) -> str:
        return self._token()[1]

    def _peek(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def _word(self, expected: str) -> None:
        word = self._any_word()
        if word.lower() != expected:
            raise ValueError(f"{expected!r} is expected, not {word!r}")


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position, text = 0, text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"not understood: {text[position : position + 20]!r}")
        position = match.end()
        quoted, pattern, sign, word = match.groups()
        if quoted is not None:
            yield "text", quoted
        elif pattern is not None:
            yield "pattern", pattern
        else:
            yield "word", sign or word


def _always(_values: Mapping[str, str]) -> bool:
    return True


def _combined(parts: list[Condition], *, every: bool) -> Condition:
    def holds(values: Mapping[str, str]) -> bool:
        results = (part(values) for part in parts)
        return all(results) if every else any(results)

    return holds


def _comparison(variable: str, value: str, *, equal: bool, exact: bool) -> Condition:
    # Texts compare without case; a pattern's * stands for anything.
    wanted = value.lower()

    def holds(values: Mapping[str, str]) -> bool:
        given = values.get(variable)
        if given is None:  # as in the cloud: a variable that a request has not makes it false
            return False
        given = given.lower()
        if exact and "*" not in wanted:
            same = given == wanted
        else:
            same = fnmatch.fnmatchcase(given, re.sub(r"([\[?])", r"[\1]", wanted))
        return same is equal

    return holds


@dataclass(frozen=True, slots=True)
class _Rules:
    document: Mapping[str, Any]
    groups: Mapping[str, frozenset[str]]
    statements: tuple[Statement, ...]


class PolicyFile:
    """The policies in force: those of the file, which may be replaced while we run.

    Thread safe.

    Args:
        data: the data folder.

    Raises:
        InvalidInput: the file is not as the module says.
    """

    def __init__(self, data: Path) -> None:
        self._path = data / FILE
        self._lock = threading.Lock()
        self._rules: _Rules | None = None
        if self._path.exists():
            try:
                self._rules = _parse(json.loads(self._path.read_bytes()))
            except (ValueError, RecursionError) as error:
                raise InvalidInput(
                    f"the policies cannot be read: {error}",
                    operation="open",
                    object=str(self._path),
                    remedy="mend the file, or remove it: then everything is allowed",
                ) from error

    @property
    def document(self) -> Mapping[str, Any] | None:
        """The policies as JSON; None if everything is allowed."""
        rules = self._rules
        return None if rules is None else rules.document

    def replace(self, document: Any) -> None:
        """Put other policies into force, and into the file; None allows everything.

        Raises:
            ApiError: 400, with what is wrong.
        """
        try:
            rules = None if document is None else _parse(document)
        except ValueError as error:
            raise ApiError(400, "InvalidParameter", str(error)) from None
        with self._lock:
            if document is None:
                self._path.unlink(missing_ok=True)
            else:
                write_secret(self._path, json.dumps(document, indent=2).encode() + b"\n")
            self._rules = rules

    def check(
        self, caller: Caller, permission: str, bucket: str | None, object_name: str | None
    ) -> None:
        """Return when a permission is granted.

        Raises:
            ApiError: 404: the service does not say whether something is missing or hidden.
        """
        if caller.kind in {"par", "anonymous"}:
            return  # what a pre-authenticated request or a public bucket grants is checked there
        targets = {}
        if bucket is not None:
            targets["target.bucket.name"] = bucket
        if object_name is not None:
            targets["target.object.name"] = object_name
        if self.grants(caller, permission, targets):
            return
        if bucket is None:
            raise ApiError(
                404,
                "NamespaceNotFound",
                "You do not have authorization to perform this request, or the requested resource "
                "could not be found.",
            )
        raise not_found_or_not_authorized(bucket)

    def grants(
        self,
        caller: Caller,
        permission: str,
        targets: Mapping[str, str],
        *,
        root: bool = False,
    ) -> bool:
        """Return whether a caller has a permission.

        Args:
            caller: who asks.
            permission: e.g. ``REPOSITORY_READ``.
            targets: what it is for: the conditions' variables, e.g. ``target.repo.name``.
            root: it is in the root compartment, where only ``in tenancy`` holds.
        """
        rules = self._rules
        if rules is None:
            return True
        values = {
            **targets,
            "request.permission": permission,
            "request.principal.type": caller.kind,
        }
        return any(
            (statement.permissions is None or permission in statement.permissions)
            and (statement.tenancy or not root)
            and _is_subject(statement, caller, rules.groups)
            and statement.condition(values)
            for statement in rules.statements
        )


def _is_subject(statement: Statement, caller: Caller, groups: Mapping[str, frozenset[str]]) -> bool:
    if statement.subject == "any-user":
        return True
    if statement.subject == "service":
        return False
    own = set(caller.attributes.get("groups", "").split())
    return any(
        name in own or groups.get(name, frozenset()) & {caller.principal_ocid, caller.kind, "*"}
        for name in statement.names
    )


def _parse(document: Any) -> _Rules:
    if not isinstance(document, dict) or document.keys() - {"groups", "statements"}:
        raise ValueError('policies are {"groups": {…}, "statements": […]}')
    groups, statements = document.get("groups", {}), document.get("statements", [])
    if not isinstance(groups, dict) or not all(
        isinstance(members, list) and all(isinstance(member, str) for member in members)
        for members in groups.values()
    ):
        raise ValueError("groups are lists of OCIDs or kinds of principals, by name")
    if not isinstance(statements, list) or not all(isinstance(text, str) for text in statements):
        raise ValueError("statements is a list of texts")
    parsed = []
    for text in statements:
        try:
            parsed.append(Statement.parse(text))
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from None
    members = {name: frozenset(group) for name, group in groups.items()}
    return _Rules(document, members, tuple(parsed))
