"""The description of a machine: everything that a run depends on besides its programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from asikit.machine.kernel.core.errors import ScenarioError
from asikit.machine.kernel.core.interleave import RoundRobin
from asikit.machine.kernel.core.interrupts import DEVICE_VECTOR
from asikit.machine.x86 import Access, load_cpu
from asikit.protocol import AsiClass, Mapped, Protocol, ProtocolConfig
from asikit.trace import PageKind, Region

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from asikit.machine.kernel.core.interleave import Interleaver
    from asikit.machine.mm import AllocationRequest

__all__ = ["MachineConfig"]

MIB = 1 << 20
SMALLEST_MEMORY = 16 * MIB
"""What a machine needs to boot."""
LARGEST_MEMORY = 64 << 30
"""What is known of a page frame takes memory of the host's."""
FIRST_EXTERNAL_VECTOR = 32
VECTORS = 256
"""Interrupt vectors below 32 are exceptions (SDM 3A 6.2)."""
LARGEST_PAGEBLOCK_ORDER = 9


_PUBLISHED: Mapping[Region, Mapped] = MappingProxyType(
    dict.fromkeys(Region, Mapped.MAPPED) | {Region.DIRECT_MAP: Mapped.BY_MEMORY, Region.USER: Mapped.USERSPACE}
)
"""The regions as arch/x86/mm/asi.c of the 6.16-based branch has them: everything but the direct map is mapped."""


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """A machine and its kernel's command line.

    :ivar asi: `asi=on` or `asi=off`.
    :ivar cpus: Hardware threads; with `smt` two to a core, so an even number.
    :ivar memory: Bytes of physical memory, whole MiB.
    :ivar levels: Levels of the page tables, 4 or 5.
    :ivar cpu: A CPU model's name, or the path of its TOML file.
    :ivar seed: Of everything random: interleaving, TLB evictions.
    :ivar debug: Check the invariants after every micro-operation.
    :ivar protocol: The protocol's configuration, or a protocol other than the standard one: a mutant. Worked out from
        the rest if None.
    :ivar interleaver: Makes who decides what comes in between; `RoundRobin` of the seed if None.
    :ivar sensitivity: Decides which allocations are sensitive; those with `Gfp.SENSITIVE` if None.
    :ivar regions: What restricted address spaces have of regions, by kind of access, where that is not as published.
    :ivar ephmap_read: Kinds of page that are read through an ephemeral mapping; `ephmap_write` written.
    :ivar timer_period: Logical time between timer interrupts, and the length of a time slice.
    :ivar unmapped: What restricted address spaces lack besides: names of regions, or kernel addresses, of which the
        page is absent. Costs exits and changes no result (I10).
    :ivar pageblock_order: Frames of a pageblock, as a power of two: the unit of sensitivity.
    :ivar device_vector: The interrupt that a script's `interrupt` is.
    """

    asi: bool = True
    cpus: int = 1
    smt: bool = False
    memory: int = 64 * MIB
    levels: int = 4
    cpu: str = "generic"
    seed: int = 0
    debug: bool = False
    protocol: ProtocolConfig | Protocol | None = None
    interleaver: Callable[[], Interleaver] | None = None
    sensitivity: Callable[[AllocationRequest], bool] | None = None
    regions: Mapping[Region, Mapping[Access, Mapped]] = field(default_factory=dict)
    ephmap_read: frozenset[PageKind] = frozenset()
    ephmap_write: frozenset[PageKind] = frozenset()
    timer_period: int = 2000
    unmapped: frozenset[str | int] = frozenset()
    pageblock_order: int = 9
    device_vector: int = DEVICE_VECTOR

    def __post_init__(self) -> None:
        """Refuse what no machine can be; raises ScenarioError."""
        self._check_hardware()
        self._check_numbers()
        strange = {name for name in self.unmapped if isinstance(name, str)} - {region.value for region in Region}
        if strange:
            raise ScenarioError(f"unmapped names {', '.join(sorted(strange))}, which is no region")
        given = None if self.protocol is None else self.protocol_config()
        if given is not None and given.asi and not self.asi:
            raise ScenarioError("asi is off, but the protocol's configuration has it on; set one of them")
        if given is not None and given.asi and given.smt != self.smt:
            raise ScenarioError("smt must be the same in the machine's and in the protocol's configuration")

    def _check_hardware(self) -> None:
        if self.cpus < 1 or (self.smt and self.cpus % 2):
            raise ScenarioError(f"cpus is {self.cpus}; it must be at least 1, and with smt even")
        if self.memory < SMALLEST_MEMORY or self.memory % MIB:
            raise ScenarioError(
                f"memory is {self.memory} bytes; it must be whole MiB, at least {SMALLEST_MEMORY >> 20}"
            )
        if self.memory > LARGEST_MEMORY:
            raise ScenarioError(f"memory is {self.memory} bytes; at most {LARGEST_MEMORY >> 30} GiB are modelled")
        if self.levels not in {4, 5}:
            raise ScenarioError(f"levels is {self.levels}; page tables have 4 or 5 levels")

    def _check_numbers(self) -> None:
        if self.timer_period < 1:
            raise ScenarioError(f"timer_period is {self.timer_period}; it must be at least 1")
        if not 1 <= self.pageblock_order <= LARGEST_PAGEBLOCK_ORDER:
            raise ScenarioError(
                f"pageblock_order is {self.pageblock_order}; it must be 1 to {LARGEST_PAGEBLOCK_ORDER}, a PMD entry's"
            )
        if not FIRST_EXTERNAL_VECTOR <= self.device_vector < VECTORS:
            raise ScenarioError(
                f"device_vector is {self.device_vector}; devices have {FIRST_EXTERNAL_VECTOR} to {VECTORS - 1}"
            )

    def protocol_config(self) -> ProtocolConfig:
        """Return the protocol's configuration: the one given, or what follows from CPU model, `asi` and `smt`."""
        if isinstance(self.protocol, Protocol):
            return self.protocol.config
        if self.protocol is not None:
            return self.protocol
        model = load_cpu(self.cpu)
        classes = {AsiClass.USERSPACE, AsiClass.KVM} | ({AsiClass.IDLE} if self.smt else set())
        return ProtocolConfig(
            asi=self.asi,
            classes=frozenset(classes),
            features=model.protocol_features,
            bugs=model.protocol_bugs,
            smt=self.asi and self.smt,
        )

    def new_interleaver(self) -> Interleaver:
        """Make who decides what comes in between."""
        return RoundRobin(self.seed) if self.interleaver is None else self.interleaver()

    def mapped(self, region: Region, access: Access) -> Mapped:
        """Return what restricted address spaces have of a region for a kind of access."""
        if region.value in self.unmapped:
            return Mapped.ABSENT
        return self.regions.get(region, {}).get(access, _PUBLISHED[region])

    def absent_pages(self) -> list[int]:
        """Return the addresses whose pages are to be absent, sorted."""
        return sorted(name for name in self.unmapped if isinstance(name, int))
