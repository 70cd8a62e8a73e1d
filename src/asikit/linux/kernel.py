"""Which kernel is recorded, and its modules."""

import gzip
import lzma
import re
import shutil
import struct
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.linux._build import cache_folder, make_folder
from asikit.linux.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Kernel", "find_kernel", "read_release"]

_CLOUD_PACKAGE = "linux-image-cloud-amd64"

_OLDEST, _NEWEST = (5, 1), (9, 9)
"""The releases whose ``struct page`` is known here: 6.10 moved ``PG_slab`` from the flags to the page type."""

_IMAGE_HEAD_BYTES = 0x8000
"""Of a bzImage: its setup code, which has the release, is at most 64 sectors."""

_HEADER_END, _MAGIC_AT, _VERSION_AT, _LOAD_FLAGS_AT = 0x238, 0x202, 0x20E, 0x236
"""Offsets of the boot protocol: ``header``, ``kernel_version``, ``xloadflags`` (Documentation/x86/boot.rst)."""

_NO_MORE = "give another kernel with --kernel VMLINUZ"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image (bzImage), its release, and the folder of its modules (``lib/modules/RELEASE``), if any."""

    image: Path
    release: str
    modules: Path | None

    def module_files(self, names: "Iterable[str]") -> list[tuple[str, bytes]]:
        """Give the modules with all that they depend on, in the order of loading: (name, content).

        What is built into the kernel is left out.

        :raises RecordError: A module is not there.
        """
        if self.modules is None:
            raise RecordError(
                f"the modules of {self.image} are not on this machine ({', '.join(names)} wanted); "
                f"put them into lib/modules/{self.release} beside it, or {_NO_MORE}"
            )
        index = {_plain(path.name): path for path in sorted(self.modules.rglob("*.ko*"))}
        built_in = _built_in(self.modules)
        ordered: dict[str, bytes] = {}
        for name in names:
            self._add(_plain(name), index, built_in, ordered)
        return list(ordered.items())

    def _add(self, name: str, index: dict[str, Path], built_in: frozenset[str], ordered: dict[str, bytes]) -> None:
        if name in ordered or name in built_in:
            return
        if name not in index:
            raise RecordError(f"kernel {self.release} has no module {name!r} in {self.modules}")
        content = _content(index[name])
        for needed in _depends(content):
            self._add(needed, index, built_in, ordered)
        for wanted in _wants_first(content):
            if wanted in index:
                self._add(wanted, index, built_in, ordered)
        ordered[name] = content


def find_kernel(image: Path | None, say: "Callable[[str], None]") -> Kernel:
    """Find the kernel to record: the given one, else the newest in /boot, else the distribution's cloud kernel.

    In /boot only one counts that can be read, has its modules and is known here.

    :param say: Told in one line before anything is downloaded.
    :raises RecordError: There is none, it is not an x86-64 kernel image, or its release is not known here.
    """
    if image is not None:
        return _checked(_kernel(image))
    for candidate in sorted(_boot_folder().glob("vmlinuz-*"), key=_version_key, reverse=True):
        with suppress(RecordError):
            found = _checked(_kernel(candidate))
            if found.modules is not None:
                return found
    return _checked(_downloaded(say))


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


def _boot_folder() -> Path:
    return Path("/boot")


def _kernel(image: Path) -> Kernel:
    release = read_release(image)
    places = (image.absolute().parent.parent / "lib/modules" / release, Path("/lib/modules") / release)
    return Kernel(image, release, next((place for place in places if place.is_dir()), None))


def _checked(kernel: Kernel) -> Kernel:
    """Refuse a kernel whose memory would be misread.

    :raises RecordError: Its release is outside of the known ones.
    """
    found = re.match(r"(\d+)\.(\d+)", kernel.release)
    if found is None or not _OLDEST <= (int(found[1]), int(found[2])) <= _NEWEST:
        known = f"{'.'.join(map(str, _OLDEST))} to {'.'.join(map(str, _NEWEST))}"
        raise RecordError(
            f"{kernel.image} is Linux {kernel.release}, whose page flags are not known here (those of {known} are); "
            f"{_NO_MORE}"
        )
    return kernel


def _version_key(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.+-]", path.name)]


def _plain(name: str) -> str:
    return name.partition(".ko")[0].replace("-", "_")


def _built_in(modules: Path) -> frozenset[str]:
    listed = modules / "modules.builtin"
    lines = listed.read_text(encoding="ascii", errors="replace").splitlines() if listed.exists() else ()
    return frozenset(_plain(Path(line).name) for line in lines)


def _depends(module: bytes) -> list[str]:
    """List what a module's ``.modinfo`` says that it depends on."""
    found = re.search(rb"(?:\A|\0)depends=([^\0]*)\0", module)
    return [_plain(name) for name in found[1].decode().split(",") if name] if found else []


