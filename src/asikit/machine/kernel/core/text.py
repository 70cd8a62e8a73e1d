"""Where kernel functions are: addresses in the kernel image and in modules, given out when a function first runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.kernel.core.errors import ScenarioError
from asikit.machine.mm import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.machine.mm import Layout, Symbol

__all__ = ["IMAGE_TEXT_BYTES", "MODULE_TEXT_BYTES", "KernelText"]

IMAGE_TEXT_BYTES = 2 << 20
"""Bytes of text in the kernel image: one 2 MiB page, as Linux maps it."""
MODULE_TEXT_BYTES = 256 << 10
"""Bytes of text that all modules together have."""

_FUNCTION_BYTES = 256


class KernelText:
    """The symbol table. Functions of a module lie in pages of that module's own."""

    def __init__(self, layout: Layout) -> None:
        self._addresses: dict[Symbol, int] = {}
        # The first page is `startup_64` and what only boot runs.
        self._next_image = layout.kernel_image.start + PAGE_SIZE
        self._image_end = layout.kernel_image.start + IMAGE_TEXT_BYTES
        self._next_module_page = layout.modules.start
        self._modules_end = layout.modules.start + MODULE_TEXT_BYTES
        self._next_in_module: dict[str, int] = {}

    def address(self, symbol: Symbol) -> int:
        """Return a function's address, the same for ever. Raises ScenarioError if there is no more room for text."""
        address = self._addresses.get(symbol)
        if address is None:
            address = self._image() if symbol.module is None else self._module(symbol.module)
            self._addresses[symbol] = address
        return address

    def symbols(self) -> Iterator[tuple[Symbol, int]]:
        """Yield the functions that ran so far, with their addresses."""
        yield from self._addresses.items()

    def _image(self) -> int:
        address = self._next_image
        if address >= self._image_end:
            raise ScenarioError(f"more than {IMAGE_TEXT_BYTES} bytes of kernel functions")
        self._next_image += _FUNCTION_BYTES
        return address

    def _module(self, module: str) -> int:
        address = self._next_in_module.get(module, 0)
        if address % PAGE_SIZE == 0:
            address = self._next_module_page
            if address >= self._modules_end:
                raise ScenarioError(f"more than {MODULE_TEXT_BYTES} bytes of module functions")
            self._next_module_page += PAGE_SIZE
        self._next_in_module[module] = address + _FUNCTION_BYTES
        return address
