"""A sensitivity policy on the model machine: the same memory is sensitive, the same mechanism guards the kernel."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from asikit.errors import nearest
from asikit.machine import mm
from asikit.machine.kernel import MachineConfig
from asikit.machine.kernel.core.interrupts import VECTOR_NAMES
from asikit.machine.uapi.numbers import Nr
from asikit.machine.x86 import Access
from asikit.protocol import AsiClass
from asikit.replay._events import entry_label, entry_slot
from asikit.replay._steps import protocol_config
from asikit.replay._unmatched import unmatched
from asikit.replay.errors import PolicyError
from asikit.replay.one_pass import ALL_CLASSES
from asikit.replay.policy import ACCESSES, MechanismKind, Policy, Rules, Sensitivity, TouchKind
from asikit.trace import SVM_EXITS, EventKind, PageKind

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PolicyWatch", "decide", "entry_name", "machine_config"]

_CPU_ACCESS = {TouchKind.READ: Access.READ, TouchKind.WRITE: Access.WRITE, TouchKind.FETCH: Access.FETCH}
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
            region: {_CPU_ACCESS[access]: mapped[access] for access in ACCESSES}
            for region, mapped in policy.regions.items()
        },
        ephmap_read=_ephmap_kinds(policy, TouchKind.READ),
        ephmap_write=_ephmap_kinds(policy, TouchKind.WRITE),
    )


class PolicyWatch:
    """A policy's decision on a machine that remembers what it was asked, for names that matched nothing in it."""

    def __init__(self, policy: Policy) -> None:
        """Begin.

        :raises PolicyError: As :func:`decide`.
        """
        self._policy = policy
        self._decide = decide(policy)
        self._requests: set[mm.AllocationRequest] = set()

    def machine_config(self, base: MachineConfig | None = None) -> MachineConfig:
        """Return the description of a machine that runs under the policy, and is watched.

        :raises PolicyError: As :func:`machine_config`.
        """
        return replace(machine_config(self._policy, base), sensitivity=self.decide)

    def decide(self, request: mm.AllocationRequest) -> bool:
        """Decide about one allocation: whether it is sensitive."""
        self._requests.add(request)
        return self._decide(request)

    def warnings(self) -> tuple[str, ...]:
        """Return a line for each name that the policy's author gave and that no allocation of the machine had."""
        requests = self._requests
        found = {
            "caches": lambda: {request.cache for request in requests if request.cache is not None},
            "allocated_by": lambda: {request.allocated_by for request in requests},
            "kinds": lambda: {request.kind.value for request in requests},
            "gfp": lambda: {f"{_PREFIX}{flag.name}" for request in requests for flag in request.gfp},
        }
        return unmatched(self._policy, found, where="this run")


def decide(policy: Policy) -> Callable[[mm.AllocationRequest], bool]:
    """Return the policy's decision about one allocation: whether it is sensitive.

    Strongest first, as :mod:`asikit.replay.sensitivity` lays the same rules over a trace's pages: slab cache,
    allocating function, kind of page, gfp flags; where rules of equal strength match both ways, it is sensitive.

    :raises PolicyError: The policy names a gfp flag that the machine's kernel does not have.
    """
    memory = policy.memory
    sensitive, nonsensitive = _masks(policy, memory.sensitive), _masks(policy, memory.nonsensitive)
    default = memory.default is Sensitivity.SENSITIVE

    def decision(request: mm.AllocationRequest) -> bool:
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
    vm_exits = {str(code): name for code, name in SVM_EXITS.items()}
    return entry_label(entry_slot(_ENTRY_KINDS[kind], number), syscalls, vectors, vm_exits)


def _by_cache(rules: Rules, request: mm.AllocationRequest) -> bool:
    return request.cache is not None and _any(rules.caches, request.cache)


def _by_allocator(rules: Rules, request: mm.AllocationRequest) -> bool:
    return _any(rules.allocated_by, request.allocated_by)


def _by_kind(rules: Rules, request: mm.AllocationRequest) -> bool:
    return request.kind in rules.kinds


def _by_gfp(masks: tuple[int, ...], request: mm.AllocationRequest) -> bool:
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


def _ephmap_kinds(policy: Policy, access: TouchKind) -> frozenset[PageKind]:
    return frozenset(PageKind(kind) for kind in policy.ephmap.kinds if access in policy.ephmap.access)
