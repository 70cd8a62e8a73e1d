"""The one place for numba: with which options loops over arrays are compiled, and where their machine code is kept.

A loop's arguments are arrays, numbers, and named tuples of them. A module of compiled loops is imported by what runs
them, when it does: importing numba takes a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["jit"]

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def jit(function: _Function) -> _Function:
    """Compile, keeping the machine code on disk where that is possible.

    Numba keeps it beside the source, else in the user's cache folder (or in ``NUMBA_CACHE_DIR``); if it may write in
    none of them it refuses to cache, and the code is compiled anew in each process.
    """
    import numba  # noqa: PLC0415  (only a module of compiled loops pays for it)

    try:
        compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return cast("_Function", numba.njit(nogil=True)(function))
    _forget_unreadable(compiled)
    return cast("_Function", compiled)


def _forget_unreadable(compiled: Any) -> None:  # noqa: ANN401  (numba's, which has no types)
    """Drop the list of what is kept if it names a type that is gone, as one of an earlier version may.

    Numba reads the whole list before it looks whether the source has changed, and fails.
    """
    try:
        compiled._cache._cache_file._load_index()  # noqa: SLF001  (there is no other way to ask)
    except (AttributeError, ImportError):
        compiled._cache.flush()  # noqa: SLF001
