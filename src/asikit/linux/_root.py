"""A whole folder as the guest's root file system."""

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.linux._links import follow
from asikit.linux.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GUEST_PATH", "MODULES", "find_in_root", "root_image"]

GUEST_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where the guest looks for programs."""

MODULES = ("virtio_pci", "virtio_blk", "ext4")
"""What the guest needs to mount the image."""

_SPARE_BYTES = 512 << 20
"""Room for what the workload writes; the image is sparse."""

_FILE_BYTES = 4096
"""For a file's inode and the unfilled rest of its last block."""


def root_image(folder: Path, image: Path, *, say: "Callable[[str], None]") -> Path:
    """Make an ext4 image of a folder, without root: ``mke2fs -d``.

    :raises RecordError: mke2fs is missing or failed.
    """
    mke2fs = shutil.which("mke2fs") or shutil.which("mke2fs", path="/usr/sbin:/sbin")
    if mke2fs is None:
        raise RecordError("mke2fs is missing; install it (Debian: apt-get install e2fsprogs)")
    used = _used_bytes(folder)
    size = used * 5 // 4 + _SPARE_BYTES
    say(f"making an ext4 image of {folder} ({used >> 20} MiB)")
    command = [mke2fs, "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", str(folder), str(image), f"{size >> 10}k"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise RecordError(f"mke2fs could not make an image of {folder}: {lines[-1]}")
    return image


def find_in_root(root: Path, command: str) -> str:
    """Find the workload's program inside a root, and give its path there.

    :raises RecordError: The root is not a folder, or has no such program.
    """
    if not root.is_dir():
        raise RecordError(f"--root {root}: no such folder")
    if root.resolve() == Path("/"):
        raise RecordError(f"--root {root}: this machine's own root holds /proc and /sys; give a copy of what is needed")
    paths = [f"/{command.lstrip('/')}"] if "/" in command else [f"{folder}/{command}" for folder in GUEST_PATH]
    for path in paths:
        found = _inside(root, path)
        if found is not None and found.is_file() and os.access(found, os.X_OK):
            return path
    raise RecordError(f"--root {root} has no program {command!r}; there is no {' or '.join(paths)} in it")


def _inside(root: Path, path: str) -> Path | None:
    """Follow a path as the guest will, whose ``/`` is the root: its absolute links stay inside."""

    def target(here: str) -> str | None:
        on_host = root / here.lstrip("/")
        return str(on_host.readlink()) if on_host.is_symlink() else None

    try:
        return root / follow(path, target).lstrip("/")
    except OSError:
        return None


def _used_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        status = path.lstat()
        total += _FILE_BYTES + (status.st_size if stat.S_ISREG(status.st_mode) else 0)
    return total
