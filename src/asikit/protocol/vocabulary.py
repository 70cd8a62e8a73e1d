"""The words that transitions are written in: the fields of the state, and predicates with the kernel's names."""

from __future__ import annotations

from asikit.protocol.classes import NO_DOMAIN, Space
from asikit.protocol.expressions import Const, Field, Guard, Named, Scope
from asikit.protocol.state import CpuState, Mailbox, TaskState
from asikit.protocol.taints import CONTROL_MASK, DATA_MASK, OWN_MM_MASK, Taint

FIELDS: tuple[Field, ...] = tuple(
    Field(scope, name, index)
    for index, (scope, name) in enumerate(
        [
            *((Scope.CPU, name) for name in CpuState._fields),
            *((Scope.TASK, name) for name in TaskState._fields),
            *((Scope.OWN, name) for name in Mailbox._fields),
            *((Scope.SIBLING, name) for name in Mailbox._fields),
        ]
    )
)
"""All fields, in the order of an `Environment`."""


def field_named(scope: Scope, name: str) -> Field:
    """Return the field of a name in a scope.

    :raises LookupError: There is none.
    """
    for candidate in FIELDS:
        if candidate.scope is scope and candidate.name == name:
            return candidate
    raise LookupError(f"no field {name!r} in scope {scope}")


CURR_ASI = field_named(Scope.CPU, "curr_asi")
TAINTS = field_named(Scope.CPU, "taints")
CR3 = field_named(Scope.CPU, "cr3")
USER_CR3 = field_named(Scope.CPU, "user_cr3")
TLB_STALE = field_named(Scope.CPU, "tlb_stale")
TLB_READ = field_named(Scope.CPU, "tlb_read")
PREEMPTIBLE = field_named(Scope.CPU, "preemptible")
TARGET = field_named(Scope.TASK, "target")
DEPTH = field_named(Scope.TASK, "intr_nest_depth")
STUNNED = field_named(Scope.OWN, "stunned")
UNTRUSTED = field_named(Scope.OWN, "untrusted")
STUN_IPI = field_named(Scope.OWN, "stun_ipi")
SIBLING_STUNNED = field_named(Scope.SIBLING, "stunned")
SIBLING_UNTRUSTED = field_named(Scope.SIBLING, "untrusted")
SIBLING_STUN_IPI = field_named(Scope.SIBLING, "stun_ipi")

NONE = Const(int(NO_DOMAIN), "none")
UNRESTRICTED = Const(int(Space.UNRESTRICTED), "unrestricted")
SPACES = {space: Const(int(space), space.name.lower()) for space in Space}
CONTROL = Const(int(CONTROL_MASK), "CONTROL_MASK")
DATA = Const(int(DATA_MASK), "DATA_MASK")
OWN_MM = Const(int(OWN_MM_MASK), "OWN_MM_MASK")
TAINT = {taint: Const(int(taint), str(taint.name)) for taint in Taint}

TENSE: Guard = Named("tense", TARGET.differs(NONE))
RELAXED: Guard = Named("relaxed", TARGET.equals(NONE))
IN_CRITICAL_SECTION: Guard = Named("in the critical section", TARGET.differs(NONE) & DEPTH.equals(0))
RESTRICTED: Guard = Named("restricted", CURR_ASI.differs(NONE))
