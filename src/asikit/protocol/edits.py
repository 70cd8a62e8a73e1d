"""Edits of transitions: how a mutant, or a change that somebody wants to try, is made from the protocol.

All are pure: they take transitions and give others. A micro-operation is named by its path, `asi_exit.write_cr3`;
`having` says which paths have a role.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from asikit.protocol.errors import EditError, MissingRoleError, UnknownNameError
from asikit.protocol.operations import END, MicroOp, Transition, Transitions

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.protocol.roles import Role


def find(transitions: Transitions, path: str) -> tuple[Transition, int]:
    """Return the transition of a path and the micro-operation's place in it.

    :raises UnknownNameError: The path leads to none.
    """
    name, _, op_name = path.partition(".")
    if name not in transitions:
        raise UnknownNameError("transition", name, transitions)
    return transitions[name], transitions[name].index(op_name)


def having(transitions: Transitions, role: Role, *within: str, optional: bool = False) -> tuple[str, ...]:
    """Return the paths of the micro-operations of a role, in all transitions or in those named.

    :raises MissingRoleError: There are none, and they are not optional.
    """
    found = tuple(
        f"{name}.{op.name}"
        for name, transition in transitions.items()
        if not within or name in within
        for op in transition.ops
        if op.role is role
    )
    if not (found or optional):
        raise MissingRoleError(role, within)
    return found


def with_transition(transitions: Transitions, changed: Transition) -> Transitions:
    """Return the transitions with one replaced, or added."""
    return MappingProxyType({**transitions, changed.name: changed})


def without(transitions: Transitions, path: str) -> Transitions:
    """Remove a micro-operation; jumps to it go to the one after it."""
    return replacing(transitions, path)


def replacing(transitions: Transitions, path: str, *ops: MicroOp) -> Transitions:
    """Put others (or none) in the place of a micro-operation; jumps to it go to the first of them."""
    transition, index = find(transitions, path)
    before, old, after = transition.ops[:index], transition.ops[index], transition.ops[index + 1 :]
    heir = (*ops, *after)[0].name if ops or after else END
    before = tuple(replace(op, jump=heir) if op.jump == old.name else op for op in before)
    return with_transition(transitions, replace(transition, ops=(*before, *ops, *after)))


def inserting(transitions: Transitions, *ops: MicroOp, before: str = "", after: str = "") -> Transitions:
    """Put micro-operations before, or after, the one of a path. Jumps to it still go to it."""
    transition, index = find(transitions, _one_of(before, after))
    place = index if before else index + 1
    return with_transition(
        transitions, replace(transition, ops=(*transition.ops[:place], *ops, *transition.ops[place:]))
    )


def reordered(transitions: Transitions, path: str, *, before: str = "", after: str = "") -> Transitions:
    """Move a micro-operation to before, or after, another one of the same transition."""
    transition, index = find(transitions, path)
    other, _ = find(transitions, _one_of(before, after))
    if other is not transition:
        raise EditError(f"{path} can only move inside {transition.name}, not to {before or after}")
    moved = transition.ops[index]
    return inserting(without(transitions, path), moved, before=before, after=after)


def rewriting(transitions: Transitions, change: Callable[[str, MicroOp], MicroOp]) -> Transitions:
    """Change every micro-operation by a function of its path and itself."""
    return MappingProxyType(
        {
            name: replace(transition, ops=tuple(change(f"{name}.{op.name}", op) for op in transition.ops))
            for name, transition in transitions.items()
        }
    )


def _one_of(before: str, after: str) -> str:
    if bool(before) == bool(after):
        raise EditError("give either before= or after=")
    return before or after
