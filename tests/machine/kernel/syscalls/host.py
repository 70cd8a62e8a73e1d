"""The cases on the real Linux: the same `User`, but its instructions and system calls are this computer's own.

Run as a program: each case runs in a process of its own, in a folder of its own, and what it noted is printed as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from asikit.machine.uapi.abi import OpenFlag
from asikit.machine.user.user import User
from tests.machine.kernel.syscalls.cases import CASES, CONTENT, Case

if TYPE_CHECKING:
    from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_STACK = 256 << 10
_MEMORY = "/dev/shm"  # noqa: S108 - made a temporary folder in


class HostUser(User):
    """A program's view of this computer."""

    def __init__(self, root: Path, thread: Any) -> None:  # noqa: ANN401 - stands for a Thread
        self._root = root
        self._thread = thread
        self._process: Any = thread.process

    def load(self, address: int, size: int) -> bytes:
        """Read memory."""
        return ctypes.string_at(address, size) if size else b""

    def store(self, address: int, data: bytes) -> None:
        """Write memory."""
        ctypes.memmove(address, data, len(data))

    def compute(self, instructions: int) -> None:
        """Nothing to do."""

    def syscall(self, number: int, *arguments: int) -> int:
        """Execute a real system call."""
        ctypes.set_errno(0)
        result = _LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
        return -ctypes.get_errno() if result == -1 else int(result)

    def open(self, path: str, flags: int = OpenFlag.RDONLY, mode: int = 0o644) -> int:
        """Open a file below the case's folder."""
        return super().open(str(self._root / path.removeprefix("/")) + "/" * path.endswith("/"), flags, mode)

    def fork(self, program: Callable[[User], object]) -> int:
        """Fork really."""
        pid = os.fork()
        if not pid:
            _exit_with(program, self)
        return pid

    def thread(self, program: Callable[[User], object]) -> int:
        """Start a thread."""
        started = threading.Event()
        numbers: list[int] = []
        buffer = ctypes.create_string_buffer(_STACK)

        def body() -> None:
            numbers.append(threading.get_native_id())
            started.set()
            program(HostUser(self._root, _thread(ctypes.addressof(buffer) + _STACK, self._process)))

        thread = threading.Thread(target=body)
        self._process.threads[len(self._process.threads)] = thread
        thread.start()
        started.wait()
        self._process.threads[numbers[0]] = thread
        return numbers[0]

    def join(self, tid: int) -> None:
        """Wait for a thread."""
        self._process.threads[tid].join()

    def execve(self, program: Callable[[User], object]) -> NoReturn:
        """Do what exec does to descriptors, and run another function."""
        for fd in range(3, 64):
            with suppress(OSError):
                if not os.get_inheritable(fd):
                    os.close(fd)
        _exit_with(program, self)

    def exit(self, code: int = 0) -> NoReturn:
        """End the process."""
        os._exit(code & 0xFF)


def _thread(stack: int, process: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(stack_pointer=stack, process=process)


def _exit_with(program: Callable[[User], object], user: User) -> NoReturn:
    code = program(user)
    os._exit(int(code) & 0xFF if isinstance(code, int) else 0)


def run_case(case: Case, root: Path) -> list[str]:
    """Run a case in a child process; returns what it noted."""
    (root / "dir").mkdir(parents=True)
    (root / "dir" / "data").write_bytes(CONTENT)
    result = root / "result"
    pid = os.fork()
    if not pid:
        os.closerange(3, 256)
        noted: list[str] = []
        buffer = ctypes.create_string_buffer(_STACK)
        process = SimpleNamespace(threads={})
        case(
            HostUser(root, _thread(ctypes.addressof(buffer) + _STACK, process)), lambda value: noted.append(repr(value))
        )
        result.write_text(json.dumps(noted))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return (
        cast("list[str]", json.loads(result.read_text()))
        if status == 0
        else [f"the case itself ended with status {status}"]
    )


def main() -> None:
    """Run all cases and print what they noted."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder:
        noted = {name: run_case(case, Path(folder) / name) for name, case in CASES.items()}
    json.dump(noted, sys.stdout)


def _memory_folder() -> str | None:
    """Return a folder on tmpfs, as the model's files are."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else None


if __name__ == "__main__":
    main()
