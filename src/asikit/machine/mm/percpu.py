"""Variables of which each CPU has its own (mm/percpu.c): one area a CPU, mapped once at boot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.machine.mm.errors import MmError, OutOfMemoryError
from asikit.machine.mm.gfp import GFP_KERNEL, Gfp
from asikit.machine.mm.layout import PAGE_SIZE
from asikit.machine.mm.pgtable import PAGE_KERNEL
from asikit.machine.mm.vmalloc import KernelTables
from asikit.trace import PageKind

if TYPE_CHECKING:
    from asikit.machine.mm.services import MmServices

__all__ = ["PCPU_MIN_UNIT_SIZE", "PerCpu", "PerCpuError"]

PCPU_MIN_UNIT_SIZE: Final = 32 << 10
"""Bytes of one CPU's area (include/linux/percpu.h)."""

_ALIGN: Final = 8


class PerCpuError(MmError):
    """A per-CPU variable that was defined twice, or that nobody defined, or a CPU that is not there."""


class PerCpu:
    """The per-CPU areas.

    :ivar frames: The areas' page frames, for good.
    """

    def __init__(self, services: MmServices, cpus: int, unit_size: int = PCPU_MIN_UNIT_SIZE) -> None:
        """Allocate and map all areas: `setup_per_cpu_areas()`.

        :param cpus: How many CPUs there are.
        :param unit_size: Bytes of each area, whole pages.
        :raises OutOfMemoryError: The machine cannot boot.
        """
        self._cpus = cpus
        self._unit_size = unit_size
        self._base = services.layout.percpu.start
        self._variables: dict[str, tuple[int, int]] = {}
        self._used = 0
        self.tables = KernelTables(services, services.layout.percpu)
        self.frames: list[int] = []
        for offset in range(0, cpus * unit_size, PAGE_SIZE):
            pfn = services.allocator.alloc_pages(GFP_KERNEL | Gfp.ZERO, kind=PageKind.PERCPU)
            self.frames.append(pfn)
            self.tables.map_page(services.init_pgd, self._base + offset, pfn, PAGE_KERNEL)

    def define(self, name: str, size: int = 8) -> int:
        """Reserve `size` bytes in every CPU's area, zero at first: DEFINE_PER_CPU; return the offset in the area.

        :raises PerCpuError: The name is taken.
        :raises OutOfMemoryError: The areas are full.
        """
        if name in self._variables:
            raise PerCpuError(f"per-CPU variable {name} is defined already")
        offset = self._used
        end = offset + (size + _ALIGN - 1 & -_ALIGN)
        if end > self._unit_size:
            raise OutOfMemoryError(f"per-CPU variable {name}: no {size} bytes left in areas of {self._unit_size}")
        self._used = end
        self._variables[name] = (offset, size)
        return offset

    def address(self, name: str, cpu: int) -> int:
        """Return the address of a CPU's copy of a variable: `per_cpu_ptr()`; PerCpuError if there is none."""
        variable = self._variables.get(name)
        if variable is None or not 0 <= cpu < self._cpus:
            raise PerCpuError(f"no per-CPU variable {name} of cpu {cpu}")
        return self._base + cpu * self._unit_size + variable[0]
