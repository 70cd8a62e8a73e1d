"""What ``asi --version`` says: this asikit, and what it finds here to work with."""

from __future__ import annotations

import platform
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import asikit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import click

__all__ = ["version_text"]

_DATA: Final = (
    ("policies", "policies", ".toml"),
    ("cpus", "CPU models", ".toml"),
    ("vulnerabilities", "vulnerabilities", ".toml"),
    ("samples", "sample recordings", ".asitrace"),
)
_SCHEMA: Final = re.compile(r"schema asikit\.([\w-]+/\d+)")


def version_text(commands: Iterable[click.Command]) -> str:
    """Return the version in the first line, and below it what there is.

    :param commands: Those whose JSON has a schema; the help of the option says which.
    """
    lines = [f"asi {asikit.__version__}", *(f"{label + ':':8} {says}" for label, says in _found(commands))]
    return "".join(f"{line}\n" for line in lines)


def _found(commands: Iterable[click.Command]) -> Iterator[tuple[str, str]]:
    from asikit.record import kernel_here, qemu_version
    from asikit.trace import VERSION

    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "QEMU", qemu_version() or "none: asi record needs it (Debian: apt-get install qemu-system-x86)"
    kernel = kernel_here()
    without = "" if kernel is None or kernel.modules is not None else ", without its modules"
    here = "none that can be read: asi record takes Debian's newest cloud kernel, or --kernel VMLINUZ"
    yield "kernel", here if kernel is None else f"{kernel.release} ({kernel.image}{without})"
    counts = {
        noun: sum(item.name.endswith(suffix) for item in (files("asikit") / "data" / folder).iterdir())
        for folder, noun, suffix in _DATA
    }
    yield "data", ", ".join(f"{count} {noun}" for noun, count in counts.items())
    helps = (str(getattr(option, "help", "")) for command in commands for option in command.params)
    schemas = sorted({found for text in helps for found in _SCHEMA.findall(text)})
    yield "formats", f"traces {VERSION}; JSON {' '.join(schemas)}"
