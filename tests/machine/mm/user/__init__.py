"""Tests of user address spaces, the page cache, slabs, vmalloc and what is built on them."""
