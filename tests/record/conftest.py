"""Recordings that several tests look at: each is made once."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asikit.record import Recorded, Recording, Streams, record
from tests.record.asked import Asked, ask
from tests.record.guests import GUESTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.once import Once

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
    done = record(recording, trace, say=lambda line: None, streams=Streams.to(out, err))  # noqa: ARG005
    return Run(trace, out.getvalue().decode(), err.getvalue().decode(), done)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Give a function that compiles a C program to a static executable."""
    folder = tmp_path_factory.mktemp("programs")

    def compiling(source: Path) -> str:
        target = folder / source.stem
        compiler = str(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"))
        subprocess.run([compiler, "-O1", "-static", "-o", str(target), str(source)], check=True)
        return str(target)

    return compiling


@pytest.fixture(scope="session", params=[pytest.param(guest, id=str(guest), marks=guest.marks()) for guest in GUESTS])
def asked(request: pytest.FixtureRequest, once: Once, compiled: Callable[[Path], str]) -> Asked:
    """Record ``truth.c`` and give what its kernel told it."""

    def recorded(folder: Path) -> Run:
        return run(request.param.recording(compiled(HERE / "truth.c")), folder / "truth.asitrace")

    made = once(f"truth-{request.param}", recorded)
    assert made.done.exit_status == 0
    assert not any(made.done.lost.values())
    return ask(made.trace, made.out)


@pytest.fixture(scope="session")
def fio(once: Once) -> Run:
    """Record random reads of a file in tmpfs."""
    job = "--name=job --filename=/tmp/data --size=4m --io_size=8m --rw=randread --bs=4k --ioengine=psync --thread"
    recording = Recording(("fio", *job.split(), "--output-format=json"), bare=True)
    return once("fio", lambda folder: run(recording, folder / "fio.asitrace"))
