"""Which kernel is recorded, and its modules."""

import gzip
import lzma
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.linux._build import cache_folder
from asikit.linux.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Kernel", "find_kernel", "read_release"]

_CLOUD_PACKAGE = "linux-image-cloud-amd64"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image (bzImage), its release, and the folder of its modules (``lib/modules/RELEASE``), if there is one."""

    image: Path
    release: str
    modules: Path | None

    def module_files(self, names: "Iterable[str]") -> list[tuple[str, bytes]]:
        """Give the modules with all that they depend on, in the order of loading: (name, content).

        :raises RecordError: A module is not there.
        """
        if self.modules is None:
            wanted = ", ".join(names)
            raise RecordError(f"the modules of {self.image} are not on this machine ({wanted} wanted); give a kernel with lib/modules/{self.release}")
        index = {_plain(path.name): path for path in sorted(self.modules.rglob("*.ko*"))}
        ordered: dict[str, bytes] = {}
        for name in names:
            self._add(_plain(name), index, ordered)
        return list(ordered.items())

    def _add(self, name: str, index: dict[str, Path], ordered: dict[str, bytes]) -> None:
        if name in ordered or self._built_in(name):
            return
        if name not in index:
            raise RecordError(f"kernel {self.release} has no module {name!r} in {self.modules}")
        content = _content(index[name])
        depends = re.search(rb"(?:\A|\0)depends=([^\0]*)\0", content)
        for other in (depends[1].decode().split(",") if depends else []):
            if other:
                self._add(_plain(other), index, ordered)
        ordered[name] = content

    def _built_in(self, name: str) -> bool:
        listed = self.modules / "modules.builtin" if self.modules else None
        return listed is not None and listed.exists() and any(_plain(Path(line).name) == name for line in listed.read_text().splitlines())


def find_kernel(image: Path | None, say: "Callable[[str], None]") -> Kernel:
    """Find the kernel to record: the given one, else the newest in /boot, else the distribution's cloud kernel.

    :param say: Told in one line before anything is downloaded.
    :raises RecordError: There is none, or it is not an x86 kernel image.
    """
    if image is not None:
        return _kernel(image)
    installed = sorted(Path("/boot").glob("vmlinuz-*"), key=_version_key)
    for candidate in reversed(installed):
        found = _kernel(candidate)
        if found.modules is not None:
            return found
    return _downloaded(say)


def read_release(image: Path) -> str:
    """Read the release (``uname -r``) from a bzImage's header (Documentation/x86/boot.rst: ``kernel_version``).

    :raises RecordError: The file cannot be read or is not a bzImage.
    """
    try:
        with image.open("rb") as file:
            head = file.read(0x8000)
    except OSError as error:
        raise RecordError(f"cannot read the kernel {image}: {error.strerror}") from error
    if len(head) < 0x210 or head[0x202:0x206] != b"HdrS":  # noqa: PLR2004  offsets of the boot protocol
        raise RecordError(f"{image} is not an x86 Linux kernel image (bzImage)")
    at = 0x200 + struct.unpack_from("<H", head, 0x20E)[0]
    return head[at : head.index(b"\0", at)].decode("ascii", "replace").split()[0]


def _kernel(image: Path) -> Kernel:
    release = read_release(image)
    places = (image.parent.parent / "lib/modules" / release, Path("/lib/modules") / release)
    return Kernel(image, release, next((place for place in places if place.is_dir()), None))


def _version_key(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.+-]", path.name)]


def _plain(name: str) -> str:
    return name.split(".ko")[0].replace("-", "_")


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        raise RecordError(f"{path} is compressed with zstd; unpack it first (unzstd) or record another kernel")
    return data


def _downloaded(say: "Callable[[str], None]") -> Kernel:
    kernels = cache_folder() / "kernels"
    unpacked = sorted(kernels.glob("*/boot/vmlinuz-*"), key=_version_key)
    if unpacked:
        return _kernel(unpacked[-1])
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise RecordError("no kernel in /boot and no apt-get to download one; give --kernel VMLINUZ")
    package = _cloud_package()
    say(f"no kernel in /boot: downloading {package} from this machine's Debian archive into {kernels} (27 MB; needs no root)")
    target = kernels / package
    download = kernels / "download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    _run(["apt-get", "download", package], download)
    archive = next(iter(download.glob("*.deb")), None)
    if archive is None:
        raise RecordError(f"apt-get downloaded nothing for {package}; give --kernel VMLINUZ")
    _run(["dpkg-deb", "-x", str(archive), str(download / "root")], download)
    shutil.rmtree(target, ignore_errors=True)
    (download / "root").rename(target)
    shutil.rmtree(download)
    return _kernel(next(iter(target.glob("boot/vmlinuz-*"))))


def _cloud_package() -> str:
    text = _run(["apt-cache", "depends", _CLOUD_PACKAGE], Path("/"))
    found = re.search(r"Depends: (linux-image-\S+)", text)
    if found is None:
        raise RecordError(f"this machine's package lists lack {_CLOUD_PACKAGE}; run apt-get update, or give --kernel VMLINUZ")
    return found[1]


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines() or ["it said nothing"]
        raise RecordError(f"{' '.join(command[:2])} failed: {lines[-1]}; give --kernel VMLINUZ")
    return done.stdout
