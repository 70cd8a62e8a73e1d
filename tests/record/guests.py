"""The kernels that recording is tested on, and how each is run."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from asikit.record import Recording
from tests.record.kernels import debian_kernel


@dataclass(frozen=True)
class Guest:
    """A kernel and how it is run.

    :ivar kernel: One of Debian's, in the words of ``tools/debian-kernel``; empty: the one that `asi record` takes.
    :ivar cpu: The model; empty: the one that `asi record` takes.
    """

    kernel: str
    cpus: int = 1
    append: str = ""
    cpu: str = ""

    def recording(self, *command: str) -> Recording:
        """Give the recording of a command in it."""
        return Recording(
            command,
            kernel=debian_kernel(self.kernel) if self.kernel else None,
            cpus=self.cpus,
            append=self.append,
            bare=True,
            cpu=self.cpu or None,
        )

    def marks(self) -> list[pytest.MarkDecorator]:
        """Give the marks of its tests."""
        return [pytest.mark.needs_apt, pytest.mark.slow] if self.kernel else []

    def __str__(self) -> str:
        """Give the name of its tests."""
        words = (self.kernel or "default", f"{self.cpus}cpu", self.append, self.cpu)
        return "-".join(word for word in words if word)


SERIES = ("5.10", "6.1", "6.12", "6.16", "6.18", "7.0", "7.2", "7.3")
GUESTS = (
    Guest(""),
    Guest("", cpus=2),
    *(Guest(series, cpus) for series in SERIES for cpus in (1, 2)),
    Guest("6.12-generic"),
    Guest("6.12-rt"),
    Guest("7.2-rt", cpus=2),
    Guest("6.1", append="kaslr"),
    Guest("7.2", cpus=2, append="kaslr"),
    Guest("6.1", append="pti=on"),
    Guest("6.1", append="mitigations=auto", cpu="EPYC-Rome"),
    Guest("7.2", append="mitigations=auto pti=on"),
    Guest("6.18", append="no5lvl"),
)
"""Kernels from Debian's oldest suite to its newest, in their flavours, with what changes the address space.

And a processor for which the kernel makes its returns as jumps (return thunks, against Retbleed).
"""
