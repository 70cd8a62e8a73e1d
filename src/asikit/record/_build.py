"""Compiling the plugin and the guest's programs, once for each version of their sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from asikit.record.errors import RecordError
from asikit.trace import ScratchFolder

__all__ = ["MARK_HEADER", "Programs", "cache_folder", "make_folder", "mark_command", "mark_header", "programs"]

MARK_HEADER = "asi_mark.h"
"""The C header with which a workload marks its phases."""

_INIT = ("init.c", "host.c", "mounts.c", "network.c", "startup.c", "streams.c")


class Programs(NamedTuple):
    """The compiled plugin (a shared object for QEMU), the guest's init and ``asi-mark`` (static executables)."""

    plugin: Path
    init: Path
    mark: Path


def cache_folder() -> Path:
    """Give the folder for what can be made again: compiled programs, unpacked kernels."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "asikit"


def make_folder(folder: Path) -> Path:
    """Make a folder in the cache.

    :raises RecordError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"cannot make the folder {folder}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return folder


def programs() -> Programs:
    """Compile what is not yet compiled.

    Two recordings may do so at the same time: each compiles into a file of its own and renames it.

    :raises RecordError: There is no C compiler, or it failed.
    """
    room = Path(str(resources.files("asikit.record")))
    sources = sorted([*room.glob("plugin/*.[ch]"), *room.glob("guest/*.[ch]")])
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    folder = cache_folder() / "programs" / digest
    made = Programs(folder / "recorder.so", folder / "init", folder / "asi-mark")
    if not made.plugin.exists():
        code = [source for source in sources if source.match("plugin/*.c")]
        _compile(made.plugin, code, ["-shared", "-fPIC", "-fvisibility=hidden"])
    for program, names in ((made.init, _INIT), (made.mark, ("mark.c",))):
        if not program.exists():
            _compile(program, [room / "guest" / name for name in names], ["-static"])
    return made


def mark_command() -> Path:
    """Give the static executable with which a script marks its phases.

    :raises RecordError: There is no C compiler, or it failed.
    """
    return programs().mark


def mark_header() -> str:
    """Give the text of the header with which a workload marks its phases."""
    return (resources.files("asikit.record") / "guest" / MARK_HEADER).read_text(encoding="utf-8")


def _compile(target: Path, sources: list[Path], options: list[str]) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None or shutil.which(compiler) is None:
        missing = f"the C compiler {compiler}" if compiler else "a C compiler"
        raise RecordError(f"{missing} is missing; install one (Debian: apt-get install gcc libc6-dev) or set CC")
    make_folder(target.parent)
    with ScratchFolder(target.parent, ".compiling-{token}") as folder:
        made = folder / target.name
        command = [compiler, "-O2", "-w", "-Werror=implicit-function-declaration", *options, "-o", str(made)]
        command += [*map(str, sources), "-ldl"]  # glibc before 2.34 has dlsym() there
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RecordError(f"{compiler} could not compile {target.name}: {_complaint(done)}")
        made.replace(target)


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    return next((line for line in lines if "error" in line), lines[0])
