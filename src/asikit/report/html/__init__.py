"""Reports as one HTML file each, that can be looked at, looked into, printed and sent round."""

from __future__ import annotations

from asikit.report.html.page import page_data, page_of, page_text, write_page
from asikit.report.html.pictures import (
    CpuTrack,
    Flame,
    FlameRows,
    Fold,
    Group,
    Lead,
    Matrix,
    Page,
    PageSection,
    Part,
    Phase,
    Picture,
    Share,
    Source,
    Stack,
    Stacked,
    Timeline,
)

__all__ = [
    "CpuTrack",
    "Flame",
    "FlameRows",
    "Fold",
    "Group",
    "Lead",
    "Matrix",
    "Page",
    "PageSection",
    "Part",
    "Phase",
    "Picture",
    "Share",
    "Source",
    "Stack",
    "Stacked",
    "Timeline",
    "page_data",
    "page_of",
    "page_text",
    "write_page",
]
