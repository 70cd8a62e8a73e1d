"""Reports as one HTML file each, that can be looked at, looked into, printed and sent round."""

from __future__ import annotations

from asikit.report.html.page import page_data, page_of, page_text, write_page
from asikit.report.html.pictures import (
    BarGroup,
    BarPart,
    CpuTrack,
    Flame,
    FlameRows,
    Fold,
    HtmlPage,
    Lead,
    Matrix,
    PageSection,
    Part,
    PartName,
    Phase,
    Picture,
    Stacked,
    StackedBar,
    Timeline,
)

__all__ = [
    "BarGroup",
    "BarPart",
    "CpuTrack",
    "Flame",
    "FlameRows",
    "Fold",
    "HtmlPage",
    "Lead",
    "Matrix",
    "PageSection",
    "Part",
    "PartName",
    "Phase",
    "Picture",
    "Stacked",
    "StackedBar",
    "Timeline",
    "page_data",
    "page_of",
    "page_text",
    "write_page",
]
