"""Policies: the cloud's language, parsed, and what it grants."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import InvalidInput
from bootstream.localoci.errors import ApiError
from bootstream.localoci.policies import PolicyFile, Statement
from bootstream.localoci.protocols import Caller

ALICE = Caller("ocid1.user.oc1..alice", "tenancy", "user", {"groups": "Writers"})
HOST = Caller("ocid1.instance.oc1.iad.host", "tenancy", "instance")
DEPLOYED = [
    "Allow dynamic-group hosts to read buckets in compartment C where target.bucket.name='B'",
    "Allow dynamic-group hosts to manage objects in compartment C where all "
    "{target.bucket.name='B', any {request.permission='OBJECT_INSPECT', "
    "request.permission='OBJECT_READ', request.permission='OBJECT_CREATE', "
    "request.permission='OBJECT_OVERWRITE', request.permission='OBJECT_DELETE'}}",
    "Allow dynamic-group hosts to manage buckets in compartment C where all "
    "{target.bucket.name='B', request.permission='PAR_MANAGE'}",
    "Allow service objectstorage-us-ashburn-1 to manage object-family in compartment C",
    "Allow dynamic-group hosts to manage repos in compartment C where target.repo.name='R'",
]


def may(policies: PolicyFile, caller: Caller, permission: str, *where: str | None) -> bool:
    bucket, name = (*where, None, None)[:2]
    try:
        policies.check(caller, permission, bucket, name)
    except ApiError as error:
        refusal = (error.status, error.code)
    else:
        return True
    assert refusal == (404, "NamespaceNotFound" if bucket is None else "BucketNotFound")
    return False


def policies_of(folder: Path, *statements: str) -> PolicyFile:
    policies = PolicyFile(folder)
    policies.replace({"groups": {"hosts": ["instance"]}, "statements": list(statements)})
    return policies


def test_without_a_file_everything_is_allowed(tmp_path: Path) -> None:
    """Nothing has to be written to begin."""
    assert may(PolicyFile(tmp_path), ALICE, "OBJECT_DELETE", "B", "x")
    assert PolicyFile(tmp_path).document is None


def test_the_deployed_policies(tmp_path: Path) -> None:
    """What hosts are granted in the cloud is what they are granted here, and no more."""
    policies = policies_of(tmp_path, *DEPLOYED)
    for permission in ("INSPECT", "READ", "CREATE", "OVERWRITE", "DELETE"):
        assert may(policies, HOST, f"OBJECT_{permission}", "B", "x")
        assert not may(policies, HOST, f"OBJECT_{permission}", "other", "x")
        assert not may(policies, ALICE, f"OBJECT_{permission}", "B", "x")
    for permission in ("BUCKET_INSPECT", "BUCKET_READ", "PAR_MANAGE"):
        assert may(policies, HOST, permission, "B")
    for permission in ("BUCKET_CREATE", "BUCKET_DELETE", "BUCKET_UPDATE"):
        assert not may(policies, HOST, permission, "B")
    assert not may(policies, HOST, "OBJECT_RESTORE", "B", "x")
    assert not may(policies, HOST, "BUCKET_INSPECT")


@pytest.mark.parametrize(
    ("verb", "granted"),
    [("inspect", 1), ("read", 2), ("use", 3), ("manage", 5)],
)
def test_verbs_are_a_ladder(tmp_path: Path, verb: str, granted: int) -> None:
    """Each verb holds what the ones before it hold."""
    steps = ("INSPECT", "READ", "OVERWRITE", "CREATE", "DELETE")
    policies = policies_of(tmp_path, f"allow group Writers to {verb} objects in tenancy")
    results = [may(policies, ALICE, f"OBJECT_{step}", "B", "x") for step in steps]
    assert results == [number < granted for number in range(5)]
    assert not may(policies, ALICE, "BUCKET_INSPECT", "B")


@pytest.mark.parametrize(
    ("condition", "name", "holds"),
    [
        ("target.object.name = /logs*/", "logs/1", True),
        ("target.object.name = /logs*/", "data/1", False),
        ("target.object.name = 'logs*'", "logs/1", True),
        ("target.object.name != 'a'", "b", True),
        ("target.object.name != 'a'", "A", False),
        ("target.object.name = 'a[b]'", "a[b]", True),
        ("any {target.object.name='a', target.object.name='b'}", "b", True),
        ("all {target.object.name='a', target.bucket.name='B'}", "a", True),
        ("all {target.object.name='a', target.bucket.name='C'}", "a", False),
        ("target.nothing.known = 'a'", "a", False),
        ("target.nothing.known != 'a'", "a", False),
        ("request.principal.type = 'user'", "a", True),
    ],
)
def test_conditions(tmp_path: Path, condition: str, name: str, holds: bool) -> None:
    """Comparisons, patterns, and what combines them."""
    policies = policies_of(
        tmp_path, f"Allow any-user to manage object-family in tenancy where {condition}"
    )
    assert may(policies, ALICE, "OBJECT_READ", "B", name) is holds


def test_permissions_in_braces(tmp_path: Path) -> None:
    """A statement may name permissions rather than a verb."""
    policies = policies_of(tmp_path, "Allow any-user to {OBJECT_READ, OBJECT_INSPECT} in tenancy")
    assert may(policies, ALICE, "OBJECT_READ", "B", "x")
    assert not may(policies, ALICE, "OBJECT_CREATE", "B", "x")


def test_everything(tmp_path: Path) -> None:
    """An administrator's statement."""
    policies = policies_of(tmp_path, "Allow group Writers to manage all-resources in tenancy")
    assert may(policies, ALICE, "ANYTHING_AT_ALL")
    assert not may(policies, HOST, "BUCKET_READ", "B")


