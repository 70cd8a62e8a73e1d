"""Trace event formats and allocation flags."""

from __future__ import annotations

import pytest

from asikit.record import RecordError
from asikit.record._trace_events import event_fields, gfp_flags

FORMAT = """\
name: mm_page_alloc
ID: 564
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;

\tfield:unsigned long pfn;\toffset:8;\tsize:8;\tsigned:0;
\tfield:unsigned int order;\toffset:16;\tsize:4;\tsigned:0;
\tfield:gfp_t gfp_flags;\toffset:20;\tsize:4;\tsigned:0;
\tfield:int migratetype;\toffset:24;\tsize:4;\tsigned:1;

print fmt: "gfp_flags=%s", (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", {( unsigned long)((((( gfp_t)\
(0x400u|0x800u)) | (( gfp_t)0x40u) | (( gfp_t)0x80u) | (( gfp_t)0x100000u)) | (( gfp_t)0x02u)) & ~(( gfp_t)0x400u)), \
"GFP_ODD"}, {( unsigned long)((( gfp_t)(0x400u|0x800u)) | (( gfp_t)0x40u) | (( gfp_t)0x80u)), "GFP_KERNEL"}, \
{( unsigned long)(( gfp_t)0x100000u), "__GFP_HARDWALL"}, {(unsigned long)sizeof(long), "NOT_A_NUMBER"}) : "none"
"""


def test_event_fields() -> None:
    """The plugin is told the offsets of the fields, and how wide the flags are."""
    expected = {"alloc_pfn": 8, "alloc_order": 16, "alloc_gfp": 20, "alloc_gfp_bytes": 4, "alloc_migratetype": 24}
    assert event_fields("alloc", FORMAT) == expected
    assert event_fields("free", FORMAT) == {"free_pfn": 8, "free_order": 16}
    with pytest.raises(RecordError, match="mm_page_alloc has no field 'migratetype'"):
        event_fields("alloc", FORMAT.replace("int migratetype", "int mobility"))


def test_gfp_flags() -> None:
    """The C expressions of the kernel are evaluated as C does; what is none is left out."""
    assert gfp_flags(FORMAT) == {"GFP_ODD": 0x1008C2, "GFP_KERNEL": 0xCC0, "__GFP_HARDWALL": 0x100000}


def test_gfp_flags_that_are_shifts() -> None:
    """Since the bits are an enum, the kernel prints shifts; a flag that it was built without is 0."""
    text = (
        "{( unsigned long)((( gfp_t)(((((1UL))) << (10))|((((1UL))) << (11)))) | (( gfp_t)((((1UL))) << (6)))), "
        '"GFP_NOFS"}, {( unsigned long)(( gfp_t)0), "__GFP_NOLOCKDEP"}, {( unsigned long)(1 ? 2 : 3), "GFP_ODD"}, '
        "{ 0, ((void *)0) } )"
    )
    assert gfp_flags(text) == {"GFP_NOFS": 0xC40, "__GFP_NOLOCKDEP": 0}
