"""Open files, file descriptors, and the file system's names (fs/read_write.c, fs/file.c, fs/open.c).

A `File` is what a descriptor refers to, `struct file`, shared by dup() and fork(); its position and its count are in
slab memory. What differs between files is in subclasses: here those of the page cache and the console; pipes and KVM's
have modules of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from asikit.machine.kernel.core.errors import ScenarioError
from asikit.machine.kernel.objects.kernel_object import KernelObject, Word
from asikit.machine.mm import GFP_KERNEL_ACCOUNT, PAGE_SIZE, kernel_function
from asikit.machine.mm.inode import TMPFS, FileSystem, filesystem
from asikit.machine.uapi.abi import MAX_RW_COUNT, OpenFlag, Whence
from asikit.machine.uapi.errno import Errno, SyscallError
from asikit.trace import PageKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.inode import Inode
    from asikit.machine.user.program import Program

__all__ = ["ConsoleFile", "File", "FilesStruct", "RegularFile", "Vfs"]

_LOFF_MAX: Final = (1 << 63) - 1
_NAME_MAX: Final = 255
_ANONYMOUS: Final = FileSystem(
    "anon_inodefs", PageKind.KERNEL, read_iter=(), write_iter=(), write_begin=TMPFS.write_begin, gfp=GFP_KERNEL_ACCOUNT
)
_EXECUTABLE_BYTES: Final = 3 * 4096
"""Two pages of text and one of data, as `asikit.machine.kernel.objects.process.load_image` maps them."""
NR_OPEN: Final = 64
"""Descriptors that a process can have (NR_OPEN_DEFAULT, the table that is part of `files_struct`)."""


class File(KernelObject):
    """What a file descriptor refers to, `struct file`."""

    cache_name = "filp"
    size = 232
    seekable: ClassVar[bool] = False
    flags = Word(0x40)
    """How it was opened, `f_flags`."""
    count = Word(0x38)
    """References: descriptors, and system calls under way."""
    position = Word(0x60)
    """Where the next read or write is, bytes."""

    def __init__(self, kernel: Kernel, flags: OpenFlag) -> None:
        super().__init__(kernel)
        self.flags = int(flags)
        # The count is a locked instruction's business, which nothing comes between; the word is what it touches.
        self.references = 1
        self.count = 1
        self.f_pos_lock = kernel.mutex("f_pos_lock")
        self.readable = flags & OpenFlag.ACCMODE in {OpenFlag.RDONLY, OpenFlag.RDWR}
        self.writable = flags & OpenFlag.ACCMODE in {OpenFlag.WRONLY, OpenFlag.RDWR}

    @property
    def access(self) -> KernelMemory:
        """How the code of its operations reaches memory."""
        return self.kernel.access

    @property
    def nonblocking(self) -> bool:
        """Whether operations fail with EAGAIN where they would sleep."""
        return bool(self.flags & OpenFlag.NONBLOCK)

    def get(self) -> None:
        """Take a reference."""
        self.pin()
        self.count = self.references

    def pin(self) -> None:
        """Take a reference, the word not yet written: for several at once, with nothing in between."""
        self.references += 1

    @kernel_function()
    def fput(self) -> None:
        """Drop a reference; the last one closes the file."""
        self.references -= 1
        last = not self.references
        self.count = self.references
        if last:
            self.release()
            self.free()

    @kernel_function()
    def vfs_read(self, ubuf: int, count: int, position: int) -> int:
        """Read into user memory; returns the number of bytes. Raises SyscallError."""
        if not self.readable:
            raise SyscallError(Errno.EBADF)
        return self.read_iter(ubuf, self._verify(ubuf, count, position), position)

    @kernel_function()
    def vfs_write(self, ubuf: int, count: int, position: int) -> int:
        """Write from user memory; returns the number of bytes. Raises SyscallError."""
        if not self.writable:
            raise SyscallError(Errno.EBADF)
        return self.write_iter(ubuf, self._verify(ubuf, count, position), position)

    def _verify(self, ubuf: int, count: int, position: int) -> int:
        """Check the arguments as vfs_read and rw_verify_area do, in their order; returns how much may be done."""
        if not self.kernel.uaccess.access_ok(ubuf, count):
            raise SyscallError(Errno.EFAULT)
        if count > _LOFF_MAX or position + count > _LOFF_MAX:
            raise SyscallError(Errno.EINVAL)
        return min(count, MAX_RW_COUNT)

    def read_iter(self, ubuf: int, count: int, position: int) -> int:  # some files can
        """Read, the file's own way."""
        raise SyscallError(Errno.EINVAL)

    def write_iter(self, ubuf: int, count: int, position: int) -> int:  # some files can
        """Write, the file's own way."""
        raise SyscallError(Errno.EINVAL)

    def write_position(self, position: int | None = None) -> int:
        """Return where a write goes that asks for a position, or for the file's own."""
        return self.position if position is None else position

    def llseek(self, offset: int, whence: int) -> int:  # some files can
        """Set the position; returns it."""
        raise SyscallError(Errno.ESPIPE)

    def ioctl(self, request: int, argument: int) -> int:  # some files can
        """Ask something of a device."""
        raise SyscallError(Errno.ENOTTY)

    def mapped(self) -> Inode:
        """Return what mmap() maps."""
        raise SyscallError(Errno.ENODEV)

    def release(self) -> None:
        """Nobody refers to it any more."""


