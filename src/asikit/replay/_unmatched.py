"""Names in a policy that match nothing in a recording: their author would believe that they cost nothing."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.errors import nearest
from asikit.replay._frames import any_of
from asikit.replay._tables import NO_GFP
from asikit.replay.policy import MechanismKind, Policy
from asikit.trace import PageKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from asikit.replay._tables import SideTables

__all__ = ["unmatched", "unmatched_names"]

_CLOSED = {"kinds", "unrecorded_kinds", "gfp"}
"""Lists whose names are all right ones: another that the recording has is no likelier to be meant."""


def unmatched_names(policy: Policy, tables: SideTables) -> tuple[str, ...]:
    """Return a line for each name that the policy's author gave and that nothing in the recording has."""
    return unmatched(policy, {rule: partial(find, tables) for rule, find in _FOUND.items()}, where="this recording")


def unmatched(policy: Policy, found: Mapping[str, Callable[[], set[str]]], *, where: str) -> tuple[str, ...]:
    """Return a line for each name that the policy's author gave and that is not found.

    Those of a policy that comes with asikit are about all kernels and workloads: nothing is said of them.

    :param found: For each kind of list that is looked up (the last word of its key), what gives the names there.
    :param where: What they were looked for in, as the lines say it.
    """
    if policy.mechanism.kind is not MechanismKind.ASI:
        return ()
    known: dict[str, set[str]] = {}
    lines = []
    for key, name in policy.names():
        rule = key.rpartition(".")[2]
        if (key, name) in policy.shipped_names or rule not in found:
            continue
        if rule not in known:
            known[rule] = found[rule]()
        if rule in _CLOSED:
            matches, near = name in known[rule], ""
        else:
            glob = re.compile(any_of([name]))
            matches, near = any(map(glob.search, known[rule])), nearest(name, known[rule])
        if not matches:
            lines.append(f'{policy.file or policy.name}: {key}: "{name}" matches nothing in {where}{near}')
    return tuple(lines)


def _caches(tables: SideTables) -> set[str]:
    return set(tables.pages.filter(pl.col("kind") == PageKind.SLAB)["cache"].drop_nulls())


def _allocators(tables: SideTables) -> set[str]:
    return _names(tables.allocator_of_page, tables)


def _functions(tables: SideTables) -> set[str]:
    return _names(tables.functions(np.arange(tables.stacks.height, dtype=np.uint32))[0], tables)


def _names(symbols: npt.NDArray[np.uint32], tables: SideTables) -> set[str]:
    """Return the names of symbols as rules see them, without a compiler's suffix; not the unknown symbol's."""
    rows = np.unique(symbols)
    return set(tables.symbol_names.gather(rows[rows != 0]).str.replace(r"\..*$", ""))


def _kinds(tables: SideTables) -> set[str]:
    # The last row is for no page: it counts if a place has none.
    return _names_of_kinds(np.append(tables.kind_of_page[:-1], tables.kind_of_page[np.unique(tables.page_of_place)]))


def _unrecorded_kinds(tables: SideTables) -> set[str]:
    return _names_of_kinds(tables.kind_of_page[tables.gfp_of_page == NO_GFP])


def _names_of_kinds(numbers: npt.NDArray[np.uint8]) -> set[str]:
    return {list(PageKind)[number].value for number in np.unique(numbers)}


def _flags(tables: SideTables) -> set[str]:
    recorded = np.unique(tables.gfp_of_page[tables.gfp_of_page != NO_GFP])
    known: dict[str, int] = tables.meta.get("gfp_flags", {})
    return {name for name, mask in known.items() if mask and bool(((recorded & mask) == mask).any())}


_FOUND: dict[str, Callable[[SideTables], set[str]]] = {
    "caches": _caches,
    "allocated_by": _allocators,
    "functions": _functions,
    "kinds": _kinds,
    "unrecorded_kinds": _unrecorded_kinds,
    "gfp": _flags,
}
