"""What every artifacts registry promises, as tests: subclass, and give two fixtures.

::

    class TestMyRegistry(ArtifactsRegistryConformance):
        @pytest.fixture
        def registry(self) -> Iterator[ArtifactsRegistry]:
            ...yield an empty one

        @pytest.fixture
        def neighbour(self) -> Iterator[ArtifactsRegistry]:
            ...yield another empty one of the same kind, at another place

Where tags can be made immutable, ``make_immutable`` does so. Images are made on the spot, in
layouts.
"""

from __future__ import annotations

import random
import threading
import uuid
from pathlib import Path

import pytest

from bootstream.errors import AlreadyExists, Cancelled, ImageNotFound, InvalidInput
from bootstream.images.digest import digest_of
from bootstream.progress import NO_PROGRESS, NoProgress
from bootstream.registry.protocol import ArtifactsRegistry, RegistryDetails
from bootstream.testing.images import host_architecture, write_index, write_layout
from bootstream.testing.layers import LayerBuilder


class CountingProgress(NoProgress):
    """Adds up what is told, by phase; cancels when a phase has come so far."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self.totals: dict[str, int | None] = {}
        self.done_phases: list[str] = []
        self.amounts: dict[str, int] = {}
        self._cancel_at = cancel_at
        self._lock = threading.Lock()

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        """Note its total."""
        del unit
        self.totals[name] = total

    def advance(self, name: str, amount: int) -> None:
        """Add."""
        with self._lock:
            self.amounts[name] = self.amounts.get(name, 0) + amount
            if self._cancel_at is not None and self.amounts[name] >= self._cancel_at:
                raise Cancelled("the test asked for it")

    def done(self, name: str) -> None:
        """Note the end."""
        self.done_phases.append(name)


def new_build() -> str:
    """Return a build id that nobody has."""
    return str(uuid.uuid4())


def small_layers(seed: int) -> list[LayerBuilder | bytes]:
    """Return two layers, of about 200 KiB and of a few bytes, that no other seed has."""
    noise = random.Random(seed).randbytes(200_000)  # noqa: S311 - no secret
    return [
        LayerBuilder().file("noise", noise).finish(),
        LayerBuilder().file("etc/name", f"{seed}\n".encode()).finish(),
    ]


class ArtifactsRegistryConformance:
    """All of it. A template's images are made by ``make``, and read as a build would."""

    def make_immutable(self, registry: ArtifactsRegistry) -> bool:
        """Make the tags of a registry's repositories immutable; False where none can be."""
        del registry
        return False

    @pytest.fixture
    def layout(self, tmp_path: Path) -> Path:
        """A folder for layouts."""
        return tmp_path / "images"

    @pytest.fixture
    def neighbour(self, registry: ArtifactsRegistry) -> ArtifactsRegistry:
        """Another registry; overridden by each adapter."""
        raise NotImplementedError

    @staticmethod
    def make(folder: Path, seed: int = 1) -> tuple[str, str]:
        """Make an image; return its reference and its digest."""
        digest = write_layout(folder, small_layers(seed), tag=f"image-{seed}")
        return f"oci:{folder}:image-{seed}", digest

    def push(self, registry: ArtifactsRegistry, folder: Path, build: str, seed: int = 1) -> str:
        """Make an image and push it as a build of ``py``; return its digest."""
        reference, digest = self.make(folder, seed)
        assert registry.push_image(reference, "py", build, NO_PROGRESS) == digest
        return digest

    # -- names --------------------------------------------------------------------------------

    def test_names(self, registry: ArtifactsRegistry) -> None:
        """The reference of a build has both ids, is its own, and the image need not exist."""
        one, other = new_build(), new_build()
        found = registry.get_tag("py", one)
        assert "py" in found
        assert one in found
        assert found == registry.get_tag("py", one)
        assert len({found, registry.get_tag("py", other), registry.get_tag("py2", one)}) == 3
        assert isinstance(registry.details(), RegistryDetails)
        assert registry.details().location
        assert isinstance(registry, ArtifactsRegistry)

    @pytest.mark.parametrize(
        ("template_id", "build_id"),
        [
            ("", "0b2f6a1e-6d2f-4c0f-9a57-3f6f0c3f7b10"),
            ("Py", "0b2f6a1e-6d2f-4c0f-9a57-3f6f0c3f7b10"),
            ("../py", "0b2f6a1e-6d2f-4c0f-9a57-3f6f0c3f7b10"),
            ("py/x", "0b2f6a1e-6d2f-4c0f-9a57-3f6f0c3f7b10"),
            ("py:x", "0b2f6a1e-6d2f-4c0f-9a57-3f6f0c3f7b10"),
            ("py", ""),
            ("py", "latest"),
            ("py", "../../etc/passwd"),
            ("py", "0B2F6A1E-6D2F-4C0F-9A57-3F6F0C3F7B10"),
        ],
    )
    def test_ids_are_checked(
        self, registry: ArtifactsRegistry, layout: Path, template_id: str, build_id: str
    ) -> None:
        """Every method refuses what is no id, before anything is asked or formed."""
        reference, _ = self.make(layout)
        for call in (
            lambda: registry.get_tag(template_id, build_id),
            lambda: registry.get_image(template_id, build_id),
            lambda: registry.open_content(template_id, build_id),
            lambda: registry.push_image(reference, template_id, build_id, NO_PROGRESS),
            lambda: registry.copy_image(registry, template_id, build_id, NO_PROGRESS),
            lambda: registry.delete(template_id, build_id),
        ):
            with pytest.raises(InvalidInput):
                call()
        assert list(registry.list_images()) == []

    def test_listing_checks_the_template(self, registry: ArtifactsRegistry) -> None:
        """What is no template id is refused there, too."""
        with pytest.raises(InvalidInput):
            list(registry.list_images("../py"))

    # -- push and get -------------------------------------------------------------------------

    def test_push_and_get(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """What is pushed is read back to the byte, under the digest that it had."""
        build = new_build()
        progress = CountingProgress()
        reference, digest = self.make(layout)
        assert registry.push_image(reference, "py", build, progress) == digest
        (phase,) = progress.totals
        assert progress.amounts[phase] == progress.totals[phase] != 0
        assert progress.done_phases == [phase]
        image = registry.get_image("py", build)
        assert image.digest == digest == digest_of(image.raw_manifest)
        assert image.platform.architecture == host_architecture()
        image.fetch(NO_PROGRESS)
        for layer, data in zip(image.layers, small_layers(1), strict=True):
            with layer.open() as stream:
                found = b""
                while piece := stream.read(1 << 16):
                    found += piece
            assert found == data

    def test_pushing_again_changes_nothing(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """It succeeds, with the same digest."""
        build = new_build()
        digest = self.push(registry, layout, build)
        assert self.push(registry, layout, build) == digest
        assert registry.get_image("py", build).digest == digest

    def test_another_image_takes_the_name(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """Where tags can move, the last one pushed is the build's."""
        build = new_build()
        self.push(registry, layout, build)
        second = self.push(registry, layout, build, seed=2)
        assert registry.get_image("py", build).digest == second
        assert [image.digest for image in registry.list_images("py")] == [second]

    def test_immutable_tags(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """Where they cannot move, another image is AlreadyExists, and the same one is fine."""
        build = new_build()
        digest = self.push(registry, layout, build)
        if not self.make_immutable(registry):
            return
        assert self.push(registry, layout, build) == digest
        reference, _ = self.make(layout, 2)
        with pytest.raises(AlreadyExists) as raised:
            registry.push_image(reference, "py", build, NO_PROGRESS)
        assert build in (raised.value.object or "")
        assert registry.get_image("py", build).digest == digest

    def test_missing(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """A missing image is ImageNotFound by its full name, never another one."""
        self.push(registry, layout, new_build())
        missing = new_build()
        for template in ("py", "js"):
            for call in (registry.get_image, registry.open_content):
                with pytest.raises(ImageNotFound) as raised:
                    call(template, missing)
                assert registry.get_tag(template, missing) in str(raised.value)

    def test_missing_source(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """Nothing to push is ImageNotFound, and leaves nothing."""
        self.make(layout)
        build = new_build()
        with pytest.raises(ImageNotFound):
            registry.push_image(f"oci:{layout}:other", "py", build, NO_PROGRESS)
        with pytest.raises(ImageNotFound):
            registry.get_image("py", build)

    def test_cancelled_push(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """What is called off is seen by nobody, and can be done again."""
        build = new_build()
        reference, digest = self.make(layout)
        with pytest.raises(Cancelled):
            registry.push_image(reference, "py", build, CountingProgress(cancel_at=1))
        with pytest.raises(ImageNotFound):
            registry.get_image("py", build)
        assert list(registry.list_images("py")) == []
        assert registry.push_image(reference, "py", build, NO_PROGRESS) == digest

    # -- platforms ----------------------------------------------------------------------------

    def test_platforms(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """An index is stored whole; each platform gives its own image, others none."""
        build = new_build()
        platforms = {"linux/amd64": small_layers(3), "linux/arm64": small_layers(4)}
        digest = write_index(layout, platforms, tag="both")
        assert registry.push_image(f"oci:{layout}:both", "py", build, NO_PROGRESS) == digest
        images = {name: registry.get_image("py", build, name) for name in platforms}
        assert [str(images[name].platform) for name in platforms] == list(platforms)
        assert len({image.digest for image in images.values()} | {digest}) == 3
        with pytest.raises(ImageNotFound) as raised:
            registry.get_image("py", build, "linux/s390x")
        assert "linux/arm64" in str(raised.value)
        assert registry.open_content("py", build).root.digest == digest

    def test_wrong_architecture(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """An image of another architecture than asked for is an error."""
        build = new_build()
        other = "arm64" if host_architecture() != "arm64" else "amd64"
        write_layout(layout, small_layers(5), tag="foreign", architecture=other)
        registry.push_image(f"oci:{layout}:foreign", "py", build, NO_PROGRESS)
        with pytest.raises(ImageNotFound) as raised:
            registry.get_image("py", build)
        assert other in str(raised.value)
        assert str(registry.get_image("py", build, f"linux/{other}").platform) == f"linux/{other}"

    # -- copies -------------------------------------------------------------------------------

    def test_copy(
        self, registry: ArtifactsRegistry, neighbour: ArtifactsRegistry, layout: Path
    ) -> None:
        """From one registry to another, byte for byte, all platforms with it."""
        build = new_build()
        platforms = {"linux/amd64": small_layers(3), "linux/arm64": small_layers(4)}
        digest = write_index(layout, platforms, tag="both")
        registry.push_image(f"oci:{layout}:both", "py", build, NO_PROGRESS)
        first, second = CountingProgress(), CountingProgress()
        assert neighbour.copy_image(registry, "py", build, first) == digest
        assert neighbour.copy_image(registry, "py", build, second) == digest
        assert first.totals == second.totals
        for name in platforms:
            copied, original = (
                where.get_image("py", build, name) for where in (neighbour, registry)
            )
            assert copied.raw_manifest == original.raw_manifest
            assert copied.raw_config == original.raw_config
            copied.fetch(NO_PROGRESS)

    def test_copy_of_what_is_missing(
        self, registry: ArtifactsRegistry, neighbour: ArtifactsRegistry
    ) -> None:
        """It is ImageNotFound by the source's name."""
        build = new_build()
        with pytest.raises(ImageNotFound) as raised:
            neighbour.copy_image(registry, "py", build, NO_PROGRESS)
        assert registry.get_tag("py", build) in str(raised.value)
        assert list(neighbour.list_images()) == []

    # -- listing ------------------------------------------------------------------------------

    def test_list(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """All images, or a template's, in order, each with its digest and reference."""
        assert list(registry.list_images()) == []
        assert list(registry.list_images("py")) == []
        reference, digest = self.make(layout)
        other, other_digest = self.make(layout, 2)
        builds = sorted(new_build() for _ in range(3))
        registry.push_image(reference, "py", builds[1], NO_PROGRESS)
        registry.push_image(other, "py", builds[0], NO_PROGRESS)
        registry.push_image(reference, "js", builds[2], NO_PROGRESS)
        registry.push_image(reference, "py-next", builds[0], NO_PROGRESS)
        found = [(i.template_id, i.build_id, i.digest) for i in registry.list_images()]
        assert found == [
            ("js", builds[2], digest),
            ("py", builds[0], other_digest),
            ("py", builds[1], digest),
            ("py-next", builds[0], digest),
        ]
        images = list(registry.list_images("py"))
        assert [image.build_id for image in images] == builds[:2]
        assert [i.reference for i in images] == [registry.get_tag("py", b) for b in builds[:2]]
        assert all(image.size is None or image.size > 0 for image in images)

    # -- deletion -----------------------------------------------------------------------------

    def test_delete(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """A deleted image is gone; deleting it again, or one that never was, does nothing."""
        build, kept = new_build(), new_build()
        registry.delete("py", build)
        self.push(registry, layout, build)
        digest = self.push(registry, layout, kept, seed=2)
        registry.delete("py", build)
        registry.delete("py", build)
        registry.delete("js", build)
        with pytest.raises(ImageNotFound):
            registry.get_image("py", build)
        assert [image.build_id for image in registry.list_images("py")] == [kept]
        image = registry.get_image("py", kept)
        assert image.digest == digest
        image.fetch(NO_PROGRESS)

    def test_builds_that_share_an_image(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """Deleting one leaves the other whole, in whichever template it is."""
        first, second, third = new_build(), new_build(), new_build()
        reference, digest = self.make(layout)
        registry.push_image(reference, "py", first, NO_PROGRESS)
        registry.push_image(reference, "py", second, NO_PROGRESS)
        registry.push_image(reference, "js", third, NO_PROGRESS)
        registry.delete("py", first)
        for template, build in (("py", second), ("js", third)):
            image = registry.get_image(template, build)
            assert image.digest == digest
            assert registry.open_content(template, build).root.digest == digest
            image.fetch(NO_PROGRESS)
        registry.delete("py", second)
        assert registry.get_image("js", third).digest == digest
        assert [image.build_id for image in registry.list_images()] == [third]

    def test_deleted_and_pushed_again(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """A build whose image was deleted can get one again, also the same."""
        build = new_build()
        digest = self.push(registry, layout, build)
        registry.delete("py", build)
        assert self.push(registry, layout, build) == digest
        image = registry.get_image("py", build)
        assert image.digest == digest
        image.fetch(NO_PROGRESS)

    def test_closing_twice(self, registry: ArtifactsRegistry, layout: Path) -> None:
        """It is idempotent, and what is asked afterwards opens connections anew."""
        build = new_build()
        digest = self.push(registry, layout, build)
        registry.close()
        registry.close()
        assert registry.get_image("py", build).digest == digest
        registry.close()
