"""A recording through the ASI protocol under a sensitivity policy: exits, flushes, and their causes.

>>> from asikit.replay import load_policy, replay
>>> from asikit.trace import Trace
>>> policies = [load_policy("denylist-2025"), load_policy("ephmap")]
>>> results = replay(Trace.open("fio.asitrace"), policies)  # doctest: +SKIP

A *policy* (:func:`load_policy`; ``docs/policies.md``) says which memory the restricted address space lacks and which
mechanism guards the kernel. Each event of the recording is handed to :mod:`asikit.protocol`; a touch only if the
policy's address space lacks what it touches. :class:`ReferenceReplay` does just that; :func:`replay` does it over a
transition table that is filled from the same protocol, compiled. Who counts something else as well reads the events in
the same :class:`ReplayPass`, as a :class:`Consumer`.
"""

from __future__ import annotations

from asikit.replay._policy_file import load_policy, shipped_policies
from asikit.replay._steps import Stepper
from asikit.replay._tables import SideTables
from asikit.replay.declaring import DeclaredBy, MemorySite, MemorySites
from asikit.replay.errors import PolicyError, ReplayError, SelectionError
from asikit.replay.history import NO_STEP, History
from asikit.replay.one_pass import ALL_CLASSES, Consumer, Follower, Replayed, ReplayPass, Subject
from asikit.replay.pieces import Piece
from asikit.replay.policy import (
    ExitOn,
    MechanismKind,
    Policy,
    PolicyCpu,
    PolicyEphmap,
    PolicyMechanism,
    PolicyMemory,
    Rules,
    Sensitivity,
    TouchKind,
)
from asikit.replay.reference import ReferenceReplay
from asikit.replay.result import SCHEMA, Cause, EntryRow, Part, ReplayResult
from asikit.replay.run import replay
from asikit.replay.selection import By, Selection
from asikit.replay.stretches import Stretches

__all__ = [
    "ALL_CLASSES",
    "NO_STEP",
    "SCHEMA",
    "By",
    "Cause",
    "Consumer",
    "DeclaredBy",
    "EntryRow",
    "ExitOn",
    "Follower",
    "History",
    "MechanismKind",
    "MemorySite",
    "MemorySites",
    "Part",
    "Piece",
    "Policy",
    "PolicyCpu",
    "PolicyEphmap",
    "PolicyError",
    "PolicyMechanism",
    "PolicyMemory",
    "ReferenceReplay",
    "ReplayError",
    "ReplayPass",
    "ReplayResult",
    "Replayed",
    "Rules",
    "Selection",
    "SelectionError",
    "Sensitivity",
    "SideTables",
    "Stepper",
    "Stretches",
    "Subject",
    "TouchKind",
    "load_policy",
    "replay",
    "shipped_policies",
]
