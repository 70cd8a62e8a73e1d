"""What can go wrong at the protocol: every way has a name.

This room imports nothing of asikit, so its errors have a base of their own.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.protocol.roles import Role


class ProtocolError(Exception):
    """Base of everything that this room raises; the message is one line."""


class ConfigError(ProtocolError):
    """A configuration that contradicts itself."""


class UnknownNameError(ProtocolError):
    """A transition or a micro-operation that does not exist; the message names the nearest that does."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        near = difflib.get_close_matches(name, [str(each) for each in known], n=1)
        super().__init__(f"no {what} called {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


class PrimitivesError(ProtocolError):
    """The table of primitives and the effects do not fit."""


class MissingRoleError(ProtocolError):
    """No micro-operation has a role that was asked for."""

    def __init__(self, role: Role, within: Iterable[str]) -> None:
        names = ", ".join(within)
        super().__init__(
            f"no micro-operation of {names or 'any transition'} has the role {role.name} ({role.value}); "
            "if the configuration may lack it, say optional=True"
        )


class EditError(ProtocolError):
    """An edit of a transition that leaves it meaningless."""


# Misuse: the caller broke a rule of the API. The kernel has a BUG_ON or a WARN_ON at each of these places.


class MisuseError(ProtocolError):
    """A rule of the ASI API was broken; the subclass says which, `rule` what to do instead."""

    rule = ""


class EnterTwiceError(MisuseError):
    """`asi_enter` while tense: there must be an `asi_relax` between two enters."""

    rule = "relax before entering again"


class EnterFromInterruptError(MisuseError):
    """`asi_enter` from inside an interrupt or exception handler."""

    rule = "enter only outside of interrupt and exception handlers"


class EnterPreemptibleError(MisuseError):
    """`asi_enter` with preemption on: the task could go to another CPU half-way."""

    rule = "disable preemption before entering"


class RelaxWhenRelaxedError(MisuseError):
    """`asi_relax` without an `asi_enter` before it."""

    rule = "relax only after an enter"


class RelaxFromInterruptError(MisuseError):
    """`asi_relax` from inside a handler: the critical section is not the handler's to end."""

    rule = "relax only outside of interrupt and exception handlers"


class ExitInCriticalSectionError(MisuseError):
    """`asi_exit` inside the critical section: nothing would restore the restricted address space."""

    rule = "relax before exiting"


class SensitiveAccessInCriticalSectionError(MisuseError):
    """Sensitive memory touched in the critical section itself: the fault's return re-enters, so it never ends."""

    rule = "touch only nonsensitive memory between enter and relax"


class SwitchInCriticalSectionError(MisuseError):
    """A context switch inside the critical section, where preemption is off and sleeping forbidden."""

    rule = "relax before switching tasks"


class ReturnFromNestedInterruptError(MisuseError):
    """A return to untrusted code while inner handlers are still open."""

    rule = "return from the inner handlers first"


class UnbalancedInterruptExitError(MisuseError):
    """An `asi_intr_exit` without its `asi_intr_enter`."""

    rule = "call asi_intr_exit once for each asi_intr_enter"


class NestingTooDeepError(MisuseError):
    """More nested entries than `ProtocolConfig.max_nest_depth`."""

    rule = "raise ProtocolConfig.max_nest_depth, or look for lost returns"


# Registration of classes and the life of domains: the kernel returns an errno, here named.


class DomainError(ProtocolError):
    """A class or a domain could not be made or destroyed; `errno_name` is what the kernel's function returns."""

    errno_name = ""


class ClassRegisteredError(DomainError):
    """The class is registered already (-EEXIST)."""

    errno_name = "EEXIST"


class ClassNotRegisteredError(DomainError):
    """The class is not registered (-EINVAL)."""

    errno_name = "EINVAL"


class InvalidPolicyError(DomainError):
    """A taint policy that can never do what its field says (-EINVAL)."""

    errno_name = "EINVAL"


class DomainOutOfMemoryError(DomainError):
    """No memory for the domain's page tables (-ENOMEM)."""

    errno_name = "ENOMEM"


class DomainInUseError(DomainError):
    """The domain would be destroyed while a CPU still is in it."""

    errno_name = "EBUSY"
