"""Address Space Isolation (ASI) that one can run, attack, prove and price.

The names below are loaded from their rooms when they are first used (PEP 562), so that ``import asikit`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asikit.errors import AsikitError as AsikitError
    from asikit.machine.kernel import Guest as Guest
    from asikit.machine.kernel import Machine as Machine
    from asikit.machine.kernel import MachineConfig as MachineConfig
    from asikit.machine.kernel import Observer as Observer
    from asikit.machine.kernel import User as User
    from asikit.machine.tracing import MachineTrace as MachineTrace
    from asikit.protocol import AsiClass as AsiClass
    from asikit.protocol import Effect as Effect
    from asikit.protocol import EffectKind as EffectKind
    from asikit.protocol import ExitReason as ExitReason
    from asikit.protocol import Happening as Happening
    from asikit.protocol import MisuseError as MisuseError
    from asikit.protocol import Protocol as Protocol
    from asikit.protocol import ProtocolConfig as ProtocolConfig
    from asikit.protocol import ProtocolError as ProtocolError
    from asikit.protocol import Taint as Taint
    from asikit.protocol import TaintPolicy as TaintPolicy
    from asikit.trace import EventKind as EventKind
    from asikit.trace import PageKind as PageKind
    from asikit.trace import Region as Region
    from asikit.trace import Stacks as Stacks
    from asikit.trace import Trace as Trace
    from asikit.trace import TraceError as TraceError
    from asikit.trace import TraceWriter as TraceWriter

__version__ = "0.2.0"

# A public name and the room that it is loaded from. A name is added here and in the block above; a test compares them.
_HOME = {
    "AsiClass": "asikit.protocol",
    "AsikitError": "asikit.errors",
    "Effect": "asikit.protocol",
    "EffectKind": "asikit.protocol",
    "EventKind": "asikit.trace",
    "ExitReason": "asikit.protocol",
    "Guest": "asikit.machine.kernel",
    "Happening": "asikit.protocol",
    "Machine": "asikit.machine.kernel",
    "MachineConfig": "asikit.machine.kernel",
    "MachineTrace": "asikit.machine.tracing",
    "MisuseError": "asikit.protocol",
    "Observer": "asikit.machine.kernel",
    "PageKind": "asikit.trace",
    "Protocol": "asikit.protocol",
    "ProtocolConfig": "asikit.protocol",
    "ProtocolError": "asikit.protocol",
    "Region": "asikit.trace",
    "Stacks": "asikit.trace",
    "Taint": "asikit.protocol",
    "TaintPolicy": "asikit.protocol",
    "Trace": "asikit.trace",
    "TraceError": "asikit.trace",
    "TraceWriter": "asikit.trace",
    "User": "asikit.machine.kernel",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604  (names of the table above, all strings)


def __getattr__(name: str) -> object:
    """Load a public name from its room.

    :raises AttributeError: There is no such public name.
    """
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Give the public names, loaded or not."""
    return sorted({*globals(), *_HOME})
