"""A folder of images: one OCI layout a template, a tag a build. No server, no sign-in.

::

    TEMPLATE/oci-layout, index.json     OCI image layout; an entry's name is the build id
    TEMPLATE/blobs                      a link to ../.blobs: all templates share their blobs
    TEMPLATE/BUILD.tar                  what ``docker save`` wrote, put there by hand
    .blobs/sha256/…                     every blob once
    .lock                               see below
    .unused                             blobs may be unused that could not be collected yet

Other tools read and write the layouts as such (``oci:FOLDER/TEMPLATE:BUILD``).

Blobs are collected once no layout refers to them, and only while nobody pushes: who pushes
holds ``.lock`` shared, since its blobs have no name yet; who collects holds it alone. A
collector that finds it held leaves the mark ``.unused``, and whoever is the last to let go of
the lock collects then. The lock ends with its holder, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bootstream.errors import BootstreamError, ImageNotFound, InvalidInput
from bootstream.ids import (
    is_build_id,
    is_template_id,
    validate_build_id,
    validate_template_id,
)
from bootstream.images.cache import BlobCache
from bootstream.images.choice import choose
from bootstream.images.credentials import CredentialSource, NoCredentials
from bootstream.images.files import write_error
from bootstream.images.image import BlobSource, Image
from bootstream.images.layout import blob_path
from bootstream.images.layoutwriter import LayoutTarget
from bootstream.images.local import Folder, LocalSource
from bootstream.images.manifest import (
    MAX_MANIFEST,
    OCI_INDEX,
    REF_NAME,
    Descriptor,
    Index,
    parse_document,
    parse_references,
)
from bootstream.images.platform import Platform
from bootstream.images.reference import DockerArchiveReference, LayoutReference
from bootstream.images.sources import TransferSource, layout_source, open_source
from bootstream.images.transfer import copy, make_plan
from bootstream.progress import Progress
from bootstream.proxies import NO_PROXIES, Proxies
from bootstream.registry.engine import Engine
from bootstream.registry.protocol import ArtifactsRegistry, ListedImage, RegistryDetails

_BLOBS, _LOCK, _UNUSED = ".blobs", ".lock", ".unused"


class LocalArtifactsRegistry:
    """A folder; see ``ArtifactsRegistry``. Safe for several threads and processes of one host.

    Args:
        folder: made, with mode 0700, when something is first put there.
        cache: whose scratch folder has room for compressed archives.
        engine: Docker or Podman, asked for ``TEMPLATE:BUILD`` where the folder has no such
            image; it is never written to.
        keychain: signs in to the registries that pushed images come from.
        ca_file: PEM certificates to trust for these beside the system's.
        proxies: which requests go through which proxy.
    """

    provider = "Local"

    def __init__(
        self,
        folder: Path,
        *,
        cache: BlobCache,
        engine: Engine | None = None,
        keychain: CredentialSource | None = None,
        ca_file: str | None = None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self.folder = folder
        self._cache = cache
        self._engine = engine
        self._keychain = keychain or NoCredentials()
        self._ca_file = ca_file
        self._proxies = proxies

    def __repr__(self) -> str:
        return f"LocalArtifactsRegistry({str(self.folder)!r})"

    # -- the interface ------------------------------------------------------------------------

    def get_tag(self, template_id: str, build_id: str) -> str:
        """See ``ArtifactsRegistry``: a reference of the layout, there or not."""
        return str(self._layout(template_id, build_id))

    def get_image(
        self, template_id: str, build_id: str, platform: Platform | str | None = None
    ) -> Image:
        """See ``ArtifactsRegistry``."""
        wanted = Platform.parse(platform) if isinstance(platform, str) else platform
        source = self.open_content(template_id, build_id)
        assert isinstance(source.blobs, LocalSource)
        blobs: BlobSource = source.blobs
        return choose(
            blobs, [source.root], reference=source.name, platform=wanted, raw_root=source.data
        )

    def open_content(self, template_id: str, build_id: str) -> TransferSource:
        """See ``ArtifactsRegistry``: of the layout, else the archive, else the engine."""
        reference = self._layout(template_id, build_id)
        if (Path(reference.path) / "index.json").exists():
            with contextlib.suppress(ImageNotFound):
                return layout_source(Folder(reference.path), reference)
        archive = self._archive(template_id, build_id)
        if archive.exists():
            return open_source(
                DockerArchiveReference(str(archive)),
                scratch=self._cache.scratch,
                credentials=self._keychain,
            )
        found = None
        if self._engine is not None:
            found = self._engine.open(f"{template_id}:{build_id}")
        if found is None:
            where = f", nor has {self._engine.path}" if self._engine is not None else ""
            raise ImageNotFound(
                f"the folder has no such image{where}",
                operation="read image",
                object=str(reference),
                remedy=f"push it, or put what 'docker save' wrote at {archive}",
            )
        return found

    def push_image(
        self, reference: str, template_id: str, build_id: str, progress: Progress
    ) -> str:
        """See ``ArtifactsRegistry``."""
        self._layout(template_id, build_id)
        source = open_source(
            reference,
            scratch=self._cache.scratch,
            credentials=self._keychain,
            ca_file=self._ca_file,
            proxies=self._proxies,
        )
        return self._store(source, template_id, build_id, progress)

    def copy_image(
        self, source: ArtifactsRegistry, template_id: str, build_id: str, progress: Progress
    ) -> str:
        """See ``ArtifactsRegistry``."""
        self._layout(template_id, build_id)
        content = source.open_content(template_id, build_id)
        return self._store(content, template_id, build_id, progress)

    def put_content(
        self, content: TransferSource, template_id: str, build_id: str, progress: Progress
    ) -> str:
        """See ``ArtifactsRegistry``."""
        self._layout(template_id, build_id)
        return self._store(content, template_id, build_id, progress)

    def list_images(self, template_id: str | None = None) -> Iterator[ListedImage]:
        """See ``ArtifactsRegistry``; what an engine has is not listed."""
        if template_id is not None:
            validate_template_id(template_id)
        for template in sorted(self._templates()):
            if template_id in (None, template):
                for build in sorted(self._builds(template)):
                    with contextlib.suppress(ImageNotFound):  # deleted meanwhile
                        source = self.open_content(template, build)
                        size = make_plan(source).size
                        digest = source.root.digest
                        yield ListedImage(
                            template, build, self.get_tag(template, build), digest, size
                        )

    def delete(self, template_id: str, build_id: str) -> None:
        """See ``ArtifactsRegistry``; an archive that was put there goes, too."""
        reference = self._layout(template_id, build_id)
        if not self.folder.is_dir():
            return
        try:
            self._archive(template_id, build_id).unlink(missing_ok=True)
            if self._forget(Path(reference.path), build_id):
                (self.folder / _UNUSED).touch()
            self._collect_if_alone()
        except NotADirectoryError:
            return
        except OSError as error:
            raise write_error(error, reference.path) from error

    def details(self) -> RegistryDetails:
        """See ``ArtifactsRegistry``."""
        return RegistryDetails(self.provider, str(self.folder))

    def close(self) -> None:
        """See ``ArtifactsRegistry``: nothing is held open."""

    # -- names --------------------------------------------------------------------------------

    def _layout(self, template_id: str, build_id: str) -> LayoutReference:
        validate_template_id(template_id)
        return LayoutReference(str(self.folder / template_id), validate_build_id(build_id))

    def _archive(self, template_id: str, build_id: str) -> Path:
        return self.folder / template_id / f"{build_id}.tar"

    def _templates(self) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as found:
            yield from (entry.name for entry in found if is_template_id(entry.name))

    def _builds(self, template_id: str) -> set[str]:
        folder = self.folder / template_id
        index = _read_index(folder)
        names = (
            {entry.annotations.get(REF_NAME, "") for entry in index.manifests} if index else set()
        )
        with contextlib.suppress(OSError):
            names |= {path.stem for path in folder.glob("*.tar")}
        return {name for name in names if is_build_id(name)}

    # -- writing ------------------------------------------------------------------------------

    def _store(
        self, source: TransferSource, template_id: str, build_id: str, progress: Progress
    ) -> str:
        layout = self.folder / template_id
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock(fcntl.LOCK_SH):
                (self.folder / _BLOBS).mkdir(exist_ok=True)
                layout.mkdir(exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    (layout / "blobs").symlink_to(f"../{_BLOBS}", target_is_directory=True)
                replaced = build_id in self._builds(template_id)
                try:
                    digest = copy(source, LayoutTarget(layout, build_id), progress=progress)
                except BaseException:
                    (self.folder / _UNUSED).touch()  # what came so far has no name
                    raise
                if replaced:
                    (self.folder / _UNUSED).touch()
        except OSError as error:
            raise write_error(error, str(layout)) from error
        finally:
            with contextlib.suppress(BootstreamError, OSError):  # it is stored, or failed, already
                self._collect_if_alone()
        return digest

    @staticmethod
    def _forget(layout: Path, build_id: str) -> bool:
        """Take a build's entries out of a layout's index; False where there were none."""
        try:
            number = os.open(layout, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(number, fcntl.LOCK_EX)  # as ``LayoutTarget`` does
            path = layout / "index.json"
            if _read_index(layout) is None:
                return False
            document = json.loads(path.read_bytes())
            kept = [e for e in document["manifests"] if _name(e) != build_id]
            if len(kept) == len(document["manifests"]):
                return False
            document["manifests"] = kept
            temporary = layout / f".index.json.{secrets.token_hex(6)}"
            try:
                with temporary.open("xb") as file:
                    file.write(json.dumps(document, separators=(",", ":")).encode())
                    file.flush()
                    os.fsync(file.fileno())
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
        finally:
            os.close(number)
        return True

    # -- collecting ---------------------------------------------------------------------------

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        number = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(number, kind)
            yield
        finally:
            os.close(number)

    def _collect_if_alone(self) -> None:
        """Delete the blobs that nothing refers to, if there may be some and nobody pushes."""
        mark = self.folder / _UNUSED
        if not mark.exists():
            return
        with contextlib.suppress(BlockingIOError), self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            mark.unlink(missing_ok=True)  # before looking: who deletes meanwhile makes it anew
            try:
                used = self._used()
            except BootstreamError:
                mark.touch()
                raise
            for algorithm in (self.folder / _BLOBS).iterdir():
                for blob in algorithm.iterdir():
                    if f"{algorithm.name}:{blob.name}" not in used:
                        blob.unlink(missing_ok=True)

    def _used(self) -> set[str]:
        """Return the digests that the layouts refer to.

        Raises:
            Corrupt, InvalidInput: a layout cannot be read, so that nobody knows; nothing goes.
        """
        used: set[str] = set()
        for template in self._templates():
            layout = self.folder / template
            index = _read_index(layout)
            waiting = list(index.manifests) if index is not None else []
            while waiting:
                descriptor = waiting.pop()
                if descriptor.digest in used:
                    continue
                used.add(descriptor.digest)
                waiting += _below(Folder(str(layout)), descriptor, used)
        return used


def _below(tree: Folder, descriptor: Descriptor, used: set[str]) -> list[Descriptor]:
    """Return the documents that a document refers to; its blobs are noted as used."""
    if descriptor.size > MAX_MANIFEST:
        return []
    try:
        data = LocalSource(tree, blob_path).read_document(descriptor)
        found = parse_references(
            data, media_type=descriptor.media_type, what=f"{tree.name}, {descriptor.digest}"
        )
    except BootstreamError:
        return []  # missing, or no document: nothing can be read through it
    used.update(blob.digest for blob in found.blobs)
    return list(found.documents)


def _read_index(layout: Path) -> Index | None:
    """Return a layout's index; None where there is no layout.

    Raises:
        Corrupt, InvalidInput: it cannot be read.
    """
    path = layout / "index.json"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise write_error(error, str(path)) from error
    document = parse_document(data, media_type=OCI_INDEX, what=str(path))
    if not isinstance(document, Index):
        raise InvalidInput("its index.json is not an index", operation="read", object=str(layout))
    return document


def _name(entry: object) -> object:
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return annotations.get(REF_NAME) if isinstance(annotations, dict) else None
