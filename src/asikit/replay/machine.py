"""A sensitivity policy on the model machine: the same memory is sensitive, the same mechanism guards the kernel."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from asikit.errors import nearest
from asikit.machine import mm
from asikit.machine.kernel import MachineConfig, Mapped
from asikit.machine.kernel.core.interrupts import VECTOR_NAMES
from asikit.machine.uapi.numbers import Nr
from asikit.machine.x86 import Access as CpuAccess
from asikit.protocol import AsiClass
from asikit.replay._events import SVM_EXITS, entry_label, entry_slot
from asikit.replay._steps import protocol_config
from asikit.replay.errors import PolicyError
from asikit.replay.policy import ACCESSES, Access, MechanismKind, Policy, Rules, Sensitivity
from asikit.replay.run import ALL_CLASSES
from asikit.trace import EventKind

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["decide", "entry_name", "machine_config"]

_CPU_ACCESS = {Access.READ: CpuAccess.READ, Access.WRITE: CpuAccess.WRITE, Access.FETCH: CpuAccess.FETCH}
_PREFIX = "__GFP_"
_ENTRY_KINDS = {
    "syscall": EventKind.ENTRY_SYSCALL,
    "exception": EventKind.ENTRY_EXCEPTION,
    "interrupt": EventKind.ENTRY_INTERRUPT,
    "nmi": EventKind.ENTRY_NMI,
    "vm_exit": EventKind.VM_EXIT,
}


def machine_config(
    policy: Policy, base: MachineConfig | None = None, classes: frozenset[AsiClass] = ALL_CLASSES
) -> MachineConfig:
    """Return the description of a machine that runs under a policy.

    :param base: The rest of the description: processors, memory, seed. With ``asi`` off it is off under any policy.
    :param classes: The classes of untrusted domains to protect from.
    :raises PolicyError: The policy contradicts itself, or names what the machine does not have.
    """
    base = MachineConfig() if base is None else base
    kind = policy.mechanism.kind if base.asi else MechanismKind.OFF
    smt = base.smt and kind is MechanismKind.ASI
    mechanism = replace(policy.mechanism, kind=kind, smt=smt)
    protocol = protocol_config(replace(policy, mechanism=mechanism), classes | {AsiClass.IDLE} if smt else classes)
    return replace(
        base,
        asi=kind is MechanismKind.ASI,
        protocol=protocol,
        sensitivity=decide(policy),
        regions={
            mm.Region(region): {_CPU_ACCESS[access]: Mapped(mapped[access]) for access in ACCESSES}
            for region, mapped in policy.regions.items()
        },
        ephmap_read=_ephmap_kinds(policy, Access.READ),
        ephmap_write=_ephmap_kinds(policy, Access.WRITE),
    )


def decide(policy: Policy) -> Callable[[mm.Request], bool]:
    """Return the policy's decision about one allocation: whether it is sensitive.

    Strongest first, as :mod:`asikit.replay.sensitivity` lays the same rules over a trace's pages: slab cache,
    allocating function, kind of page, gfp flags; where rules of equal strength match both ways, it is sensitive.

    :raises PolicyError: The policy names a gfp flag that the machine's kernel does not have.
    """
    memory = policy.memory
    sensitive, nonsensitive = _masks(policy, memory.sensitive), _masks(policy, memory.nonsensitive)
    default = memory.default is Sensitivity.SENSITIVE

    def decision(request: mm.Request) -> bool:
        for matches in (_by_cache, _by_allocator, _by_kind):
            if matches(memory.sensitive, request):
                return True
            if matches(memory.nonsensitive, request):
                return False
        if _by_gfp(sensitive, request):
            return True
        return default and not _by_gfp(nonsensitive, request)

    return decision


def entry_name(kind: str, number: int) -> str:
    """Return what an entry of a machine's report is called, as in a replay: ``syscall pread64``, ``vm exit 120 hlt``.

    :param kind: ``syscall``, ``exception``, ``interrupt``, ``nmi`` or ``vm_exit``.
    :param number: The system call's, the vector, or the hardware's exit code.
    """
    syscalls = {str(int(call)): call.label for call in Nr}
    vectors = {str(vector): name for vector, name in VECTOR_NAMES.items()}
    return entry_label(entry_slot(_ENTRY_KINDS[kind], number), syscalls, vectors, SVM_EXITS)


def _by_cache(rules: Rules, request: mm.Request) -> bool:
    return request.cache is not None and _any(rules.caches, request.cache)


def _by_allocator(rules: Rules, request: mm.Request) -> bool:
    return _any(rules.allocated_by, request.allocated_by)


def _by_kind(rules: Rules, request: mm.Request) -> bool:
    return str(request.kind) in rules.kinds


def _by_gfp(masks: tuple[int, ...], request: mm.Request) -> bool:
    return any(request.gfp & mask == mask for mask in masks)


def _any(globs: tuple[str, ...], name: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _masks(policy: Policy, rules: Rules) -> tuple[int, ...]:
    known = {f"{_PREFIX}{flag.name}": int(flag) for flag in mm.Gfp}
    for name in rules.gfp:
        if name not in known:
            raise PolicyError(
                f'policy {policy.name}: the machine\'s kernel has no gfp flag "{name}"{nearest(name, known)}'
            )
    return tuple(known[name] for name in rules.gfp)


def _ephmap_kinds(policy: Policy, access: Access) -> frozenset[mm.PageKind]:
    return frozenset(mm.PageKind(kind) for kind in policy.ephmap.kinds if access in policy.ephmap.access)