def _wants_first(module: bytes) -> list[str]:
    """List what a module wants to be loaded before it, if there is such a thing (``softdep=pre: ...``)."""
    found = re.search(rb"(?:\A|\0)softdep=pre: ([^\0]*)\0", module)
    return [_plain(name) for name in found[1].decode().partition("post:")[0].split()] if found else []


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return _without_zstd(path)
    return data


def _without_zstd(path: Path) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise RecordError(
            f"zstd is missing, which {path} is compressed with; install it (Debian: apt-get install zstd)"
        )
    done = subprocess.run([program, "-dcq", str(path)], capture_output=True, check=False)
    if done.returncode:
        raise RecordError(f"{path} is not a module that zstd can decompress; {_NO_MORE}")
    return done.stdout


def _downloaded(say: "Callable[[str], None]") -> Kernel:
    """Give the distribution's cloud kernel, from the cache if it is there.

    Another recording may download it at the same time: each has a folder of its own, and the first one's stays.
    """
    kernels = cache_folder() / "kernels"
    unpacked = sorted(kernels.glob("*/boot/vmlinuz-*"), key=_version_key)
    if unpacked:
        return _kernel(unpacked[-1])
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise RecordError(
            "no kernel in /boot that can be recorded, and no apt-get to download one; give --kernel VMLINUZ"
        )
    package = _cloud_package()
    make_folder(kernels)
    say(f"no kernel in /boot that can be recorded: downloading {package} (about 30 MB; needs no root) into {kernels}")
    with tempfile.TemporaryDirectory(dir=kernels, prefix=".download-") as folder:
        root = _unpack(package, Path(folder))
        with suppress(OSError):  # the other recording's is there
            root.rename(kernels / package)
    return _kernel(next(iter((kernels / package).glob("boot/vmlinuz-*"))))


def _unpack(package: str, folder: Path) -> Path:
    """Download a package and unpack it; give the folder that has its files."""
    folder.chmod(0o755)  # apt-get downloads as another user when it runs as root
    _run(["apt-get", "download", package], folder)
    archive = next(iter(folder.glob("*.deb")), None)
    if archive is None:
        raise RecordError(f"apt-get downloaded nothing for {package}; give --kernel VMLINUZ")
    root = folder / "root"
    _run(["dpkg-deb", "-x", str(archive), str(root)], folder)
    if not any(root.glob("boot/vmlinuz-*")):
        raise RecordError(f"the package {package} has no kernel in it; give --kernel VMLINUZ")
    return root


def _cloud_package() -> str:
    text = _run(["apt-cache", "depends", _CLOUD_PACKAGE], Path("/"))
    found = re.search(r"Depends: (linux-image-\S+)", text)
    if found is None:
        raise RecordError(
            f"no kernel in /boot that can be recorded, and this machine's package lists lack {_CLOUD_PACKAGE}; "
            "run apt-get update, or give --kernel VMLINUZ"
        )
    return found[1]


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        line = next((line for line in lines if line.startswith("E:")), lines[-1]).removeprefix("E: ")
        raise RecordError(f"{' '.join(command)} failed: {line}; give --kernel VMLINUZ")
    return done.stdout
