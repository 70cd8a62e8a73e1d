"""Memory as a logical processor's code reaches it: loads, stores and fetches through TLB and page tables.

What decides about a translation besides the tables is set from outside: the control registers
(`asikit.machine.x86.cpu`) say which root, PCID and mode, privilege and AC say who asks.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from asikit.machine.x86.memory import FRAME_BYTES
from asikit.machine.x86.paging import Access, PageFault, rights_allow, walk

if TYPE_CHECKING:
    from asikit.machine.x86.memory import PhysicalMemory
    from asikit.machine.x86.recorder import Recorder
    from asikit.machine.x86.registers import PagingMode
    from asikit.machine.x86.tlb import Tlb, TlbEntry

__all__ = ["Mmu"]

_OFFSET: Final = FRAME_BYTES - 1
_ADDRESS_SPACE: Final = 1 << 64
_U64: Final = Struct("<Q")
_unpack_u64: Final = _U64.unpack_from
_pack_u64: Final = _U64.pack_into
_READ, _WRITE, _FETCH = Access.READ, Access.WRITE, Access.FETCH
_USER_CPL: Final = 3

Rights = tuple[tuple[bool, ...], ...]
"""For each Access, for each `TlbEntry.rights`: whether it is allowed."""


class Mmu:
    """A logical processor's way to memory, with paging on, root 0, PCID 0, CPL 0 and AC clear to begin with.

    :ivar memory: The physical memory.
    :ivar tlb: Translations in use, possibly stale.
    :ivar thread: 0 or 1, the place in its core.
    :ivar owner: Whose code runs, as a tag for the microarchitectural recording.
    :ivar recorder: Who is told of loads and stores, None if nobody.
    :ivar cr2: Linear address of the last page fault that `load`, `store` or `fetch` raised.
    """

    __slots__ = (
        "_ac",
        "_allowed",
        "_base",
        "_cpl",
        "_fetch",
        "_mode",
        "_modes",
        "_paged",
        "_pcid",
        "_read",
        "_root",
        "_write",
        "cr2",
        "memory",
        "owner",
        "recorder",
        "thread",
        "tlb",
    )

    def __init__(self, memory: PhysicalMemory, tlb: Tlb, thread: int, mode: PagingMode) -> None:
        self.memory = memory
        self.tlb = tlb
        self.thread = thread
        self.owner = ""
        self.recorder: Recorder | None = None
        self.cr2 = 0
        self._cpl = 0
        self._ac = False
        self._root = self._pcid = 0  # whoever sets them calls `_set_mode` or `_select` afterwards
        self._modes: dict[int, tuple[PagingMode, Rights]] = {}
        self._set_mode(mode, paged=True)

    # Who asks, and how it is translated.

    @property
    def cpl(self) -> int:
        """Current privilege level, 0 (kernel) to 3 (user)."""
        return self._cpl

    @cpl.setter
    def cpl(self, value: int) -> None:
        if value != self._cpl:
            self._cpl = value
            self._select()

    @property
    def ac(self) -> bool:
        """RFLAGS.AC, which STAC and CLAC change: with CR4.SMAP, explicit supervisor accesses to user-mode addresses."""
        return self._ac

    @ac.setter
    def ac(self, value: bool) -> None:
        if value != self._ac:
            self._ac = value
            self._select()

    @property
    def mode(self) -> PagingMode:
        """How an address is translated now."""
        return self._mode

    @property
    def pcid(self) -> int:
        """The current PCID; 0 without CR4.PCIDE (SDM 3A 4.10.1)."""
        return self._pcid

    @property
    def root(self) -> int:
        """Physical address of the topmost page table."""
        return self._root

    # Memory.

    def load(self, vaddr: int, size: int) -> bytes:
        """Read `size` bytes, as one instruction; they may cross pages.

        :raises PageFault: At the first byte that cannot be read; CR2 is set.
        :raises GeneralProtection: A byte's address is not canonical.
        """
        offset = vaddr & _OFFSET
        frame = self._read.get(vaddr >> 12)
        if frame is not None and offset + size <= FRAME_BYTES:
            self.tlb.hits += 1
            return bytes(frame[offset : offset + size])
        return b"".join([self._load_part(part, length) for part, length in _parts(vaddr, size)])

    def store(self, vaddr: int, data: bytes) -> None:
        """Write bytes, as one instruction; they may cross pages, and are written all or not at all.

        :raises PageFault: At the first byte that cannot be written; CR2 is set.
        :raises GeneralProtection: A byte's address is not canonical.
        """
        offset = vaddr & _OFFSET
        size = len(data)
        frame = self._write.get(vaddr >> 12)
        if frame is not None and offset + size <= FRAME_BYTES:
            self.tlb.hits += 1
            frame[offset : offset + size] = data
            return
        parts = _parts(vaddr, size)
        if len(parts) > 1:
            for part, _ in parts:
                self._check(part, _WRITE)
        done = 0
        for part, length in parts:
            self._store_part(part, data[done : done + length])
            done += length

    def load_u64(self, vaddr: int) -> int:
        """Read 8 bytes as a number; raises as `load`."""
        offset = vaddr & _OFFSET
        frame = self._read.get(vaddr >> 12)
        if frame is not None and offset <= FRAME_BYTES - 8:
            self.tlb.hits += 1
            value: int = _unpack_u64(frame, offset)[0]
            return value
        return int.from_bytes(self.load(vaddr, 8), "little")

    def store_u64(self, vaddr: int, value: int) -> None:
        """Write a number of 64 bits; raises as `store`."""
        offset = vaddr & _OFFSET
        frame = self._write.get(vaddr >> 12)
        if frame is not None and offset <= FRAME_BYTES - 8:
            self.tlb.hits += 1
            _pack_u64(frame, offset, value)
            return
        self.store(vaddr, value.to_bytes(8, "little"))

    def fetch(self, vaddr: int) -> None:
        """Check that an instruction may be fetched from an address; raises as `load`."""
        if vaddr >> 12 in self._fetch:
            self.tlb.hits += 1
            return
        self.translate(vaddr, _FETCH)

    def translate(self, vaddr: int, access: Access = Access.READ) -> int:
        """Return the physical address that an access to one byte uses, with all that the access does but the data.

        Through the TLB, so possibly stale; sets accessed and dirty flags; raises as `load`.
        """
        if not self._paged:
            return vaddr & 0xFFFF_FFFF  # SDM 3A 4.1.1: linear addresses are physical, 32 bits of them
        entry = self.tlb.lookup(vaddr, self._pcid)
        if entry is not None and self._usable(entry, access):
            self.tlb.hits += 1
        else:
            entry = self._walk(vaddr, access, stale=entry is not None)
        paddr = entry.paddr | vaddr & (entry.page_bytes - 1)
        if self.recorder is None:
            self._note(entry, vaddr >> 12, paddr >> 12, access)
        return paddr

    def load_implicit(self, vaddr: int, size: int) -> bytes:
        """Read from a system structure (GDT, LDT, IDT, TSS): supervisor-mode at any CPL, never allowed by AC (4.6.1).

        :raises PageFault: As `load`, with U clear in the error code.
        """
        if not self._paged:
            return self.memory.read(vaddr & 0xFFFF_FFFF, size)
        mode = self._mode._replace(implicit=True)
        data = []
        for part, length in _parts(vaddr, size):
            entry = self.tlb.lookup(part, self._pcid)
            if entry is None or not _rights(mode)[_READ][entry.rights]:
                entry = self._walk(part, _READ, stale=entry is not None, mode=mode)
            else:
                self.tlb.hits += 1
            data.append(self.memory.read(entry.paddr | part & (entry.page_bytes - 1), length))
        return b"".join(data)

    # How it works inside.

    def _load_part(self, vaddr: int, size: int) -> bytes:
        paddr = self.translate(vaddr, _READ)
        data = self.memory.read(paddr, size)
        if self.recorder is not None:
            self.recorder.load(self.thread, self.owner, paddr, data)
        return data

    def _store_part(self, vaddr: int, data: bytes) -> None:
        paddr = self.translate(vaddr, _WRITE)
        self.memory.write(paddr, data)
        if self.recorder is not None:
            self.recorder.store(self.thread, self.owner, paddr, data)

    def _check(self, vaddr: int, access: Access) -> None:
        """Raise what an access would raise, and set no flag."""
        if not self._paged:
            return
        entry = self.tlb.lookup(vaddr, self._pcid)
        if entry is None or not self._usable(entry, access):
            try:
                walk(self.memory, self._root, vaddr, access, self._mode, mark=False)
            except PageFault:
                self.tlb.drop(vaddr, self._pcid)
                self.cr2 = vaddr
                raise

    def _usable(self, entry: TlbEntry, access: Access) -> bool:
        """Whether a TLB entry serves an access without a walk.

        An entry that allows too little does not fault: the processor may report a spurious fault or look again (SDM 3A
        4.10.4.3), and this one looks again. A write through an entry with D clear must look again, to set D in memory
        (4.10.2.2, 4.8).
        """
        return self._allowed[access][entry.rights] and (entry.dirty or access != _WRITE)

    def _walk(self, vaddr: int, access: Access, *, stale: bool, mode: PagingMode | None = None) -> TlbEntry:
        tlb = self.tlb
        tlb.misses += 1
        if stale:
            tlb.drop(vaddr, self._pcid)
        try:
            translation = walk(self.memory, self._root, vaddr, access, mode or self._mode)
        except PageFault:
            # SDM 3A 4.10.4.1: a page fault invalidates the entries of its address, which is done already if any was.
            self.cr2 = vaddr
            raise
        return tlb.insert(vaddr, self._pcid, translation)

    def _note(self, entry: TlbEntry, page: int, pfn: int, access: Access) -> None:
        """Remember that an access to a page needs no further check while its TLB entry lives and the mode stays."""
        if access == _READ:
            self._read[page] = self.memory.frame(pfn)
        elif access == _FETCH:
            self._fetch.add(page)
        else:
            self._write[page] = self.memory.frame(pfn)
        self.tlb.note(entry, page)

    def _set_mode(self, base: PagingMode, *, paged: bool) -> None:
        """Translate in another mode, whoever asks; without paging if not `paged`."""
        self._base = base
        self._paged = paged
        self._modes.clear()
        self._select()

    def _select(self) -> None:
        """Take the tables of the current privilege, AC and PCID; often done, so remembered."""
        base = self._base
        user = self._cpl == _USER_CPL
        key = user << 1 | self._ac
        known = self._modes.get(key)
        if known is None:
            mode = base._replace(user=user, ac=self._ac)
            known = self._modes[key] = (mode, _rights(mode))
        self._mode, self._allowed = known
        number = key | base.wp << 2 | base.smep << 3 | base.smap << 4 | base.nxe << 5
        view = self.tlb.view(self._pcid, number)
        self._read, self._write, self._fetch = view.read, view.write, view.fetch


def _parts(vaddr: int, size: int) -> list[tuple[int, int]]:
    """Split a range at page boundaries; it wraps at the top of the address space."""
    parts = []
    while size > 0:
        length = min(size, FRAME_BYTES - (vaddr & _OFFSET))
        parts.append((vaddr, length))
        vaddr = (vaddr + length) % _ADDRESS_SPACE
        size -= length
    return parts


def _rights(mode: PagingMode) -> Rights:
    """Tabulate `rights_allow` by Access and `TlbEntry.rights`."""
    return tuple(
        tuple(
            rights_allow(access, mode, nx=bool(rights & 1), writable=bool(rights & 2), user=bool(rights & 4))
            for rights in range(8)
        )
        for access in Access
    )
