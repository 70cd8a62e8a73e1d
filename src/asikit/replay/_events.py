"""What the events of a trace mean to the protocol, and to which kind of entry a round trip belongs."""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from asikit.protocol import AsiClass, Happening
from asikit.trace import EventKind, TlbFlush

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ENTRY_SLOTS",
    "EVENT_CLASS",
    "NO_ENTRY",
    "SLOTS_PER_KIND",
    "TLB_FLUSHES",
    "EventClass",
    "class_of_entry",
    "entry_label",
    "entry_slot",
    "event_class",
]


class EventClass(IntEnum):
    """The protocol's happenings as small integers: the columns of the transition table."""

    SYSCALL_ENTRY = 0
    EXCEPTION_ENTRY = 1
    INTERRUPT_ENTRY = 2
    NMI_ENTRY = 3
    VM_EXIT = 4
    NESTED_EXCEPTION = 5
    NESTED_PAGE_FAULT = 6
    NESTED_INTERRUPT = 7
    NESTED_NMI = 8
    NESTED_RETURN = 9
    RETURN_USER = 10
    VM_ENTRY = 11
    UNMAPPED_TOUCH = 12
    CONTEXT_SWITCH = 13
    MM_SWITCH = 14
    TLB_FLUSH_USER = 15
    TLB_FLUSH_KERNEL = 16
    TLB_FLUSH_USER_RANGE = 17
    TLB_FLUSH_KERNEL_RANGE = 18
    DOUBLE_FAULT = 19

    @property
    def happening(self) -> Happening:
        """The protocol's name for it."""
        return Happening[self.name]


EVENT_CLASS: Mapping[EventKind, EventClass] = MappingProxyType(
    {
        EventKind.ENTRY_SYSCALL: EventClass.SYSCALL_ENTRY,
        EventKind.ENTRY_EXCEPTION: EventClass.EXCEPTION_ENTRY,
        EventKind.ENTRY_INTERRUPT: EventClass.INTERRUPT_ENTRY,
        EventKind.ENTRY_NMI: EventClass.NMI_ENTRY,
        EventKind.VM_EXIT: EventClass.VM_EXIT,
        EventKind.NESTED_EXCEPTION: EventClass.NESTED_EXCEPTION,
        EventKind.NESTED_INTERRUPT: EventClass.NESTED_INTERRUPT,
        EventKind.NESTED_NMI: EventClass.NESTED_NMI,
        EventKind.NESTED_RETURN: EventClass.NESTED_RETURN,
        EventKind.RETURN_USER: EventClass.RETURN_USER,
        EventKind.VM_ENTRY: EventClass.VM_ENTRY,
        EventKind.TOUCH_READ: EventClass.UNMAPPED_TOUCH,
        EventKind.TOUCH_WRITE: EventClass.UNMAPPED_TOUCH,
        EventKind.TOUCH_FETCH: EventClass.UNMAPPED_TOUCH,
        EventKind.TASK_SWITCH: EventClass.CONTEXT_SWITCH,
        EventKind.MM_SWITCH: EventClass.MM_SWITCH,
        EventKind.TLB_FLUSH: EventClass.TLB_FLUSH_USER,
    }
)
"""The class of each kind of event whatever its ``arg``; allocating and freeing pages is none."""

TLB_FLUSHES = len(TlbFlush)
"""The classes of TLB flushes follow one another in the order of :class:`TlbFlush`; a damaged ``arg`` is any of them."""

_DOUBLE_FAULT_VECTOR = 8
_PAGE_FAULT_VECTOR = 14


def event_class(kind: EventKind, arg: int) -> EventClass | None:
    """Return what an event is to the protocol, None if nothing. A touch counts only where memory is missing."""
    if kind is EventKind.NESTED_EXCEPTION and arg == _PAGE_FAULT_VECTOR:
        return EventClass.NESTED_PAGE_FAULT
    if kind is EventKind.NESTED_EXCEPTION and arg == _DOUBLE_FAULT_VECTOR:
        return EventClass.DOUBLE_FAULT
    if kind is EventKind.TLB_FLUSH:
        return EventClass(EventClass.TLB_FLUSH_USER + arg % TLB_FLUSHES)
    return EVENT_CLASS.get(kind)


SLOTS_PER_KIND = 4096
"""Entries are counted by kind and ``arg``; the last slot of a kind is for all args from here on."""
NO_ENTRY = 5 * SLOTS_PER_KIND
"""The slot of what happens before a CPU's first entry and after its last return."""
ENTRY_SLOTS = NO_ENTRY + 1


def entry_slot(kind: EventKind, arg: int) -> int:
    """Return the number under which an entry's round trips are counted."""
    return SLOTS_PER_KIND * (kind - 1) + min(arg, SLOTS_PER_KIND - 1)


def class_of_entry(slot: int) -> AsiClass | None:
    """Return the class of the domain that an entry comes from."""
    if slot == NO_ENTRY:
        return None
    return AsiClass.KVM if slot >= entry_slot(EventKind.VM_EXIT, 0) else AsiClass.USERSPACE


# Intel SDM volume 3A, table 6-1, with the kernel's abbreviations (arch/x86/include/asm/trapnr.h).
_EXCEPTIONS = MappingProxyType(
    {
        0: "divide error",
        1: "debug",
        2: "nmi",
        3: "breakpoint",
        4: "overflow",
        5: "bound range",
        6: "invalid opcode",
        7: "device not available",
        8: "double fault",
        10: "invalid tss",
        11: "segment not present",
        12: "stack segment",
        13: "general protection",
        14: "page fault",
        16: "x87 floating point",
        17: "alignment check",
        18: "machine check",
        19: "simd floating point",
        20: "virtualization",
        21: "control protection",
        29: "vmm communication",
    }
)


def entry_label(slot: int, syscalls: Mapping[str, str], vectors: Mapping[str, str], vm_exits: Mapping[str, str]) -> str:
    """Return the name of a slot: ``syscall pread64``, ``exception 14 page fault``, ``interrupt 236``, ``vm exit 120``.

    :param syscalls: The trace's names of system calls, by their number as text.
    :param vectors: The trace's names of interrupt vectors, by their number as text.
    :param vm_exits: The trace's names of VM exit codes, by their number as text.
    """
    if slot == NO_ENTRY:
        return "outside round trips"
    kind, arg = EventKind(1 + slot // SLOTS_PER_KIND), slot % SLOTS_PER_KIND
    other = arg == SLOTS_PER_KIND - 1
    match kind:
        case EventKind.ENTRY_SYSCALL:
            return "syscall other" if other else f"syscall {syscalls.get(str(arg), arg)}"
        case EventKind.ENTRY_EXCEPTION:
            return f"exception {arg} {_EXCEPTIONS.get(arg, '')}".rstrip()
        case EventKind.ENTRY_INTERRUPT:
            return f"interrupt {arg} {vectors.get(str(arg), '').replace('_', ' ').removesuffix(' interrupt')}".rstrip()
        case EventKind.ENTRY_NMI:
            return "nmi"
        case _:
            return "vm exit" if other else f"vm exit {arg} {vm_exits.get(str(arg), '')}".rstrip()
