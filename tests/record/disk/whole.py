"""A whole disk as a file, for programs that know ext4 from another source than ours."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from asikit.record.disk.geometry import BLOCK_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from asikit.record.disk import HostDisk


def write_image(disk: HostDisk, path: Path) -> None:
    """Write a disk to a file: what has been allotted, until nothing more is, and what was written."""
    geometry, rooms = disk._geometry, disk._rooms
    seen: set[int] = set()
    with path.open("wb") as file:
        file.truncate(disk.size)

        def copy(first: int, count: int) -> None:
            file.seek(first * BLOCK_BYTES)
            file.write(disk.read(first * BLOCK_BYTES, count * BLOCK_BYTES))

        while True:
            runs = [
                (start, count)
                for room in (rooms.inodes, rooms.meta, rooms.data)
                for start, (count, _) in zip(room._starts, room._runs, strict=True)
            ]
            new = [(start, count) for start, count in runs if start not in seen]
            if not new:
                break
            for start, count in new:
                seen.add(start)
                copy(start, count)
        for group in range(geometry.groups):
            start = group * geometry.group_blocks
            copy(start, geometry.inode_table if group == 0 else 1)
            copy(start + geometry.block_bitmap, 2)
        for block in disk._scratch._written:
            copy(block, 1)


def complaints(image: Path) -> list[str]:
    """Give what e2fsck says against a file system in its passes 1 to 4.

    The fifth compares bitmaps, in which what may be allotted is used.
    """
    done = subprocess.run([_tool("e2fsck"), "-fn", image], capture_output=True, text=True, check=False)
    before, fifth, _ = done.stdout.partition("Pass 5: ")
    assert fifth, done.stdout + done.stderr
    return [line for line in before.splitlines() if line and not line.startswith("Pass ")]


def debugfs(image: Path, request: str) -> str:
    """Have debugfs answer a request."""
    done = subprocess.run([_tool("debugfs"), "-R", request, image], capture_output=True, check=True)
    return done.stdout.decode(errors="surrogateescape")


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    assert found is not None
    return found
