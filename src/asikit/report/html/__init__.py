"""Reports as one HTML file each, that can be looked at, looked into, printed and sent round."""

from __future__ import annotations

from asikit.report.html.page import page_data, page_of, page_text, write_page
from asikit.report.html.pictures import Fold, Page, PageSection

__all__ = ["Fold", "Page", "PageSection", "page_data", "page_of", "page_text", "write_page"]
