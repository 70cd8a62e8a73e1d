"""Running `asi record` as users do, and looking for what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ASI = (sys.executable, "-c", "from asikit.cli import main; main()", "record")
_PATIENCE_SECONDS = 120.0


def program(path: Path, text: str) -> None:
    """Write a shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line of diagnostics."""
        return self.err.splitlines()[-1]


class Command:
    """`asi record` in a folder of its own, with its own folder for temporary files."""

    def __init__(self, folder: Path, programs: Path | None = None) -> None:
        """Prepare.

        :param programs: A folder whose programs are found before the machine's.
        """
        self.options: tuple[str, ...] = ("--bare",)
        self.folder = folder / "here"
        self.temporary = folder / "temporary"
        self.folder.mkdir()
        self.temporary.mkdir()
        self.environment = {**os.environ, "TMPDIR": str(self.temporary)}
        self._programs = programs
        if programs is not None:
            self.environment["PATH"] = f"{programs}:{os.environ['PATH']}"

    def replace_qemu(self, script: str) -> None:
        """Have a shell script stand for QEMU."""
        assert self._programs is not None
        program(self._programs / "qemu-system-x86_64", script)

    def start(
        self, *words: str, stdout: IO[bytes] | int = subprocess.PIPE, before: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start it.

        :param before: A command that runs the rest of its words.
        """
        return subprocess.Popen(
            [*before, *_ASI, *(() if "--root" in words else self.options), *words],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env=self.environment,
        )

    def end(self, process: subprocess.Popen[bytes]) -> Ended:
        """Wait for its end."""
        out, err = process.communicate(timeout=_PATIENCE_SECONDS)
        return Ended(process.returncode, (out or b"").decode(), err.decode())

    def run(self, *words: str) -> Ended:
        """Run it."""
        return self.end(self.start(*words))

    def left(self) -> list[str]:
        """List what is left of a recording: files here, temporary files, processes."""
        files = [str(path) for folder in (self.folder, self.temporary) for path in folder.iterdir()]
        return files + [" ".join(words) for words in self._processes().values()]

    def qemu(self) -> int:
        """Wait until QEMU runs, and give its process id."""
        return self._wait_for(lambda: next(iter(self._processes()), None))

    def console_has(self, text: str) -> None:
        """Wait until the guest's kernel has printed something."""

        def has() -> int | None:
            consoles = self.temporary.glob("asi-*/console")
            return next((1 for console in consoles if text in console.read_text(errors="replace")), None)

        self._wait_for(has)

    def _processes(self) -> dict[int, list[str]]:
        """Find the processes that have our temporary folder in their arguments."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended
                continue
            if any(str(self.temporary) in word for word in words):
                found[int(path.parent.name)] = words
        return found

    @staticmethod
    def _wait_for(condition: Callable[[], int | None]) -> int:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = condition()
            if found is not None:
                return found
            time.sleep(0.02)
        raise TimeoutError
