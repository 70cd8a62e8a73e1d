"""Cached file pages, reading and writing them: mm/filemap.c, mm/shmem.c, lib/iov_iter.c."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol

from asikit.machine.mm.errors import MmError, OutOfMemoryError
from asikit.machine.mm.gfp import Gfp
from asikit.machine.mm.inode import TMPFS, FileSystem, Inode
from asikit.machine.mm.layout import PAGE_SHIFT, PAGE_SIZE
from asikit.machine.mm.text import Symbol, kernel_function

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.ephmap import Ephmap
    from asikit.machine.mm.mmstruct import MmStruct
    from asikit.machine.mm.services import MmServices

__all__ = ["CopyFromUser", "CopyToUser", "PageCache", "UserCopyError"]

_MEMCPY = Symbol("memcpy_erms")


class CopyToUser(Protocol):
    """The caller's `copy_to_user()`."""

    def __call__(self, uaddr: int, data: bytes, /) -> int:
        """Store bytes at a user address and return how many were *not* stored because of a fault, 0 if all were."""
        ...


class CopyFromUser(Protocol):
    """The caller's `copy_from_user()`."""

    def __call__(self, uaddr: int, size: int, /) -> bytes:
        """Return the bytes at a user address, fewer than asked if there is a fault half-way."""
        ...


class UserCopyError(MmError):
    """Not one byte could be copied from or to user memory.

    :ivar address: The user address.
    """

    errno_name: ClassVar[str] = "EFAULT"

    def __init__(self, address: int) -> None:
        super().__init__(f"user address {address:#x}: cannot be copied from or to")
        self.address = address


