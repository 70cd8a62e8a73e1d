"""The kernel's symbols, as ``/proc/kallsyms`` prints them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["Symbols"]

_KERNEL_HALF = 0xFF00_0000_0000_0000
_LONGEST_FUNCTION = 0x10_0000
"""Bytes: an address further than this behind the last symbol before it belongs to no function."""

_FUNCTION_TYPES = ("t", "T", "w", "W")

_SUFFIXES = ("isra", "constprop", "part")
"""What GCC appends to the name of a function that it has changed."""

_FILE_SYSTEM_NAMES = {"bd": "bdev", "dev": "devtmpfs", "internal": "devtmpfs"}
"""``file_system_type`` variables that are not called as their file system (block/bdev.c, drivers/base/devtmpfs.c)."""

_LINE = {"address": pl.String, "type": pl.String, "name": pl.String}
"""Between blanks; the name of a symbol that is a module's is followed by a tab and ``[MODULE]``."""


@dataclass(frozen=True, slots=True)
class _Rows:
    address: npt.NDArray[np.uint64]
    name: list[str]
    module: list[str | None]


class Symbols:
    """Names and addresses of one running kernel, its modules and its JIT-compiled BPF programs.

    Per-CPU variables are listed at their offset in the per-CPU area (``CONFIG_KALLSYMS_ABSOLUTE_PERCPU``).

    :ivar source: What they were parsed from.
    """

    def __init__(self, text: str) -> None:
        """Parse the text of ``/proc/kallsyms``: lines ``ADDRESS TYPE NAME [MODULE]``."""
        self.source = text
        lines = pl.read_csv(
            text.encode(), separator=" ", quote_char=None, has_header=False, schema=_LINE, raise_if_empty=False
        )
        name = pl.col("name").str.split_exact("\t", 1)
        self._lines = lines.drop_nulls().select(  # the last line may be cut off
            pl.col("address").str.to_integer(base=16, dtype=pl.UInt64),
            "type",
            name.struct[0].alias("name"),
            name.struct[1].str.strip_chars("[]").alias("module"),
        )

    @classmethod
    def read(cls, path: Path, known: Symbols | None = None) -> Symbols:
        """Read a saved ``/proc/kallsyms``.

        :param known: What an earlier one said: seldom anything else.
        :raises RecordError: The guest's kernel has no symbols to show.
        """
        text = path.read_text(encoding="ascii", errors="replace") if path.exists() else ""
        if known is not None and text == known.source:
            return known
        symbols = cls(text)
        if not symbols.text.name:
            raise RecordError("the guest's /proc/kallsyms is empty; record a kernel with CONFIG_KALLSYMS_ALL=y")
        return symbols

    def __getitem__(self, name: str) -> int:
        """Give the address of a symbol of the kernel proper.

        :raises RecordError: There is no such symbol.
        """
        found = self.get(name)
        if found is None:
            raise RecordError(f"this kernel has no symbol {name!r}, which recording needs; give another with --kernel")
        return found

    def get(self, name: str) -> int | None:
        """Give the address of a symbol of the kernel proper, also if the compiler has appended to it (``.isra.0``)."""
        names = (name, *(f"{name}.{suffix}.0" for suffix in _SUFFIXES))
        return next((self._address[full] for full in names if full in self._address), None)

    @cached_property
    def _address(self) -> dict[str, int]:
        """The kernel proper's symbols; of several of one name, the first listed."""
        lines = self._lines.filter(pl.col("module").is_null()).reverse()
        return dict(zip(lines["name"].to_list(), lines["address"].to_list(), strict=True))

    @property
    def file_systems(self) -> dict[int, str]:
        """Addresses of the ``file_system_type`` variables, of modules too, and the names that they go by."""
        name = pl.col("name")
        found = self._lines.filter(name.str.ends_with("_fs_type") | (name == "bd_type"))
        names = (name.removesuffix("_type").removesuffix("_fs") for name in found["name"])
        return {
            address: _FILE_SYSTEM_NAMES.get(name, name) for address, name in zip(found["address"], names, strict=True)
        }

    def name_at(self, address: int) -> str | None:
        """Give the name of the function that begins at an address."""
        row = int(np.searchsorted(self.text.address, np.uint64(address)))
        found = row < len(self.text.address) and int(self.text.address[row]) == address
        return self.text.name[row] if found else None

    def module_of(self, start: int, end: int) -> str | None:
        """Give the module that has a symbol in a range of addresses, code or data; None if there is no symbol in it."""
        row = int(np.searchsorted(self._of_modules.address, np.uint64(start)))
        found = row < len(self._of_modules.address) and int(self._of_modules.address[row]) < end
        return self._of_modules.module[row] if found else None

    def starting(self, prefix: str) -> dict[int, str]:
        """Give the addresses and names of the kernel's symbols that begin with a prefix."""
        found = self._lines.filter(pl.col("module").is_null() & pl.col("name").str.starts_with(prefix))
        return dict(zip(found["address"], found["name"], strict=True))

    def range(self, name: str) -> tuple[int, int]:
        """Give a function's first address and that of the next symbol."""
        start = self[name]
        following = int(np.searchsorted(self.text.address, np.uint64(start), side="right"))
        end = int(self.text.address[following]) if following < len(self.text.address) else start + 1
        return start, end

    @cached_property
    def text(self) -> _Rows:
        """The functions, in the order of their addresses; of several names of one address, the first listed."""
        function = pl.col("type").is_in(_FUNCTION_TYPES) & (pl.col("address") >= _KERNEL_HALF)
        return _rows(self._lines.filter(function).unique("address", keep="first"))

    @cached_property
    def _of_modules(self) -> _Rows:
        return _rows(self._lines.filter(pl.col("module").is_not_null()))

    def find(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Give for each address the row of :attr:`text` whose function it lies in, -1 for none."""
        rows = np.searchsorted(self.text.address, addresses, side="right").astype(np.int64) - 1
        distance = addresses - self.text.address[np.maximum(rows, 0)]
        return np.where((rows >= 0) & (distance < _LONGEST_FUNCTION), rows, -1)


def _rows(lines: pl.DataFrame) -> _Rows:
    ordered = lines.sort("address")
    return _Rows(ordered["address"].to_numpy(), ordered["name"].to_list(), ordered["module"].to_list())
