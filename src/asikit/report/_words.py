"""Words for what ASI does, shared by all reports."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FLUSH_WORDS", "REASON_WORDS", "REGION_WORDS", "size_text"]

FLUSH_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "ibpb": "branch predictor barriers (IBPB)",
        "bhb_clear": "branch history clears",
        "rsb_fill": "return stack refills",
        "l1d_flush": "L1 data cache flushes",
        "verw": "buffer clears (VERW)",
        "dummy_divide": "divider clears",
    }
)
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
    if size < 1 << 10:
        return f"{size} bytes"
    number = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:  # noqa: PLR2004
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"
