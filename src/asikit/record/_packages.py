"""Debian's kernel packages: a kernel for a machine that has none of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from asikit.record._build import make_folder
from asikit.record.errors import RecordError
from asikit.trace import ScratchFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["CLOUD_PACKAGE", "can_download", "download", "images_below"]

CLOUD_PACKAGE = "linux-image-cloud-amd64"
"""It depends on the package of the newest kernel that is made for virtual machines."""

_OF_A_KERNEL = re.compile(r"(?:^|[,|])\s*(linux-(?:image|binary|modules|base)-[^\s,|(]+)")
"""The packages that a kernel is divided into, in a ``Depends`` field.

First ``linux-image-RELEASE`` had all; now it only depends on the three others: the image, the modules, and the list of
what is built in.
"""

_IMAGES = ("boot/vmlinuz-*", "lib/modules/*/vmlinuz", "usr/lib/modules/*/vmlinuz")
"""Where distributions have kernel images, below ``/`` as below the folder that a package is unpacked into."""

_ADVICE = "run apt-get update, or give a kernel with --kernel VMLINUZ"


def images_below(root: Path) -> Iterator[Path]:
    """Find all kernel images below a root, in each layout of distributions."""
    return (image for pattern in _IMAGES for image in root.glob(pattern))


def can_download() -> bool:
    """Tell whether this machine has what it takes."""
    return bool(shutil.which("apt-get") and shutil.which("apt-cache") and shutil.which("dpkg-deb"))


def download(kernels: Path, say: Callable[[str], None]) -> bool:
    """Download the cloud kernel's packages and unpack them into a folder of their own below ``kernels``.

    Another recording may do so at the same time: each has a temporary folder, and the first one's stays.

    :param say: Told in one line before anything is downloaded.
    :return: False if this machine's package lists do not have it.
    :raises RecordError: It could not be downloaded or unpacked; nothing is left.
    """
    packages = _with_dependencies(CLOUD_PACKAGE)
    if not packages:
        return False
    make_folder(kernels)
    size = sum(int(_field(text, "Size") or 0) for text in packages.values()) // 1_000_000
    say(f"no kernel in /boot to record: downloading {CLOUD_PACKAGE} ({size} MB; needs no root) into {kernels}")
    with ScratchFolder(kernels, ".download-{token}", mode=0o755) as folder:
        folder.chmod(0o755)  # whatever the umask: apt-get downloads as another user when it runs as root
        _run(["apt-get", "download", *packages], folder)
        root = folder / "root"
        for archive in sorted(folder.glob("*.deb")):
            _run(["dpkg-deb", "-x", archive.name, str(root)], folder)
        if next(images_below(root), None) is None:
            raise RecordError(f"the packages {' '.join(packages)} have no kernel in them; {_ADVICE}")
        with suppress(OSError):  # the other recording's is there
            root.rename(kernels / f"{CLOUD_PACKAGE}_{_field(packages[CLOUD_PACKAGE], 'Version')}")
    return True


def _with_dependencies(package: str) -> dict[str, str]:
    """Follow a kernel package's dependencies to all other packages of that kernel: name -> what the lists say.

    Those that the package lists do not have are left out.
    """
    found: dict[str, str] = {}
    asked: set[str] = set()
    names = [package]
    while names:
        asked.update(names)
        texts = _show(names)
        found.update({_field(text, "Package"): text for text in texts})
        depended = [name for text in texts for name in _OF_A_KERNEL.findall(_field(text, "Depends"))]
        names = [name for name in dict.fromkeys(depended) if name not in asked]
    return found


def _show(names: list[str]) -> list[str]:
    """Give what the package lists say about packages; what they do not have is not in it."""
    command = ["apt-cache", "show", "--no-all-versions", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [text for text in done.stdout.split("\n\n") if _field(text, "Package")]


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        line = next((line for line in lines if line.startswith("E:")), lines[-1]).removeprefix("E: ")
        raise RecordError(f"{' '.join(command[:3])} failed: {line}; {_ADVICE}")
