"""Kernel functions by name: what is running, for call stacks, causes of exits, and fetches of kernel text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import update_wrapper
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.mm.access import KernelMemory

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A kernel function, by the name that `/proc/kallsyms` has for it; `module` is None in the kernel image."""

    name: str
    module: str | None = None


class HasAccess(Protocol):
    """An object whose methods run as kernel code."""

    @property
    def access(self) -> KernelMemory:
        """How its code reaches memory."""
        ...


S = TypeVar("S", bound=HasAccess)


def kernel_function(
    name: str = "", module: str | None = None
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Decorate a method of an object with `access`: it runs as the kernel function `name` (else its own name).

    The function is entered before the body runs and left after it, on exceptions too. The decorated method has
    its `Symbol` as attribute `symbol`.
    """

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        symbol = Symbol(name or method.__name__, module)

        def function(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            access = self.access
            access.enter(symbol)
            try:
                return method(self, *args, **kwargs)
            finally:
                access.leave()

        update_wrapper(function, method)
        function.symbol = symbol  # type: ignore[attr-defined]
        return function

    return decorate
