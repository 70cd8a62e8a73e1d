"""Which frame of a kernel stack names what happened."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ALLOCATOR_FRAMES", "COPY_FRAMES", "any_of"]

COPY_FRAMES = {
    # Bare memory-copy primitives. Newer kernels inline most of them into their caller, and published exit traces name
    # the caller, so the same access must have the same name here on every kernel. Page clearing (clear_page_*,
    # clear_user_*) and page copying (copy_page) are no primitives in this sense: they are what published traces name.
    "copy_user_*": "before 6.4: the bodies of copy_to_user and copy_from_user, picked by CPU feature",
    "__copy_user_*": "its non-temporal and flushing variants",
    "rep_movs_alternative": "since 6.4: the body where the CPU lacks fast short REP MOVS",
    "raw_copy_*_user": "the inline wrapper around them",
    "copyin": "before 6.7: a wrapper in lib/iov_iter.c, inlined or not at the compiler's whim",
    "copyin_nofault": "before 6.7: as copyin",
    "copyout": "before 6.7: as copyin",
    "copyout_mc": "before 6.7: as copyin",
    "copyout_nofault": "before 6.7: as copyin",
    "copy_to_user_iter*": "since 6.7: copyin and copyout, renamed",
    "copy_from_user_iter*": "since 6.7: copyin and copyout, renamed",
    "memcpy_to_iter*": "since 6.7: a copy of kernel memory",
    "memcpy_from_iter*": "since 6.7: a copy of kernel memory",
    "memcpy": "inlined or called by the size of the copy",
    "__memcpy": "another name of memcpy",
    "memcpy_orig": "a body of memcpy, picked by CPU feature",
    "memcpy_erms": "a body of memcpy, picked by CPU feature",
    "memmove": "inlined or called by the size of the copy",
    "__memmove": "another name of memmove",
    "memmove_erms": "a body of memmove, picked by CPU feature",
    "memset": "inlined or called by the size of the area",
    "__memset": "another name of memset",
    "memset_orig": "a body of memset, picked by CPU feature",
    "memset_erms": "a body of memset, picked by CPU feature",
    "copy_mc_*": "machine-check-safe copy, picked by CPU feature",
    "enhanced_copy_mc*": "machine-check-safe copy, picked by CPU feature",
}
"""Globs over function names that do not name an access, each with the reason: the caller does."""

ALLOCATOR_FRAMES = {
    "__traceiter_*": "tracing of the allocation, below the allocator",
    "trace_event_raw_event_*": "tracing of the allocation, below the allocator",
    "perf_trace_*": "tracing of the allocation, below the allocator",
    "__alloc_pages*": "page allocator",
    "__alloc_frozen_pages*": "page allocator",
    "alloc_pages*": "page allocator",
    "alloc_frozen_pages*": "page allocator",
    "get_page_from_freelist*": "page allocator",
    "post_alloc_hook": "page allocator",
    "prep_new_page": "page allocator",
    "rmqueue*": "page allocator",
    "__rmqueue*": "page allocator",
    "__get_free_pages*": "page allocator",
    "get_free_pages*": "page allocator",
    "get_zeroed_page*": "page allocator",
    "__folio_alloc*": "page allocator, folios",
    "folio_alloc*": "page allocator, folios",
    "filemap_alloc_folio*": "page allocator, folios with the page cache's NUMA policy",
    "vma_alloc_folio*": "page allocator, folios with a vma's NUMA policy",
    "vma_alloc_zeroed_movable_folio": "page allocator, folios with a vma's NUMA policy",
    "__page_frag_*": "page allocator, fragments",
    "page_frag_alloc*": "page allocator, fragments",
    "allocate_slab": "slab",
    "new_slab": "slab",
    "___slab_alloc": "slab",
    "__slab_alloc*": "slab",
    "slab_alloc*": "slab",
    "refill_*sheaf*": "slab, since 6.18",
    "__pcs_*": "slab, since 6.18",
    "alloc_from_pcs*": "slab, since 6.18",
    "kmem_cache_alloc*": "slab",
    "__kmem_cache_alloc*": "slab",
    "__kmalloc*": "slab",
    "kmalloc*": "slab",
    "kvmalloc*": "slab or vmalloc",
    "__kvmalloc*": "slab or vmalloc",
    "krealloc*": "slab",
    "kmemdup*": "slab",
    "mempool_alloc*": "mempool",
    "__vmalloc*": "vmalloc",
    "vmalloc*": "vmalloc",
    "vzalloc*": "vmalloc",
    "vm_area_alloc_pages": "vmalloc",
    "__alloc_percpu*": "per-CPU allocator",
    "pcpu_*": "per-CPU allocator",
}
"""Globs over function names that do not say for what memory was allocated, each with the allocator it belongs to."""


def any_of(globs: Iterable[str]) -> str:
    """Return a regular expression that matches a whole name if one of the globs (``*``, ``?``) does.

    It uses only what Python's and Rust's (polars') engines have in common; for no globs it matches nothing.
    """
    parts = [re.escape(glob).replace(r"\*", ".*").replace(r"\?", ".") for glob in globs]
    return rf"^(?:{'|'.join(parts)})$" if parts else r"[^\s\S]"
