"""A trace's events as arrays, piece by piece."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    import polars as pl

    from asikit.trace import Trace

    Words = npt.NDArray[np.uint32]

__all__ = ["Piece", "event_pieces", "read_ahead", "read_only"]

_Number = TypeVar("_Number", bound=np.generic)

_PARTS_AHEAD = 2


class Piece(NamedTuple):
    """Some of a trace's events, as read-only arrays of equal length.

    :ivar clock: Empty where nobody asked for it: a replay does without.
    """

    cpu: npt.NDArray[np.uint8]
    kind: npt.NDArray[np.uint8]
    arg: Words
    stack: Words
    clock: npt.NDArray[np.uint64]


def event_pieces(chunk: pl.DataFrame) -> list[Piece]:
    """Return a chunk of events, with or without clocks, as arrays, without copying them.

    A chunk is in pieces, one for each row group of its file.
    """
    names = [name for name in Piece._fields if name in chunk.columns]
    pieces = [chunk[name].get_chunks() for name in names]
    if len({tuple(piece.len() for piece in column) for column in pieces}) > 1:
        pieces = [[chunk[name].rechunk()] for name in names]
    none = [np.empty(0, np.uint64)] * (len(Piece._fields) - len(names))
    return [
        Piece(*(read_only(column.to_numpy()) for column in columns), *none) for columns in zip(*pieces, strict=True)
    ]


def read_only(array: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """Return a read-only view, as a column that was not copied is, so that loops are compiled for one type only."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


@contextmanager
def read_ahead(trace: Trace, *, clock: bool) -> Iterator[Iterator[Piece]]:
    """Give the events of a trace, decoding the next parts while the caller works on this one.

    :param clock: With their clocks.
    """
    chunks = trace.events(columns=Piece._fields if clock else Piece._fields[:-1])

    def pieces() -> Iterator[Piece]:
        while (chunk := coming.popleft().result()) is not None:
            coming.append(reader.submit(next, chunks, None))
            yield from event_pieces(chunk)

    with ThreadPoolExecutor(1, thread_name_prefix="asikit-read") as reader:
        coming = deque(reader.submit(next, chunks, None) for _ in range(_PARTS_AHEAD))
        yield pieces()
