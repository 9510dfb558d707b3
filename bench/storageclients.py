"""The clients that bench/storage.py compares: ours, and the SDKs as their manuals have them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from bootstream.config import Settings
from bootstream.testing.servers.s3 import REGION
from bootstream.wiring import get_template_storage_provider

THREADS = 16
MIB = 1 << 20
RANGE = 8 * MIB


class Client(Protocol):
    """What is measured."""

    def upload(self, path: Path, name: str) -> None:
        """Store a large file."""

    def download(self, name: str, path: Path) -> None:
        """Fetch it again."""

    def put(self, name: str, data: bytes) -> None:
        """Store a small object."""

    def get(self, name: str, size: int) -> None:
        """Fetch a small object."""

    def read(self, name: str, offset: int, size: int) -> None:
        """Fetch a part of a large one."""


class _Ours:
    """The whole stack, as the command line has it."""

    def __init__(self) -> None:
        self._storage = get_template_storage_provider(Settings.from_environment(os.environ))

    def upload(self, path: Path, name: str) -> None:
        self._storage.open_object(name).write_from_file_system(path)

    def download(self, name: str, path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            self._storage.open_object(name).write_to(file)

    def put(self, name: str, data: bytes) -> None:
        self._storage.open_object(name).put(data)

    def get(self, name: str, size: int) -> None:
        self.read(name, 0, size)

    def read(self, name: str, offset: int, size: int) -> None:
        buffer = bytearray(size)
        assert self._storage.open_object(name).read_at(buffer, offset) == size


class _Oracle:
    """The OCI SDK, with a connection for each thread."""

    def __init__(self) -> None:
        os.environ["OCI_PYTHON_SDK_NO_SERVICE_IMPORTS"] = "true"
        import oci  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415 - only here
        from oci.object_storage import (  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415
            ObjectStorageClient,
            UploadManager,
        )
        from requests.adapters import (  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415
            HTTPAdapter,
        )

        self._client = ObjectStorageClient(
            oci.config.from_file(os.environ["OCI_CONFIG_FILE"]),
            service_endpoint=os.environ["OCI_OBJECT_STORAGE_ENDPOINT"],
            retry_strategy=oci.retry.NoneRetryStrategy(),
        )
        self._client.base_client.session.mount("http://", HTTPAdapter(pool_maxsize=2 * THREADS))
        self._manager = UploadManager(
            self._client, allow_parallel_uploads=True, parallel_process_count=THREADS
        )
        self._place = (os.environ["OCI_NAMESPACE"], os.environ["TEMPLATE_BUCKET_NAME"])

    def upload(self, path: Path, name: str) -> None:
        self._manager.upload_file(*self._place, name, str(path), part_size=RANGE)

    def download(self, name: str, path: Path) -> None:
        size = int(self._client.head_object(*self._place, name).headers["content-length"])
        in_ranges(path, size, lambda start, end: self._range(name, start, end))

    def _range(self, name: str, start: int, end: int) -> bytes:
        answer = self._client.get_object(*self._place, name, range=f"bytes={start}-{end - 1}")
        content: bytes = answer.data.content
        return content

    def put(self, name: str, data: bytes) -> None:
        self._client.put_object(*self._place, name, data)

    def get(self, name: str, size: int) -> None:
        assert len(self._client.get_object(*self._place, name).data.content) == size

    def read(self, name: str, offset: int, size: int) -> None:
        assert len(self._range(name, offset, offset + size)) == size


class _Boto3:
    """boto3, with a connection for each thread."""

    def __init__(self) -> None:
        import boto3  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415 - only here
        from boto3.s3.transfer import (  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415
            TransferConfig,
        )
        from botocore.config import (  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415
            Config,
        )

        self._client = boto3.client(
            "s3",
            endpoint_url=os.environ["AWS_ENDPOINT_URL"],
            config=Config(max_pool_connections=2 * THREADS, s3={"addressing_style": "path"}),
        )
        self._bucket = os.environ["TEMPLATE_BUCKET_NAME"]
        self._how = TransferConfig(max_concurrency=THREADS)

    def upload(self, path: Path, name: str) -> None:
        self._client.upload_file(str(path), self._bucket, name, Config=self._how)

    def download(self, name: str, path: Path) -> None:
        self._client.download_file(self._bucket, name, str(path), Config=self._how)

    def put(self, name: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=name, Body=data)

    def get(self, name: str, size: int) -> None:
        answer = self._client.get_object(Bucket=self._bucket, Key=name)
        assert len(answer["Body"].read()) == size

    def read(self, name: str, offset: int, size: int) -> None:
        answer = self._client.get_object(
            Bucket=self._bucket, Key=name, Range=f"bytes={offset}-{offset + size - 1}"
        )
        assert len(answer["Body"].read()) == size


class _Obstore:
    """obstore as it is, without what is around it in ours."""

    def __init__(self) -> None:
        import obstore  # noqa: PLC0415 - only here
        from obstore.store import S3Store  # noqa: PLC0415

        self._obstore: Any = obstore
        self._store = S3Store(
            os.environ["TEMPLATE_BUCKET_NAME"],
            endpoint=os.environ["AWS_ENDPOINT_URL"],
            region=REGION,
            client_options={"allow_http": True},
        )

    def upload(self, path: Path, name: str) -> None:
        self._obstore.put(self._store, name, path, chunk_size=RANGE, max_concurrency=THREADS)

    def download(self, name: str, path: Path) -> None:
        size = self._obstore.head(self._store, name)["size"]
        in_ranges(
            path,
            size,
            lambda start, end: self._obstore.get_range(self._store, name, start=start, end=end),
        )

    def put(self, name: str, data: bytes) -> None:
        self._obstore.put(self._store, name, data, use_multipart=False)

    def get(self, name: str, size: int) -> None:
        assert len(self._obstore.get(self._store, name).bytes()) == size

    def read(self, name: str, offset: int, size: int) -> None:
        found = self._obstore.get_range(self._store, name, start=offset, length=size)
        assert len(found) == size


def in_ranges(path: Path, size: int, fetch: Callable[[int, int], Any]) -> None:
    """Fill a file by ranges, as many at once as there are threads."""
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(THREADS) as pool:
        file.truncate(size)

        def one(start: int) -> None:
            os.pwrite(file.fileno(), fetch(start, min(start + RANGE, size)), start)

        list(pool.map(one, range(0, size, RANGE)))


CLIENTS: dict[str, Callable[[], Client]] = {
    "ours": _Ours,
    "OCI SDK": _Oracle,
    "boto3": _Boto3,
    "obstore": _Obstore,
}
