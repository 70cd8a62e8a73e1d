"""Transitions as text, for documents and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.protocol.errors import UnknownNameError
from asikit.protocol.expressions import ALWAYS
from asikit.protocol.operations import END, MicroOp, Transition, Transitions

if TYPE_CHECKING:
    from collections.abc import Iterable


def describe(transitions: Transitions, names: Iterable[str]) -> str:
    """Return the named transitions as text, one micro-operation a line.

    :raises UnknownNameError: There is no transition of a name.
    """
    return "\n\n".join(_transition(transitions, name) for name in names)


def _transition(transitions: Transitions, name: str) -> str:
    if name not in transitions:
        raise UnknownNameError("transition", name, transitions)
    transition: Transition = transitions[name]
    lines = [f"{transition.name}: {transition.why}"]
    width = len(str(len(transition.ops)))
    lines += [f"  {number:>{width}}. {_op(op)}" for number, op in enumerate(transition.ops, 1)] or ["  (nothing)"]
    return "\n".join(lines)


def _op(op: MicroOp) -> str:
    does = [f"require {requirement.guard}" for requirement in op.requires]
    does += [f"wait until {op.waits}"] if op.waits is not ALWAYS else []
    does += [str(assign) for assign in op.sets]
    does += [f"ask for {op.asks}"] if op.asks is not None else []
    does += [f"call {op.call}"] if op.call else []
    does += [f"exit reason {op.reason}"] if op.reason is not None else []
    if op.jump:
        does.append("return" if op.jump == END else f"go to {op.jump}")
    condition = f"if {op.when}: " if op.when is not ALWAYS else ""
    why = f"  # {op.why}" if op.why else ""
    return f"{op.name:<18} {condition}{'; '.join(does)}{why}"
