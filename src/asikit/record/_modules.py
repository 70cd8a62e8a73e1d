"""A kernel's modules: where they lie, what they depend on, their content."""

from __future__ import annotations

import gzip
import importlib
import lzma
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["has_modules", "modules_in_order", "with_index"]

_INDEX = "modules.dep.bin"
"""What modprobe looks a module up in; a package that is unpacked, not installed, has none."""

_MODULE = re.compile(r"(?!\.).*\.ko(\.(xz|gz|zst))?")
"""A module's file name; a build tree also holds ``.NAME.ko.cmd``."""


def has_modules(folder: Path) -> bool:
    """Tell whether a folder has modules, or the list of what is built into the kernel instead."""
    return (folder / "modules.builtin").is_file() or next(_files(folder), None) is not None


def with_index(folder: Path, *, may_write: bool) -> Path | None:
    """Give a kernel's folder of modules if modprobe can use it: with its index, which is made if it may be.

    None: it is not laid out as ``lib/modules/RELEASE``, or has no index and there is no depmod to make one.
    """
    if (folder / _INDEX).exists():
        return folder
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not may_write or depmod is None or folder.parts[-3:] != ("lib", "modules", folder.name):
        return None
    for root in folder.parents[2:4]:  # depmod looks below it in lib/modules, or in usr/lib/modules: as it was built
        subprocess.run([depmod, "-b", str(root), folder.name], capture_output=True, check=False)
        if (folder / _INDEX).exists():
            return folder
    return None


def modules_in_order(folder: Path, names: Iterable[str], release: str) -> list[tuple[str, bytes]]:
    """Give the modules with all that they depend on, in the order of loading: (name, content).

    What is built into the kernel is left out.

    :param folder: It has the modules at any depth: ``lib/modules/RELEASE``, or the root of a build tree.
    :param release: The kernel's.
    :raises RecordError: A module is not there, or is another kernel's.
    """
    collected = _Collected(folder, release)
    for name in names:
        collected.add(_plain(name))
    return list(collected.ordered.items())


class _Collected:
    """Modules in the order of loading."""

    def __init__(self, folder: Path, release: str) -> None:
        self.ordered: dict[str, bytes] = {}
        self._folder = folder
        self._release = release
        self._index = {_plain(path.name): path for path in sorted(_files(folder))}
        self._built_in = _built_in(folder)

    def add(self, name: str) -> None:
        """Add a module after all that it depends on.

        :raises RecordError: One of them is not there, or is another kernel's.
        """
        if name in self.ordered or name in self._built_in:
            return
        if name not in self._index:
            raise RecordError(f"kernel {self._release} has no module {name!r} in {self._folder}")
        content = _content(self._index[name])
        self._check(self._index[name], content)
        for needed in _depends(content):
            self.add(needed)
        for wanted in _wants_first(content):
            if wanted in self._index:
                self.add(wanted)
        self.ordered[name] = content

    def _check(self, path: Path, content: bytes) -> None:
        """Refuse another kernel's module. A folder named as the release is left to the kernel, which may take some."""
        built_for = _built_for(content)
        if self._folder.name != self._release and built_for not in {None, self._release}:
            raise RecordError(
                f"{path} is a module of Linux {built_for}, but the kernel is {self._release}; "
                "give the folder of its own with --modules DIR"
            )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.ko*") if _MODULE.fullmatch(path.name))


def _plain(name: str) -> str:
    return name.partition(".ko")[0].replace("-", "_")


def _built_in(folder: Path) -> frozenset[str]:
    listed = folder / "modules.builtin"
    lines = listed.read_text(encoding="ascii", errors="replace").splitlines() if listed.exists() else ()
    return frozenset(_plain(Path(line).name) for line in lines)


def _information(module: bytes, key: bytes) -> bytes | None:
    """Give a value of a module's ``.modinfo``, which is ``KEY=VALUE`` with a zero byte before and behind."""
    found = re.search(rb"(?:\A|\0)" + re.escape(key) + rb"([^\0]*)\0", module)
    return found[1] if found else None


def _built_for(module: bytes) -> str | None:
    """Give the release that a module was built for (``vermagic=RELEASE SMP ...``)."""
    words = (_information(module, b"vermagic=") or b"").split()
    return words[0].decode(errors="replace") if words else None


def _depends(module: bytes) -> list[str]:
    """List what a module says that it depends on."""
    return [_plain(name) for name in (_information(module, b"depends=") or b"").decode().split(",") if name]


def _wants_first(module: bytes) -> list[str]:
    """List what a module wants to be loaded before it, if there is such a thing (``softdep=pre: ...``)."""
    wanted = (_information(module, b"softdep=pre: ") or b"").decode()
    return [_plain(name) for name in wanted.partition("post:")[0].split()]


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return _zstd()(path)
    return data


def _zstd() -> Callable[[Path], bytes]:
    """Give what decompresses zstd: Python's own (since 3.14), else the program.

    :raises RecordError: There is neither.
    """
    try:
        own = importlib.import_module("compression.zstd")
    except ImportError:
        return _by_program

    def decompress(path: Path) -> bytes:
        try:
            content: bytes = own.decompress(path.read_bytes())
        except own.ZstdError as error:
            raise RecordError(f"{path} is not a module compressed with zstd: {error}") from error
        return content

    return decompress


def _by_program(path: Path) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise RecordError(
            f"zstd is missing, which {path} is compressed with; install it (Debian: apt-get install zstd)"
        )
    done = subprocess.run([program, "-dcq", str(path)], capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").split("\n")
        raise RecordError(f"{path} is not a module compressed with zstd: {lines[0]}")
    return done.stdout
