"""The mechanism of Address Space Isolation: the one definition of what happens at each transition, in which order.

A transition is a named sequence of micro-operations (`operations`), written in a small language of guards and
assignments (`expressions`) over the fields of a small immutable state (`state`, `vocabulary`); each names the hardware
effect that it asks for (`effects`). `switching` has enter, exit, relax and their parts, `entries` what each happening
runs, `blanket` what ASI is compared with. A `Protocol` puts the transitions of a `ProtocolConfig` together and runs
them: whole (`Protocol.happen`), or step by step in any interleaving (`Protocol.step`). `invariants` says what always
holds, `edits` makes mutants. `taints`, `pcid`, `tlb` and `domains` are the values that go with it.
"""

from __future__ import annotations

from asikit.protocol.classes import NO_DOMAIN, AsiClass, Mapped, Space, space_of
from asikit.protocol.config import ProtocolConfig, blanket_config
from asikit.protocol.cpu import CpuBug, CpuFeature
from asikit.protocol.domains import Domain, Domains
from asikit.protocol.effects import PRIMITIVES, Effect, EffectKind, ExitReason, FlushSide, Primitive
from asikit.protocol.errors import ConfigError, MissingRoleError, MisuseError, ProtocolError, UnknownNameError
from asikit.protocol.happenings import TLB_FLUSHES, Happening, Outcome
from asikit.protocol.invariants import Invariant, step_invariants, taint_invariants
from asikit.protocol.operations import MicroOp, Program, ProgramOp, Transition
from asikit.protocol.pcid import PcidLayout
from asikit.protocol.protocol import Protocol
from asikit.protocol.roles import Role, Routine
from asikit.protocol.state import CoreState, CpuState, Frame, Mailbox, State, TaskState, ThreadState
from asikit.protocol.stepping import HANDLER, Status, Step
from asikit.protocol.taints import ALL_TAINTS, CONTROL_MASK, DATA_MASK, ClassRegistry, Taint, TaintPolicy
from asikit.protocol.tlb import (
    DomainId,
    FlushPlan,
    Generation,
    Generations,
    SeenGenerations,
    cpus_to_interrupt,
    plan_flush,
)

__all__ = [
    "ALL_TAINTS",
    "CONTROL_MASK",
    "DATA_MASK",
    "HANDLER",
    "NO_DOMAIN",
    "PRIMITIVES",
    "TLB_FLUSHES",
    "AsiClass",
    "ClassRegistry",
    "ConfigError",
    "CoreState",
    "CpuBug",
    "CpuFeature",
    "CpuState",
    "Domain",
    "DomainId",
    "Domains",
    "Effect",
    "EffectKind",
    "ExitReason",
    "FlushPlan",
    "FlushSide",
    "Frame",
    "Generation",
    "Generations",
    "Happening",
    "Invariant",
    "Mailbox",
    "Mapped",
    "MicroOp",
    "MissingRoleError",
    "MisuseError",
    "Outcome",
    "PcidLayout",
    "Primitive",
    "Program",
    "ProgramOp",
    "Protocol",
    "ProtocolConfig",
    "ProtocolError",
    "Role",
    "Routine",
    "SeenGenerations",
    "Space",
    "State",
    "Status",
    "Step",
    "Taint",
    "TaintPolicy",
    "TaskState",
    "ThreadState",
    "Transition",
    "UnknownNameError",
    "blanket_config",
    "cpus_to_interrupt",
    "plan_flush",
    "space_of",
    "step_invariants",
    "taint_invariants",
]
