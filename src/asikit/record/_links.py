"""Symbolic links, followed as the kernel follows them but in a tree of our choice."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["follow"]

_MOST_LINKS: Final = 40
"""The kernel follows no more symbolic links than this in one path (``MAXSYMLINKS``, include/linux/namei.h)."""


def follow(path: str, target_of: Callable[[str], str | None]) -> str:
    """Give where an absolute path leads.

    :param target_of: Gives what the link at a path, which has no link before its end, leads to; None if it is none.
    :raises OSError: The links lead in a circle.
    """
    left = _parts(path)
    at, links = "", 0
    while left:
        part = left.pop(0)
        if part == "..":
            at = at.rpartition("/")[0]
            continue
        target = target_of(f"{at}/{part}")
        if target is None:
            at = f"{at}/{part}"
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            at = ""
        left = _parts(target) + left
    return at or "/"


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]