class RegularFile(File):
    """A file of a file system: its data is in the page cache."""

    seekable = True

    def __init__(self, kernel: Kernel, inode: Inode, flags: OpenFlag) -> None:
        super().__init__(kernel, flags)
        inode.get()
        self.inode = inode

    def read_iter(self, ubuf: int, count: int, position: int) -> int:
        """Copy from the page cache."""
        return self.kernel.page_cache.read_iter(self.inode, position, ubuf, count, self.kernel.uaccess.copy_to_user)

    def write_iter(self, ubuf: int, count: int, position: int) -> int:
        """Copy into the page cache; the file grows as needed."""
        return self.kernel.page_cache.write_iter(self.inode, position, ubuf, count, self.kernel.uaccess.copy_from_user)

    def write_position(self, position: int | None = None) -> int:
        """Its end if it appends (`generic_write_checks`)."""
        return self.inode.size if self.flags & OpenFlag.APPEND else super().write_position(position)

    def llseek(self, offset: int, whence: int) -> int:
        """Set the position, which may be beyond the end of the file (generic_file_llseek)."""
        match whence:
            case Whence.SET:
                base = 0
            case Whence.CUR:
                base = self.position
            case Whence.END:
                base = self.inode.size
            case _:
                raise SyscallError(Errno.EINVAL)
        if not 0 <= base + offset <= _LOFF_MAX:
            raise SyscallError(Errno.EINVAL)
        self.position = base + offset
        return base + offset

    def mapped(self) -> Inode:
        """The file itself."""
        return self.inode

    def release(self) -> None:
        """Drop the reference to the inode."""
        self.inode.put()


class ConsoleFile(File):
    """/dev/console: what programs write there is the machine's output; reading finds its end at once."""

    def read_iter(self, ubuf: int, count: int, position: int) -> int:
        """Nobody types."""
        return 0

    @kernel_function("tty_write")
    def write_iter(self, ubuf: int, count: int, position: int) -> int:
        """Show the bytes."""
        data = self.kernel.uaccess.copy_from_user(ubuf, count)
        if len(data) < count:
            raise SyscallError(Errno.EFAULT)
        self.kernel.userland.vfs.console += data
        return count


