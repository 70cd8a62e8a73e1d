"""Mitigations that are data, with costs that can be counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.cost.errors import CostError
from asikit.cost.parameters import Unit, known_parameters
from asikit.errors import nearest
from asikit.mitigations import load_variant

if TYPE_CHECKING:
    from asikit.mitigations import KernelMitigation

__all__ = ["priced_mitigation"]

_TIMES = frozenset({Unit.CYCLES, Unit.NANOSECONDS})


def priced_mitigation(name_or_file: str) -> KernelMitigation:
    """Return a mitigation, the costs of which are all known.

    :param name_or_file: As for :func:`asikit.mitigations.load_variant`.
    :raises CostError: A cost that there is not, or a product of costs that is no time; also :class:`MitigationError`.
    """
    mitigation = load_variant(name_or_file)
    fault = _fault(mitigation)
    if fault:
        raise CostError.usage(f"{mitigation.file}: {fault}")
    return mitigation


def _fault(mitigation: KernelMitigation) -> str:
    known = known_parameters()
    for work in mitigation.work:
        for product in work.costs:
            for name in product:
                if name not in known:
                    near = nearest(name, known)
                    return f'{work.name}: no cost "{name}"{near} (there are {", ".join(sorted(known))})'
            times = [name for name in product if known[name].unit in _TIMES]
            if len(times) != 1:
                return f"{work.name}: one of {', '.join(product)} must be a time, the others are not"
    return ""
