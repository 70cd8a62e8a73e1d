"""The mechanism of Address Space Isolation: states, taints, policies, and transitions made of micro-operations."""

from asikit.protocol.classes import NO_DOMAIN, AsiClass, Space, space_of
from asikit.protocol.config import CpuBug, CpuFeature, ProtocolConfig, blanket_config
from asikit.protocol.effects import Effect, EffectKind, ExitReason
from asikit.protocol.errors import MisuseError, ProtocolError
from asikit.protocol.happenings import Happening, Outcome
from asikit.protocol.protocol import Protocol
from asikit.protocol.state import CoreState, CpuState, Frame, Mailbox, State, TaskState, ThreadState
from asikit.protocol.taints import ALL_TAINTS, CONTROL_MASK, DATA_MASK, ClassRegistry, Taint, TaintPolicy

__all__ = [
    "ALL_TAINTS",
    "CONTROL_MASK",
    "DATA_MASK",
    "NO_DOMAIN",
    "AsiClass",
    "ClassRegistry",
    "CoreState",
    "CpuBug",
    "CpuFeature",
    "CpuState",
    "Effect",
    "EffectKind",
    "ExitReason",
    "Frame",
    "Happening",
    "Mailbox",
    "MisuseError",
    "Outcome",
    "Protocol",
    "ProtocolConfig",
    "ProtocolError",
    "Space",
    "State",
    "Taint",
    "TaintPolicy",
    "TaskState",
    "ThreadState",
    "blanket_config",
    "space_of",
]
