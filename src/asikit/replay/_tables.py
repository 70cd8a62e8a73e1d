"""A trace's side tables as arrays, with the names that policies and causes go by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.replay._frames import ALLOCATOR_FRAMES, COPY_FRAMES, any_of
from asikit.replay.errors import ReplayError
from asikit.trace import NO_PAGE, PAGE_BYTES, SIDE_TABLES, PageKind, Region, Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from enum import StrEnum
    from typing import Any

    import numpy.typing as npt

    Rows = npt.NDArray[np.uint32]
    Flags = npt.NDArray[np.bool_]

__all__ = ["BPF_PROGRAM", "NO_GFP", "SideTables"]

BPF_PROGRAM = "bpf_prog"
"""The name of a frame in a BPF program that has none: the kernel's are bpf_prog_TAG, and gone with the program."""

NO_GFP = -1
"""The gfp flags of an allocation that nobody recorded."""


@dataclass(frozen=True)
class SideTables:
    """The side tables of one trace.

    :ivar places: ``vaddr``, ``region``, ``page``.
    :ivar meta: The trace's ``meta.json``.
    :ivar exit_names: The trace's names of VM exit codes, by their number as text.
    """

    places: pl.DataFrame
    pages: pl.DataFrame
    allocations: pl.DataFrame
    stacks: pl.DataFrame
    symbols: pl.DataFrame
    tasks: pl.DataFrame
    phases: pl.DataFrame
    meta: Mapping[str, Any]
    exit_names: Mapping[str, str]

    @classmethod
    def of(cls, trace: Trace) -> SideTables:
        """Read the side tables.

        :raises ReplayError: A row refers to a row that is not there.
        """
        tables = cls(
            **{name: trace.table(name) for name in SIDE_TABLES}, meta=trace.meta, exit_names=trace.recorder.exit_names
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
    def page_of_place(self) -> Rows:
        """The row of pages behind each place; the number of pages for a place that is not memory."""
        rows: Rows = np.minimum(self.places["page"].to_numpy(), np.uint32(self.pages.height))
        return rows

    @cached_property
    def allocation_of_page(self) -> Rows:
        """The row of allocations of each page; the number of allocations if it is unknown."""
        return self.pages["allocation"].fill_null(self.allocations.height).cast(pl.UInt32).to_numpy()

    @cached_property
    def region_of_place(self) -> npt.NDArray[np.uint8]:
        """The number of each place's region, in the order of :class:`Region`."""
        return _numbers(self.places["region"], Region)

    @cached_property
    def kind_of_page(self) -> npt.NDArray[np.uint8]:
        """The number of each page's kind, in the order of :class:`PageKind`; one more, MMIO, for no page."""
        return np.append(_numbers(self.pages["kind"], PageKind), np.uint8(list(PageKind).index(PageKind.MMIO)))

    @cached_property
    def gfp_of_page(self) -> npt.NDArray[np.int64]:
        """The gfp flags of each page's allocation, :data:`NO_GFP` if unknown; one more row for no page."""
        gfp = np.append(self.allocations["gfp"].cast(pl.Int64).fill_null(NO_GFP).to_numpy(), NO_GFP)
        # No page counts as one whose allocation is known, so that no rule about unknown ones is about it.
        return np.append(gfp[self.allocation_of_page], 0)

    @cached_property
    def cache_names(self) -> pl.Series:
        """The slab caches and file system types that pages have, by number; 0 is none."""
        return pl.concat([pl.Series("cache", [""]), self.pages["cache"].drop_nulls()]).unique().sort()

    @cached_property
    def cache_of_page(self) -> Rows:
        """The number of each page's cache; one more row, none, for no page."""
        numbers = (
            self.pages["cache"].cast(pl.Enum(self.cache_names)).to_physical().cast(pl.UInt32).fill_null(0).to_numpy()
        )
        return np.append(numbers, np.uint32(0))

    def caches_matching(self, globs: Iterable[str]) -> Flags:
        """Return for each page whether it is slab and a glob matches its cache; one more row for no page."""
        slab = self.pages["kind"] == PageKind.SLAB
        return np.append((slab & self.pages["cache"].fill_null("").str.contains(any_of(globs))).to_numpy(), np.False_)

    @cached_property
    def symbol_names(self) -> pl.Series:
        """The names of the symbols; and one more row, :data:`BPF_PROGRAM`, which is no symbol."""
        return pl.concat([self.symbols["name"], pl.Series([BPF_PROGRAM])])

    @cached_property
    def base_names(self) -> pl.Series:
        """The names of the symbols as policies have them: without the compiler's suffixes (``.cold``)."""
        return self.symbol_names.str.replace(r"\..*$", "")

    @cached_property
    def symbol_of_stack(self) -> Rows:
        """The row of symbol names of each stack's innermost frame."""
        pages = self.places.filter(pl.col("region") == Region.BPF)["vaddr"].unique()
        page = self.stacks["address"] // PAGE_BYTES * PAGE_BYTES
        nameless = (self.stacks["symbol"] == 0) & page.is_in(pages.implode())
        return np.where(nameless.to_numpy(), np.uint32(self.symbols.height), self.stacks["symbol"].to_numpy())

    @cached_property
    def _parent(self) -> Rows:
        return self.stacks["parent"].to_numpy()

    def symbols_matching(self, globs: Iterable[str]) -> Flags:
        """Return for each symbol name whether a glob matches it; compiler suffixes (``.cold``) do not count."""
        return self.base_names.str.contains(any_of(globs)).to_numpy()

    @cached_property
    def access_frame(self) -> Rows:
        """The row of stacks of the frame that names an access, for each stack."""
        return self._innermost(COPY_FRAMES)

    @cached_property
    def allocation_frame(self) -> Rows:
        """The row of stacks of the frame that names an allocation, for each stack."""
        return self._innermost(ALLOCATOR_FRAMES)

    def _innermost(self, skipped: Iterable[str]) -> Rows:
        """Return for each stack its innermost frame that is not to be skipped; its leaf if all are."""
        skip = self.symbols_matching(skipped)[self.symbol_of_stack]
        frame = np.arange(self.stacks.height, dtype=np.uint32)
        # Pointer jumping: every pass moves all that stand on a skipped frame one frame out.
        moving = np.flatnonzero(skip)
        while moving.size:
            frame[moving] = self._parent[frame[moving]]
            moving = moving[skip[frame[moving]] & (frame[moving] != 0)]
        return np.where(frame == 0, np.arange(frame.size, dtype=np.uint32), frame)

    def check_stacks(self, stacks: Rows) -> None:
        """Refuse stacks of events that are not there.

        :raises ReplayError: One is beyond the table's end.
        """
        if stacks.size and stacks.max() >= self.stacks.height:
            raise ReplayError(
                f"table events: stack {stacks.max()} is beyond the {self.stacks.height} rows of stacks; "
                "check the trace with `asi info --verify`, or record it again"
            )

    def functions(self, stacks: Rows) -> tuple[Rows, Rows]:
        """Return the symbols of the accessing function and of its caller for stacks."""
        frame = self.access_frame[stacks]
        return self.symbol_of_stack[frame], self.symbol_of_stack[self._parent[frame]]

    def function_names(self, stacks: Rows) -> list[str]:
        """Return the accessing function of stacks as policies name it: without the compiler's suffixes."""
        names = self.base_names.to_list()
        return [names[symbol] for symbol in self.functions(stacks)[0].tolist()]

    @cached_property
    def allocation_frame_of_page(self) -> Rows:
        """The row of stacks of the frame that allocated each page; 0 if unknown. One more row, 0, for no page."""
        stacks = np.append(self.allocations["stack"].to_numpy(), np.uint32(0))
        return np.append(self.allocation_frame[stacks[self.allocation_of_page]], np.uint32(0))

    @cached_property
    def allocator_of_page(self) -> Rows:
        """The symbol of the function that allocated each page; 0 if it is unknown. One more row, 0, for no page."""
        return self.symbol_of_stack[self.allocation_frame_of_page]


def _numbers(names: pl.Series, known: type[StrEnum]) -> npt.NDArray[np.uint8]:
    """Return a column of names as their numbers in a closed list."""
    return names.cast(pl.Enum([name.value for name in known])).to_physical().cast(pl.UInt8).to_numpy()
