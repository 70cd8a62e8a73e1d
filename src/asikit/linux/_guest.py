"""The guest's files: an initramfs with init, busybox, the workload and the libraries that it needs."""

import re
import shutil
import stat
import subprocess
from pathlib import Path

from asikit.linux.errors import RecordError

__all__ = ["Initramfs", "find_busybox", "workload_files"]

_ETC = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "/etc/group": "root:x:0:\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\n",
}
_LINE_BYTES = 256
"""Of a script's first line, as the kernel reads it (``BINPRM_BUF_SIZE``)."""

_MOUNT_POINTS = ("/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/var", "/asi")  # noqa: S108  the guest's, not ours


class Initramfs:
    """An initramfs being put together: a cpio archive in the ``newc`` format.

    The format: Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's source.
    """

    def __init__(self) -> None:
        """Begin with the folders that init mounts on, and the least that C libraries want in /etc."""
        self._entries: dict[str, tuple[int, bytes]] = {}
        for folder in _MOUNT_POINTS:
            self._folder(folder)
        for path, text in _ETC.items():
            self.add(path, text.encode())

    def __contains__(self, path: str) -> bool:
        """Tell whether the archive has the path."""
        return path in self._entries

    def empty(self, folder: str) -> bool:
        """Tell whether nothing has been added below a folder."""
        return not any(path.startswith(f"{folder}/") for path in self._entries)

    def add(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._folder(str(Path(path).parent))
        self._entries[path] = (stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._folder(str(Path(path).parent))
        self._entries[path] = (stat.S_IFLNK | 0o777, target.encode())

    def add_host_file(self, path: Path) -> None:
        """Add a file of this machine under its own path; what a link points to is added too.

        :raises RecordError: It cannot be read.
        """
        try:
            if path.is_symlink():
                target = path.resolve(strict=True)
                self.link(str(path), str(target))
                path = target
            if path.is_dir():
                self._folder(str(path))
            else:
                self.add(str(path), path.read_bytes(), mode=stat.S_IMODE(path.stat().st_mode))
        except OSError as error:
            raise RecordError(f"cannot read {path} for the guest: {error.strerror}") from error

    def add_host_tree(self, path: Path) -> None:
        """Add a file or a whole folder of this machine, and the libraries of the programs in it.

        :raises RecordError: There is no such thing, or it cannot be read.
        """
        if not path.exists():
            raise RecordError(f"--include {path}: no such file or folder")
        if path.is_dir():
            self._folder(str(path))
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in below:
            if file.is_symlink():
                self.link(
                    str(file), str(file.readlink())
                )  # as it is; a linked folder's content only if it is below, too
                if file.is_file():
                    self.add_host_file(file.resolve())
            elif file.is_dir():
                self._folder(str(file))
            elif file.is_file():
                self.add_host_file(file)
            if file.is_file():
                for needed in _libraries(file):
                    self.add_host_file(needed)

    def add_busybox(self, busybox: Path) -> None:
        """Add busybox, with a link in /bin for each applet whose name nothing else has."""
        self.add("/bin/busybox", busybox.read_bytes(), mode=0o755)
        for applet in _applets(busybox):
            if f"/bin/{applet}" not in self and f"/usr/bin/{applet}" not in self:
                self.link(f"/bin/{applet}", "busybox")

    def archive(self) -> bytes:
        """Give the cpio archive. The same entries give the same bytes."""
        parts = [_member(path, *entry, number) for number, (path, entry) in enumerate(sorted(self._entries.items()), 1)]
        return b"".join([*parts, _member("TRAILER!!!", 0, b"", 0)])

    def _folder(self, path: str) -> None:
        if path == "/" or path in self._entries:
            return
        self._folder(str(Path(path).parent))
        self._entries[path] = (stat.S_IFDIR | 0o755, b"")


def _member(path: str, mode: int, content: bytes, number: int) -> bytes:
    name = path.lstrip("/").encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)  # root's, one link, of 1970
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def workload_files(command: str) -> tuple[Path | None, list[Path]]:
    """Find the workload's program on this machine: its path (None: left to busybox) and all files that it needs.

    :raises RecordError: There is no such program here, and no such busybox applet.
    """
    found = shutil.which(command)
    if found is None:
        if command in _applets(find_busybox()):
            return None, []
        raise RecordError(
            f"no program {command!r} on this machine, and busybox has none of that name; install it or give its path"
        )
    path = Path(found).absolute()
    return path, [path, *_libraries(path)]


def find_busybox() -> Path:
    """Find a busybox that needs no libraries.

    :raises RecordError: There is none.
    """
    found = shutil.which("busybox")
    if found is None or _libraries(Path(found)):
        which = (
            "busybox is missing" if found is None else f"{found} needs libraries, and the guest wants one that does not"
        )
        raise RecordError(f"{which}; install one (Debian: apt-get install busybox-static)")
    return Path(found).resolve()


def _applets(busybox: Path) -> list[str]:
    done = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RecordError(f"{busybox} --list failed; install another (Debian: apt-get install busybox-static)")
    return done.stdout.split()


def _libraries(program: Path) -> list[Path]:
    """List the shared libraries of an ELF program, or a script's interpreter and its libraries."""
    try:
        with program.open("rb") as file:
            head = file.read(_LINE_BYTES)
    except OSError as error:
        raise RecordError(f"cannot read {program} for the guest: {error.strerror}") from error
    if head.startswith(b"#!"):
        return _interpreter(head)
    if not head.startswith(b"\x7fELF"):
        return []
    ldd = shutil.which("ldd")
    if ldd is None:
        raise RecordError("ldd is missing; install it (Debian: apt-get install libc-bin)")
    told = subprocess.run([ldd, str(program)], capture_output=True, text=True, check=False).stdout
    missing = re.search(r"(\S+) => not found", told)
    if missing:
        raise RecordError(f"{program} needs the library {missing[1]}, which is not on this machine; install it")
    return [Path(match[1]) for match in re.finditer(r"(/\S+) \(0x", told)]


def _interpreter(script: bytes) -> list[Path]:
    """List a script's interpreter with its libraries; of ``#!/usr/bin/env NAME`` also what it finds."""
    words = script[2:].split(b"\n")[0].decode("utf-8", "replace").split()
    interpreter = Path(words[0]) if words else None
    if interpreter is None or not interpreter.is_file():
        return []
    needed = [interpreter, *_libraries(interpreter)]
    found = shutil.which(words[1]) if interpreter.name == "env" and len(words) > 1 else None
    return [*needed, Path(found), *_libraries(Path(found))] if found else needed
