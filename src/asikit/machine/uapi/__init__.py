"""What kernel and programs agree on: structures, system call numbers, error numbers."""

from __future__ import annotations
