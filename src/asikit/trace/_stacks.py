"""From stack ids to the functions on the stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from asikit.trace._errors import TraceError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from asikit.trace._reader import Trace


class StackFrame(NamedTuple):
    """One function on a kernel stack.

    ``address`` is the accessing instruction in the leaf, and the return address in every other frame. ``module`` is
    None for the kernel image.
    """

    name: str
    module: str | None
    address: int


class Stacks:
    """A trace's kernel stacks, in memory.

    A stack id is a row of ``stacks``: the leaf frame, whose ``parent`` is the id of its caller's stack, up to 0, the
    empty stack. The arrays are indexed by stack id, so that ``symbol[ids]`` are the leaf functions of many events at
    once and ``symbol[parent[ids]]`` their callers; ``name`` and ``module`` are indexed by symbol id.
    """

    parent: npt.NDArray[np.uint32]
    """The caller's stack id; 0 at the outermost frame."""
    address: npt.NDArray[np.uint64]
    """The leaf's address."""
    symbol: npt.NDArray[np.uint32]
    """The leaf's symbol id; 0 where it is unknown."""
    name: tuple[str, ...]
    """Name of each symbol."""
    module: tuple[str | None, ...]
    """Module of each symbol; None for the kernel image."""

    def __init__(self, trace: Trace) -> None:
        """Read the trace's ``stacks`` and ``symbols``.

        :raises TraceError: A stack is not after its parent, or its symbol is not in ``symbols``.
        """
        # The checks are shared with Trace.verify(), in a module that imports the reader.
        from asikit.trace._verify import stacks_fault  # noqa: PLC0415

        stacks = trace.table("stacks")
        symbols = trace.table("symbols")
        fault = stacks_fault(stacks, symbols.height)
        if fault is not None:
            raise TraceError.at(trace.path / "stacks.parquet", fault)
        self.parent = stacks["parent"].to_numpy()
        self.address = stacks["address"].to_numpy()
        self.symbol = stacks["symbol"].to_numpy()
        self.name = tuple(symbols["name"].to_list())
        self.module = tuple(symbols["module"].to_list())

    def __len__(self) -> int:
        """Give the number of stack ids, the empty stack included."""
        return len(self.parent)

    def frames(self, stack: int) -> tuple[StackFrame, ...]:
        """Give the functions of a stack, leaf first, down to the kernel's entry point; () for the empty stack.

        :raises IndexError: There is no such stack.
        """
        if not 0 <= stack < len(self):
            raise IndexError(f"no stack {stack}: there are {len(self)}")
        found = []
        while stack != 0:
            symbol = int(self.symbol[stack])
            found.append(StackFrame(self.name[symbol], self.module[symbol], int(self.address[stack])))
            stack = int(self.parent[stack])
        return tuple(found)

    def names(self, stack: int) -> tuple[str, ...]:
        """Give the names of a stack's functions, leaf first.

        :raises IndexError: There is no such stack.
        """
        return tuple(frame.name for frame in self.frames(stack))
