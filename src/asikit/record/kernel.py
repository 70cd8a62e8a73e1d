"""Which kernel is recorded, and its modules."""

from __future__ import annotations

import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.record._build import cache_folder
from asikit.record._modules import has_modules, modules_in_order, with_index
from asikit.record._packages import CLOUD_PACKAGE, can_download, download, images_below
from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["KernelImage", "find_kernel", "kernel_here", "read_release"]

_IMAGE_HEAD_BYTES = 0x8000
"""Of a bzImage: its setup code, which has the release, is at most 64 sectors."""

_HEADER_END, _MAGIC_AT, _VERSION_AT, _LOAD_FLAGS_AT = 0x238, 0x202, 0x20E, 0x236
"""Offsets of the boot protocol: ``header``, ``kernel_version``, ``xloadflags`` (Documentation/x86/boot.rst)."""

_NO_MORE = "give another kernel with --kernel VMLINUZ"

_MODULE_FOLDERS = ("lib/modules", "usr/lib/modules")
"""Debian's packages have the first up to 12 and the second since 13; installed they are the same folder."""


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel image (bzImage), its release, and the folder of its modules, if any."""

    image: Path
    release: str
    modules: Path | None

    def module_files(self, names: Iterable[str]) -> list[tuple[str, bytes]]:
        """Give the modules with all that they depend on, in the order of loading: (name, content).

        What is built into the kernel is left out.

        :raises RecordError: A module is not there, or is another kernel's.
        """
        if self.modules is None:
            raise RecordError(
                f"the modules of {self.image} are not on this machine ({', '.join(names)} wanted); "
                f"give the folder that has lib/modules/{self.release} with --modules DIR, or {_NO_MORE}"
            )
        return modules_in_order(self.modules, names, self.release)

    def indexed_modules(self) -> Path | None:
        """Give the folder of modules if modprobe can use it. Where we have unpacked it, its index is made."""
        if self.modules is None:
            return None
        return with_index(self.modules, may_write=self.modules.is_relative_to(cache_folder()))


def find_kernel(image: Path | None, say: Callable[[str], None], *, modules: Path | None = None) -> KernelImage:
    """Find the kernel to record: the given one, else the newest on this machine, else Debian's cloud kernel.

    Of the kernels on this machine only those count that can be read, and those that have their modules come first.

    :param say: Told in one line before anything is downloaded.
    :param modules: The folder that has the modules: what ``make modules_install INSTALL_MOD_PATH=DIR`` fills,
        ``lib/modules/RELEASE`` itself, or the root of a build tree; None: beside the image, else in /lib/modules.
    :raises RecordError: There is no kernel, it is not an x86-64 kernel image, or the modules are not there.
    """
    if image is not None:
        return _kernel(image, read_release(image), modules)
    here = kernel_here(modules=modules)
    return here if here is not None else _downloaded(say, modules)


def kernel_here(*, modules: Path | None = None) -> KernelImage | None:
    """Return the newest kernel on this machine that can be recorded; nothing is downloaded.

    :param modules: As of :func:`find_kernel`.
    """
    return _newest(images_below(_system()), modules)


def read_release(image: Path) -> str:
    """Read the release (``uname -r``) from a bzImage's header (Documentation/x86/boot.rst: ``kernel_version``).

    :raises RecordError: The file cannot be read or is not an x86-64 bzImage.
    """
    try:
        with image.open("rb") as file:
            head = file.read(_IMAGE_HEAD_BYTES)
    except OSError as error:
        raise RecordError(f"cannot read the kernel {image}: {error.strerror}") from error
    if len(head) < _HEADER_END or head[_MAGIC_AT : _MAGIC_AT + 4] != b"HdrS":
        raise RecordError(f"{image} is not an x86 Linux kernel image (bzImage); {_NO_MORE}")
    if not head[_LOAD_FLAGS_AT] & 1:
        raise RecordError(f"{image} is not a 64-bit kernel; {_NO_MORE}")
    at = 0x200 + struct.unpack_from("<H", head, _VERSION_AT)[0]
    words = head[at : at + 256].split(b"\0")[0].decode("ascii", "replace").split()
    if not words:
        raise RecordError(f"{image} does not say its release; {_NO_MORE}")
    return words[0]


def _system() -> Path:
    return Path("/")


def _newest(images: Iterable[Path], modules: Path | None) -> KernelImage | None:
    releases: dict[Path, str] = {}
    for image in images:
        with suppress(RecordError):  # only root can read it, or it is something else
            releases[image] = read_release(image)
    kernels = [_kernel(image, release, modules) for image, release in releases.items()]
    return max(kernels, key=lambda kernel: (kernel.modules is not None, _version_key(kernel.release)), default=None)


def _kernel(image: Path, release: str, modules: Path | None) -> KernelImage:
    return KernelImage(
        image, release, _find_modules(image, release) if modules is None else _given_modules(modules, release)
    )


def _find_modules(image: Path, release: str) -> Path | None:
    """Find the modules of an image: in its own folder, in the root that it lies in, on this machine."""
    folder = image.absolute().parent
    own = [folder] if folder.name == release else []
    places = [*own, *(root / below / release for root in (folder.parent, _system()) for below in _MODULE_FOLDERS)]
    return next((place for place in places if has_modules(place)), None)


def _given_modules(folder: Path, release: str) -> Path:
    """Find the modules in the folder that the user gave.

    :raises RecordError: It has none.
    """
    for place in (*(folder / below / release for below in _MODULE_FOLDERS), folder):
        if has_modules(place):
            return place
    if not folder.is_dir():
        raise RecordError(f"--modules {folder}: no such folder")
    raise RecordError(
        f"--modules {folder}: there are no modules in it; "
        f"make modules_install INSTALL_MOD_PATH={folder} in the kernel's tree puts them there"
    )


def _version_key(release: str) -> list[tuple[int, str]]:
    """Give what sorts releases as versions: 6.1.0-9 before 6.1.0-13, and 7.3.0-rc7 before 7.3.0 before 7.3.0-1."""
    parts = re.findall(r"\d+|[A-Za-z]+", release)
    end = (-1, "")
    return [*((int(part), "") if part.isdigit() else (-2 if part == "rc" else -1, part) for part in parts), end]


def _downloaded(say: Callable[[str], None], modules: Path | None) -> KernelImage:
    """Give Debian's cloud kernel, from the cache if it is there.

    :raises RecordError: There is none, and none could be downloaded.
    """
    kernels = cache_folder() / "kernels"

    def unpacked() -> KernelImage | None:
        roots = (root for root in kernels.glob("[!.]*") if root.is_dir())
        return _newest((image for root in roots for image in images_below(root)), modules)

    found = unpacked()
    if found is None:
        if not can_download():
            raise RecordError(_none_here("no apt-get to download one: install a kernel"))
        if not download(kernels, say):
            raise RecordError(_none_here(f"this machine's package lists lack {CLOUD_PACKAGE}; run apt-get update"))
        found = unpacked()
    if found is None:
        raise RecordError(f"the kernel in {kernels} cannot be read; remove that folder, or {_NO_MORE}")
    return found


def _none_here(no_download: str) -> str:
    """Say in a line that there is no kernel, and what to do."""
    boot = _system() / "boot"
    hidden = [image for image in images_below(_system()) if not os.access(image, os.R_OK)]
    if hidden or not (os.access(boot, os.R_OK | os.X_OK) or not boot.exists()):
        example = hidden[0] if hidden else boot / "vmlinuz-RELEASE"
        return (
            f"only root can read the kernels in {boot}: make a copy that you can read "
            f"(sudo install -m 644 {example} .) and give it with --kernel"
        )
    return f"no kernel in {boot} to record, and {no_download}, or give one with --kernel VMLINUZ"
