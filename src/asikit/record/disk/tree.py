"""A folder of the host as the guest is to see it: what is hidden, what is shown empty, and files that are not there."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field, replace
from errno import ELOOP, EPERM, ESTALE
from typing import TYPE_CHECKING

from asikit.record.disk.ext4 import Attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["DirectoryEntry", "ExtraFile", "HostTree"]

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_LINKS = 40
"""The kernel follows no more symbolic links than this in one path (``MAXSYMLINKS``, include/linux/namei.h)."""

_MOST_FILE_BYTES = ((1 << 32) - 1) * 4096
"""An ext4 file's blocks have numbers of 32 bits."""

_FOLDER = Attributes(stat.S_IFDIR | 0o755, 0, 0, 0, 2, (0, 0), 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ExtraFile:
    """A file that the guest sees and the host does not have."""

    content: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """What a folder says of one name.

    :ivar identity: Device and inode number on the host; None if it is not there.
    :ivar holes: Whether the host's file takes fewer blocks than its size.
    :ivar content: An extra file's.
    """

    name: bytes
    attributes: Attributes
    identity: tuple[int, int] | None
    holes: bool = False
    content: bytes | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.attributes.mode)


@dataclass(slots=True)
class _Made:
    """A folder in which there is what the host does not have."""

    folders: dict[bytes, _Made] = field(default_factory=dict)
    files: dict[bytes, ExtraFile] = field(default_factory=dict)
    source: bytes | None = None
    """The folder of the host that is shown here."""


