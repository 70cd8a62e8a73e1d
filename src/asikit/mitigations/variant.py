"""A mitigation without what it does against some vulnerabilities: ``linux:-retbleed:-vmscape``."""

from __future__ import annotations

from asikit.errors import nearest
from asikit.machine.x86 import Bug
from asikit.mitigations.errors import MitigationError
from asikit.mitigations.work import KernelMitigation, load_mitigation

__all__ = ["base_name", "load_variant"]

_LESS = ":-"


def base_name(text: str) -> str:
    """Return the name or file of the mitigation that a variant is made of."""
    return text.partition(_LESS)[0]


def load_variant(text: str) -> KernelMitigation:
    """Return what a kernel does, without what it does against the vulnerabilities that are named.

    :param text: As for :func:`load_mitigation`, and for each vulnerability to leave out ``:-`` and its name: this
        package's, or the kernel's own (``spec_rstack_overflow``).
    :raises MitigationError: As :func:`load_mitigation`; there is no such vulnerability, or nothing is done against it.
    """
    base, *left_out = text.split(_LESS)
    mitigation = load_mitigation(base)
    return mitigation.without(_named(mitigation, name) for name in left_out)


def _named(mitigation: KernelMitigation, name: str) -> Bug:
    bug = mitigation.names.get(name, name)
    known = mitigation.vulnerabilities
    if bug in known:
        return Bug(bug)
    if bug in set(Bug):
        raise MitigationError.usage(
            f'{mitigation.name} does nothing against "{name}" that could be left out'
            f" (it does against {', '.join(sorted(known))})"
        )
    raise MitigationError.usage(
        f'no vulnerability "{name}"{nearest(name, {*known, *mitigation.names})}'
        f" ({mitigation.name} does something against {', '.join(sorted(known))})"
    )
