"""What is known of a page frame: `struct page`, as a Python object (it is not in modelled memory)."""

from __future__ import annotations

from dataclasses import dataclass

from asikit.machine.mm.gfp import Gfp
from asikit.trace import PageKind

_NO_FLAGS = Gfp(0)


@dataclass(slots=True, eq=False)
class Page:
    """One allocation's metadata; frames inside a higher-order allocation share the first one's (`page_folio()`).

    :ivar pfn: Number of the first page frame.
    :ivar refcount: Users of the page; the allocation has one, `PageAllocator.put_page` frees with the last.
    :ivar mapcount: User page-table entries that map it.
    :ivar kind: What it is used for; FREE or RESERVED if it is no allocation.
    :ivar cache: The slab cache's name, for SLAB.
    :ivar gfp: The request's flags.
    :ivar order: The allocation has ``1 << order`` frames.
    :ivar owner: What it belongs to, as its user likes (an inode, a slab, an mm); the kernel's `page->mapping`.
    :ivar index: Where in its owner it is, in pages.
    :ivar private: Its user's, `page->private`.
    """

    pfn: int
    refcount: int = 0
    mapcount: int = 0
    kind: PageKind = PageKind.FREE
    cache: str | None = None
    gfp: Gfp = _NO_FLAGS
    order: int = 0
    owner: object | None = None
    index: int = 0
    private: object | None = None
