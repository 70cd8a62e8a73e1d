"""The workload's program and busybox: finding them on this machine, with what they need to run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from asikit.record.errors import RecordError

__all__ = ["LINE_BYTES", "applets", "find_busybox", "find_program", "interpreters", "missing_program", "workload_files"]

LINE_BYTES = 256
"""Of a script's first line, as the kernel reads it (``BINPRM_BUF_SIZE``)."""


def find_program(command: str, path: str | None = None) -> Path | None:
    """Find a program as a shell does: by its path if there is a slash in it, else in the folders of ``PATH``.

    :param path: The ``PATH``, if not this process's.
    :return: Its absolute path; None if no folder of ``PATH`` has it.
    :raises RecordError: The path leads to nothing that can be run.
    """
    if "/" not in command:
        found = shutil.which(command, path=path)
        return Path(found).absolute() if found else None
    file = Path(command)
    if file.is_dir():
        raise RecordError(f"{command} is a folder; give a program in it")
    if not file.exists():
        raise RecordError(f"{command}: there is no such program on this machine; check the path")
    if not os.access(file, os.X_OK):
        words = " ".join(_words(_head(file))).strip() or "sh"
        raise RecordError(f"{command} is not executable; run `chmod +x {command}`, or record `{words} {command}`")
    return file.absolute()


def workload_files(command: str) -> tuple[Path | None, list[Path]]:
    """Find the workload's program on this machine: its path (None: left to busybox) and all files that it needs.

    :raises RecordError: There is no such program here, and no such busybox applet, or it cannot be run.
    """
    path = find_program(command)
    if path is not None:
        return path, [path, *_libraries(path)]
    if command in applets(find_busybox()):
        return None, []
    raise missing_program(command, ", and busybox has none of that name")


def missing_program(command: str, but: str = "") -> RecordError:
    """Give the error for a program that no folder has.

    :param but: Where else it was looked for.
    """
    here = f"; for the file in this folder write ./{command}" if Path(command).is_file() else ""
    return RecordError(f"no program {command!r} on this machine{but}; install it or give its path{here}")


def find_busybox() -> Path:
    """Find a busybox that needs no libraries.

    :raises RecordError: There is none.
    """
    found = shutil.which("busybox")
    if found is None or _libraries(Path(found)):
        which = (
            "busybox is missing" if found is None else f"{found} needs libraries, and the guest wants one that does not"
        )
        raise RecordError(f"{which}; install one (Debian: apt-get install busybox-static)")
    return Path(found).resolve()


def applets(busybox: Path) -> list[str]:
    """List the programs that busybox stands for."""
    done = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RecordError(f"{busybox} --list failed; install another (Debian: apt-get install busybox-static)")
    return done.stdout.split()


def interpreters(head: bytes) -> list[Path]:
    """List the programs that the first line of a script names: its interpreter; of ``#!/usr/bin/env NAME`` both.

    :param head: The first :data:`LINE_BYTES` of a file; nothing is found if they are no script's.
    """
    words = _words(head)
    found = [Path(words[0])] if words else []
    if found and found[0].name == "env":
        named = next((word for word in words[1:] if word[:1] != "-" and "=" not in word), "")
        found += [Path(path) for path in (shutil.which(named),) if path]
    return found


def _libraries(program: Path, scripts: tuple[Path, ...] = ()) -> list[Path]:
    """List the shared libraries of an ELF program, or a script's interpreter and its libraries.

    :param scripts: Those that have led here.
    :raises RecordError: Something that it cannot run without is not on this machine.
    """
    head = _head(program)
    if head.startswith(b"#!"):
        needed = interpreters(head)
        for path in needed:
            if not path.is_file() or path in scripts:
                raise RecordError(
                    f"{program}: its first line names {str(path)!r}, which is no program of this machine; "
                    "install it or mend the line"
                )
        return [file for path in needed for file in (path, *_libraries(path, (*scripts, program)))]
    if not head.startswith(b"\x7fELF"):
        return []
    ldd = shutil.which("ldd")
    if ldd is None:
        raise RecordError("ldd is missing; install it (Debian: apt-get install libc-bin)")
    told = subprocess.run([ldd, str(program)], capture_output=True, text=True, check=False).stdout
    missing = re.search(r"(\S+) => not found", told)
    if missing:
        raise RecordError(f"{program} needs the library {missing[1]}, which is not on this machine; install it")
    return [Path(match[1]) for match in re.finditer(r"(/\S+) \(0x", told)]


def _head(program: Path) -> bytes:
    try:
        with program.open("rb") as file:
            return file.read(LINE_BYTES)
    except OSError as error:
        raise RecordError(f"cannot read {program} for the guest: {error.strerror}") from error


def _words(head: bytes) -> list[str]:
    """Split a script's first line as the kernel does: a carriage return belongs to its word."""
    return re.findall(r"[^ \t]+", os.fsdecode(head[2:].split(b"\n")[0])) if head.startswith(b"#!") else []
