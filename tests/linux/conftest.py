"""Recordings that several tests look at: each is made once."""

import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asikit.linux import Recorded, Recording, record
from tests.linux.asked import Asked, ask
from tests.linux.kernels import debian_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """A recording that has been made."""

    trace: Path
    out: str
    err: str
    done: Recorded


def run(recording: Recording, trace: Path) -> Run:
    """Record."""
    out, err = io.BytesIO(), io.BytesIO()
    done = record(recording, trace, say=lambda line: None, out=out, err=err)  # noqa: ARG005
    return Run(trace, out.getvalue().decode(), err.getvalue().decode(), done)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[Path], str]":
    """Give a function that compiles a C program to a static executable."""
    folder = tmp_path_factory.mktemp("programs")

    def compiling(source: Path) -> str:
        target = folder / source.stem
        compiler = str(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"))
        subprocess.run([compiler, "-O1", "-static", "-o", str(target), str(source)], check=True)
        return str(target)

    return compiling


@dataclass(frozen=True)
class Guest:
    """A kernel and how it is run.

    :ivar kernel: One of Debian's, in the words of ``tools/debian-kernel``; empty: the one that `asi record` takes.
    """

    kernel: str
    cpus: int = 1
    append: str = ""

    def recording(self, *command: str) -> Recording:
        """Give the recording of a command in it."""
        return Recording(
            command,
            kernel=debian_kernel(self.kernel) if self.kernel else None,
            cpus=self.cpus,
            append=self.append,
        )

    def marks(self) -> list[pytest.MarkDecorator]:
        """Give the marks of its tests."""
        return [pytest.mark.needs_apt] if self.kernel else []

    def __str__(self) -> str:
        """Give the name of its tests."""
        words = (self.kernel or "default", f"{self.cpus}cpu", self.append)
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
    Guest("6.12", append="pti=on"),
    Guest("6.18", append="no5lvl"),
)
"""Kernels from Debian's oldest suite to its newest, in their flavours, with what changes the address space."""


@pytest.fixture(scope="session", params=[pytest.param(guest, id=str(guest), marks=guest.marks()) for guest in GUESTS])
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, compiled: "Callable[[Path], str]"
) -> Asked:
    """Record ``truth.c`` and give what its kernel told it."""
    folder = tmp_path_factory.mktemp("truth")
    made = run(request.param.recording(compiled(HERE / "truth.c")), folder / "truth.asitrace")
    assert made.done.exit_status == 0
    assert not any(made.done.lost.values())
    return ask(made.trace, made.out)


@pytest.fixture(scope="session")
def fio(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Record random reads of a file in tmpfs."""
    job = "--name=job --filename=/tmp/data --size=4m --io_size=8m --rw=randread --bs=4k --ioengine=psync --thread"
    trace = tmp_path_factory.mktemp("fio") / "fio.asitrace"
    return run(Recording(("fio", *job.split(), "--output-format=json")), trace)
