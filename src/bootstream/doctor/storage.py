"""Each permission of the bucket by itself, and what would grant it.

A few small objects are written below ``bootstream-check/``, read, and removed. The OCI
statements are those of ``docs/clouds/oci.md``, one permission each.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from bootstream.doctor.finding import Context, Finding, State
from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Corrupt,
    InvalidInput,
    NotFound,
    PermissionDenied,
)
from bootstream.storage.objectstore_errors import NO_CREDENTIALS
from bootstream.wiring import get_template_storage_provider, store_address

if TYPE_CHECKING:
    from bootstream.config import Settings
    from bootstream.storage.protocol import StorageProvider

_FOLDER = "bootstream-check"
_WHO = re.compile(r"Allow (?P<who>(?:dynamic-group|group|any-user|service).*?) to ")

_OCI = {
    "open": "read buckets",
    "list": "OBJECT_INSPECT",
    "create": "OBJECT_CREATE",
    "create only": "OBJECT_CREATE",
    "read": "OBJECT_READ",
    "overwrite": "OBJECT_OVERWRITE",
    "delete": "OBJECT_DELETE",
    "copy": "",
    "sign": "PAR_MANAGE",
}
_AWS = {
    "open": ("s3:ListBucket", False),
    "list": ("s3:ListBucket", False),
    "create": ("s3:PutObject", True),
    "create only": ("s3:PutObject", True),
    "read": ("s3:GetObject", True),
    "overwrite": ("s3:PutObject", True),
    "delete": ("s3:DeleteObject", True),
    "copy": ("s3:GetObject and s3:PutObject", True),
    "sign": ("s3:PutObject", True),
}
_GCP = {
    "open": "storage.objects.list",
    "list": "storage.objects.list",
    "create": "storage.objects.create",
    "create only": "storage.objects.create",
    "read": "storage.objects.get",
    "overwrite": "storage.objects.create and storage.objects.delete",
    "delete": "storage.objects.delete",
    "copy": "storage.objects.get and storage.objects.create",
    "sign": "iam.serviceAccounts.signBlob",
}
_AZURE = {
    "open": "blobs/read",
    "list": "blobs/read",
    "create": "blobs/write",
    "create only": "blobs/write",
    "read": "blobs/read",
    "overwrite": "blobs/write",
    "delete": "blobs/delete",
    "copy": "blobs/read and blobs/write",
    "sign": "generateUserDelegationKey/action (role Storage Blob Delegator)",
}


@dataclass(slots=True)
class Step:
    """One thing tried. ``state``: ok, failed, none (the store has no such thing), skipped."""

    name: str
    what: str
    needed: bool
    state: str = "skipped"
    error: BootstreamError | None = None
    grant: str | None = None

    @property
    def remedy(self) -> str | None:
        """What would grant it, or mend it."""
        return self.grant or (None if self.error is None else self.error.remedy)


def check_storage(context: Context) -> Iterator[Finding]:
    """Yield a finding for each permission."""
    checker = PermissionChecker(context.settings, get_template_storage_provider(context.settings))
    for step in checker.run():
        name = f"storage.{step.name.replace(' ', '-')}"
        if step.state == "none":
            yield Finding(name, State.UNUSED, f"{step.what}: the store has no such thing")
        elif step.state == "skipped":
            yield Finding(name, State.SKIPPED, step.what)
        elif step.error is None:
            detail = f"{checker.store} is there" if step.name == "open" else step.what
            yield Finding(name, State.OK, detail)
        else:
            state = State.FAILED if step.needed else State.LACKING
            yield Finding(name, state, str(step.error), step.remedy, step.error)


class PermissionChecker:
    """Runs the steps in their order; what depends on a step that failed is skipped."""

    def __init__(self, settings: Settings, storage: StorageProvider) -> None:
        self._settings = settings
        self._storage = storage
        address = store_address(settings)
        self.store = str(address)
        self._bucket = address.bucket
        self._folder = f"{_FOLDER}/{secrets.token_hex(8)}"
        self._target = storage.open_object(f"{self._folder}/object")
        self._raced = storage.open_object(f"{self._folder}/raced")
        self._copy = f"{self._folder}/copy"

    def run(self) -> list[Step]:
        """Try everything; leave nothing behind that may be deleted."""
        steps: dict[str, Step] = {}
        plan: tuple[tuple[str, str, bool, str | None, Callable[[], object]], ...] = (
            ("open", "the bucket is there", True, None, self._open),
            ("list", "list objects", True, None, self._list),
            ("create", "write an object", True, None, self._create),
            ("read", "read it back, whole and in part", True, "create", self._read),
            ("overwrite", "replace it, if it is the version expected", True, "create", self._swap),
            ("create only", "of eight creators one wins", True, "overwrite", self._race),
            ("copy", "copy within the bucket", False, "read", self._copying),
            ("sign", "signed URLs for uploads", False, None, self._sign),
            ("delete", "remove all that was written", True, None, self._delete),
        )
        for name, what, needed, after, action in plan:
            step = steps[name] = Step(name, what, needed)
            if after is None or steps[after].state == "ok":
                self._try(step, action)
        return list(steps.values())

    def _try(self, step: Step, action: Callable[[], object]) -> None:
        try:
            action()
        except InvalidInput as error:
            step.state, step.error = ("failed" if step.needed else "none"), error
        except BootstreamError as error:
            step.state, step.error = "failed", error
            if error.message == NO_CREDENTIALS:
                return  # no policy would help who is nobody
            if isinstance(error, PermissionDenied) or (
                isinstance(error, NotFound) and self._settings.storage_provider == "OCIBucket"
            ):
                step.grant = self._grant(step.name, error)
        else:
            step.state = "ok"

    def _open(self) -> None:
        self._storage.details()

    def _list(self) -> None:
        for _ in self._storage.list_objects(self._folder):
            break

    def _create(self) -> None:
        self._target.put(b"first")

    def _read(self) -> None:
        buffer = bytearray(8)
        count = self._target.read_at(buffer, 1)
        if bytes(buffer[:count]) != b"irst":
            raise Corrupt("other bytes came back than were written", operation="read object")

    def _swap(self) -> None:
        self._target.put(b"second", if_match=self._target.stat().etag)

    def _race(self) -> None:
        """Only a storage that ignores conditions lets two win."""
        won: list[str] = []
        errors: list[BootstreamError] = []

        def create(number: int) -> None:
            try:
                won.append(self._raced.put(f"creator {number}".encode(), if_none_match=True))
            except AlreadyExists:
                return
            except BootstreamError as error:
                errors.append(error)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        if len(won) != 1:
            raise Corrupt(
                f"{len(won)} of 8 creators of one object were told that they had won: this "
                "storage cannot be published to",
                operation="create object",
                object=self._raced.path,
                remedy="use a storage that keeps 'If-None-Match: *'",
            )

    def _copying(self) -> None:
        self._storage.copy_object(self._target.path, self._copy)

    def _sign(self) -> None:
        self._storage.signed_upload_url(f"{self._folder}/signed", timedelta(minutes=1))

    def _delete(self) -> None:
        for path in (self._target.path, self._raced.path, self._copy):
            self._storage.open_object(path).delete()
        self._storage.delete_objects_with_prefix(self._folder)

    def _grant(self, name: str, error: BootstreamError) -> str | None:
        bucket = self._bucket
        match self._settings.storage_provider:
            case "OCIBucket":
                return self._oci_policy(name, error)
            case "AWSBucket":
                action, objects = _AWS[name]
                resource = f"arn:aws:s3:::{bucket}/*" if objects else f"arn:aws:s3:::{bucket}"
                return f"allow {action} on {resource}"
            case "GCPBucket":
                return f"grant {_GCP[name]} (in roles/storage.objectUser) on the bucket {bucket}"
            case "AzureBlob":
                return (
                    f"grant {_AZURE[name]} on the container {bucket} "
                    "(role Storage Blob Data Contributor)"
                )
        return None

    def _oci_policy(self, name: str, error: BootstreamError) -> str:
        found = _WHO.search(error.remedy or "")
        who = found["who"] if found else "dynamic-group <group>"
        where = "in compartment <compartment> where"
        if name == "open":
            return f"Allow {who} to read buckets {where} target.bucket.name='{self._bucket}'"
        if name == "copy":
            if found and found["who"].startswith("service"):
                return (error.remedy or "").removeprefix("add the policy: ")
            region = self._settings.oci.region or "<region>"
            return (
                f"Allow service objectstorage-{region} to manage object-family {where} "
                f"target.bucket.name='{self._bucket}'"
            )
        if (error.operation or "").startswith("list"):  # which deleting below a prefix does first
            name = "list"
        noun = "buckets" if name == "sign" else "objects"
        return (
            f"Allow {who} to manage {noun} {where} all {{target.bucket.name='{self._bucket}', "
            f"request.permission='{_OCI[name]}'}}"
        )
