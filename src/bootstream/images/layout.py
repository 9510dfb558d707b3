"""OCI image layouts: a folder, or a tar of one.

Format: OCI image specification 1.1, ``image-layout.md``: ``oci-layout``,
``index.json``, ``blobs/<algorithm>/<hex>``. An entry's name is the annotation
``org.opencontainers.image.ref.name``; containerd's full name is taken as well.
"""

from __future__ import annotations

from bootstream.errors import ImageNotFound, InvalidInput
from bootstream.images.choice import choose
from bootstream.images.digest import split_digest
from bootstream.images.image import SourcedImage
from bootstream.images.local import FileTree, LocalSource, read_file
from bootstream.images.manifest import (
    CONTAINERD_NAME,
    MAX_MANIFEST,
    OCI_INDEX,
    REF_NAME,
    Descriptor,
    Index,
    parse_document,
    parse_json,
)
from bootstream.images.platform import Platform
from bootstream.images.reference import LayoutReference

_MAX_MARKER = 1 << 16


def open_layout(
    tree: FileTree, reference: LayoutReference, *, platform: Platform | None
) -> SourcedImage:
    """Return the image that ``reference`` names in the layout ``tree``.

    Raises:
        ImageNotFound: no such layout, tag, digest or platform.
        InvalidInput: it is no layout, or the reference fits several images.
        Corrupt: a document of it is damaged.
    """
    source, roots = select_roots(tree, reference)
    return choose(source, roots, reference=str(reference), platform=platform)


def select_roots(
    tree: FileTree, reference: LayoutReference
) -> tuple[LocalSource, list[Descriptor]]:
    """Return a layout's blobs, and what ``reference`` names there: one, or one a platform.

    Raises:
        ImageNotFound, InvalidInput, Corrupt: as ``open_layout``.
    """
    _check_marker(tree)
    try:
        data = read_file(tree, "index.json", MAX_MANIFEST)
    except ImageNotFound as error:
        raise _no_layout(tree, "it has no index.json") from error
    index = parse_document(data, media_type=OCI_INDEX, what=f"{tree.name}, index.json")
    if not isinstance(index, Index):
        raise _no_layout(tree, "its index.json is not an index")
    return LocalSource(tree, blob_path), _select(index, reference)


def blob_path(descriptor: Descriptor) -> str:
    """Return where a blob is in a layout."""
    algorithm, digits = split_digest(descriptor.digest)
    return f"blobs/{algorithm}/{digits}"


def _check_marker(tree: FileTree) -> None:
    try:
        data = read_file(tree, "oci-layout", _MAX_MARKER)
    except ImageNotFound as error:
        try:
            tree.locate("index.json")
        except ImageNotFound:
            raise ImageNotFound(
                "there is no OCI image layout",
                operation="open",
                object=tree.name,
                remedy="check the path; a layout has the files oci-layout and index.json",
            ) from error
        raise _no_layout(tree, "it has no file oci-layout") from error
    marker = parse_json(data, what=f"{tree.name}, oci-layout")
    version = marker.get("imageLayoutVersion") if isinstance(marker, dict) else None
    if not isinstance(version, str) or version.partition(".")[0] != "1":
        raise _no_layout(tree, f"its layout version is {ascii(version)[:40]}, not 1.0.0")


def _no_layout(tree: FileTree, problem: str) -> InvalidInput:
    return InvalidInput(
        f"it is not an OCI image layout that can be read: {problem}",
        operation="open",
        object=tree.name,
    )


def _names(descriptor: Descriptor) -> set[str]:
    names = (descriptor.annotations.get(key, "") for key in (REF_NAME, CONTAINERD_NAME))
    return {name for name in names if name}


def _select(index: Index, reference: LayoutReference) -> list[Descriptor]:
    """Return the entries that the reference names: one, or several of one name."""
    entries = [entry for entry in index.manifests if not entry.is_attestation]
    selected = entries
    if reference.digest:
        selected = _by_digest(selected, reference)
    if reference.tag:
        selected = [entry for entry in selected if reference.tag in _names(entry)]
    tags = sorted({name for entry in entries for name in _names(entry)})
    if not selected:
        known = f"; its tags: {', '.join(tags[:20])}" if tags else ""
        raise ImageNotFound(
            f"the layout has no such image{known}" if entries else "the layout has no images",
            operation="resolve",
            object=str(reference),
        )
    first = selected[0]
    if any(_differs(first, entry) for entry in selected[1:]):
        raise InvalidInput(
            "the layout has more than one image",
            operation="resolve",
            object=str(reference),
            remedy="name one: " + ", ".join(f"{reference}:{tag}" for tag in tags[:5])
            if tags
            else f"name one by digest: {reference}@{first.digest}",
        )
    return list({entry.digest: entry for entry in selected}.values())


def _by_digest(entries: list[Descriptor], reference: LayoutReference) -> list[Descriptor]:
    return [entry for entry in entries if entry.digest == reference.digest]


def _differs(first: Descriptor, other: Descriptor) -> bool:
    """Whether two entries are different images, not one image for two platforms."""
    if first.digest == other.digest:
        return False
    if first.platform is None or other.platform is None or first.platform == other.platform:
        return True
    return bool(_names(first) or _names(other)) and not _names(first) & _names(other)
