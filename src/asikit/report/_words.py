"""Words for what ASI does, shared by all reports."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from asikit.protocol import PRIMITIVES

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FLUSH_WORDS", "REASON_WORDS", "REGION_WORDS", "size_text"]

_KIBI = 1024

FLUSH_WORDS: Mapping[str, str] = MappingProxyType({primitive.kind.value: primitive.words for primitive in PRIMITIVES})
REGION_WORDS: Mapping[str, str] = MappingProxyType({"bpf": "a BPF program"})
"""Where a touched page is mapped, if the region's own name does not say it."""
REASON_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "page_fault": "the kernel touched missing memory, or faulted",
        "context_switch": "the scheduler switched tasks",
        "switch_mm": "the kernel loaded another mm's page tables",
        "tlb_flush": "the kernel flushed the TLB",
        "user_ret": "a return to user mode",
        "misc": "other",
    }
)


def size_text(size: int) -> str:
    """Give a number of bytes as people read it: ``512 bytes``, ``3.2 MiB``."""
    if size < _KIBI:
        return f"{size} bytes"
    number = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        number /= _KIBI
        if number < _KIBI:
            return f"{number:.1f} {unit}"
    return f"{number / _KIBI:.1f} TiB"
