"""The little language in which micro-operations say when they run and what they change.

Terms are integers over the fields of the state, guards are truth values over terms. Both are plain data: they are
evaluated here (`compiled`), printed in tables (`str`), and translated to SMT by whoever proves things, which takes one
case for each of the classes below. There are no loops, no functions and nothing hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum

Environment = Sequence[int]
"""The values of all fields, at their `Field.index`."""
Number = Callable[[Environment], int]
Truth = Callable[[Environment], bool]


class Scope(StrEnum):
    """Whose a field is."""

    CPU = "cpu"
    TASK = "task"
    OWN = "own"
    """This hardware thread's mailbox in the core."""
    SIBLING = "sibling"
    """The other thread's mailbox."""


class Term:
    """An integer-valued expression."""

    def compiled(self) -> Number:
        """Return the function that computes it."""
        raise NotImplementedError

    def __and__(self, mask: Term | int) -> Term:
        return BitAnd(self, term(mask))

    def __or__(self, mask: Term | int) -> Term:
        return BitOr(self, term(mask))

    def clear(self, mask: Term | int) -> Term:
        """Return the term without the bits of a mask."""
        return BitClear(self, term(mask))

    def plus(self, number: int) -> Term:
        """Return the term with a (possibly negative) number added."""
        return Plus(self, number)

    def equals(self, other: Term | int) -> Guard:
        """Return the guard that both are the same number."""
        return Equal(self, term(other))

    def differs(self, other: Term | int) -> Guard:
        """Return the guard that they are different numbers."""
        return Not(Equal(self, term(other)))

    def has(self, mask: Term | int) -> Guard:
        """Return the guard that any bit of a mask is set."""
        return AnyBit(self, term(mask))

    def below(self, number: int) -> Guard:
        """Return the guard that the term is less than a number."""
        return Below(self, number)


@dataclass(frozen=True, slots=True)
class Const(Term):
    """A number, with what it is called in print."""

    value: int
    label: str = field(default="", compare=False)

    def compiled(self) -> Number:
        """Return the function that gives the number."""
        value = int(self.value)
        return lambda _: value

    def __str__(self) -> str:
        return self.label or str(self.value)


def term(value: Term | int) -> Term:
    """Return a term as it is, and a number as a constant."""
    return value if isinstance(value, Term) else Const(int(value))


@dataclass(frozen=True, slots=True)
class Field(Term):
    """A field of the state; `index` is its place in an `Environment`."""

    scope: Scope
    name: str
    index: int

    def compiled(self) -> Number:
        """Return the function that looks it up."""
        index = self.index
        return lambda env: env[index]

    def __str__(self) -> str:
        return f"sibling.{self.name}" if self.scope is Scope.SIBLING else self.name


@dataclass(frozen=True, slots=True)
class Lookup(Term):
    """The entry of a constant table at `key`; 0 where the table has none."""

    name: str
    table: tuple[tuple[int, int], ...]
    key: Term

    def compiled(self) -> Number:
        """Return the function that looks it up."""
        table, key = {int(k): int(v) for k, v in self.table}, self.key.compiled()
        return lambda env: table.get(key(env), 0)

    def __str__(self) -> str:
        return f"{self.name}[{self.key}]"


@dataclass(frozen=True, slots=True)
class Bit(Term):
    """1 shifted left by `index`."""

    index: Term

    def compiled(self) -> Number:
        """Return the function that shifts."""
        index = self.index.compiled()
        return lambda env: 1 << index(env)

    def __str__(self) -> str:
        return f"bit({self.index})"


@dataclass(frozen=True, slots=True)
class BitAnd(Term):
    """Bitwise and."""

    left: Term
    right: Term

    def compiled(self) -> Number:
        """Return the function that computes it."""
        left, right = self.left.compiled(), self.right.compiled()
        return lambda env: left(env) & right(env)

    def __str__(self) -> str:
        return f"{self.left} & {self.right}"


@dataclass(frozen=True, slots=True)
class BitOr(Term):
    """Bitwise or."""

    left: Term
    right: Term

    def compiled(self) -> Number:
        """Return the function that computes it."""
        left, right = self.left.compiled(), self.right.compiled()
        return lambda env: left(env) | right(env)

    def __str__(self) -> str:
        return f"{self.left} | {self.right}"


