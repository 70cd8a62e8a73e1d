"""The translation lookaside buffer of one logical processor (SDM 3A 4.10.2, 4.10.4).

An entry stays usable, however stale, until an invalidation, an eviction or a page fault at its address removes it. What
the manual leaves to the processor is decided thus: entries keep the size of their page (no splitting of large pages),
any two entries may coexist for an address (4.10.2.3; the smaller page's is used, a PCID's own before a global one),
and evictions are random, seeded.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asikit.machine.x86.paging import Translation

__all__ = ["Tlb", "TlbEntry", "TlbView"]

_GLOBAL: Final = -1
"""The tag of global entries; others are tagged with their PCID."""
_SIZES: Final = ((1 << 12, 0), (1 << 21, 1), (1 << 30, 2))
_SIZE_CODE: Final = dict(_SIZES)


class TlbEntry:
    """A cached translation of one page.

    :ivar page: Linear address of the page's first byte.
    :ivar paddr: Physical address of its first byte.
    :ivar page_bytes: 4 KiB, 2 MiB or 1 GiB.
    :ivar rights: Index into tables of rights: bit 0 NX, bit 1 R/W, bit 2 U/S, of all entries together.
    :ivar dirty: D was set: a write needs no walk.
    :ivar tag: The PCID, or -1 for a global entry.
    """

    __slots__ = ("_seen", "_slot", "dirty", "paddr", "page", "page_bytes", "rights", "tag")

    def __init__(self, page: int, tag: int, translation: Translation) -> None:
        self.page = page
        self.tag = tag
        self.page_bytes = translation.page_bytes
        self.paddr = translation.paddr & -translation.page_bytes
        self.rights = translation.nx | translation.writable << 1 | translation.user << 2
        self.dirty = translation.dirty
        self._slot = 0
        # Numbers of the 4 KiB pages of this entry that stand in some View.
        self._seen: set[int] = set()

    @property
    def is_global(self) -> bool:
        """Whether the entry is used whatever the PCID (4.10.2.4)."""
        return self.tag == _GLOBAL

    def __repr__(self) -> str:
        """Text for debugging."""
        space = "global" if self.is_global else f"pcid {self.tag}"
        return f"<TlbEntry {self.page:#x} -> {self.paddr:#x}, {self.page_bytes} bytes, {space}>"


class TlbView:
    """What of the TLB is known to be usable, in one mode and PCID: an index, not a cache of its own.

    From the number of a 4 KiB page (address >> 12) to the storage of its frame, by kind of access, with rights and
    dirty flag checked. It loses a page whenever the TLB loses the entry behind it.
    """

    __slots__ = ("fetch", "read", "write")

    def __init__(self) -> None:
        self.read: dict[int, bytearray] = {}
        self.write: dict[int, bytearray] = {}
        self.fetch: set[int] = set()

    def forget(self, pages: set[int]) -> None:
        """Forget pages."""
        for page in pages:
            self.read.pop(page, None)
            self.write.pop(page, None)
            self.fetch.discard(page)


class Tlb:
    """A TLB of `capacity` entries for all page sizes and PCIDs; a full one evicts at random, from `seed`.

    :ivar hits: Accesses served by an entry.
    :ivar misses: Walks, whatever came of them.
    :ivar flushes: Invalidations, of whatever extent, that software asked for.
    :ivar flushed: Entries that they removed.
    :ivar evictions: Entries removed for want of room.
    """

    __slots__ = (
        "_order",
        "_random",
        "_spaces",
        "_views",
        "capacity",
        "evictions",
        "flushed",
        "flushes",
        "hits",
        "misses",
    )

    def __init__(self, capacity: int = 1536, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"a TLB has at least 1 entry, not {capacity}")
        self.capacity = capacity
        self.hits = self.misses = self.flushes = self.flushed = self.evictions = 0
        self._random = Random(seed)
        self._spaces: dict[int, dict[int, TlbEntry]] = {_GLOBAL: {}}
        self._order: list[TlbEntry] = []
        self._views: dict[int, dict[int, TlbView]] = {}

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self._order)

    def entries(self) -> tuple[TlbEntry, ...]:
        """Return all entries, in no particular order."""
        return tuple(self._order)

    def lookup(self, vaddr: int, pcid: int) -> TlbEntry | None:
        """Return the entry that the processor would use for an address; counts nothing."""
        own = self._spaces.get(pcid)
        shared = self._spaces[_GLOBAL]
        for size, code in _SIZES:
            key = vaddr & -size | code
            entry = (own.get(key) if own else None) or (shared.get(key) if shared else None)
            if entry is not None:
                return entry
        return None

    def insert(self, vaddr: int, pcid: int, translation: Translation) -> TlbEntry:
        """Cache a translation of `vaddr`, in place of one of the same page, and evict another if there is no room."""
        tag = _GLOBAL if translation.global_ else pcid
        page = vaddr & -translation.page_bytes
        key = page | _SIZE_CODE[translation.page_bytes]
        space = self._spaces.setdefault(tag, {})
        if key in space:
            self._remove(space[key])
        elif len(self._order) >= self.capacity:
            self.evict()
        entry = TlbEntry(page, tag, translation)
        entry._slot = len(self._order)
        self._order.append(entry)
        self._spaces.setdefault(tag, {})[key] = entry
        return entry

    def evict(self) -> TlbEntry | None:
        """Drop one entry at random, as hardware may at any time (4.10.4.1, last paragraph); return it."""
        if not self._order:
            return None
        entry = self._order[self._random.randrange(len(self._order))]
        self.evictions += 1
        self._remove(entry)
        return entry

    def drop(self, vaddr: int, pcid: int) -> int:
        """Drop every entry that translates an address under a PCID, global ones too; return how many.

        Not a flush that software asked for: what a page fault and a repeated walk do.
        """
        doomed = [*self._covering(vaddr, pcid), *self._covering(vaddr, _GLOBAL)]
        for entry in doomed:
            self._remove(entry)
        return len(doomed)

    def flush_address(self, vaddr: int, pcid: int, *, keep_global: bool) -> None:
        """Flush one address under one PCID: INVLPG (global entries too) and INVPCID type 0 (they stay)."""
        doomed = self._covering(vaddr, pcid)
        if not keep_global:
            doomed += self._covering(vaddr, _GLOBAL)
        self.flushes += 1
        self.flushed += len(doomed)
        for entry in doomed:
            self._remove(entry)

    def flush_pcid(self, pcid: int, *, keep_global: bool = True) -> None:
        """Flush a PCID: MOV to CR3, INVPCID type 1 (global entries stay), some MOVs to CR4 (they go too)."""
        self.flushes += 1
        tags = (pcid,) if keep_global else (pcid, _GLOBAL)
        for tag in tags:
            for entry in list(self._spaces.get(tag, {}).values()):
                self.flushed += 1
                self._remove(entry)

    def flush_all(self, *, keep_global: bool = False) -> None:
        """Flush all PCIDs: INVPCID types 2 (global entries too) and 3 (they stay), MOVs to CR0 and CR4."""
        self.flushes += 1
        for tag in list(self._spaces):
            if tag != _GLOBAL or not keep_global:
                for entry in list(self._spaces[tag].values()):
                    self.flushed += 1
                    self._remove(entry)

    def view(self, pcid: int, mode: int) -> TlbView:
        """Return the index of usable pages for a PCID and a mode (any number that stands for one)."""
        modes = self._views.get(pcid)
        if modes is None:
            modes = self._views[pcid] = {}
        view = modes.get(mode)
        if view is None:
            view = modes[mode] = TlbView()
        return view

    def note(self, entry: TlbEntry, page: int) -> None:
        """Say that page number `page` of an entry now stands in a view."""
        entry._seen.add(page)

    def clear_views(self) -> None:
        """Empty every view; the entries stay."""
        for modes in self._views.values():
            for view in modes.values():
                view.read.clear()
                view.write.clear()
                view.fetch.clear()
        for entry in self._order:
            entry._seen.clear()

    def _covering(self, vaddr: int, tag: int) -> list[TlbEntry]:
        space = self._spaces.get(tag)
        if not space:
            return []
        found = (space.get(vaddr & -size | code) for size, code in _SIZES)
        return [entry for entry in found if entry is not None]

    def _remove(self, entry: TlbEntry) -> None:
        del self._spaces[entry.tag][entry.page | _SIZE_CODE[entry.page_bytes]]
        last = self._order.pop()
        if last is not entry:
            self._order[entry._slot] = last
            last._slot = entry._slot
        if entry._seen:
            for modes in self._views.values() if entry.is_global else (self._views.get(entry.tag, {}),):
                for view in modes.values():
                    view.forget(entry._seen)
