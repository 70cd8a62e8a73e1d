"""A trace's side tables as arrays, with the names that policies and causes go by."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.replay._frames import ALLOCATOR_FRAMES, COPY_FRAMES, any_of
from asikit.replay.errors import ReplayError
from asikit.trace import NO_PAGE, Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    import numpy.typing as npt

    Rows = npt.NDArray[np.uint32]
    Flags = npt.NDArray[np.bool_]

__all__ = ["SideTables"]


@dataclass(frozen=True)
class SideTables:
    """The side tables of one trace.

    :ivar places: ``vaddr``, ``region``, ``page``.
    :ivar meta: The trace's ``meta.json``.
    """

    places: pl.DataFrame
    pages: pl.DataFrame
    allocations: pl.DataFrame
    stacks: pl.DataFrame
    symbols: pl.DataFrame
    tasks: pl.DataFrame
    meta: "Mapping[str, Any]"

    @classmethod
    def of(cls, trace: Trace) -> "SideTables":
        """Read the side tables.

        :raises ReplayError: A row refers to a row that is not there.
        """
        tables = cls(
            *(trace.table(name) for name in ("places", "pages", "allocations", "stacks", "symbols", "tasks")),
            meta=trace.meta,
        )
        tables._check_references()
        return tables

    def _check_references(self) -> None:
        """Refuse references beyond a table's end, which arrays would answer with somebody else's row."""
        references = (
            ("places", "page", "pages", NO_PAGE),
            ("pages", "allocation", "allocations", None),
            ("allocations", "stack", "stacks", None),
            ("stacks", "parent", "stacks", None),
            ("stacks", "symbol", "symbols", None),
        )
        for table, column, target, none in references:
            rows = getattr(self, table)[column]
            bad = rows >= getattr(self, target).height
            if none is not None:
                bad &= rows != none
            if bad.any():
                row = bad.arg_true()[0]
                raise ReplayError(
                    f"table {table}: row {row}: {column} {rows[row]} is beyond the {getattr(self, target).height} rows "
                    f"of {target}; record the trace again"
                )

    @cached_property
    def page_of_place(self) -> "Rows":
        """The row of pages behind each place; the number of pages for a place that is not memory."""
        rows = self.places["page"].to_numpy()
        return np.minimum(rows, np.uint32(self.pages.height))

    @cached_property
    def allocation_of_page(self) -> "Rows":
        """The row of allocations of each page; the number of allocations if it is unknown."""
        return self.pages["allocation"].fill_null(self.allocations.height).cast(pl.UInt32).to_numpy()

    @cached_property
    def symbol_of_stack(self) -> "Rows":
        """The row of symbols of each stack's innermost frame."""
        return self.stacks["symbol"].to_numpy()

    @cached_property
    def _parent(self) -> "Rows":
        return self.stacks["parent"].to_numpy()

    def symbols_matching(self, globs: "Iterable[str]") -> "Flags":
        """Return for each symbol whether a glob matches its name; compiler suffixes (``.cold``) do not count."""
        base = self.symbols["name"].str.replace(r"\..*$", "")
        return base.str.contains(any_of(globs)).to_numpy()

    @cached_property
    def access_frame(self) -> "Rows":
        """The row of stacks of the frame that names an access, for each stack."""
        return self._innermost(COPY_FRAMES)

    @cached_property
    def allocation_frame(self) -> "Rows":
        """The row of stacks of the frame that names an allocation, for each stack."""
        return self._innermost(ALLOCATOR_FRAMES)

    def _innermost(self, skipped: "Iterable[str]") -> "Rows":
        """Return for each stack its innermost frame that is not to be skipped; its leaf if all are."""
        skip = self.symbols_matching(skipped)[self.symbol_of_stack]
        frame = np.arange(self.stacks.height, dtype=np.uint32)
        # Pointer jumping: every pass moves all that stand on a skipped frame one frame out.
        moving = np.flatnonzero(skip)
        while moving.size:
            frame[moving] = self._parent[frame[moving]]
            moving = moving[skip[frame[moving]] & (frame[moving] != 0)]
        return np.where(frame == 0, np.arange(frame.size, dtype=np.uint32), frame)

    def check_stacks(self, stacks: "Rows") -> None:
        """Refuse stacks of events that are not there.

        :raises ReplayError: One is beyond the table's end.
        """
        if stacks.size and stacks.max() >= self.stacks.height:
            raise ReplayError(
                f"table events: stack {stacks.max()} is beyond the {self.stacks.height} rows of stacks; "
                "check the trace with `asi info`, or record it again"
            )

    def functions(self, stacks: "Rows") -> "tuple[Rows, Rows]":
        """Return the symbols of the accessing function and of its caller for stacks."""
        frame = self.access_frame[stacks]
        return self.symbol_of_stack[frame], self.symbol_of_stack[self._parent[frame]]

    @cached_property
    def allocator_of_page(self) -> "Rows":
        """The symbol of the function that allocated each page; 0 if it is unknown. One more row, 0, for no page."""
        stacks = np.append(self.allocations["stack"].to_numpy(), np.uint32(0))
        symbols = self.symbol_of_stack[self.allocation_frame[stacks[self.allocation_of_page]]]
        return np.append(symbols, np.uint32(0))
