"""The stacks behind causes, as far as other kernels need them to find the same cause under another name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from asikit.replay._tables import SideTables

    Rows = npt.NDArray[np.uint32]

__all__ = ["CauseStack", "CauseStacks"]

FUNCTIONS = 6
"""Functions of an access to keep: the cause's two, and four that another compiler may have inlined in between."""

ALLOCATION = 4
"""Functions of an allocation to keep: the cause's one, and three more."""

STACKS = 8
"""Stacks of a cause to keep, those with the most exits. Of what is beyond them only the cause's own names are known."""

_LISTS = ("functions", "allocation")


@dataclass(frozen=True, slots=True)
class CauseStack:
    """A stack of a cause.

    :ivar functions: The cause's function, its caller and who called those, innermost first; at most 6.
    :ivar allocation: The function that allocated the page and who called it, innermost first; at most 4.
    :ivar exits: Those with this stack.
    """

    functions: tuple[str, ...]
    allocation: tuple[str, ...]
    exits: int


@dataclass(frozen=True, eq=False)
class CauseStacks:
    """Names the stacks only when they are asked for: a report does without.

    :ivar sites: Exits by site: a cause's names (the columns ``labels``), and ``exits``.
    :ivar access: The row of stacks of the frame that names each site's access.
    :ivar allocation: The row of stacks of the frame that names the allocation of each site's page, 0 if unknown.
    """

    sites: pl.DataFrame
    labels: tuple[str, ...]
    access: Rows
    allocation: Rows
    tables: SideTables

    @cached_property
    def by_cause(self) -> Mapping[tuple[str, ...], tuple[CauseStack, ...]]:
        """The stacks of each cause, most exits first."""
        found: dict[tuple[str, ...], list[CauseStack]] = {}
        for *names, functions, allocation, exits in self._counted().iter_rows():
            kept = found.setdefault(tuple(names), [])
            if len(kept) < STACKS:
                kept.append(CauseStack(tuple(functions), tuple(allocation), exits))
        return {names: tuple(kept) for names, kept in found.items()}

    def _counted(self) -> pl.DataFrame:
        numbered = self.sites
        names = {}
        for column, frames, depth in zip(_LISTS, (self.access, self.allocation), (FUNCTIONS, ALLOCATION), strict=True):
            numbers, chains = self._chains(frames, depth)
            numbered = numbered.with_columns(pl.Series(column, numbers))
            names[column] = pl.Series(column, list(chains), dtype=pl.List(pl.String))
        counted = numbered.group_by(*self.labels, *_LISTS).agg(pl.col("exits").sum())
        spelt = counted.with_columns(
            *(pl.col(label).cast(pl.String) for label in self.labels),
            *(names[column].gather(counted[column]).alias(column) for column in _LISTS),
        )
        return spelt.sort("exits", *self.labels, *_LISTS, descending=[True, *[False] * (len(self.labels) + 2)])

    def _chains(self, frames: Rows, depth: int) -> tuple[Rows, Iterator[list[str]]]:
        """Return a number for each frame, and for each number the names from that frame outwards."""
        starts, start_of_frame = np.unique(frames, return_inverse=True)
        parent = self.tables.stacks["parent"].to_numpy()
        columns, frame = [], starts
        for _ in range(depth):
            columns.append(np.where(frame == 0, 0, self._name_of_symbol[self.tables.symbol_of_stack[frame]]))
            frame = parent[frame]
        chains, chain_of_start = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
        names = self._names
        spelt = ([names[number] for number in chain if number] for chain in chains.tolist())
        return chain_of_start.reshape(-1)[start_of_frame].astype(np.uint32), spelt

    @cached_property
    def _names(self) -> list[str]:
        """Names by number; 0 is no frame. Functions of one name in two modules are one, as they are in a cause."""
        return ["", *self.tables.symbols["name"].unique(maintain_order=True)]

    @cached_property
    def _name_of_symbol(self) -> Rows:
        numbers = {name: number for number, name in enumerate(self._names)}
        return np.array([numbers[name] for name in self.tables.symbols["name"]], np.uint32)