class PageCache:
    """The page cache of all files: each page once, found by inode and index.

    Content is reached through the direct map, or through the ephemeral mapping for pages and accesses that it serves.
    """

    def __init__(self, services: MmServices, ephmap: Ephmap | None = None) -> None:
        self.access: KernelMemory = services.access
        self._services = services
        self._allocator = services.allocator
        self._virt = services.layout.virt
        self._ephmap = ephmap
        self.users: dict[MmStruct, None] = {}
        """Address spaces that may map files, in the order in which they were made."""

    def new_inode(self, name: str, filesystem: FileSystem = TMPFS, backing: bytes = b"") -> Inode:
        """Make a file with one reference, the caller's.

        :param backing: What the disk has of it, which also is its size; empty for tmpfs.
        """
        lock = self._services.new_lock(f"inode_lock of {name}")
        return Inode(name, filesystem, lock, self.truncate_inode_pages, len(backing), backing)

    def shmem_zero_setup(self, length: int) -> Inode:
        """Make the file behind shared anonymous memory, `length` bytes of zeroes."""
        inode = self.new_inode("/dev/zero (deleted)")
        inode.size = length
        return inode

    def populate(self, inode: Inode, content: bytes) -> None:
        """Give a file its content without a user to copy it from, `kernel_write()`; OutOfMemoryError half-way."""
        for start in range(0, len(content), PAGE_SIZE):
            self._write_page(inode, start >> PAGE_SHIFT, 0, content[start : start + PAGE_SIZE])
            inode.size = max(inode.size, min(start + PAGE_SIZE, len(content)))

    def content(self, inode: Inode) -> bytes:
        """Return a file's bytes, for reports: missing pages are looked up on the disk, not cached."""
        pages = range((inode.size + PAGE_SIZE - 1) >> PAGE_SHIFT)
        return b"".join(self._peek(inode, index) for index in pages)[: inode.size]

    # Reading

    def read_iter(self, inode: Inode, pos: int, uaddr: int, count: int, copy_to_user: CopyToUser) -> int:
        """Copy up to `count` bytes from position `pos` to user memory, `f_op->read_iter`; return how many.

        Fewer at the end of the file, or before a fault or a lack of memory half-way.
        Raises UserCopyError or OutOfMemoryError if nothing was copied.
        """
        with self._inside(inode.filesystem.read_iter):
            done = 0
            try:
                while done < count and pos + done < inode.size:
                    index, offset = divmod(pos + done, PAGE_SIZE)
                    size = min(PAGE_SIZE - offset, count - done, inode.size - pos - done)
                    copied = self._read_page(inode, index, offset, size, uaddr + done, copy_to_user)
                    done += copied
                    if copied < size:
                        break
            except OutOfMemoryError:
                if not done:
                    raise
            else:
                if not done and count and pos < inode.size:
                    raise UserCopyError(uaddr)
            return done

    def _read_page(  # noqa: PLR0917 - what copy_page_to_iter needs, and the file
        self, inode: Inode, index: int, offset: int, size: int, uaddr: int, copy_to_user: CopyToUser
    ) -> int:
        pfn = inode.pages.get(index)
        if pfn is None and inode.filesystem is TMPFS:  # a hole: "faster to copy the zero page" (mm/shmem.c)
            return self.copy_page_to_iter(self._services.zero_page, offset, size, uaddr, copy_to_user)
        if pfn is None:
            pfn = self.filemap_get_folio(inode, index)
        self._allocator.get_page(pfn)
        try:
            return self.copy_page_to_iter(pfn, offset, size, uaddr, copy_to_user)
        finally:
            self._allocator.put_page(pfn)

    @kernel_function()
    def copy_page_to_iter(self, pfn: int, offset: int, size: int, uaddr: int, copy_to_user: CopyToUser) -> int:
        """Copy part of a page to user memory (lib/iov_iter.c); return how many bytes were copied."""
        return self._copy_to_iter(pfn, offset, size, uaddr, copy_to_user)

    @kernel_function()
    def _copy_to_iter(self, pfn: int, offset: int, size: int, uaddr: int, copy_to_user: CopyToUser) -> int:
        if self._ephmap is not None and self._ephmap.serves_read(pfn):
            with self._ephmap.mapped(pfn) as vaddr:
                data = self.access.load(vaddr + offset, size)
        else:
            data = self.access.load(self._virt(pfn << PAGE_SHIFT) + offset, size)
        return size - copy_to_user(uaddr, data)

    # Writing

    def write_iter(self, inode: Inode, pos: int, uaddr: int, count: int, copy_from_user: CopyFromUser) -> int:
        """Copy up to `count` bytes from user memory to position `pos`, `f_op->write_iter`; return how many.

        Fewer before a fault or a lack of memory half-way. The file grows as needed; what it skips reads as zeroes.
        Raises UserCopyError or OutOfMemoryError if nothing was copied.
        """
        with self._inside(inode.filesystem.write_iter), inode.lock:
            return self.generic_perform_write(inode, pos, uaddr, count, copy_from_user)

    @kernel_function()
    def generic_perform_write(
        self, inode: Inode, pos: int, uaddr: int, count: int, copy_from_user: CopyFromUser
    ) -> int:
        """Write page by page (mm/filemap.c); see `write_iter`, which also takes the inode's lock."""
        done = 0
        try:
            while done < count:
                index, offset = divmod(pos + done, PAGE_SIZE)
                size = min(PAGE_SIZE - offset, count - done)
                data = copy_from_user(uaddr + done, size)
                if data:
                    self._write_page(inode, index, offset, data)
                    done += len(data)
                    inode.size = max(inode.size, pos + done)
                if len(data) < size:
                    break
        except OutOfMemoryError:
            if not done:
                raise
        else:
            if not done and count:
                raise UserCopyError(uaddr)
        return done

    def _write_page(self, inode: Inode, index: int, offset: int, data: bytes) -> None:
        """Store bytes into a page of a file, which is made if it is missing.

        A new page is found by others only when it holds the data: the kernel locks it for as long.
        """
        pfn = inode.pages.get(index)
        if pfn is None:
            fresh = self._write_begin(inode, index, whole=len(data) == PAGE_SIZE)
            self.copy_page_from_iter_atomic(fresh, offset, data)
            pfn = self._filemap_add_folio(inode, index, fresh)
            if pfn == fresh:
                return
        self._allocator.get_page(pfn)
        try:
            self.copy_page_from_iter_atomic(pfn, offset, data)
        finally:
            self._allocator.put_page(pfn)

    def _write_begin(self, inode: Inode, index: int, *, whole: bool) -> int:
        """Make a page for a write: what the write does not cover comes from the disk, or is zero."""
        with self._inside((inode.filesystem.write_begin,)):
            if whole:
                return self._allocator.alloc_pages(inode.filesystem.gfp, kind=inode.filesystem.kind)
            return self._new_page(inode, index)

    @kernel_function()
    def copy_page_from_iter_atomic(self, pfn: int, offset: int, data: bytes) -> None:
        """Store what a user wrote into a page (lib/iov_iter.c)."""
        if self._ephmap is not None and self._ephmap.serves_write(pfn):
            with self._ephmap.mapped(pfn, writable=True) as vaddr:
                self.access.store(vaddr + offset, data)
        else:
            self.access.store(self._virt(pfn << PAGE_SHIFT) + offset, data)

    # Finding pages

    @kernel_function("filemap_get_pages")
    def filemap_get_folio(self, inode: Inode, index: int) -> int:
        """Return the frame of a page of a file, made and filled if it is missing; the cache keeps the reference.

        What `filemap_get_pages()`, `filemap_fault()` and `shmem_get_folio()` do when the page is not cached.
        """
        while (pfn := inode.pages.get(index)) is None:
            truncations = inode.truncations
            pfn = self._new_page(inode, index)
            if inode.truncations == truncations:
                return self._filemap_add_folio(inode, index, pfn)
            self._allocator.put_page(pfn)  # it has what the disk has no longer
        return pfn

    def truncate_inode_pages(self, inode: Inode) -> None:
        """Drop all cached pages of a file that nobody maps (mm/truncate.c)."""
        pages = list(inode.pages.values())
        inode.pages.clear()
        for pfn in pages:
            self._allocator.page(pfn).owner = None
            self._allocator.put_page(pfn)

    @kernel_function("truncate_pagecache")
    def truncate(self, inode: Inode, size: int) -> None:
        """Set a file's length (mm/truncate.c): pages beyond it go, also where they are mapped; copies of them too."""
        with inode.lock:
            shrinks = size < inode.size
            inode.size = size
            inode.backing = inode.backing[:size]
            inode.truncations += 1
            if not shrinks:
                return
            first = (size + PAGE_SIZE - 1) >> PAGE_SHIFT
            unmapped: set[MmStruct] = set()
            while mm := next((user for user in self.users if user not in unmapped), None):  # forks add some meanwhile
                mm.unmap_mapping_range(inode, first)
                unmapped.add(mm)
            for index in [index for index in inode.pages if index >= first]:
                self._allocator.put_page(inode.pages.pop(index))
            if size % PAGE_SIZE and (pfn := inode.pages.get(size >> PAGE_SHIFT)) is not None:
                self.access.store(self._virt(pfn << PAGE_SHIFT) + size % PAGE_SIZE, bytes(-size % PAGE_SIZE))

    def _new_page(self, inode: Inode, index: int) -> int:
        """Allocate a page with what the disk has of it, zeroes after its end; it is not in the cache yet."""
        data = inode.backing[index << PAGE_SHIFT : (index + 1) << PAGE_SHIFT]
        gfp = inode.filesystem.gfp if len(data) == PAGE_SIZE else inode.filesystem.gfp | Gfp.ZERO
        pfn = self._allocator.alloc_pages(gfp, kind=inode.filesystem.kind)
        if data:  # as a RAM disk's driver does (drivers/block/brd.c)
            with self._inside((_MEMCPY,)):
                self.access.store(self._virt(pfn << PAGE_SHIFT), data)
        return pfn

    def _filemap_add_folio(self, inode: Inode, index: int, pfn: int) -> int:
        """Put a page into the cache and return it; if somebody was faster, free it and return theirs."""
        found = inode.pages.setdefault(index, pfn)
        if found != pfn:
            self._allocator.put_page(pfn)
            return found
        page = self._allocator.page(pfn)
        page.owner, page.index = inode, index
        return pfn

    def _peek(self, inode: Inode, index: int) -> bytes:
        pfn = inode.pages.get(index)
        if pfn is not None:
            return self.access.load(self._virt(pfn << PAGE_SHIFT), PAGE_SIZE)
        return inode.backing[index << PAGE_SHIFT : (index + 1) << PAGE_SHIFT].ljust(PAGE_SIZE, b"\0")

    @contextmanager
    def _inside(self, symbols: tuple[Symbol, ...]) -> Iterator[None]:
        """Run as the innermost of these functions."""
        for entered, symbol in enumerate(symbols):
            try:
                self.access.enter(symbol)
            except BaseException:
                for _ in range(entered):
                    self.access.leave()
                raise
        try:
            yield
        finally:
            for _ in symbols:
                self.access.leave()
