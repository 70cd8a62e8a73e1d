"""A policy applied to a trace's pages: what each touch means."""

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.replay._frames import any_of
from asikit.replay.errors import PolicyError, nearest
from asikit.replay.policy import ACCESSES, Access, Mapped, Policy, Rules, Sensitivity
from asikit.trace import PageKind, Region

if TYPE_CHECKING:
    import numpy.typing as npt

    from asikit.replay._tables import SideTables

    Flags = npt.NDArray[np.bool_]
    Bytes = npt.NDArray[np.uint8]

__all__ = ["PlaceBits", "Sensitive", "apply_policy", "missing_bit"]


class PlaceBits(IntFlag):
    """What a touch of a place meets in the restricted address space of each class."""

    USERSPACE_READ = 1
    USERSPACE_WRITE = 2
    USERSPACE_FETCH = 4
    KVM_READ = 8
    KVM_WRITE = 16
    KVM_FETCH = 32
    EPHMAP_READ = 64
    EPHMAP_WRITE = 128


def missing_bit(*, userspace: bool, access: Access) -> PlaceBits:
    """Return the bit that says that an access of a class is to something its address space lacks."""
    return PlaceBits(1 << (ACCESSES.index(access) + (0 if userspace else 3)))


@dataclass(frozen=True, slots=True)
class Sensitive:
    """A policy's answers for one trace.

    :ivar pages: One flag a page, and a last one for a place that is not memory: the page is sensitive.
    :ivar places: One byte a place: :class:`PlaceBits`.
    :ivar ephmap_stacks: One flag a stack: its function may use the ephemeral mapping.
    """

    pages: "Flags"
    places: "Bytes"
    ephmap_stacks: "Flags"


def apply_policy(policy: Policy, tables: "SideTables") -> Sensitive:
    """Decide for every place of a trace what the policy's restricted address space has there.

    :raises PolicyError: The policy names a gfp flag that the recorded kernel does not have.
    """
    pages = _sensitive_pages(policy, tables)
    behind = pages[tables.page_of_place]
    bits = np.zeros(tables.places.height, np.uint8)
    for region in tables.places["region"].unique().to_list():
        here = (tables.places["region"] == region).to_numpy()
        for access, mapped in policy.regions[Region(region)].items():
            _mark(bits, access, mapped, here=here, behind=behind)
    _mark_ephmap(bits, policy, tables)
    names = policy.ephmap.functions
    stacks = (
        tables.symbols_matching(names)[tables.functions(np.arange(tables.stacks.height, dtype=np.uint32))[0]]
        if names
        else np.ones(tables.stacks.height, np.bool_)
    )
    return Sensitive(pages, bits, stacks)


def _mark(bits: "Bytes", access: Access, mapped: Mapped, *, here: "Flags", behind: "Flags") -> None:
    userspace = np.uint8(missing_bit(userspace=True, access=access))
    kvm = np.uint8(missing_bit(userspace=False, access=access))
    if mapped is Mapped.ABSENT:
        bits[here] |= userspace | kvm
    elif mapped is Mapped.BY_MEMORY:
        bits[here & behind] |= userspace | kvm
    elif mapped is Mapped.USERSPACE:
        bits[here] |= kvm


def _mark_ephmap(bits: "Bytes", policy: Policy, tables: "SideTables") -> None:
    kinds = np.append(tables.pages["kind"].is_in(list(policy.ephmap.kinds)).to_numpy(), False)  # noqa: FBT003
    through = kinds[tables.page_of_place] & (tables.places["region"] == Region.DIRECT_MAP).to_numpy()
    for access, bit in ((Access.READ, PlaceBits.EPHMAP_READ), (Access.WRITE, PlaceBits.EPHMAP_WRITE)):
        if access in policy.ephmap.access:
            missing = missing_bit(userspace=True, access=access) | missing_bit(userspace=False, access=access)
            bits[through & ((bits & np.uint8(missing)) != 0)] |= np.uint8(bit)


def _sensitive_pages(policy: Policy, tables: "SideTables") -> "Flags":
    """Lay the rules over the pages, weakest first, and within one strength the sensitive ones last."""
    memory = policy.memory
    gfp = _gfp_of_page(tables)
    unrecorded = np.append(gfp.is_null().to_numpy(), False)  # noqa: FBT003
    kinds = pl.concat([tables.pages["kind"], pl.Series("kind", [PageKind.MMIO.value])])
    caches = pl.concat([tables.pages["cache"].fill_null(""), pl.Series("cache", [""])])
    slab = (kinds == PageKind.SLAB).to_numpy()
    allocators = tables.allocator_of_page

    def by_gfp(rules: Rules) -> "Flags":
        return np.append(_has_flags(gfp, rules.gfp, policy, tables), False)  # noqa: FBT003

    def by_unrecorded_kind(rules: Rules) -> "Flags":
        return unrecorded & kinds.is_in(list(rules.unrecorded_kinds)).to_numpy()

    def by_kind(rules: Rules) -> "Flags":
        return kinds.is_in(list(rules.kinds)).to_numpy()

    def by_allocator(rules: Rules) -> "Flags":
        return tables.symbols_matching(rules.allocated_by)[allocators]

    def by_cache(rules: Rules) -> "Flags":
        return slab & caches.str.contains(any_of(rules.caches)).to_numpy()

    sensitive = np.full(tables.pages.height + 1, memory.default is Sensitivity.SENSITIVE)
    sensitive[-1] = False  # device registers: no rule but an explicit one makes them sensitive
    for matches in (by_gfp, by_unrecorded_kind, by_kind, by_allocator, by_cache):
        sensitive[matches(memory.nonsensitive)] = False
        sensitive[matches(memory.sensitive)] = True
    return sensitive


def _gfp_of_page(tables: "SideTables") -> pl.Series:
    flags = pl.concat([tables.allocations["gfp"], pl.Series("gfp", [None], dtype=pl.UInt32)])
    return flags.gather(tables.allocation_of_page)


def _has_flags(gfp: pl.Series, names: tuple[str, ...], policy: Policy, tables: "SideTables") -> "Flags":
    """Return for each page whether its allocation has all bits of one of the named flags."""
    known: dict[str, int] = tables.meta.get("gfp_flags", {})
    values = gfp.fill_null(0).to_numpy()
    matching = np.zeros(values.size, np.bool_)
    if gfp.null_count() == gfp.len():
        return matching
    for name in names:
        if name not in known:
            raise PolicyError(
                f'policy {policy.name}: the recorded kernel has no gfp flag "{name}"{nearest(name, known)}'
                f" ({len(known)} flags in the trace's meta.json)"
            )
        mask = np.uint32(known[name])
        matching |= (values & mask) == mask
    return matching & gfp.is_not_null().to_numpy()
