"""The language in which one says which round trips are meant: ``task == "redis-server" and entry == "recvfrom"``.

Comparisons of a field with a value, ``and``, ``or``, ``not`` and parentheses, as in Python; ``~`` and ``!~`` compare
with a glob. A value is a number, a text in quotes, or a bare word.

============  =========================================================================================================
task          the task's name that runs; Linux keeps 15 bytes of one
pid           its process
cpu           the CPU
phase         a name of the open phases: equal if any of them is
entry         how the kernel was entered: ``syscall read`` or ``read``, ``interrupt 236 apic timer`` or ``interrupt``
exits         how often the round trip left the restricted address space
instructions  that its CPU has retired in it
============  =========================================================================================================
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import translate
from functools import cached_property
from typing import TYPE_CHECKING, Final

from asikit.errors import nearest
from asikit.replay.errors import SelectionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Where", "WhereField", "WhereTerm"]


class WhereField(StrEnum):
    """What a comparison is about."""

    TASK = "task"
    PID = "pid"
    CPU = "cpu"
    PHASE = "phase"
    ENTRY = "entry"
    EXITS = "exits"
    INSTRUCTIONS = "instructions"

    @property
    def number(self) -> bool:
        """Whether its values are numbers."""
        return self in {WhereField.PID, WhereField.CPU, WhereField.EXITS, WhereField.INSTRUCTIONS}

    @property
    def at_entry(self) -> bool:
        """Whether it is known when the round trip begins."""
        return self not in {WhereField.EXITS, WhereField.INSTRUCTIONS}


_COMM_BYTES: Final = 15
_MOST: Final = 60
"""Comparisons in one expression: each is a bit of a number."""
_ORDER: Final = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_GLOBS: Final = ("~", "!~")
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<text>"[^"]*"|'[^']*')|(?P<op>==|!=|<=|>=|!~|~|<|>)|(?P<mark>[()])|(?P<word>[^\s()'"=!<>~]+))"""
)


@dataclass(frozen=True, slots=True)
class WhereTerm:
    """One comparison.

    :ivar operator: One of ``== != < <= > >= ~ !~``.
    """

    field: WhereField
    operator: str
    value: str | int

    def holds(self, value: str | int) -> bool:
        """Tell whether it is true of a value of the field."""
        if self.operator in _GLOBS:
            return bool(re.match(translate(str(self.value)), str(value))) is (self.operator == "~")
        if self.field.number:
            return bool(_ORDER[self.operator](int(value), int(self.value)))
        return bool(_ORDER[self.operator](value, self.value))

    def holds_of_any(self, names: tuple[str, ...]) -> bool:
        """Tell whether it is true of what has several names: ``==`` and ``~`` of any, ``!=`` and ``!~`` of all."""
        each = [self.holds(name) for name in names]
        return all(each) if self.operator in {"!=", "!~"} else any(each)


@dataclass(frozen=True, slots=True)
class _Node:
    """Of a tree: a comparison's number, or a word and the nodes that it joins."""

    word: str
    parts: tuple[_Node, ...] = ()
    number: int = -1

    def true(self, holds: Callable[[int], bool]) -> bool:
        match self.word:
            case "and":
                return all(part.true(holds) for part in self.parts)
            case "or":
                return any(part.true(holds) for part in self.parts)
            case "not":
                return not self.parts[0].true(holds)
            case _:
                return holds(self.number)


@dataclass(frozen=True)
class Where:
    """An expression.

    :ivar comparisons: What it compares; the tree refers to them by number.
    """

    text: str
    comparisons: tuple[WhereTerm, ...]
    _tree: _Node = field(repr=False)

    @classmethod
    def parse(cls, text: str, fields: frozenset[WhereField] = frozenset(WhereField)) -> Where:
        """Read an expression.

        :param fields: Those that it may be about.
        :raises SelectionError: It is none, or is about something else.
        """
        return _Parser(text, fields).where()

    @cached_property
    def fields(self) -> frozenset[WhereField]:
        """What it is about."""
        return frozenset(comparison.field for comparison in self.comparisons)

    def true(self, holds: Callable[[int], bool]) -> bool:
        """Tell whether it is true.

        :param holds: Tells whether the comparison of a number is.
        """
        return self._tree.true(holds)


