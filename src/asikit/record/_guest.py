"""The guest's files: an initramfs with init, busybox, the workload and the libraries that it needs."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.record._libraries import DEFAULT_FOLDERS, LibrarySearch
from asikit.record._links import follow
from asikit.record._programs import LINE_BYTES, applets, interpreters
from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Sequence

    _Inode = tuple[int, int, int]

__all__ = ["Initramfs"]

_ETC = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "/etc/group": "root:x:0:\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\n",
}
_LOADER_CACHE = Path("/etc/ld.so.cache")

_MOUNT_POINTS = ("/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/var", "/asi")  # noqa: S108  the guest's, not ours

_GUESTS_OWN = (Path("/dev"), Path("/proc"), Path("/sys"))
"""Where the guest has its kernel's own files, and this machine's would be hidden."""
_HAS_ITS_OWN = "the guest has its own"

_LEADS_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}

_MOST_BYTES = 1536 << 20
"""More than this no guest can hold: its memory is at most 3 GiB, and for a while it has its files twice."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file, folder or link.

    :ivar inode: What is the same for all names of one file of this machine; None for one that was made for the guest.
    """

    mode: int
    content: bytes = b""
    inode: _Inode | None = None


class Initramfs:
    """An initramfs being put together: a cpio archive in the ``newc`` format.

    Files of this machine are under their own paths, and so are the symbolic links that lead to them: a path means in
    the guest what it means here.

    The format: Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's source.
    """

    def __init__(self) -> None:
        """Begin with the folders that init mounts on, and the least that C libraries want in /etc."""
        self._entries: dict[str, _Entry] = {}
        self._contents: dict[_Inode, bytes] = {}
        self._bytes = 0
        self._search = LibrarySearch()
        self._left_out: dict[str, list[str]] = {}
        self._missing: list[tuple[Path, str]] = []
        self._folder_links: list[Path] = []
        for folder in _MOUNT_POINTS:
            self._folder(folder)
        for path, text in _ETC.items():
            self.add(path, text.encode())

    def __contains__(self, path: str) -> bool:
        """Tell whether the archive has the path."""
        return self._inside(path) in self._entries

    def empty(self, folder: str) -> bool:
        """Tell whether nothing has been added below a folder."""
        return not any(path.startswith(f"{folder}/") for path in self._entries)

    def add(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._put(self._inside(path), _Entry(stat.S_IFREG | mode, content))

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._put(self._inside(path), _Entry(stat.S_IFLNK | 0o777, os.fsencode(target)))

    def add_host_file(self, path: Path) -> None:
        """Add a file or folder of this machine, without what is in the folder; and the links that lead to it.

        :raises RecordError: It cannot be read.
        """
        try:
            self._add(self._placed(path))
        except OSError as error:
            raise RecordError(f"cannot read {path} for the guest: {error.strerror}") from error
        if ".so" in path.name and str(path.parent) not in DEFAULT_FOLDERS:  # else the guest's loader finds it anyway
            self._bring(_LOADER_CACHE)

    def add_host_tree(self, path: Path) -> None:
        """Add a file or a whole folder of this machine, and the libraries of the programs in it.

        What is in the folder and cannot come along is left out, which :meth:`left_out` tells; links in it are links
        there, and bring the file that they lead to, but no folder.

        :raises RecordError: There is no such thing, it cannot be read, or it is too large.
        """
        try:
            top = self._placed(path)
            is_folder = stat.S_ISDIR(top.stat().st_mode)
        except FileNotFoundError:
            raise RecordError(f"--include {path}: no such file or folder") from None
        except OSError as error:
            raise RecordError(f"--include {path}: {error.strerror}") from error
        if is_folder:
            self._add_tree(top)
        elif _is_guests_own(top):
            self._leave_out(top, _HAS_ITS_OWN)
        else:
            self.add_host_file(top)
            self._add_needed(top)

    def left_out(self) -> list[str]:
        """Say what could not come along, in a line for each reason."""
        lines = [f"not in the guest: {_some(paths)}: {reason}" for reason, paths in self._left_out.items()]
        elsewhere = [(path, Path(os.path.realpath(path))) for path in self._folder_links]
        linked = [
            f"{target}, to which {path} links"
            for path, target in elsewhere
            if str(target) not in self._entries and not _is_guests_own(target)
        ]
        if linked:
            lines.append(f"not in the guest: {_some(linked)}: a folder elsewhere; --include it, too, if it is needed")
        have = {path.rpartition("/")[2] for path in self._entries}
        missing = [f"{name}, which {path} needs" for path, name in self._missing if name not in have]
        if missing:
            lines.append(f"not in the guest: {_some(missing)}: a library that this machine does not have")
        return lines

    def add_busybox(self, busybox: Path) -> None:
        """Add busybox, with a link in /bin for each applet whose name nothing else has."""
        self.add("/bin/busybox", busybox.read_bytes(), mode=0o755)
        for applet in applets(busybox):
            if f"/bin/{applet}" not in self and f"/usr/bin/{applet}" not in self:
                self.link(f"/bin/{applet}", "busybox")

    def archive(self) -> bytes:
        """Give the cpio archive. The same entries give the same bytes."""
        links = Counter(entry.inode for entry in self._entries.values())
        numbers: dict[_Inode, int] = {}
        left = dict(links)
        parts = []
        for place, (path, entry) in enumerate(sorted(self._entries.items()), 1):
            if entry.inode is None:
                parts.append(_member(path, entry.mode, entry.content, place, 1))
                continue
            number = numbers.setdefault(entry.inode, place)
            left[entry.inode] -= 1
            content = b"" if left[entry.inode] else entry.content  # the last of a file's names has what is in it
            parts.append(_member(path, entry.mode, content, number, links[entry.inode]))
        return b"".join([*parts, _member("TRAILER!!!", 0, b"", 0, 1)])

    def _add_tree(self, top: Path) -> None:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            if _is_guests_own(folder):
                self._leave_out(folder, _HAS_ITS_OWN)
                continue
            try:
                self._folder(str(folder), stat.S_IMODE(folder.lstat().st_mode))
                paths = sorted(folder.iterdir())
            except OSError as error:
                self._leave_out(folder, error.strerror or "")
                continue
            waiting += [path for path in paths if self._add_below(path)]

    def _add_below(self, path: Path) -> bool:
        """Add what is at a path, whose folder is there already; tell whether it is a folder to look into."""
        try:
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                self._add_link(path)
            elif stat.S_ISSOCK(mode):
                self._leave_out(path, "a socket, which nobody serves there")
            elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                self._leave_out(path, "a device")
            elif not stat.S_ISDIR(mode):
                self._add(path)
                self._add_needed(path)
        except OSError as error:
            self._leave_out(path, error.strerror or "")
            return False
        return stat.S_ISDIR(mode)

    def _add_link(self, path: Path) -> None:
        """Add a link as it is, and the file that it leads to; one that leads nowhere here leads nowhere there."""
        self.link(str(path), os.readlink(path))  # noqa: PTH115  (a Path would lose a slash at its end)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if error.errno in _LEADS_NOWHERE:
                return
            raise
        if stat.S_ISDIR(mode):
            self._folder_links.append(path)
        elif stat.S_ISREG(mode):
            self._bring(path)

    def _bring(self, path: Path) -> None:
        """Add a file of this machine that another one wants, and what it needs itself."""
        try:
            target = self._placed(path)
            if _is_guests_own(target) or str(target) in self._entries:
                return
            self._add(target)
            self._add_needed(target)
        except OSError as error:
            self._leave_out(path, error.strerror or "")

    def _add_needed(self, path: Path) -> None:
        """Add what a file that has been added needs: a program its libraries, a script its interpreter."""
        entry = self._entries[str(path)]
        if entry.mode & 0o111:
            for interpreter in interpreters(entry.content[:LINE_BYTES]):
                if interpreter.is_file():
                    self._bring(interpreter.absolute())
        wanted = self._search.wanted(path, entry.content)
        for library in wanted.found:
            self._bring(library)
            if str(library.parent) not in DEFAULT_FOLDERS:
                self._bring(_LOADER_CACHE)
        self._missing += wanted.missing

    def _add(self, path: Path) -> None:
        """Add a file, folder or pipe; no link is in its path.

        :raises OSError: It cannot be read.
        :raises RecordError: The whole has become too large.
        """
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            self._folder(str(path), mode)
        elif stat.S_ISFIFO(status.st_mode):
            self._put(str(path), _Entry(stat.S_IFIFO | mode))
        else:
            # The time of change, as a number may be used again for another file while files are added.
            inode = (status.st_dev, status.st_ino, status.st_ctime_ns)
            if inode not in self._contents:
                self._bytes += status.st_size
                if self._bytes > _MOST_BYTES:
                    raise RecordError(
                        f"{path}: with it the guest's files are more than {_MOST_BYTES >> 20} MiB, for which no guest "
                        "has memory; --include less, or give the files in a --root"
                    )
                self._contents[inode] = path.read_bytes()
            self._put(str(path), _Entry(stat.S_IFREG | mode, self._contents[inode], inode))

    def _placed(self, path: Path) -> Path:
        """Add the links that a path of this machine leads through, and give where it ends."""
        return Path(follow(str(path), self._add_host_link))

    def _add_host_link(self, path: str) -> str | None:
        try:
            target = os.readlink(path)  # noqa: PTH115  (a Path would lose a slash at its end)
        except OSError:  # no link
            return None
        if self.empty(path):  # else it is a folder of ours, with files of ours
            self._put(path, _Entry(stat.S_IFLNK | 0o777, os.fsencode(target)))
        return target

    def _inside(self, path: str) -> str:
        """Give the place of a path in the archive, where links may lead to its folder."""
        folder, _, name = path.rpartition("/")
        return f"{follow(folder, self._link_inside).rstrip('/')}/{name}"

    def _link_inside(self, path: str) -> str | None:
        entry = self._entries.get(path)
        return os.fsdecode(entry.content) if entry is not None and stat.S_ISLNK(entry.mode) else None

    def _put(self, path: str, entry: _Entry) -> None:
        self._folder(path.rpartition("/")[0])
        self._entries[path] = entry

    def _folder(self, path: str, mode: int | None = None) -> None:
        if path in {"", "/"} or (path in self._entries and mode is None):
            return
        self._folder(path.rpartition("/")[0])
        self._entries[path] = _Entry(stat.S_IFDIR | (0o755 if mode is None else mode))

    def _leave_out(self, path: Path, reason: str) -> None:
        self._left_out.setdefault(reason, []).append(str(path))


def _is_guests_own(path: Path) -> bool:
    return any(path == own or own in path.parents for own in _GUESTS_OWN)


def _some(things: Sequence[str]) -> str:
    return things[0] if len(things) == 1 else f"{things[0]} and {len(things) - 1:,} more"


def _member(path: str, mode: int, content: bytes, number: int, links: int) -> bytes:
    name = os.fsencode(path.lstrip("/")) + b"\0"
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name), 0)  # root's, of 1970
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
