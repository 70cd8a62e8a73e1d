"""Restricted address spaces in page tables: `asi_nonsensitive_pgd`, and each domain's own (`struct asi`).

A domain's top-level table has the kernel half of `asi_nonsensitive_pgd`, and shares its lower tables, whose top-level
entries never change once the machine has booted. Its user half is the mm's if the class maps user addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.mm import GFP_PGTABLE_USER, OutOfMemoryError
from asikit.machine.mm.pgtable import ENTRIES, KERNEL_PGD_BOUNDARY, PRESENT
from asikit.protocol import AsiClass, DomainId, Domains, Space, space_of
from asikit.protocol.errors import DomainOutOfMemoryError
from asikit.trace import PageKind

if TYPE_CHECKING:
    from asikit.machine.kernel.core.memory_context import MemoryContext
    from asikit.protocol import Protocol as AsiProtocol

__all__ = ["DomainTables"]

_ENTRY_BYTES = 8


class _Kernel(
    doors.Processors,
    doors.Described,
    doors.PhysicallySeen,
    doors.Memory,
    doors.Allocating,
    doors.AddressSpaces,
    Protocol,
):
    """What is needed of the kernel here."""

    protocol: AsiProtocol


class DomainTables:
    """Makes, mirrors and destroys the page tables of domains."""

    def __init__(self, kernel: _Kernel, nonsensitive_pgd: int | None) -> None:
        config = kernel.protocol.config
        self._kernel = kernel
        self._pti = config.pti
        self.nonsensitive_pgd = nonsensitive_pgd
        self.domains = Domains(config.registry, asi=config.asi)
        """The protocol's account of them: reference counts, registered classes."""

    def init(self, context: MemoryContext, asi_class: AsiClass) -> None:
        """Make a domain or count one more user of it: `asi_init()`. Does nothing with ASI off.

        Raises OutOfMemoryError, and nothing was changed; ClassNotRegisteredError for a class that there is not.
        """
        if not self.domains.asi:
            return
        kernel, domain_id = self._kernel, DomainId(context.id, asi_class)
        pgd = None
        if self.domains.find(domain_id) is None:
            try:
                pgd = self._allocate()
            except OutOfMemoryError as error:
                self._refuse(domain_id, error)
        try:
            self.domains = self.domains.init(domain_id, pgd)
        except Exception:
            if pgd is not None:
                self._free(pgd)
            raise
        if pgd is not None:
            with kernel.context.uncounted():
                self._fill(context, asi_class, pgd)
            context.domains[space_of(asi_class)] = (pgd, pgd + 1 if self._pti else None)

    def _refuse(self, domain_id: DomainId, error: OutOfMemoryError) -> None:
        """Let the protocol refuse the domain, which it does without changing anything."""
        try:
            self.domains = self.domains.init(domain_id, None)
        except DomainOutOfMemoryError as refusal:
            raise OutOfMemoryError(str(refusal), error.order) from refusal

    def _allocate(self) -> int:
        with self._kernel.context.uncounted():
            order = int(self._pti)
            return self._kernel.allocator.alloc_pages(GFP_PGTABLE_USER, order, kind=PageKind.PAGE_TABLE)

    def _free(self, pgd: int) -> None:
        with self._kernel.context.uncounted():
            self._kernel.allocator.free_pages(pgd, int(self._pti))

    def _fill(self, context: MemoryContext, asi_class: AsiClass, pgd: int) -> None:
        tables = self._kernel.tables
        if self.nonsensitive_pgd is not None:
            tables.copy_pgd_entries(self.nonsensitive_pgd, pgd)
        if self._pti:
            self._fill_user_half(context, pgd + 1)
        if asi_class.maps_user:
            tables.copy_pgd_entries(context.pgd, pgd, 0, KERNEL_PGD_BOUNDARY)

    def _fill_user_half(self, context: MemoryContext, user_pgd: int) -> None:
        """PTI: of the kernel only the entry area, of the user everything."""
        kernel = self._kernel
        area = kernel.layout.pgd_index(kernel.layout.cpu_entry_area.start)
        kernel.tables.copy_pgd_entries(kernel.contexts.init.pgd, user_pgd, area, area + 1)
        kernel.tables.copy_pgd_entries(context.pgd, user_pgd, 0, KERNEL_PGD_BOUNDARY)

    def make_user_half(self, context: MemoryContext) -> None:
        """With PTI: make the unrestricted address space's user half. Raises OutOfMemoryError."""
        if not self._pti:
            return
        kernel = self._kernel
        with kernel.context.uncounted():
            user_pgd = kernel.allocator.alloc_pages(GFP_PGTABLE_USER, kind=PageKind.PAGE_TABLE)
            self._fill_user_half(context, user_pgd)
        context.user_pgd = user_pgd

    def destroy(self, context: MemoryContext, asi_class: AsiClass) -> None:
        """Count one user less, and remove the domain with the last: `asi_destroy()`."""
        if not self.domains.asi:
            return
        domain_id = DomainId(context.id, asi_class)
        self.domains = self.domains.destroy(domain_id, self._entered())
        if self.domains.find(domain_id) is None:
            pgd, _ = context.domains.pop(space_of(asi_class))
            self._free(pgd)

    def destroy_all(self, context: MemoryContext) -> None:
        """Remove what is left of an mm's domains, at its end."""
        for space in tuple(context.domains):
            asi_class = space.asi_class
            while asi_class is not None and space in context.domains:
                self.destroy(context, asi_class)
        if context.user_pgd is not None:
            with self._kernel.context.uncounted():
                self._kernel.allocator.free_pages(context.user_pgd)
            context.user_pgd = None

    def _entered(self) -> set[DomainId]:
        """Return the domains that some CPU's `curr_asi` names."""
        entered = set()
        for cpu in self._kernel.cpus:
            asi_class = Space(cpu.thread.cpu.curr_asi).asi_class
            if asi_class is not None:
                entered.add(DomainId(cpu.loaded_mm.id, asi_class))
        return entered

    def mirror(self, context: MemoryContext, index: int, entry: int) -> None:
        """Copy a changed entry of the mm's user half to those who map user addresses, under `asi->pgd_lock`."""
        roots = [pgd for space, (pgd, _) in context.domains.items() if _maps_user(space)]
        roots += [half for _, half in context.domains.values() if half is not None]
        roots += [context.user_pgd] if context.user_pgd is not None else []
        if not roots:
            return
        kernel = self._kernel
        context.updating += 1
        with kernel.context.uncounted():
            for root in roots:
                kernel.access.store_u64(kernel.layout.virt((root << 12) + index * _ENTRY_BYTES), entry)
        context.updating -= 1

    def pgd(self, context: MemoryContext, space: Space, *, user_half: bool) -> int:
        """Return the page frame of the top-level table of an address space of an mm.

        Raises KeyError for a domain that was not made.
        """
        if space is Space.UNRESTRICTED:
            pgd, half = context.pgd, context.user_pgd
        elif space is Space.IDLE:
            # Only globally nonsensitive memory, so one table serves every mm; idle tasks have no user half to go to.
            assert self.nonsensitive_pgd is not None  # with ASI off nobody asks for a restricted space
            pgd = half = self.nonsensitive_pgd
        else:
            pgd, half = context.domains[space]
        if not user_half:
            return pgd
        assert half is not None  # only PTI asks for it
        return half

    def kernel_half_differs(self, pgd: int) -> int | None:
        """Return the first index at which a domain's kernel half is not `asi_nonsensitive_pgd`'s, None if nowhere."""
        assert self.nonsensitive_pgd is not None  # domains exist
        return _first_difference(self._kernel, pgd, self.nonsensitive_pgd, KERNEL_PGD_BOUNDARY, ENTRIES)

    def shared_half_differs(self) -> int | None:
        """Return the first index at which `asi_nonsensitive_pgd` does not share init_mm's tables; None if nowhere.

        The direct map is not shared; nor is what the machine's description has partly absent.
        """
        kernel = self._kernel
        if self.nonsensitive_pgd is None or kernel.config.regions or kernel.config.unmapped:
            return None
        index, span = kernel.layout.pgd_index, kernel.layout.direct_map
        pgd = kernel.contexts.init.pgd
        below = _first_difference(kernel, self.nonsensitive_pgd, pgd, KERNEL_PGD_BOUNDARY, index(span.start))
        if below is not None:
            return below
        return _first_difference(kernel, self.nonsensitive_pgd, pgd, index(span.end - 1) + 1, ENTRIES)

    def user_half_differs(self, context: MemoryContext, space: Space) -> int | None:
        """Return the first index at which a domain's user half is not as it must be, None if nowhere."""
        pgd, _ = context.domains[space]
        if _maps_user(space):
            return _first_difference(self._kernel, pgd, context.pgd, 0, KERNEL_PGD_BOUNDARY)
        memory = self._kernel.physical
        for index in range(KERNEL_PGD_BOUNDARY):
            if memory.read_u64((pgd << 12) + index * _ENTRY_BYTES) & PRESENT:
                return index
        return None


def _first_difference(kernel: _Kernel, one: int, other: int, first: int, last: int) -> int | None:
    begin, end = first * _ENTRY_BYTES, last * _ENTRY_BYTES
    size = end - begin
    mine = kernel.physical.read((one << 12) + begin, size)
    theirs = kernel.physical.read((other << 12) + begin, size)
    if mine == theirs:
        return None
    # The processor sets accessed flags in whichever table it walks.
    for index in range(first, last):
        offset = index * _ENTRY_BYTES - begin
        difference = int.from_bytes(mine[offset : offset + 8], "little") ^ int.from_bytes(
            theirs[offset : offset + 8], "little"
        )
        if difference & ~(1 << 5):
            return index
    return None


def _maps_user(space: Space) -> bool:
    return space.asi_class is not None and space.asi_class.maps_user
