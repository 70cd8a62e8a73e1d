"""One round trip of a machine, step by step: what the kernel did, what ASI did about it, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asikit.machine.kernel import Observer
from asikit.machine.mm import PAGE_SIZE
from asikit.report.view import Note, Report, Style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.machine.kernel import Machine, Task
    from asikit.machine.mm import Gfp
    from asikit.machine.x86 import Access
    from asikit.protocol import Effect

__all__ = ["Timeline"]

_INDENT = "  "


@dataclass(slots=True)
class _Line:
    clock: int
    depth: int
    text: str
    style: Style = Style.PLAIN


@dataclass
class _Trip:
    """A round trip that is watched: where, since when, how deep in handlers, and its lines."""

    cpu: int
    began: int
    who: str
    lines: list[_Line] = field(default_factory=list)
    depth: int = 0
    over: bool = False


class Timeline(Observer):
    """Keeps what happens in the n-th round trip of a machine, counted from 1 over all CPUs by their entries."""

    def __init__(self, machine: Machine, number: int) -> None:
        self._kernel = machine.kernel
        self._number = number
        self._seen = 0
        self._trip: _Trip | None = None
        machine.observe(self)

    @property
    def found(self) -> bool:
        """Whether that round trip has begun."""
        return self._trip is not None

    @property
    def round_trips(self) -> int:
        """How many have begun."""
        return self._seen

    def report(self) -> Report:
        """Return it, a line for each step, with the time since the entry."""
        trip = self._trip
        if trip is None:
            return Report((Note(f"There were only {self._seen} round trips."),))
        steps = [
            Note(line.text, f"{line.clock - trip.began:>6}  {_INDENT * line.depth}", line.style) for line in trip.lines
        ]
        if not trip.over:
            steps.append(Note("(not over when the machine stopped)", " " * 8))
        return Report(tuple(steps), f"Round trip {self._number}, cpu {trip.cpu}, {trip.who}")

    # What is told.

    def entry(self, cpu: int, kind: str, number: int) -> None:
        """User mode was left: the n-th time is the one."""
        self._begin(cpu, f"{kind} {number} from user mode")

    def vm_exit(self, cpu: int, code: int) -> None:
        """A guest was left."""
        self._begin(cpu, f"VM exit, code {code:#x}")

    def return_user(self, cpu: int, *, by_iret: bool) -> None:
        """The round trip is over."""
        self._end(cpu, f"{'IRET' if by_iret else 'SYSRET'} to user mode")

    def vm_entry(self, cpu: int) -> None:
        """The round trip is over: the CPU goes into a guest."""
        self._end(cpu, "VM entry")

    def nested_entry(self, cpu: int, kind: str, number: int) -> None:
        """Kernel mode was interrupted."""
        self._add(cpu, f"{kind} {number} in kernel mode")
        self._deeper(cpu, 1)

    def nested_return(self, cpu: int) -> None:
        """The innermost nested entry returns."""
        self._deeper(cpu, -1)
        self._add(cpu, "return from it")

    def touch(self, cpu: int, access: Access, vaddr: int, paddr: int) -> None:
        """Kernel code touches a page for the first time."""
        page = self._kernel.allocator.page(paddr // PAGE_SIZE) if paddr < self._kernel.physical.size else None
        what = "device" if page is None else page.kind if page.cache is None else f"{page.kind} {page.cache}"
        region = self._kernel.layout.region_of(vaddr)
        self._add(cpu, f"{access.name.lower()} {region} {vaddr:#x}: {what}  ({self._function()})")

    def asi_fault(self, cpu: int, access: Access, vaddr: int) -> None:
        """ASI's own page fault."""
        text = f"page fault: {access.name.lower()} of {vaddr:#x} is not in the restricted address space"
        self._add(cpu, f"{text}  ({self._function()})", Style.WARNING)

    def micro_op(self, cpu: int, path: str, effect: Effect | None) -> None:
        """A micro-operation of the protocol ran."""
        self._add(
            cpu, path if effect is None else f"{path}: {effect}", Style.FAINT if effect is None else Style.NOTABLE
        )

    def syscall(self, cpu: int, number: int, name: str, arguments: Sequence[object], result: int) -> None:
        """A system call is done."""
        del number
        listed = ", ".join(f"{argument:#x}" if isinstance(argument, int) else str(argument) for argument in arguments)
        self._add(cpu, f"{name}({listed}) = {result}", Style.STRONG)

    def task_switch(self, cpu: int, task: Task) -> None:
        """The CPU leaves a task for another one."""
        self._add(cpu, f"switch to {task}")

    def mm_switch(self, cpu: int, mm: int) -> None:
        """Other page tables are loaded."""
        self._add(cpu, f"page tables of mm {mm}")

    def page_alloc(self, cpu: int, pfn: int, order: int, gfp: Gfp, migratetype: int) -> None:
        """Frames were allocated."""
        del gfp, migratetype
        self._add(cpu, f"allocate frame {pfn:#x}, order {order}  ({self._function()})")

    def page_free(self, cpu: int, pfn: int, order: int) -> None:
        """Frames were freed."""
        self._add(cpu, f"free frame {pfn:#x}, order {order}")

    def tlb_flush(self, cpu: int, *, kernel: bool, pages: int | None) -> None:
        """This CPU flushes its TLB."""
        addresses = f"{'kernel' if kernel else 'user'} addresses"
        what = f"all {addresses}" if pages is None else f"{pages} page{'' if pages == 1 else 's'} at {addresses}"
        self._add(cpu, f"flush of {what} from the TLB")

    # How it is kept.

    def _begin(self, cpu: int, text: str) -> None:
        self._seen += 1
        if self._seen == self._number:
            clock = self._kernel.cpus[cpu].clock
            self._trip = _Trip(cpu, clock, str(self._kernel.cpus[cpu].task))
            self._add(cpu, text)

    def _end(self, cpu: int, text: str) -> None:
        self._add(cpu, text)
        if self._trip is not None and self._trip.cpu == cpu:
            self._trip.over = True

    def _add(self, cpu: int, text: str, style: Style = Style.PLAIN) -> None:
        trip = self._trip
        if trip is not None and trip.cpu == cpu and not trip.over:
            trip.lines.append(_Line(self._kernel.cpus[cpu].clock, trip.depth, text, style))

    def _deeper(self, cpu: int, by: int) -> None:
        if self._trip is not None and self._trip.cpu == cpu:
            self._trip.depth = max(0, self._trip.depth + by)

    def _function(self) -> str:
        calls = self._kernel.cpu.task.calls
        return " <- ".join(symbol.name for symbol in reversed(calls[-2:])) or "?"