@dataclass(frozen=True, slots=True)
class BitClear(Term):
    """`left` without the bits of `right`."""

    left: Term
    right: Term

    def compiled(self) -> Number:
        """Return the function that computes it."""
        left, right = self.left.compiled(), self.right.compiled()
        return lambda env: left(env) & ~right(env)

    def __str__(self) -> str:
        return f"{self.left} & ~{self.right}"


@dataclass(frozen=True, slots=True)
class Plus(Term):
    """A term and a constant added."""

    left: Term
    number: int

    def compiled(self) -> Number:
        """Return the function that adds."""
        left, number = self.left.compiled(), self.number
        return lambda env: left(env) + number

    def __str__(self) -> str:
        return f"{self.left} {'+' if self.number >= 0 else '-'} {abs(self.number)}"


class Guard:
    """A truth-valued expression."""

    def compiled(self) -> Truth:
        """Return the function that decides it."""
        raise NotImplementedError

    def __and__(self, other: Guard) -> Guard:
        return And((self, other))

    def __or__(self, other: Guard) -> Guard:
        return Or((self, other))

    def __invert__(self) -> Guard:
        return Not(self)


@dataclass(frozen=True, slots=True)
class Always(Guard):
    """True."""

    def compiled(self) -> Truth:
        """Return the function that says yes."""
        return lambda _: True

    def __str__(self) -> str:
        return "always"


ALWAYS = Always()


@dataclass(frozen=True, slots=True)
class Named(Guard):
    """A guard with a name, which is all that is printed of it."""

    name: str
    guard: Guard

    def compiled(self) -> Truth:
        """Return the function of the guard."""
        return self.guard.compiled()

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Equal(Guard):
    """Two terms are the same number."""

    left: Term
    right: Term

    def compiled(self) -> Truth:
        """Return the function that compares."""
        left, right = self.left.compiled(), self.right.compiled()
        return lambda env: left(env) == right(env)

    def __str__(self) -> str:
        return f"{self.left} == {self.right}"


@dataclass(frozen=True, slots=True)
class Below(Guard):
    """A term is less than a constant."""

    left: Term
    number: int

    def compiled(self) -> Truth:
        """Return the function that compares."""
        left, number = self.left.compiled(), self.number
        return lambda env: left(env) < number

    def __str__(self) -> str:
        return f"{self.left} < {self.number}"


@dataclass(frozen=True, slots=True)
class AnyBit(Guard):
    """Two terms have a bit in common."""

    left: Term
    mask: Term

    def compiled(self) -> Truth:
        """Return the function that tests."""
        left, mask = self.left.compiled(), self.mask.compiled()
        return lambda env: bool(left(env) & mask(env))

    def __str__(self) -> str:
        return f"{self.left} & {self.mask}"


@dataclass(frozen=True, slots=True)
class Not(Guard):
    """The opposite."""

    guard: Guard

    def compiled(self) -> Truth:
        """Return the function that negates."""
        guard = self.guard.compiled()
        return lambda env: not guard(env)

    def __str__(self) -> str:
        inner = self.guard
        return f"{inner.left} != {inner.right}" if isinstance(inner, Equal) else f"not ({inner})"


@dataclass(frozen=True, slots=True)
class And(Guard):
    """All of them."""

    guards: tuple[Guard, ...]

    def compiled(self) -> Truth:
        """Return the function that asks all."""
        guards = [guard.compiled() for guard in self.guards]
        return lambda env: all(guard(env) for guard in guards)

    def __str__(self) -> str:
        return " and ".join(f"({guard})" if isinstance(guard, Or) else str(guard) for guard in self.guards)


@dataclass(frozen=True, slots=True)
class Or(Guard):
    """At least one of them."""

    guards: tuple[Guard, ...]

    def compiled(self) -> Truth:
        """Return the function that asks until one says yes."""
        guards = [guard.compiled() for guard in self.guards]
        return lambda env: any(guard(env) for guard in guards)

    def __str__(self) -> str:
        return " or ".join(f"({guard})" if isinstance(guard, And) else str(guard) for guard in self.guards)


def fields_of(expression: Term | Guard) -> frozenset[Field]:
    """Return all fields that an expression reads."""
    if isinstance(expression, Field):
        return frozenset({expression})
    found: frozenset[Field] = frozenset()
    for part in fields(expression):  # type: ignore[arg-type]  # all concrete expressions are dataclasses
        value = getattr(expression, part.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Term | Guard):
                found |= fields_of(inner)
    return found
