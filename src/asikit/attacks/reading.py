"""Reading the files that describe vulnerabilities: ``data/vulnerabilities/NAME.toml``, and those of a user's own.

What is refused here would else be an attack that never takes place, and whose verdict would say nothing.
"""

from __future__ import annotations

from asikit.attacks.errors import LeakError
from asikit.attacks.soundness import contradiction
from asikit.attacks.vectors import vector_named
from asikit.attacks.vulnerability import Vulnerability
from asikit.documents import SUFFIX, Shelf, is_own_file
from asikit.errors import nearest
from asikit.machine.x86 import cpu_names

__all__ = ["load_vulnerability", "vulnerability_names"]


def vulnerability_names() -> tuple[str, ...]:
    """Return the names of the vulnerabilities that come with the package, sorted."""
    return _SHELF.names()


def load_vulnerability(name_or_file: str) -> Vulnerability:
    """Return a vulnerability.

    :param name_or_file: The name of a shipped one, or the path of a TOML file (it ends in ``.toml``).
    :raises LeakError: There is none of that name, or the file does not describe one; the message says where.
    """
    return _SHELF.load(name_or_file)


def _contradiction(vulnerability: Vulnerability) -> str:
    """Say what makes no sense, nothing if all does."""
    if bool(vulnerability.ways) == bool(vulnerability.not_expressible):
        return "give [[ways]], or say in not_expressible why there are none"
    if vulnerability.ways and vulnerability.bug is None and not vulnerability.cpus:
        return "say which processors have it: bug, a name of CPU models' bugs, or cpus, their names"
    for cpu in vulnerability.cpus:
        if cpu not in cpu_names() and not is_own_file(cpu):
            return f'cpus: no CPU model "{cpu}"{nearest(cpu, cpu_names())} (a file of your own ends in {SUFFIX})'
    for number, way in enumerate(vulnerability.ways, 1):
        wrong = contradiction(way)
        if wrong:
            return f"way {number}, {way.mechanism}: {wrong}"
        for vector in way.vectors:
            try:
                vector_named(vector)
            except LeakError as error:
                return f"way {number}: {error}"
    return ""


_SHELF = Shelf("vulnerabilities", Vulnerability, LeakError, "vulnerability", contradiction=_contradiction)
