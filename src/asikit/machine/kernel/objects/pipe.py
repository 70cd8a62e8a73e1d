"""Pipes (fs/pipe.c): a ring of pages between two open files.

Head, tail and the ring of `struct pipe_buffer` are in slab memory. The data is in pages of its own, from
`alloc_page(GFP_HIGHUSER | __GFP_ACCOUNT)` as in Linux.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from asikit.machine.kernel.core.waiting import WaitQueue
from asikit.machine.kernel.objects.files import File
from asikit.machine.kernel.objects.kernel_object import KernelObject, Word
from asikit.machine.mm.errors import OutOfMemoryError
from asikit.machine.mm.gfp import GFP_HIGHUSER, Gfp
from asikit.machine.mm.layout import PAGE_SIZE
from asikit.machine.mm.text import kernel_function
from asikit.machine.uapi.abi import PIPE_BUFFERS, OpenFlag
from asikit.machine.uapi.errno import Errno, SyscallError

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.mm.access import KernelMemory

__all__ = ["Pipe", "PipeReader", "PipeWriter", "create_pipe_files"]


class PipeRing(KernelObject):
    """The array of `struct pipe_buffer`: page frame, offset and length of each, 40 bytes apiece."""

    cache_name = "kmalloc-cg-1k"
    size = 1024
    entry_bytes: ClassVar[int] = 40

    def entry(self, index: int) -> int:
        """Return the address of a buffer's entry."""
        return self.address + self.entry_bytes * (index % PIPE_BUFFERS)


class Pipe(KernelObject):
    """`struct pipe_inode_info`: what both ends refer to. `mutex` guards everything in it."""

    cache_name = "kmalloc-cg-192"
    size = 192
    head = Word(0x40)
    """Where the next page is filled; counts up for ever."""
    tail = Word(0x48)
    """Where the next page is read; counts up for ever."""
    readers = Word(0x50)
    """Open reading ends."""
    writers = Word(0x58)
    """Open writing ends."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        try:
            self.ring = PipeRing(kernel)
        except BaseException:
            self.free()
            raise
        self.readers = 1
        self.writers = 1
        self.mutex = kernel.mutex("pipe")
        self.rd_wait = WaitQueue(kernel, "a pipe to be written")
        self.wr_wait = WaitQueue(kernel, "a pipe to be read")
        self._spare: int | None = None

    @property
    def access(self) -> KernelMemory:
        """How its code reaches memory."""
        return self.kernel.access

    @property
    def used(self) -> int:
        """Pages in the ring."""
        return self.head - self.tail

    @property
    def is_full(self) -> bool:
        """Whether a writer has to wait."""
        return self.used >= PIPE_BUFFERS

    def buffer(self, index: int) -> tuple[int, int, int]:
        """Return page frame, offset and length of a buffer."""
        entry = self.ring.entry(index)
        place = self.access.load_u64(entry + 8)
        return self.access.load_u64(entry), place >> 32, place & 0xFFFFFFFF

    def set_buffer(self, index: int, pfn: int, offset: int, length: int) -> None:
        """Write a buffer's entry."""
        entry = self.ring.entry(index)
        self.access.store_u64(entry, pfn)
        self.access.store_u64(entry + 8, offset << 32 | length)

    def new_page(self) -> int:
        """Return a page for data. Raises OutOfMemoryError."""
        if self._spare is not None:
            pfn, self._spare = self._spare, None
            return pfn
        return self.kernel.allocator.alloc_pages(GFP_HIGHUSER | Gfp.ACCOUNT)

    @kernel_function()
    def copy_page_from_iter(self, pfn: int, offset: int, size: int, uaddr: int) -> bool:
        """Copy from user memory into a page; returns whether all of it could be read."""
        data = self.kernel.uaccess.copy_from_user(uaddr, size)
        self.access.store(self.kernel.layout.virt(pfn * PAGE_SIZE) + offset, data)
        return len(data) == size

    @kernel_function()
    def anon_pipe_buf_release(self, pfn: int) -> None:
        """Give up a page whose data has been read; one is kept for the next write, `pipe->tmp_page`."""
        if self._spare is None:
            self._spare = pfn
        else:
            self.kernel.allocator.free_pages(pfn)

    def closed(self, *, last: bool) -> None:
        """One end is closed: wake who waits for the other; free everything with the last."""
        self.rd_wait.wake_up()
        self.wr_wait.wake_up()
        if last:
            self.free_pipe_info()

    @kernel_function()
    def free_pipe_info(self) -> None:
        """Free everything, when both ends are closed."""
        for index in range(self.tail, self.head):
            self.kernel.allocator.free_pages(self.buffer(index)[0])
        if self._spare is not None:
            self.kernel.allocator.free_pages(self._spare)
        self.ring.free()
        self.free()


