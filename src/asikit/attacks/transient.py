"""Loads that never retire: by the processor's rules, but for the one check that a vulnerability defers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.x86 import Access, BusError, GeneralProtection, PageFault, walk
from asikit.machine.x86.paging import rights_allow

if TYPE_CHECKING:
    from asikit.machine.x86 import Cpu, PagingMode

__all__ = ["transient_load"]


def transient_load(cpu: Cpu, vaddr: int, size: int, *, defer_permission: bool = False) -> bytes | None:
    """Load through a CPU's current page tables and TLB; returns None if there is nothing to be had.

    A stale TLB entry counts, as it does for the processor. A translation that is found stays in the TLB, and the line
    comes into the L1D.

    :param defer_permission: Whoever may not access the page gets the value all the same.
    """
    mode = cpu.mode._replace(user=False, ac=True) if defer_permission else cpu.mode
    paddr = _translate(cpu, vaddr, mode)
    if paddr is None or paddr + size > cpu.memory.size:
        return None
    if cpu.recorder is not None:
        cpu.recorder.prefetch(cpu.thread, cpu.owner, paddr)
    return cpu.memory.read(paddr, size)


def _translate(cpu: Cpu, vaddr: int, mode: PagingMode) -> int | None:
    entry = cpu.tlb.lookup(vaddr, cpu.pcid)
    if entry is None:
        try:
            found = walk(cpu.memory, cpu.root, vaddr, Access.READ, mode, mark=False)
        except (PageFault, GeneralProtection, BusError):
            return None
        entry = cpu.tlb.insert(vaddr, cpu.pcid, found)
    rights = entry.rights
    if not rights_allow(Access.READ, mode, nx=bool(rights & 1), writable=bool(rights & 2), user=bool(rights & 4)):
        return None
    return entry.paddr | vaddr & (entry.page_bytes - 1)
