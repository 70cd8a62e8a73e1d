"""The modelled kernel: entry and return, page faults, tasks, scheduling, system calls, KVM.

It knows nothing of sensitivity. It executes the transitions that `asikit.protocol` defines, on the processor of
`asikit.x86` and the memory of `asikit.mm`, and decides nothing about their order. `machine` is what a scenario sees;
`kernel` has all parts together, `execution` runs their code.
"""

from asikit.kernel.config import MachineConfig, Mapped
from asikit.kernel.errors import DeadlockError, InvariantError, KernelOopsError, MachineError, ScenarioError
from asikit.kernel.fault import SegmentationFault
from asikit.kernel.guest import Guest
from asikit.kernel.interleave import Act, Action, Interleaver, RoundRobin, Scripted
from asikit.kernel.kernel import Kernel
from asikit.kernel.machine import Machine
from asikit.kernel.observer import Observer
from asikit.kernel.process import Process
from asikit.kernel.report import Report, TlbCounts
from asikit.kernel.scenario import Scenario, load_scenario
from asikit.kernel.speculation import Speculation
from asikit.kernel.task import Task, TaskExit
from asikit.kernel.user import User
from asikit.kernel.virtual_machine import VmExit

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
    "Mapped",
    "Observer",
    "Process",
    "Report",
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