def test_policies_outlive_a_restart(tmp_path: Path) -> None:
    """What was put into force is in the file, and read again."""
    policies_of(tmp_path, *DEPLOYED)
    assert not may(PolicyFile(tmp_path), ALICE, "OBJECT_READ", "B", "x")
    PolicyFile(tmp_path).replace(None)
    assert may(PolicyFile(tmp_path), ALICE, "OBJECT_READ", "B", "x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Allow",
        "Deny group A to read objects in tenancy",
        "Allow group A to look objects in tenancy",
        "Allow group A to read objects",
        "Allow group A to read objects in bucket B",
        "Allow group A to read objects in tenancy where",
        "Allow group A to read objects in tenancy where a",
        "Allow group A to read objects in tenancy where a = b",
        "Allow group A to read objects in tenancy where all {a = 'b'",
        "Allow group A to read objects in tenancy where a = 'b",
        "Allow group A to read objects in tenancy and more",
        "Allow any-user to manage objects in tenancy where " + "all {" * 50,
    ],
)
def test_statements_that_are_none(tmp_path: Path, text: str) -> None:
    """A wrong statement is refused, and those in force stay."""
    policies = policies_of(tmp_path, *DEPLOYED)
    with pytest.raises(ApiError) as caught:
        policies.replace({"statements": [text]})
    assert caught.value.status == 400
    assert may(policies, HOST, "OBJECT_READ", "B", "x")


@given(st.text(alphabet="Alow ganyusertomd{}=!'/,\\bjc*", max_size=120))
def test_any_statement(text: str) -> None:
    """No text makes the parser fail otherwise than with ValueError."""
    for given_ in (text, f"Allow any-user to manage objects in tenancy where {text}"):
        with contextlib.suppress(ValueError):
            Statement.parse(given_).condition({"target.bucket.name": "x"})


@pytest.mark.parametrize("document", [[], {"other": 1}, {"groups": []}, {"statements": [1]}, 7])
def test_documents_that_are_none(tmp_path: Path, document: object) -> None:
    """The file says what is wrong with it, before anything is served."""
    (tmp_path / "policies.json").write_text(json.dumps(document))
    with pytest.raises(InvalidInput, match="policies cannot be read"):
        PolicyFile(tmp_path)
