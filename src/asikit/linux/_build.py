"""Compiling the plugin and the guest's init, once for each version of their sources."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from asikit.linux.errors import RecordError

__all__ = ["Programs", "cache_folder", "programs"]

from typing import NamedTuple


class Programs(NamedTuple):
    """The compiled plugin (a shared object for QEMU) and the guest's init (a static executable)."""

    plugin: Path
    init: Path


def cache_folder() -> Path:
    """Give the folder for what can be made again: compiled programs, unpacked kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "asikit"


def programs() -> Programs:
    """Compile what is not yet compiled.

    :raises RecordError: There is no C compiler, or it failed.
    """
    room = Path(str(resources.files("asikit.linux")))
    sources = sorted([*room.glob("plugin/*.[ch]"), *room.glob("guest/*.[ch]")])
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    folder = cache_folder() / "programs" / digest
    made = Programs(folder / "recorder.so", folder / "init")
    if not all(program.exists() for program in made):
        folder.mkdir(parents=True, exist_ok=True)
        _compile(made.plugin, [source for source in sources if source.match("plugin/*.c")], ["-shared", "-fPIC"])
        _compile(made.init, [room / "guest" / "init.c"], ["-static"])
    return made


def _compile(target: Path, sources: list[Path], options: list[str]) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RecordError("no C compiler found; install one (Debian: apt-get install gcc libc6-dev) or set CC")
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as made:
        command = [compiler, "-O2", "-w", *options, "-o", made.name, *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        Path(made.name).unlink()
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RecordError(f"{compiler} could not compile {target.name}: {lines[0]}")
    Path(made.name).chmod(0o755)
    Path(made.name).replace(target)
