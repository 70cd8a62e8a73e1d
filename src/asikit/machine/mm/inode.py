"""Files: what holds cached pages, and which functions of which file system (built in, or a module) reach them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from asikit.machine.mm.gfp import GFP_HIGHUSER_MOVABLE, Gfp
from asikit.machine.mm.text import Symbol
from asikit.trace import PageKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["TMPFS", "FileSystem", "Inode", "filesystem"]


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system's functions, by their names, and the kind of its pages.

    :ivar read_iter: Functions from `vfs_read` down to, not including, what loops over pages: the first is
        `f_op->read_iter`.
    :ivar write_iter: Functions from `f_op->write_iter` down to `generic_perform_write`.
    :ivar write_begin: `a_ops->write_begin`: finds or makes the page.
    :ivar gfp: `mapping_gfp_mask()` of its inodes.
    """

    name: str
    kind: PageKind
    read_iter: tuple[Symbol, ...]
    write_iter: tuple[Symbol, ...]
    write_begin: Symbol
    gfp: Gfp = GFP_HIGHUSER_MOVABLE


TMPFS: Final = FileSystem(
    "tmpfs",
    PageKind.SHMEM,
    read_iter=(Symbol("shmem_file_read_iter"),),
    write_iter=(Symbol("generic_file_write_iter"), Symbol("__generic_file_write_iter")),
    write_begin=Symbol("shmem_write_begin"),
)
"""mm/shmem.c. Also what is behind shared anonymous memory."""


def filesystem(name: str, module: str | None = None) -> FileSystem:
    """Return a file system by name.

    :param name: "tmpfs", or any other name: a file system on a disk, whose pages are ordinary page cache and whose
        functions are named after it (`ext4_file_read_iter`). "overlay" has the names that fs/overlayfs has.
    :param module: The module whose text the file system's own functions are in; None if it is built in. tmpfs is
        always built in.
    """
    if name == TMPFS.name:
        return TMPFS
    read, write = {"overlay": ("ovl_read_iter", "ovl_write_iter")}.get(
        name, (f"{name}_file_read_iter", f"{name}_file_write_iter")
    )
    return FileSystem(
        name,
        PageKind.PAGE_CACHE,
        read_iter=(Symbol(read, module), Symbol("generic_file_read_iter"), Symbol("filemap_read")),
        write_iter=(Symbol(write, module), Symbol("generic_file_write_iter"), Symbol("__generic_file_write_iter")),
        write_begin=Symbol(f"{name}_write_begin", module),
    )


@dataclass(slots=True, eq=False)
class Inode:
    """A file and the pages that cache it, `struct inode` with its `i_mapping`. Made by `PageCache.new_inode`.

    :ivar name: Its path, for messages.
    :ivar size: Length in bytes, `i_size`.
    :ivar lock: `inode_lock()`: one writer at a time.
    :ivar backing: What the disk has, for a file system that is on one: read into pages when they are missing.
    :ivar pages: Frame by page of the file; the cache holds one reference to each.
    :ivar truncations: How often its length was set.
    :ivar count: References to the inode: open files, areas, directories. With the last the pages go.
    """

    name: str
    filesystem: FileSystem
    lock: AbstractContextManager[None]
    evict: Callable[[Inode], None] = field(repr=False)
    size: int = 0
    backing: bytes = b""
    pages: dict[int, int] = field(default_factory=dict)
    truncations: int = 0
    count: int = 1

    def get(self) -> None:
        """Count one more user, `ihold()`."""
        if self.count <= 0:
            raise RuntimeError(f"inode {self.name} is used after its last user put it")
        self.count += 1

    def put(self) -> None:
        """Count one user less and free the pages with the last, `iput()`."""
        if self.count <= 0:
            raise RuntimeError(f"inode {self.name} is put more often than it was got")
        self.count -= 1
        if self.count == 0:
            self.evict(self)