class FilesStruct(KernelObject):
    """A process' descriptors, `struct files_struct`: pointers to open files in slab memory."""

    cache_name = "files_cache"
    size = 704
    _FD_ARRAY = 0xA0

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        # Changed together with the slots, under file_lock: after a slot's store, which others may come before.
        self._files: dict[int, File] = {}
        self._reserved: set[int] = set()
        self._close_on_exec: set[int] = set()

    def __iter__(self) -> Iterator[tuple[int, File]]:
        return iter(sorted(self._files.items()))

    def get(self, fd: int) -> File:
        """Return what a descriptor refers to, with one more reference: `fget()`. Raises SyscallError EBADF."""
        if not 0 <= fd < NR_OPEN or not self.kernel.access.load_u64(self._slot(fd)) or fd not in self._files:
            raise SyscallError(Errno.EBADF)
        file = self._files[fd]
        file.get()
        return file

    def check_room(self, count: int = 1) -> None:
        """Raise SyscallError EMFILE unless so many descriptors are free."""
        if len(self._files) + len(self._reserved) + count > NR_OPEN:
            raise SyscallError(Errno.EMFILE)

    def install(self, file: File, *, close_on_exec: bool = False) -> int:
        """Give a file the lowest free descriptor, which takes over the reference. Raises SyscallError EMFILE."""
        self.check_room()
        fd = next(fd for fd in range(NR_OPEN) if fd not in self._files and fd not in self._reserved)
        self._reserved.add(fd)  # get_unused_fd_flags(): nobody else gets it, nobody can close it
        self.kernel.access.store_u64(self._slot(fd), file.address)
        self._reserved.remove(fd)
        self._files[fd] = file
        if close_on_exec:
            self._close_on_exec.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """Free a descriptor. Raises SyscallError EBADF."""
        if fd not in self._files:
            raise SyscallError(Errno.EBADF)
        self.kernel.access.store_u64(self._slot(fd), 0)
        file = self._files.pop(fd, None)
        if file is None:  # another thread was faster
            raise SyscallError(Errno.EBADF)
        self._close_on_exec.discard(fd)
        file.fput()

    def copy(self) -> FilesStruct:
        """Return a copy for a child process: the same open files (`dup_fd`). Raises OutOfMemoryError."""
        copy = FilesStruct(self.kernel)
        copy._close_on_exec = set(self._close_on_exec)
        copy._files = dict(self._files)
        for file in copy._files.values():
            file.pin()  # all of them, before another thread can close one
        for fd, file in copy:
            file.count = file.references
            self.kernel.access.store_u64(copy._slot(fd), file.address)
        return copy

    def close_for_exec(self) -> None:
        """Close what was opened with O_CLOEXEC, `do_close_on_exec()`."""
        for fd in sorted(self._close_on_exec):
            self.close(fd)

    def close_all(self) -> None:
        """Close everything and free the table: the end of a process, `put_files_struct()`."""
        for fd, _ in self:
            self.close(fd)
        self.free()

    def _slot(self, fd: int) -> int:
        return self.address + self._FD_ARRAY + 8 * fd


