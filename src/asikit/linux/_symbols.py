"""The kernel's symbols, as ``/proc/kallsyms`` prints them."""

import bisect
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from asikit.linux.errors import RecordError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["Symbols"]

_KERNEL_HALF = 0xFF00_0000_0000_0000
_LONGEST_FUNCTION = 0x10_0000
"""Bytes: an address further than this behind the last symbol before it belongs to no function."""

_SUFFIXES = ("isra", "constprop", "part")
"""What GCC appends to the name of a function that it has changed."""

_FILE_SYSTEM_NAMES = {"bd": "bdev", "dev": "devtmpfs", "internal": "devtmpfs"}
"""``file_system_type`` variables that are not called as their file system (block/bdev.c, drivers/base/devtmpfs.c)."""

_WORDS = 3
"""Words in a line for a symbol of the kernel proper; one of a module has its name as the fourth."""


@dataclass(frozen=True, slots=True)
class _Rows:
    address: "npt.NDArray[np.uint64]"
    name: list[str]
    module: list[str | None]


class Symbols:
    """Names and addresses of one running kernel, its modules and its JIT-compiled BPF programs.

    Per-CPU variables are listed at their offset in the per-CPU area (``CONFIG_KALLSYMS_ABSOLUTE_PERCPU``).
    """

    def __init__(self, text: str) -> None:
        """Parse the text of ``/proc/kallsyms``: lines ``ADDRESS TYPE NAME [MODULE]``."""
        self._address: dict[str, int] = {}
        self._file_systems: dict[int, str] = {}
        self._lines: list[tuple[int, str, str | None]] = []
        modules: list[tuple[int, str]] = []
        for line in text.splitlines():
            words = line.split()
            if len(words) < _WORDS:  # the line was cut off
                continue
            address, name = int(words[0], 16), words[2]
            module = words[_WORDS].strip("[]") if len(words) > _WORDS else None
            if module is None:
                self._address.setdefault(name, address)
            else:
                modules.append((address, module))
            if name.endswith("_fs_type") or name == "bd_type":
                plain = name.removesuffix("_type").removesuffix("_fs")
                self._file_systems[address] = _FILE_SYSTEM_NAMES.get(plain, plain)
            if words[1] in "tTwW" and address >= _KERNEL_HALF:
                self._lines.append((address, name, module))

        self._modules = sorted(modules)

    @classmethod
    def read(cls, path: "Path") -> "Symbols":
        """Read a saved ``/proc/kallsyms``.

        :raises RecordError: The guest's kernel has no symbols to show.
        """
        symbols = cls(path.read_text(encoding="ascii", errors="replace") if path.exists() else "")
        if not symbols._lines:
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

    @property
    def file_systems(self) -> dict[int, str]:
        """Addresses of the ``file_system_type`` variables, of modules too, and the names that they go by."""
        return dict(self._file_systems)

    def name_at(self, address: int) -> str | None:
        """Give the name of the function that begins at an address."""
        row = int(np.searchsorted(self.text.address, np.uint64(address)))
        found = row < len(self.text.address) and int(self.text.address[row]) == address
        return self.text.name[row] if found else None

    def module_of(self, start: int, end: int) -> str | None:
        """Give the module that has a symbol in a range of addresses, code or data; None if there is no symbol in it."""
        following = bisect.bisect_left(self._modules, (start, ""))
        found = self._modules[following : following + 1]
        return found[0][1] if found and found[0][0] < end else None

    def starting(self, prefix: str) -> dict[int, str]:
        """Give the addresses and names of the kernel's symbols that begin with a prefix."""
        return {address: name for name, address in self._address.items() if name.startswith(prefix)}

    def range(self, name: str) -> tuple[int, int]:
        """Give a function's first address and that of the next symbol."""
        start = self[name]
        following = int(np.searchsorted(self.text.address, np.uint64(start), side="right"))
        end = int(self.text.address[following]) if following < len(self.text.address) else start + 1
        return start, end

    @cached_property
    def text(self) -> _Rows:
        """The functions, in the order of their addresses; of several names of one address, the first listed."""
        rows: dict[int, tuple[str, str | None]] = {}
        for address, name, module in self._lines:
            rows.setdefault(address, (name, module))
        ordered = sorted(rows)
        return _Rows(
            np.array(ordered, dtype=np.uint64),
            [rows[address][0] for address in ordered],
            [rows[address][1] for address in ordered],
        )

    def find(self, addresses: "npt.NDArray[np.uint64]") -> "npt.NDArray[np.int64]":
        """Give for each address the row of :attr:`text` whose function it lies in, -1 for none."""
        rows = np.searchsorted(self.text.address, addresses, side="right").astype(np.int64) - 1
        distance = addresses - self.text.address[np.maximum(rows, 0)]
        return np.where((rows >= 0) & (distance < _LONGEST_FUNCTION), rows, -1)
