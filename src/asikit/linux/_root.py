"""A whole folder as the guest's root file system."""

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.linux.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["root_image"]

_SPARE_BYTES = 512 << 20
"""Room for what the workload writes; the image is sparse."""


def root_image(folder: Path, image: Path, *, say: "Callable[[str], None]") -> Path:
    """Make an ext4 image of a folder, without root: ``mke2fs -d``.

    :raises RecordError: It is not a folder, mke2fs is missing or failed.
    """
    if not folder.is_dir():
        raise RecordError(f"--root {folder}: no such folder")
    mke2fs = shutil.which("mke2fs") or shutil.which("mke2fs", path="/usr/sbin:/sbin")
    if mke2fs is None:
        raise RecordError("mke2fs is missing; install it (Debian: apt-get install e2fsprogs)")
    used = sum(path.lstat().st_size + 4096 for path in folder.rglob("*"))
    size = used * 5 // 4 + _SPARE_BYTES
    say(f"making an ext4 image of {folder} ({used >> 20} MiB)")
    command = [mke2fs, "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", str(folder), str(image), f"{size >> 10}k"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RecordError(f"mke2fs could not make an image of {folder}: {lines[-1]}")
    return image
