"""OCI Object Storage: the provider, over an HTTP/1.1 data plane of its own."""

from bootstream.storage.oci.objects import OCIBucketStorageObjectProvider
from bootstream.storage.oci.provider import OCIBucketStorageProvider

__all__ = ["OCIBucketStorageObjectProvider", "OCIBucketStorageProvider"]
