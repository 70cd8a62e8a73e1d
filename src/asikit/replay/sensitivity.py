"""A policy applied to a trace's pages: what each touch means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np

from asikit.errors import nearest
from asikit.protocol import Mapped
from asikit.replay._tables import NO_GFP
from asikit.replay.errors import PolicyError
from asikit.replay.policy import ACCESSES, Policy, Sensitivity, TouchKind
from asikit.trace import PageKind, Region

if TYPE_CHECKING:
    import numpy.typing as npt

    from asikit.replay._tables import SideTables

    Flags = npt.NDArray[np.bool_]
    Bytes = npt.NDArray[np.uint8]

__all__ = ["EPHMAP_BIT", "PlaceBits", "Sensitive", "apply_policy", "missing_bit"]


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


def missing_bit(*, userspace: bool, access: TouchKind) -> PlaceBits:
    """Return the bit that says that an access of a class is to something its address space lacks."""
    return PlaceBits(1 << (ACCESSES.index(access) + (0 if userspace else 3)))


EPHMAP_BIT = {
    TouchKind.READ: PlaceBits.EPHMAP_READ,
    TouchKind.WRITE: PlaceBits.EPHMAP_WRITE,
    TouchKind.FETCH: PlaceBits(0),
}
"""The bit that says that an access may go through an ephemeral mapping."""


@dataclass(frozen=True, slots=True)
class Sensitive:
    """A policy's answers for one trace.

    :ivar pages: One flag a page, and a last one for a place that is not memory: the page is sensitive.
    :ivar places: One byte a place: :class:`PlaceBits`.
    :ivar ephmap_stacks: One flag a stack: its function may use the ephemeral mapping.
    """

    pages: Flags
    places: Bytes
    ephmap_stacks: Flags


def apply_policy(policy: Policy, tables: SideTables) -> Sensitive:
    """Decide for every place of a trace what the policy's restricted address space has there.

    :raises PolicyError: The policy names a gfp flag that the recorded kernel does not have.
    """
    pages = _sensitive_pages(policy, tables)
    bits = _region_bits(policy)[tables.region_of_place, pages[tables.page_of_place].view(np.uint8)]
    _mark_ephmap(bits, policy, tables)
    names = policy.ephmap.functions
    stacks = (
        tables.symbols_matching(names)[tables.functions(np.arange(tables.stacks.height, dtype=np.uint32))[0]]
        if names
        else np.ones(tables.stacks.height, np.bool_)
    )
    return Sensitive(pages, bits, stacks)


def _region_bits(policy: Policy) -> Bytes:
    """Return the bits of a place by its region's number and whether its page is sensitive."""
    bits = np.zeros((len(Region), 2), np.uint8)
    for number, region in enumerate(Region):
        for access, mapped in policy.regions[region].items():
            userspace = missing_bit(userspace=True, access=access)
            kvm = missing_bit(userspace=False, access=access)
            if mapped is Mapped.ABSENT:
                bits[number] |= np.uint8(userspace | kvm)
            elif mapped is Mapped.BY_MEMORY:
                bits[number, 1] |= np.uint8(userspace | kvm)
            elif mapped is Mapped.USERSPACE:
                bits[number] |= np.uint8(kvm)
    return bits


def _mark_ephmap(bits: Bytes, policy: Policy, tables: SideTables) -> None:
    if not policy.ephmap.kinds:
        return
    of_kind = _is_kind(policy.ephmap.kinds)[tables.kind_of_page][tables.page_of_place]
    through = of_kind & (tables.region_of_place == list(Region).index(Region.DIRECT_MAP))
    for access in policy.ephmap.access:
        missing = missing_bit(userspace=True, access=access) | missing_bit(userspace=False, access=access)
        bits[through & ((bits & np.uint8(missing)) != 0)] |= np.uint8(EPHMAP_BIT[access])


def _is_kind(kinds: tuple[str, ...]) -> Flags:
    """Return for each kind of page, in the order of :class:`PageKind`, whether it is one of these."""
    return np.array([kind in kinds for kind in PageKind])


def _sensitive_pages(policy: Policy, tables: SideTables) -> Flags:
    """Lay the rules over the pages, weakest first, and within one strength the sensitive ones last."""
    _check_flags(policy, tables)
    memory = policy.memory
    gfp = tables.gfp_of_page
    kinds = tables.kind_of_page

    def by_gfp(names: tuple[str, ...]) -> Flags:
        return _has_flags(names, tables)

    def by_unrecorded_kind(names: tuple[str, ...]) -> Flags:
        unrecorded: Flags = gfp == NO_GFP
        return unrecorded & _is_kind(names)[kinds]

    def by_kind(names: tuple[str, ...]) -> Flags:
        return _is_kind(names)[kinds]

    def by_allocator(names: tuple[str, ...]) -> Flags:
        return tables.symbols_matching(names)[tables.allocator_of_page]

    def by_cache(names: tuple[str, ...]) -> Flags:
        return tables.caches_matching(names)

    sensitive = np.full(kinds.size, memory.default is Sensitivity.SENSITIVE)
    sensitive[-1] = False  # device registers: no rule but an explicit one makes them sensitive
    levels = (
        (by_gfp, memory.nonsensitive.gfp, memory.sensitive.gfp),
        (by_unrecorded_kind, memory.nonsensitive.unrecorded_kinds, memory.sensitive.unrecorded_kinds),
        (by_kind, memory.nonsensitive.kinds, memory.sensitive.kinds),
        (by_allocator, memory.nonsensitive.allocated_by, memory.sensitive.allocated_by),
        (by_cache, memory.nonsensitive.caches, memory.sensitive.caches),
    )
    for matches, nonsensitive_names, sensitive_names in levels:
        if nonsensitive_names:
            sensitive[matches(nonsensitive_names)] = False
        if sensitive_names:
            sensitive[matches(sensitive_names)] = True
    return sensitive


def _check_flags(policy: Policy, tables: SideTables) -> None:
    """Refuse gfp flags that the recorded kernel does not have, where it recorded any."""
    if not (tables.gfp_of_page[:-1] != NO_GFP).any():
        return
    known: dict[str, int] = tables.meta.get("gfp_flags", {})
    for sensitivity, rules in (("nonsensitive", policy.memory.nonsensitive), ("sensitive", policy.memory.sensitive)):
        for name in rules.gfp:
            if name not in known:
                raise PolicyError(
                    f'{policy.file or policy.name}: memory.{sensitivity}.gfp: the recorded kernel has no flag "{name}"'
                    f"{nearest(name, known)} ({len(known)} flags in the trace's meta.json)"
                )


def _has_flags(names: tuple[str, ...], tables: SideTables) -> Flags:
    """Return for each page whether its allocation has all bits of one of the named flags."""
    known: dict[str, int] = tables.meta.get("gfp_flags", {})
    gfp = tables.gfp_of_page
    matching = np.zeros(gfp.size, np.bool_)
    for name in names:
        mask = known.get(name, 0)
        if mask:  # a flag that the kernel was built without is 0, and no allocation has it
            matching |= (gfp & mask) == mask
    recorded: Flags = gfp != NO_GFP
    return matching & recorded
