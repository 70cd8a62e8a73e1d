"""What can go wrong on a machine, apart from what the machine's own programs see as errno."""

from __future__ import annotations

from asikit.errors import AsikitError

__all__ = ["DeadlockError", "InvariantError", "KernelOopsError", "MachineError", "ScenarioError"]


class MachineError(AsikitError):
    """Base of this room's errors; the message is one line."""


class ScenarioError(MachineError):
    """A machine description or a scenario that makes no sense."""


class DeadlockError(MachineError):
    """Nothing can ever run again; the message names who waits for what."""


class KernelOopsError(MachineError):
    """Kernel code accessed what is not there, or may not be accessed so: a bug of the modelled kernel."""


class InvariantError(MachineError):
    """Something that always holds did not.

    :ivar name: The invariant: I1 to I9 of the mechanism, or a name of `asikit.protocol.step_invariants`.
    :ivar cpu: The CPU on which it was seen.
    :ivar after: The micro-operation, or other event, after which.
    """

    def __init__(self, name: str, what: str, *, cpu: int, after: str) -> None:
        super().__init__(f"{name} is broken on CPU {cpu} after {after}: {what}")
        self.name = name
        self.what = what
        self.cpu = cpu
        self.after = after
