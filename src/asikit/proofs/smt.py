"""The protocol's expressions, and the model's states, for the solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import z3

from asikit.protocol import expressions as e

if TYPE_CHECKING:
    from collections.abc import Mapping

    Environment = Mapping[e.Field, z3.BitVecRef]

WIDTH = 8
"""Bits of a field: more than the largest value has."""


def number(term: e.Term, env: Environment) -> z3.BitVecRef:  # noqa: PLR0911  (one case a class)
    """Return a term as a bit vector."""
    match term:
        case e.Field():
            return env[term]
        case e.Const(value=value):
            return z3.BitVecVal(int(value), WIDTH)
        case e.Lookup(table=table, key=key):
            found = z3.BitVecVal(0, WIDTH)
            for k, v in table:
                found = z3.If(number(key, env) == int(k), z3.BitVecVal(int(v), WIDTH), found)
            return found
        case e.Bit(index=index):
            return z3.BitVecVal(1, WIDTH) << number(index, env)
        case e.BitAnd(left=left, right=right):
            return number(left, env) & number(right, env)
        case e.BitOr(left=left, right=right):
            return number(left, env) | number(right, env)
        case e.BitClear(left=left, right=right):
            return number(left, env) & ~number(right, env)
        case e.Plus(left=left, number=added):
            return number(left, env) + added
    raise TypeError(f"no case for {type(term).__name__}")


def truth(guard: e.Guard, env: Environment) -> z3.BoolRef:  # noqa: PLR0911  (one case a class)
    """Return a guard as a truth value."""
    match guard:
        case e.Always():
            return z3.BoolVal(val=True)
        case e.Named(guard=inner):
            return truth(inner, env)
        case e.Equal(left=left, right=right):
            return number(left, env) == number(right, env)
        case e.Below(left=left, number=limit):
            return z3.ULT(number(left, env), limit)
        case e.AnyBit(left=left, mask=mask):
            return number(left, env) & number(mask, env) != 0
        case e.Not(guard=inner):
            return z3.Not(truth(inner, env))
        case e.And(guards=guards):
            return z3.And([truth(inner, env) for inner in guards])
        case e.Or(guards=guards):
            return z3.Or([truth(inner, env) for inner in guards])
    raise TypeError(f"no case for {type(guard).__name__}")


class Symbolic(NamedTuple):
    """A symbolic state of a core.

    :ivar fields: By thread: each CPU and task field, and of each handler whether it interrupted the user half.
    :ivar boxes: By thread: each word of the mailbox, and whether it is behind.
    :ivar places: By thread: the place on each level, as a number; level 0, then each handler's.
    :ivar contents: What the structures hold, packed.
    """

    fields: tuple[dict[str, z3.BitVecRef], ...]
    boxes: tuple[dict[str, z3.BitVecRef], ...]
    places: tuple[tuple[z3.BitVecRef, ...], ...]
    contents: z3.BitVecRef
