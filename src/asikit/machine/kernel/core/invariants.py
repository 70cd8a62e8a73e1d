"""Debug mode: I1 to I9 of the mechanism, on the live machine, after every micro-operation and what else may break them.

The protocol's own invariants (`step_invariants`, `taint_invariants`) are evaluated on the state that the driver keeps;
here is besides what they are about: that CR3, the TLBs and the page tables of the machine agree with that state. A
violation ends the run with an InvariantError, whatever the program would catch. I7 is `asikit.machine.mm`'s to refuse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.kernel.core.errors import InvariantError
from asikit.machine.mm import PAGE_SIZE
from asikit.machine.x86 import Access, GeneralProtection, PageFault, walk
from asikit.protocol import CONTROL_MASK, DomainId, EffectKind, Role, Space, Taint, step_invariants, taint_invariants

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.kernel.core.smp import Shootdown
    from asikit.machine.x86 import TlbEntry
    from asikit.protocol import Generation, Step
    from asikit.protocol import Protocol as AsiProtocol

__all__ = ["InvariantChecker"]

_BY_NAME = {
    "restricted-is-recorded": "I3",
    "control-flushed-before-unrestricted": "I4",
    "kernel-data-recorded-before-unrestricted": "I4",
    "untrusted-runs-clean": "I2",
    "sibling-stays-out": "I2",
}
"""The protocol's names of what the reference numbers."""


class _Kernel(
    doors.Processors,
    doors.Points,
    doors.Described,
    doors.PhysicallySeen,
    doors.Allocating,
    doors.AddressSpaces,
    doors.Transitions,
    Protocol,
):
    """What is needed of the kernel here."""

    flusher: Shootdown
    protocol: AsiProtocol


