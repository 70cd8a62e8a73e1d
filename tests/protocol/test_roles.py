"""Roles: how code finds micro-operations, whatever they are called."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

import asikit
from asikit.protocol import AsiClass, CpuBug, MissingRoleError, Protocol, ProtocolConfig, Role, Routine

EVERYTHING = ProtocolConfig(
    smt=True, pti=True, noflush=True, classes=frozenset(AsiClass), bugs=frozenset(CpuBug), kvm_exit_on_user_return=True
)


def paths() -> set[str]:
    """Return the paths of all micro-operations of the configurations that have the most."""
    protocols = [Protocol(EVERYTHING), Protocol(replace(EVERYTHING, noflush=False, smt=False))]
    return {
        f"{name}.{op.name}"
        for protocol in protocols
        for name, transition in protocol.transitions.items()
        for op in transition.ops
    }


@pytest.mark.parametrize("role", Role)
def test_every_role_is_somebodys(role: Role) -> None:
    """A role that nothing has would be looked for in vain."""
    assert Protocol(EVERYTHING).having(role)


def test_routines_are_transitions() -> None:
    """What the enumeration calls a routine can be run."""
    assert set(Routine) <= set(Protocol(ProtocolConfig()).transitions)


def test_nothing_found_is_an_error() -> None:
    """A role without a micro-operation is refused in one line, unless it is optional."""
    protocol = Protocol(ProtocolConfig())
    with pytest.raises(MissingRoleError) as caught:
        protocol.having(Role.STUN_SIBLING)
    assert str(caught.value) == (
        "no micro-operation of any transition has the role STUN_SIBLING (an exit keeps the sibling from untrusted "
        "code); if the configuration may lack it, say optional=True"
    )
    with pytest.raises(MissingRoleError, match="no micro-operation of asi_relax has the role LOAD_ON_EXIT"):
        protocol.having(Role.LOAD_ON_EXIT, Routine.RELAX)
    assert protocol.having(Role.STUN_SIBLING, optional=True) == ()
    assert protocol.having(Role.LOAD_ON_EXIT) == ("asi_exit.write_cr3",)
    assert protocol.having(Role.RESUME) == ("return_user.resume", "vm_entry.resume")


def strings(file: Path) -> set[str]:
    """Return the string literals of a module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_nobody_outside_spells_a_path() -> None:
    """Outside of the protocol no literal is a path, the end of one, or a routine's name."""
    known = paths()
    ends = {f".{path.partition('.')[2]}" for path in known}
    forbidden = known | ends | {f"{path.partition('.')[0]}." for path in known} | set(Routine)
    root = Path(asikit.__file__).parent
    found = {
        str(file.relative_to(root)): sorted(strings(file) & forbidden)
        for file in root.rglob("*.py")
        if file.parent.name != "protocol"
    }
    assert {name: spelt for name, spelt in found.items() if spelt} == {}
