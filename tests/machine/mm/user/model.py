"""What an address space is, said without pages, page tables or areas: a dictionary from page to content and rights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from asikit.machine.mm.mmstruct import Prot

PAGE = 4096


class Refused(Exception):  # noqa: N818 - not an error of the model
    """The access ends in the named signal."""

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclass(eq=False)
class ModelFile:
    """A file's pages; what lies beyond `size` in the last one is memory that mmap shows and read() does not."""

    size: int = 0
    pages: dict[int, bytearray] = field(default_factory=dict)

    def page(self, index: int) -> bytearray:
        """Return a page, made on first use."""
        return self.pages.setdefault(index, bytearray(PAGE))

    def read(self, pos: int, count: int) -> bytes:
        """Read it."""
        end = min(pos + count, self.size)
        return bytes(self.page(at // PAGE)[at % PAGE] for at in range(pos, end))

    def write(self, pos: int, data: bytes | bytearray) -> None:
        """Write it."""
        for at, byte in enumerate(data, pos):
            self.page(at // PAGE)[at % PAGE] = byte
        if data:
            self.size = max(self.size, pos + len(data))

    def truncate(self, size: int) -> None:
        """ftruncate(2)."""
        if size < self.size:
            first_gone = -(-size // PAGE)
            self.pages = {index: page for index, page in self.pages.items() if index < first_gone}
            if size % PAGE:
                self.page(size // PAGE)[size % PAGE :] = bytes(-size % PAGE)
        self.size = size


@dataclass
class ModelPage:
    """One page of an address space. `own` is the private content, of a file's page only once it was written."""

    prot: Prot
    shared: bool
    file: ModelFile | None
    index: int = 0
    own: bytearray | None = None

    def readable(self) -> bytearray:
        """Return what a read sees."""
        if self.own is not None:
            return self.own
        if self.file is None:
            return bytearray(PAGE)
        if self.index * PAGE >= self.file.size:
            raise Refused("SIGBUS")
        return self.file.page(self.index)

    def writable(self) -> bytearray:
        """Return what a write changes."""
        content = self.readable()
        if self.shared:
            return content
        if self.own is None:
            self.own = bytearray(content)
        return self.own


class ModelProcess:
    """Address spaces as POSIX describes them."""

    def __init__(self) -> None:
        self.pages: dict[int, ModelPage] = {}
        self.brk = 0
        self.start_brk = 0

    def map(self, first: int, count: int, prot: Prot, *, shared: bool, file: ModelFile | None, index: int = 0) -> None:
        """mmap(2), at a page."""
        if shared and file is None:
            file = ModelFile(count * PAGE)
        for page in range(count):
            self.pages[first + page] = ModelPage(prot, shared, file, index + page)

    def unmap(self, first: int, count: int) -> None:
        """munmap(2)."""
        for page in range(first, first + count):
            self.pages.pop(page, None)

    def protect(self, first: int, count: int, prot: Prot) -> bool:
        """mprotect(2): whether there was no hole."""
        for page in range(first, first + count):
            if page not in self.pages:
                return False
            self.pages[page].prot = prot
        return True

    def load(self, vaddr: int, size: int, *, fetch: bool = False) -> bytes:
        """Read memory."""
        return bytes(self._readable(at, fetch=fetch)[at % PAGE] for at in range(vaddr, vaddr + size))

    def store(self, vaddr: int, data: bytes) -> None:
        """Write memory, up to where it is refused."""
        for at, byte in enumerate(data, vaddr):
            page = self._page(at)
            if not page.prot & Prot.WRITE:
                raise Refused("SIGSEGV")
            page.writable()[at % PAGE] = byte

    def fork(self) -> ModelProcess:
        """Return a copy."""
        child = ModelProcess()
        child.brk, child.start_brk = self.brk, self.start_brk
        for number, page in self.pages.items():
            child.pages[number] = replace(page, own=None if page.own is None else bytearray(page.own))
        return child

    def forget_file(self, file: ModelFile) -> None:
        """Truncation takes private copies with it, too."""
        for page in self.pages.values():
            if page.file is file and page.index >= -(-file.size // PAGE):
                page.own = None

    def _page(self, vaddr: int) -> ModelPage:
        page = self.pages.get(vaddr // PAGE)
        if page is None:
            raise Refused("SIGSEGV")
        return page

    def _readable(self, vaddr: int, *, fetch: bool) -> bytearray:
        page = self._page(vaddr)
        if not page.prot & (Prot.EXEC if fetch else Prot.READ | Prot.WRITE | Prot.EXEC):
            raise Refused("SIGSEGV")
        return page.readable()