class InvariantChecker:
    """Checks one machine."""

    def __init__(self, kernel: _Kernel) -> None:
        config = kernel.protocol.config
        self._kernel = kernel
        self._invariants = [
            (_BY_NAME.get(each.name, each.name), each.says, each.guard.compiled()) for each in step_invariants(config)
        ]
        self._taints = [("I2", each.says, each.guard.compiled()) for each in taint_invariants(config)]
        self._noted: dict[tuple[int, Space], Generation] = {}

    # After a micro-operation.

    def after_micro_op(self, cpu: CpuContext, taken: Step) -> None:
        """Check everything that a micro-operation of a CPU can have broken."""
        core = cpu.core.state
        env = (*cpu.thread.cpu, *cpu.thread.task, *core[cpu.who], *core[1 - cpu.who])
        for name, says, holds in self._invariants:
            if not holds(env):
                self._broken(name, says, cpu, taken.ran)
        if not cpu.thread.frames:
            for name, says, holds in self._taints:
                if not holds(env):
                    self._broken(name, says, cpu, taken.ran)
        self._check_sibling(cpu, taken)
        self._check_cr3(cpu, taken)
        self._check_order(cpu, taken)
        if self._kernel.protocol.config.noflush:
            self._check_generations(cpu, taken)
        if taken.effect is not None and taken.effect.kind is EffectKind.WRITE_CR3:
            self.check_tables(cpu, taken.ran)

    def _check_sibling(self, cpu: CpuContext, taken: Step) -> None:
        """The sibling's fields changed with this CPU's."""
        sibling = cpu.sibling
        if sibling is None:
            return
        core = sibling.core.state
        env = (*sibling.thread.cpu, *sibling.thread.task, *core[sibling.who], *core[1 - sibling.who])
        if core[0].untrusted and core[1].untrusted and cpu.task.cookie != sibling.task.cookie:
            what = f"untrusted code of {cpu.task} and of {sibling.task} runs at once on one core"
            self._broken("core-scheduling", what, cpu, taken.ran)
        for name, says, holds in self._invariants:
            if not holds(env):
                self._broken(name, f"{says} (seen on its sibling, cpu {sibling.number})", cpu, taken.ran)

    def _check_cr3(self, cpu: CpuContext, taken: Step) -> None:
        """I1, I3: the processor's CR3 is what the protocol's state says, and in the critical section the target's."""
        kernel, state, task = self._kernel, cpu.thread.cpu, cpu.thread.task
        expected = kernel.asi.cr3(cpu, Space(state.cr3), user_half=bool(state.user_cr3))
        if cpu.hw.cr3 != expected:
            what = (
                f"CR3 is {cpu.hw.cr3:#x}, but of {Space(state.cr3).label} of mm {cpu.loaded_mm.id} it is {expected:#x}"
            )
            self._broken("I1", what, cpu, taken.ran)
        if cpu.core.state[cpu.who].untrusted and task.target:
            target = kernel.domains.pgd(cpu.loaded_mm, Space(task.target), user_half=bool(state.user_cr3))
            if task.intr_nest_depth == 0 and (state.curr_asi != task.target or cpu.hw.root != target << 12):
                self._broken("I1", "untrusted code runs on other page tables than its domain's", cpu, taken.ran)

    def _check_order(self, cpu: CpuContext, taken: Step) -> None:
        """I3, I4, from the sequence of effects: what a write of CR3 must have before it."""
        effect, state = taken.effect, cpu.thread.cpu
        if effect is None or effect.kind is not EffectKind.WRITE_CR3 or effect.user_half:
            return
        config = self._kernel.protocol.config
        if effect.space is Space.UNRESTRICTED:
            if state.taints & int(CONTROL_MASK):
                self._broken("I4", "CR3 is unrestricted with untrusted training in the predictors", cpu, taken.ran)
            if not state.taints & int(Taint.KERNEL_DATA):
                self._broken("I4", "CR3 is unrestricted without the KERNEL_DATA taint", cpu, taken.ran)
        elif effect.space is not None and config.asi:
            if state.curr_asi != effect.space:
                self._broken("I3", f"CR3 is {effect.space.label} before curr_asi says so", cpu, taken.ran)
            asi_class = effect.space.asi_class
            if asi_class is not None and state.taints & int(config.registry.policy(asi_class).prevent_control):
                self._broken("I4", "CR3 is restricted before the predictors were flushed", cpu, taken.ran)

    def _check_generations(self, cpu: CpuContext, taken: Step) -> None:
        """I9: a bit of `tlb_stale` is clear only if this CPU has seen the domain's present generation."""
        generations, state = self._kernel.flusher.generations, cpu.thread.cpu
        mm, asid = cpu.loaded_mm.id, cpu.loaded_asid
        space = Space(state.cr3)
        if taken.role is Role.NOTE_TLB_GEN:
            for each in cpu.loaded_mm.domains:
                if state.tlb_read >> each & 1:
                    self._noted[cpu.number, each] = generations.of(_domain(mm, each))
        elif taken.role is Role.RECORD_TLB_GEN and space in cpu.loaded_mm.domains:
            cpu.seen = cpu.seen.record(asid, _domain(mm, space), self._noted[cpu.number, space])
        if self._kernel.flusher.in_progress:
            return  # counted already, and waited for: this CPU has yet to take the interrupt, or to leave a lazy mm
        for each in cpu.loaded_mm.domains:
            current = cpu.seen.is_current(asid, _domain(mm, each), generations)
            if not state.tlb_stale >> each & 1 and not current:
                what = f"{each.label} of mm {mm} counts as flushed, but a later flush of it was counted"
                self._broken("I9", what, cpu, taken.ran)

    # Page tables and TLBs.

    def check_tables(self, cpu: CpuContext, after: str) -> None:
        """I8: each domain's kernel half is `asi_nonsensitive_pgd`'s, its user half the mm's iff the class maps user."""
        kernel = self._kernel
        context = cpu.loaded_mm
        index = kernel.domains.shared_half_differs()
        if index is not None:
            what = f"top-level entry {index} of asi_nonsensitive_pgd is not init_mm's, outside of the direct map"
            self._broken("I8", what, cpu, after)
        for space, (pgd, _) in context.domains.items():
            index = kernel.domains.kernel_half_differs(pgd)
            if index is not None:
                what = (
                    f"top-level entry {index} of {space.label} of mm {context.id} differs from asi_nonsensitive_pgd's"
                )
                self._broken("I8", what, cpu, after)
            if context.updating:
                continue
            index = kernel.domains.user_half_differs(context, space)
            if index is not None:
                what = f"user half of {space.label} of mm {context.id}: top-level entry {index} is not as in the mm"
                self._broken("I8", what, cpu, after)

    def after_flush(self, mm: int | None, start: int, end: int) -> None:
        """I9: after a flush no CPU can use a translation of the range that the page tables do not have any more."""
        for cpu in self._kernel.cpus:
            if mm is not None and cpu.loaded_mm.id != mm:
                continue
            entries = (
                entry for entry in cpu.hw.tlb.entries() if start < entry.page + entry.page_bytes and entry.page < end
            )
            self._check_entries(cpu, entries, "a flush of its address")

    def after_free(self, pfn: int, order: int) -> None:
        """I9: whoever gets freed frames next has them for itself."""
        first, last = pfn * PAGE_SIZE, (pfn + (1 << order)) * PAGE_SIZE
        for cpu in self._kernel.cpus:
            entries = (
                entry for entry in cpu.hw.tlb.entries() if first < entry.paddr + entry.page_bytes and entry.paddr < last
            )
            self._check_entries(cpu, entries, f"frame {pfn:#x} was freed")

    def after_alloc(self, pfn: int, order: int) -> None:
        """I6: the pageblock's bit says what the restricted direct map has."""
        direct_map = self._kernel.direct_map
        last = pfn + (1 << order) - 1
        for frame in {pfn, last}:
            if frame in direct_map.removed:
                continue
            sensitive = direct_map.pageblocks.sensitive(frame)
            if direct_map.direct_map_sensitive(frame) != sensitive:
                what = f"frame {frame:#x} of a {'' if sensitive else 'non'}sensitive pageblock is mapped the other way"
                self._broken("I6", what, self._kernel.cpu, "an allocation")

    def after_flip(self, pageblock: int, *, sensitive: bool) -> None:
        """I6: mapped iff nonsensitive, zeroed on the way there, in no TLB after the way back."""
        kernel = self._kernel
        order = kernel.direct_map.pageblocks.order
        pfn = pageblock << order
        after = f"pageblock {pageblock} became {'' if sensitive else 'non'}sensitive"
        for frame in range(pfn, min(pfn + (1 << order), kernel.direct_map.frames)):
            if frame not in kernel.direct_map.removed and kernel.direct_map.direct_map_sensitive(frame) != sensitive:
                self._broken("I6", f"frame {frame:#x} is still mapped as before", kernel.cpu, after)
        if sensitive:
            start = kernel.layout.virt(pfn * PAGE_SIZE)
            self.after_flush(None, start, start + (PAGE_SIZE << order))
        elif any(
            kernel.physical.read(frame * PAGE_SIZE, PAGE_SIZE).strip(b"\0") for frame in range(pfn, pfn + (1 << order))
        ):
            self._broken("I6", "it was not zeroed", kernel.cpu, after)

    def _check_entries(self, cpu: CpuContext, entries: Iterable[TlbEntry], after: str) -> None:
        """I9 for some TLB entries of a CPU: those that it could use before it next flushes their PCID."""
        kernel = self._kernel
        tags = {kernel.asi.pcid(cpu.loaded_asid, space): space for space in self._usable(cpu)}
        for entry in entries:
            space = tags.get(entry.tag)
            if space is not None and not self._backed(cpu, space, entry):
                what = f"cpu {cpu.number} can use a stale translation of {entry.page:#x} in {space.label}"
                self._broken("I9", what, kernel.cpu, after)

    def _usable(self, cpu: CpuContext) -> list[Space]:
        """Return the address spaces whose TLB entries a CPU uses, or will use without flushing them first."""
        config, state = self._kernel.protocol.config, cpu.thread.cpu
        current = Space(state.cr3)
        if not config.noflush:
            return [current]  # every write of CR3 flushes what it loads
        spaces = [Space.UNRESTRICTED, *cpu.loaded_mm.domains]
        return [space for space in spaces if space is current or not state.tlb_stale >> space & 1]

    def _backed(self, cpu: CpuContext, space: Space, entry: TlbEntry) -> bool:
        """Whether the page tables still have a TLB entry's translation, with at least its rights."""
        kernel = self._kernel
        root = kernel.domains.pgd(cpu.loaded_mm, space, user_half=False) << 12
        access = Access.WRITE if entry.rights & 2 else Access.READ
        mode = cpu.hw.mode._replace(ac=True, smap=False, user=False)
        try:
            found = walk(kernel.physical, root, entry.page, access, mode, mark=False)
        except (PageFault, GeneralProtection):
            return False
        return found.paddr == entry.paddr

    def _broken(self, name: str, what: str, cpu: CpuContext, after: str) -> NoReturn:
        self._kernel.crash(InvariantError(name, what, cpu=cpu.number, after=after))


def _domain(mm: int, space: Space) -> DomainId:
    """Return the domain that a restricted address space of an mm is."""
    asi_class = space.asi_class
    assert asi_class is not None  # a restricted one has a class
    return DomainId(mm, asi_class)