class _Parser:
    """Reads one expression."""

    def __init__(self, text: str, fields: frozenset[WhereField]) -> None:
        self._text = text
        self._fields = fields
        self._tokens = list(self._split())
        self._next = 0
        self._found: list[WhereTerm] = []

    def where(self) -> Where:
        tree = self._or()
        if self._next < len(self._tokens):
            raise self._fault("'and' or 'or' is missing")
        if len(self._found) > _MOST:
            raise SelectionError(f"--where: {len(self._found)} comparisons are more than {_MOST}")
        return Where(self._text, tuple(self._found), tree)

    def _split(self) -> Iterator[tuple[str, str, int]]:
        place, text = 0, self._text.rstrip()
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                raise self._fault("cannot read this", place + len(text[place:]) - len(text[place:].lstrip()))
            kind = str(found.lastgroup)
            yield kind, found[kind], found.start(kind)
            place = found.end()

    def _peek(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def _or(self) -> _Node:
        return self._joined("or", self._and)

    def _and(self) -> _Node:
        return self._joined("and", self._not)

    def _joined(self, word: str, part: Callable[[], _Node]) -> _Node:
        parts = [part()]
        while self._peek() == word:
            self._next += 1
            parts.append(part())
        return parts[0] if len(parts) == 1 else _Node(word, tuple(parts))

    def _not(self) -> _Node:
        if self._peek() == "not":
            self._next += 1
            return _Node("not", (self._not(),))
        if self._peek() == "(":
            self._next += 1
            inner = self._or()
            if self._peek() != ")":
                raise self._fault("')' is missing")
            self._next += 1
            return inner
        return self._comparison()

    def _comparison(self) -> _Node:
        name = self._take("word", "a field")
        if name not in set(self._fields):
            known = sorted(self._fields)
            later = name in set(WhereField)
            hint = "; it is known only when a round trip is over" if later else nearest(name, known)
            raise self._fault(f"no field {name!r}{hint}; there are {', '.join(known)}", self._tokens[self._next - 1][2])
        sign = self._take("op", "a comparison (== != < <= > >= ~ !~)")
        about = WhereField(name)
        self._found.append(WhereTerm(about, sign, self._value(about, sign)))
        return _Node("", number=len(self._found) - 1)

    def _value(self, about: WhereField, sign: str) -> str | int:
        kind, text, place = self._token("a value")
        self._next += 1
        if kind not in {"text", "word"}:
            raise self._fault("a value is missing", place)
        value = text[1:-1] if kind == "text" else text
        if sign in _GLOBS:
            return value
        if about.number:
            if not re.fullmatch(r"\d+", value):
                raise self._fault(f"{about} is a number, not {value!r}", place)
            return int(value)
        if sign not in {"==", "!="}:
            raise self._fault(f"{about} has no order: compare with ==, !=, ~ or !~", place)
        return value.encode()[:_COMM_BYTES].decode(errors="replace") if about is WhereField.TASK else value

    def _take(self, kind: str, what: str) -> str:
        found, text, place = self._token(what)
        if found != kind:
            raise self._fault(f"{what} is missing", place)
        self._next += 1
        return text

    def _token(self, what: str) -> tuple[str, str, int]:
        if self._next >= len(self._tokens):
            raise self._fault(f"{what} is missing", len(self._text))
        return self._tokens[self._next]

    def _fault(self, says: str, place: int | None = None) -> SelectionError:
        if place is None:
            place = self._tokens[self._next][2] if self._next < len(self._tokens) else len(self._text)
        before, after = self._text[:place], self._text[place:]
        where = f"at the end of {self._text!r}" if not after.strip() else f"before {after!r} in {before + after!r}"
        return SelectionError(f"--where: {where}: {says}")
