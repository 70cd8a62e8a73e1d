"""Two files change names, in one step."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["exchange"]

_AT_FDCWD: Final = -100
"""Of include/uapi/linux/fcntl.h: paths are from the current folder."""
_RENAME_EXCHANGE: Final = 2
"""Of include/uapi/linux/fs.h."""


def exchange(one: Path, other: Path) -> bool:
    """Have each of two paths lead to what was the other's (``renameat2(2)``): at no time is one of them missing.

    :return: False if the C library or the file system cannot; nothing has changed then.
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    failed: int = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return not failed