class HostTree:
    """The folder, asked by paths relative to it: ``b"usr/bin"``, and ``b""`` for itself.

    Links on the way are not followed, mount points are crossed.
    """

    def __init__(
        self, root: Path, *, hidden: Iterable[Path], empty: Iterable[Path], extra: Mapping[str, ExtraFile]
    ) -> None:
        """Prepare; all paths are absolute, as in the guest."""
        self._root = os.fsencode(root.absolute()).rstrip(b"/")
        self._made = _Made()
        for path, file in extra.items():
            *folders, name = _parts(path)
            self._make(self._resolved(folders)).files[name] = file
        self._empty = set()
        for each in empty:
            folders = self._resolved(_parts(each))
            self._empty.add(b"/".join(folders))
            self._make(folders)
        self._hidden = {b"/".join(_parts(path)) for path in hidden}
        self._hidden_identities = set()
        for name in self._hidden:
            with suppress(OSError):  # it is not there
                self._hidden_identities.add(_identity(os.stat(self._on_host(name))))

    def graft(self, place: Path, folder: Path) -> None:
        """Show a folder of the host at another place, instead of what is there."""
        self._make(_parts(place)).source = os.fsencode(folder.absolute())

    def root(self) -> DirectoryEntry:
        """Give the folder itself.

        :raises OSError: It is not there.
        """
        return _entry(b"", os.stat(self._root or b"/"))

    def entries(self, path: bytes, identity: tuple[int, int] | None) -> list[DirectoryEntry]:
        """List a folder, sorted by name; as empty if this user may not.

        What else is wrong with the host's folder (it may have gone) makes it empty, too.
        """
        made = self._made_at(path)
        found = {} if self._is_empty(path, identity) else self._listed(path)
        for name, folder in made.folders.items():
            if folder.source is not None:
                with suppress(OSError):  # it has gone
                    found[name] = _entry(name, os.stat(folder.source))
            elif name not in found or not found[name].is_folder:
                found[name] = DirectoryEntry(name, _FOLDER, None)
        for name, file in made.files.items():
            attributes = replace(_FOLDER, mode=stat.S_IFREG | file.mode, size=len(file.content), links=1)
            found[name] = DirectoryEntry(name, attributes, None, content=file.content)
        return [found[name] for name in sorted(found)]

    def target(self, path: bytes) -> bytes:
        """Read a symbolic link; one that has gone points nowhere."""
        try:
            return os.readlink(self._on_host(path)) or b"?"
        except OSError:
            return b"?"

    def open(self, path: bytes, identity: tuple[int, int]) -> int:
        """Open a regular file to read, without touching its access time where that can be.

        :raises OSError: This user may not, or it is another file by now.
        """
        name = self._on_host(path)
        file = _open(name, 0)
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or _identity(status) != identity:
            os.close(file)
            raise OSError(ESTALE, os.strerror(ESTALE), name)
        return file

    def _listed(self, path: bytes) -> dict[bytes, DirectoryEntry]:
        found = {}
        try:
            folder = _open(self._on_host(path), os.O_DIRECTORY)
        except OSError:
            return {}
        with suppress(OSError), os.scandir(folder) as listing:
            for each in listing:
                with suppress(OSError):  # it has gone meanwhile
                    entry = _entry(os.fsencode(each.name), each.stat(follow_symlinks=False))
                    if not self._is_hidden(_join(path, entry.name), entry):
                        found[entry.name] = entry
        os.close(folder)
        return found

    def _is_hidden(self, path: bytes, entry: DirectoryEntry) -> bool:
        return path in self._hidden or entry.identity in self._hidden_identities

    def _is_empty(self, path: bytes, identity: tuple[int, int] | None) -> bool:
        """Tell whether nothing of what the host has in a folder is shown."""
        return identity is None or path in self._empty  # or the host does not have it

    def _resolved(self, folders: list[bytes]) -> list[bytes]:
        """Follow symbolic links to where folders are; they stay inside of the root, as the guest follows them.

        :raises OSError: They lead in a circle.
        """
        left, at = folders[::-1], list[bytes]()
        links = 0
        while left:
            name = left.pop()
            if name == b"..":
                at = at[:-1]
                continue
            at.append(name)
            try:
                target = os.readlink(self._on_host(b"/".join(at)))
            except OSError:  # it is none
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(ELOOP, os.strerror(ELOOP), self._on_host(b"/".join(folders)))
            at = [] if target.startswith(b"/") else at[:-1]
            left += _parts(os.fsdecode(target))[::-1]
        return at

    def _make(self, folders: list[bytes]) -> _Made:
        made = self._made
        for name in folders:
            made = made.folders.setdefault(name, _Made())
        return made

    def _made_at(self, path: bytes) -> _Made:
        made = self._made
        for name in path.split(b"/") if path else ():
            if name not in made.folders:
                return _Made()
            made = made.folders[name]
        return made

    def _on_host(self, path: bytes) -> bytes:
        """Give the host's path, which is in the innermost of the grafts on the way."""
        start, made = self._root, self._made
        names = path.split(b"/") if path else []
        rest = 0
        for depth, name in enumerate(names, 1):
            if name not in made.folders:
                break
            made = made.folders[name]
            if made.source is not None:
                start, rest = made.source, depth
        return b"/".join([start, *names[rest:]]) or b"/"


def _parts(path: str | Path) -> list[bytes]:
    """Split an absolute path of the guest."""
    return [part for part in os.fsencode(path).split(b"/") if part not in {b"", b"."}]


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _open(name: bytes, more: int) -> int:
    """Open without following a link; without touching the access time, where that can be."""
    try:
        return os.open(name, _OPEN | more | os.O_NOATIME)
    except OSError as error:
        if error.errno != EPERM:  # EPERM: it is another user's
            raise
    return os.open(name, _OPEN | more)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _entry(name: bytes, status: os.stat_result) -> DirectoryEntry:
    device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    attributes = Attributes(
        status.st_mode,
        status.st_uid,
        status.st_gid,
        min(status.st_size, _MOST_FILE_BYTES),
        max(status.st_nlink, 1),
        device,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    return DirectoryEntry(name, attributes, _identity(status), holes=status.st_blocks * 512 < status.st_size)
