"""A finding as a scenario for `asi run`, which shows the attack and what the attacker sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asikit.attacks.errors import LeakError
from asikit.attacks.verdict import SECRETS
from asikit.documents import is_own_file

if TYPE_CHECKING:
    from asikit.attacks.verdict import Finding

__all__ = ["scenario_text"]

_TEXT = '''"""An attack: run it with one secret, then with the other, and compare what is printed."""

# {verdict}: {reason}
from asikit import Machine
from asikit.attacks import Cell, Observation, machine_config, put_on

CELL = Cell(vulnerability={vulnerability!r}, vector={vector!r}, cpu={cpu!r}, mitigation={mitigation!r})
CONFIG = machine_config(CELL)
SECRET = bytes.fromhex("{secret}")  # the other one is {other}


def scenario(machine: Machine) -> None:
    """Put victim and attacker onto the machine."""
    put_on(machine, CELL, way_number={way_number}, secret=SECRET, tell=tell)


def tell(seen: Observation) -> None:
    """Print what the attacker sees."""
    print(seen)
'''


def scenario_text(finding: Finding) -> str:
    """Return the text of a scenario file that reproduces a finding. Raises LeakError if no attack was run for it."""
    cell = finding.cell
    if not finding.way_number:
        raise LeakError(f"there is nothing to save: no attack was run ({finding.reason})")
    return _TEXT.format(
        verdict=finding.verdict,
        reason=finding.reason,
        vulnerability=_findable(cell.vulnerability),
        vector=cell.vector,
        cpu=_findable(cell.cpu),
        mitigation=cell.mitigation,
        secret=SECRETS[0].hex(),
        other=SECRETS[1].hex(),
        way_number=finding.way_number,
    )


def _findable(name: str) -> str:
    """Return a name as it is, and a file's so that the scenario finds it from any folder."""
    return str(Path(name).absolute()) if is_own_file(name) else name