class Vfs:
    """The file system: paths and what they name, and the console.

    Directories are those of the files' paths, besides `/` and `/tmp`; they cannot be opened.

    :ivar console: What programs wrote to the console so far.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._inodes: dict[str, Inode] = {}
        self._devices: dict[str, Callable[[Kernel, OpenFlag], File]] = {"/dev/console": ConsoleFile}
        self._programs: dict[str, Program] = {}
        self.console = bytearray()

    def add_device(self, path: str, opener: Callable[[Kernel, OpenFlag], File]) -> None:
        """Say what opens a device."""
        self._devices[path] = opener

    def install(self, program: Program, name: str = "") -> str:
        """Make the executable file of a program, once; returns its path."""
        for path, known in self._programs.items():
            if known == program:
                return path
        path = f"/bin/{name or getattr(program, '__name__', 'program').strip('<>')}"
        while path in self._programs:
            path += "_"
        self._programs[path] = program
        self.create(path, b"\x7fELF".ljust(_EXECUTABLE_BYTES, b"\xcc"), filesystem_name="ext4")
        return path

    def program(self, path: str) -> Program:
        """Return the program that is in a file. Raises SyscallError as `lookup`, or ENOEXEC."""
        self.lookup(path)
        if path not in self._programs:
            raise SyscallError(Errno.ENOEXEC)
        return self._programs[path]

    def open(self, path: str, flags: OpenFlag) -> File:
        """Open a file or a device. Raises SyscallError, OutOfMemoryError."""
        if path in self._devices:
            return self._devices[path](self._kernel, flags)
        return RegularFile(self._kernel, self.open_inode(path, flags), flags)

    def create(self, path: str, content: bytes, *, filesystem_name: str = "tmpfs", module: str | None = None) -> Inode:
        """Make a file, or another of the same path; its pages are in the page cache if the file system is tmpfs.

        Raises ScenarioError for a path that cannot be, OutOfMemoryError.
        """
        if not path.startswith("/") or path.endswith("/"):
            raise ScenarioError(f"{path!r} is no path of a file; paths begin with / and end with a name")
        cache = self._kernel.page_cache
        kind = filesystem(filesystem_name, module)
        if kind is TMPFS:
            inode = cache.new_inode(path, kind)
            cache.populate(inode, content)
        else:
            inode = cache.new_inode(path, kind, content)
        old = self._inodes.get(path)
        self._inodes[path] = inode
        if old is not None:
            old.put()
        return inode

    def anonymous(self, name: str, size: int) -> Inode:
        """Make a file without a path, of the kernel's own memory: what devices let programs map."""
        inode = self._kernel.page_cache.new_inode(name, _ANONYMOUS)
        inode.size = size
        return inode

    def content(self, path: str) -> bytes:
        """Return what a file holds now, looked at from outside of the machine. Raises KeyError."""
        inode, physical = self._inodes[path], self._kernel.physical
        content = bytearray(inode.backing[: inode.size].ljust(inode.size, b"\0"))
        for index, pfn in inode.pages.items():
            start = index * PAGE_SIZE
            content[start : start + PAGE_SIZE] = physical.read(pfn * PAGE_SIZE, PAGE_SIZE)
        return bytes(content[: inode.size])

    @property
    def data_paths(self) -> list[str]:
        """The paths of all files that are not programs, sorted."""
        return sorted(self._inodes.keys() - self._programs.keys())

    def lookup(self, path: str) -> Inode:
        """Return the file of a path. Raises SyscallError ENAMETOOLONG, ENOENT, ENOTDIR or EISDIR."""
        if any(len(component) > _NAME_MAX for component in path.split("/")):
            raise SyscallError(Errno.ENAMETOOLONG)
        if path in self._inodes:
            return self._inodes[path]
        self._check_parent(path)
        if path.rstrip("/") in self._inodes:
            raise SyscallError(Errno.ENOTDIR)
        raise SyscallError(Errno.EISDIR if self._is_directory(path.rstrip("/")) else Errno.ENOENT)

    def open_inode(self, path: str, flags: OpenFlag) -> Inode:
        """Return the file that open() opens, made or emptied if the flags say so. Raises SyscallError."""
        try:
            inode = self.lookup(path)
        except SyscallError as error:
            if error.errno is not Errno.ENOENT or not flags & OpenFlag.CREAT:
                raise
            if path.endswith("/"):
                raise SyscallError(Errno.EISDIR) from error
            self._check_parent(path)
            return self.create(path, b"")
        if flags & OpenFlag.CREAT and flags & OpenFlag.EXCL:
            raise SyscallError(Errno.EEXIST)
        if flags & OpenFlag.TRUNC:
            self._kernel.page_cache.truncate(inode, 0)
        return inode

    def _is_directory(self, path: str) -> bool:
        return path in {"", "/tmp"} or any(name.startswith(f"{path}/") for name in self._inodes)  # noqa: S108 - a name

    def _check_parent(self, path: str) -> None:
        """Raise SyscallError unless the directory of a path exists."""
        directory = path.rstrip("/").rpartition("/")[0]
        if self._is_directory(directory):
            return
        while directory:
            if directory in self._inodes:
                raise SyscallError(Errno.ENOTDIR)
            directory = directory.rpartition("/")[0]
        raise SyscallError(Errno.ENOENT)
