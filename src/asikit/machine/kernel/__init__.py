"""The modelled kernel: entry and return, page faults, tasks, scheduling, system calls, KVM.

It executes the transitions that `asikit.protocol` defines, on the processor of `asikit.machine.x86` and the memory of
`asikit.machine.mm`, and decides nothing about their order. What is sensitive, `asikit.machine.mm` keeps; the restricted
address spaces here are built from it. `machine` is what a scenario sees; `core.kernel` has all parts together, and
`core.execution` runs their code.
"""

from __future__ import annotations

from asikit.machine.kernel.core.config import MachineConfig
from asikit.machine.kernel.core.errors import (
    DeadlockError,
    InvariantError,
    KernelOopsError,
    MachineError,
    ScenarioError,
)
from asikit.machine.kernel.core.fault import SegmentationFault
from asikit.machine.kernel.core.interleave import Act, Action, Interleaver, RoundRobin, Scripted
from asikit.machine.kernel.core.kernel import Kernel
from asikit.machine.kernel.core.observer import Observer
from asikit.machine.kernel.core.report import MachineReport, TlbCounts
from asikit.machine.kernel.core.speculation import Speculation
from asikit.machine.kernel.core.task import Task, TaskExit
from asikit.machine.kernel.machine import Machine
from asikit.machine.kernel.objects.process import Process
from asikit.machine.kernel.scenario import Scenario, load_scenario
from asikit.machine.user.guest import Guest
from asikit.machine.user.user import User
from asikit.machine.user.virtual_machine import VmExit

__all__ = [
    "Act",
    "Action",
    "DeadlockError",
    "Guest",
    "Interleaver",
    "InvariantError",
    "Kernel",
    "KernelOopsError",
    "Machine",
    "MachineConfig",
    "MachineError",
    "MachineReport",
    "Observer",
    "Process",
    "RoundRobin",
    "Scenario",
    "ScenarioError",
    "Scripted",
    "SegmentationFault",
    "Speculation",
    "Task",
    "TaskExit",
    "TlbCounts",
    "User",
    "VmExit",
    "load_scenario",
]
