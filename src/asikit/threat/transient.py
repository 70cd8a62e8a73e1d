"""Loads that never retire: by the processor's rules, but for the one check that a vulnerability defers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from asikit.machine.x86 import Access, BusError, GeneralProtection, PageFault, walk
from asikit.machine.x86.paging import rights_allow

if TYPE_CHECKING:
    from asikit.machine.x86 import Cpu, Translation

__all__ = ["transient_address", "transient_load"]


class _Found(NamedTuple):
    """Where a load goes, and the translation that had to be walked for, None if the TLB had it."""

    paddr: int
    walked: Translation | None


def transient_address(cpu: Cpu, vaddr: int, *, defer_permission: bool = False) -> int | None:
    """Return the physical address that a load would reach, None if there is none. Nothing is left of it anywhere.

    :param defer_permission: Permissions do not count.
    """
    found = _find(cpu, vaddr, defer_permission=defer_permission)
    return None if found is None else found.paddr


def transient_load(cpu: Cpu, vaddr: int, size: int, *, defer_permission: bool = False) -> bytes | None:
    """Load through a CPU's current page tables and TLB; returns None if there is nothing to be had.

    A translation that is found stays in the TLB, and the line comes into the L1D.

    :param defer_permission: Whoever may not access the page gets the value all the same.
    """
    found = _find(cpu, vaddr, defer_permission=defer_permission)
    if found is None:
        return None
    if found.walked is not None:
        cpu.tlb.insert(vaddr, cpu.pcid, found.walked)
    if found.paddr + size > cpu.memory.size:
        return None
    if cpu.recorder is not None:
        cpu.recorder.prefetch(cpu.thread, cpu.owner, found.paddr)
    return cpu.memory.read(found.paddr, size)


def _find(cpu: Cpu, vaddr: int, *, defer_permission: bool) -> _Found | None:
    """Translate by the TLB, and where it has nothing by the page tables: a stale entry counts, as for the processor."""
    mode = cpu.mode._replace(user=False, ac=True) if defer_permission else cpu.mode
    entry = cpu.tlb.lookup(vaddr, cpu.pcid)
    if entry is None:
        try:
            walked = walk(cpu.memory, cpu.root, vaddr, Access.READ, mode, mark=False)
        except (PageFault, GeneralProtection, BusError):
            return None
        return _Found(walked.paddr, walked)
    rights = entry.rights
    if not rights_allow(Access.READ, mode, nx=bool(rights & 1), writable=bool(rights & 2), user=bool(rights & 4)):
        return None
    return _Found(entry.paddr | vaddr & (entry.page_bytes - 1), None)
