"""Mitigations: what each does on a processor and what that costs, in one entry each.

What a kernel does without ASI is data (``data/mitigations``): the same entry says what becomes different, which an
attack meets, and what is to be paid, which a trace counts. The catalogue has everything that can be attacked: none,
Linux's own, the blanket mitigation, ASI, and ASI without one of its elements.
"""

from __future__ import annotations

from asikit.mitigations.catalogue import Mitigation, Setup, mitigation, mitigation_names
from asikit.mitigations.errors import MitigationError
from asikit.mitigations.hardening import Hardening, hardening
from asikit.mitigations.variant import base_name, load_variant
from asikit.mitigations.work import (
    Condition,
    KernelMitigation,
    Measure,
    Occasion,
    Source,
    When,
    Work,
    load_mitigation,
    shipped_mitigations,
)

__all__ = [
    "Condition",
    "Hardening",
    "KernelMitigation",
    "Measure",
    "Mitigation",
    "MitigationError",
    "Occasion",
    "Setup",
    "Source",
    "When",
    "Work",
    "base_name",
    "hardening",
    "load_mitigation",
    "load_variant",
    "mitigation",
    "mitigation_names",
    "shipped_mitigations",
]
