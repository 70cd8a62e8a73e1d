"""Tests of the page allocator, the direct maps and page-table editing."""
