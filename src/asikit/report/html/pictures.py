"""What only a page has: pictures that can be looked into, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec

from asikit.report.view import Chart, Note, Section, Table, Verbatim

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BarGroup",
    "BarPart",
    "CpuTrack",
    "Flame",
    "FlameRows",
    "Fold",
    "HtmlPage",
    "Lead",
    "Matrix",
    "PageSection",
    "Part",
    "PartName",
    "Phase",
    "Picture",
    "Stacked",
    "StackedBar",
    "Timeline",
]


Part: TypeAlias = Note | Verbatim | Table | Chart | Section


class Lead(msgspec.Struct, frozen=True, tag="lead"):
    """The answer, before all else."""

    notes: tuple[Note, ...]


class Fold(msgspec.Struct, frozen=True, tag="fold"):
    """Parts that are shown when they are asked for.

    :ivar title: What is seen of them before.
    """

    title: str
    parts: tuple[Part, ...]


class Matrix(msgspec.Struct, frozen=True, tag="matrix"):
    """A table some cells of which have a story each.

    :ivar cells: Row and column of each such cell.
    :ivar stories: What is told of it, in their order; there may be fewer.
    """

    table: Table
    cells: tuple[tuple[int, int], ...]
    stories: tuple[Fold, ...]


class FlameRows(msgspec.Struct, frozen=True):
    """Columns: how many exits a stack has under one side, in one task and phase.

    :ivar node: Of the stack's innermost function.
    :ivar cycles: What these exits cost, together.
    """

    node: tuple[int, ...]
    side: tuple[int, ...]
    task: tuple[int, ...]
    phase: tuple[int, ...]
    exits: tuple[int, ...]
    cycles: tuple[int, ...]


class Flame(msgspec.Struct, frozen=True, tag="flame"):
    """Kernel stacks, each as wide as it has exits.

    :ivar names: Each function once.
    :ivar parent: The node of the caller; that of node 0, which is all of them, is 0. A node stands after its parent.
    :ivar name: Which name each node has.
    :ivar sides: What may be compared: a recording, a policy.
    :ivar cycles: On which processor the rows' cycles are; empty if they have none.
    """

    title: str
    names: tuple[str, ...]
    parent: tuple[int, ...]
    name: tuple[int, ...]
    sides: tuple[str, ...]
    tasks: tuple[str, ...]
    phases: tuple[str, ...]
    rows: FlameRows
    cycles: str = ""


class CpuTrack(msgspec.Struct, frozen=True):
    """What one CPU does: for each bin the thousandths of its time in the kernel, and how much happens.

    :ivar predictor: Flushes of predictors; ``buffer``: of buffers and caches.
    """

    cpu: int
    restricted: tuple[int, ...]
    unrestricted: tuple[int, ...]
    exits: tuple[int, ...]
    predictor: tuple[int, ...]
    buffer: tuple[int, ...]
    stuns: tuple[int, ...]


class Phase(msgspec.Struct, frozen=True):
    """A phase that the workload marked: when, in instructions."""

    name: str
    begin: int
    end: int


class Timeline(msgspec.Struct, frozen=True, tag="timeline"):
    """A recording's time in bins of the same length.

    :ivar instructions: How long it is: those that all CPUs retired.
    """

    title: str
    bins: int
    instructions: int
    cpus: tuple[CpuTrack, ...]
    phases: tuple[Phase, ...] = ()


class BarPart(msgspec.Struct, frozen=True):
    """A part of a bar, as long as its best guess."""

    source: str
    mid: float
    shown: str


class StackedBar(msgspec.Struct, frozen=True):
    """A bar of parts, with the interval of the whole."""

    label: str
    low: float
    mid: float
    high: float
    shown: str
    parts: tuple[BarPart, ...]


class BarGroup(msgspec.Struct, frozen=True):
    """Bars that stand together."""

    name: str
    bars: tuple[StackedBar, ...]


class PartName(msgspec.Struct, frozen=True):
    """What a part of a bar is called."""

    key: str
    words: str


class Stacked(msgspec.Struct, frozen=True, tag="stacked"):
    """Stacked bars on one scale."""

    groups: tuple[BarGroup, ...]
    sources: tuple[PartName, ...]


Picture: TypeAlias = Flame | Timeline | Stacked | Fold | Matrix


class PageSection(msgspec.Struct, frozen=True, tag="section"):
    """As a :class:`Section`, of parts that only a page has."""

    parts: tuple[
        Note | Verbatim | Table | Chart | Section | Flame | Timeline | Stacked | Fold | Matrix | PageSection, ...
    ]
    title: str = ""


class HtmlPage(msgspec.Struct, frozen=True):
    """A page.

    :ivar made: What it was made of, and how: names and values.
    """

    title: str
    parts: tuple[Part | Lead | PageSection, ...]
    made: tuple[tuple[str, str], ...] = ()

    def with_made(self, rows: Iterable[tuple[str, str]]) -> HtmlPage:
        """Return it with more of what it was made of, before the rest."""
        return msgspec.structs.replace(self, made=(*rows, *self.made))