class PipeReader(File):
    """The end that is read."""

    def __init__(self, pipe: Pipe, flags: OpenFlag) -> None:
        super().__init__(pipe.kernel, OpenFlag.RDONLY | flags)
        self._pipe = pipe

    @kernel_function("pipe_read")
    def read_iter(self, ubuf: int, count: int, position: int) -> int:  # a pipe has no positions
        """Read what is there; sleep while nothing is and somebody may still write."""
        done = 0
        while count:
            with self._pipe.mutex:
                was_full = self._pipe.is_full
                done, fault = self._read_buffers(ubuf, count)
                writers = self._pipe.writers
            if done and was_full:
                self._pipe.wr_wait.wake_up()
            if fault and not done:
                raise SyscallError(Errno.EFAULT)
            if done or not writers:
                break
            if self.nonblocking:
                raise SyscallError(Errno.EAGAIN)
            self._pipe.rd_wait.wait_event(lambda: bool(self._pipe.used) or not self._pipe.writers)
        return done

    def _read_buffers(self, ubuf: int, count: int) -> tuple[int, bool]:
        """Copy what is there; returns how many bytes, and whether user memory stopped it.

        What was copied of a page before a fault does not count as read, as in Linux.
        """
        pipe, done = self._pipe, 0
        while done < count and pipe.used:
            index = pipe.tail
            pfn, offset, length = pipe.buffer(index)
            size = min(length, count - done)
            to_user = self.kernel.uaccess.copy_to_user
            if self.kernel.page_cache.copy_page_to_iter(pfn, offset, size, ubuf + done, to_user) < size:
                return done, True
            done += size
            if size == length:
                pipe.tail = index + 1
                pipe.anon_pipe_buf_release(pfn)
            else:
                pipe.set_buffer(index, pfn, offset + size, length - size)
        return done, False

    @kernel_function("pipe_release")
    def release(self) -> None:
        """Nobody reads any more: writers get EPIPE."""
        pipe = self._pipe
        with pipe.mutex:
            pipe.readers -= 1
            last = not pipe.readers and not pipe.writers
        pipe.closed(last=last)


class PipeWriter(File):
    """The end that is written."""

    def __init__(self, pipe: Pipe, flags: OpenFlag) -> None:
        super().__init__(pipe.kernel, OpenFlag.WRONLY | flags)
        self._pipe = pipe

    @kernel_function("pipe_write")
    def write_iter(self, ubuf: int, count: int, position: int) -> int:  # a pipe has no positions
        """Write everything; sleep while the pipe is full and somebody may still read."""
        pipe, done, error, first = self._pipe, 0, None, True
        while done < count and error is None:
            before = done
            with pipe.mutex:
                was_empty = not pipe.used
                if first and pipe.readers:
                    done, error = self._merge(ubuf, count)
                if error is None:
                    done, error = self._append(ubuf, count, done)
            first = False
            if done > before and was_empty:
                pipe.rd_wait.wake_up()
            if done < count and error is None:
                error = self._wait_for_room()
        if error is not None and not done:
            raise SyscallError(error)
        return done

    def _merge(self, ubuf: int, count: int) -> tuple[int, Errno | None]:
        """Add the bytes that do not fill a page to the last page, if they fit into it."""
        pipe = self._pipe
        odd = count % PAGE_SIZE
        last = pipe.head - 1
        if not odd or last < pipe.tail:
            return 0, None
        pfn, offset, length = pipe.buffer(last)
        if offset + length + odd > PAGE_SIZE:
            return 0, None
        if not pipe.copy_page_from_iter(pfn, offset + length, odd, ubuf):
            return 0, Errno.EFAULT
        pipe.set_buffer(last, pfn, offset, length + odd)
        return odd, None

    def _append(self, ubuf: int, count: int, done: int) -> tuple[int, Errno | None]:
        """Fill new pages while there is room; returns how many bytes are written by now, and what stopped it."""
        pipe = self._pipe
        while done < count:
            if not pipe.readers:
                return done, Errno.EPIPE
            if pipe.is_full:
                break
            try:
                pfn = pipe.new_page()
            except OutOfMemoryError:
                return done, Errno.ENOMEM
            # In the ring before it is filled: if user memory faults it stays there empty, as in Linux.
            index, size = pipe.head, min(PAGE_SIZE, count - done)
            pipe.set_buffer(index, pfn, 0, 0)
            pipe.head = index + 1
            if not pipe.copy_page_from_iter(pfn, 0, size, ubuf + done):
                return done, Errno.EFAULT
            pipe.set_buffer(index, pfn, 0, size)
            done += size
        return done, None

    def _wait_for_room(self) -> Errno | None:
        if self.nonblocking:
            return Errno.EAGAIN
        try:
            self._pipe.wr_wait.wait_event(lambda: not self._pipe.is_full or not self._pipe.readers)
        except SyscallError as error:
            return error.errno
        return None

    @kernel_function("pipe_release")
    def release(self) -> None:
        """Nobody writes any more: readers get the end of the file."""
        pipe = self._pipe
        with pipe.mutex:
            pipe.writers -= 1
            last = not pipe.readers and not pipe.writers
        pipe.closed(last=last)


def create_pipe_files(kernel: Kernel, flags: OpenFlag) -> tuple[PipeReader, PipeWriter]:
    """Make a pipe; returns its ends. Raises OutOfMemoryError."""
    pipe = Pipe(kernel)
    try:
        reader = PipeReader(pipe, flags)
    except OutOfMemoryError:
        pipe.free_pipe_info()
        raise
    try:
        return reader, PipeWriter(pipe, flags)
    except OutOfMemoryError:
        pipe.writers = 0
        reader.fput()
        raise
