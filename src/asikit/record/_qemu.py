"""One run of the guest: QEMU with its pipes and files, and what it left behind."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from asikit.record._streams import Feeder, Forwarder, Streams
from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from io import BufferedReader, TextIOWrapper
    from pathlib import Path
    from types import TracebackType

    from asikit.record.disk import NbdServer

__all__ = ["DEFAULT_CPU", "GuestMachine", "Plugin", "RunningGuest", "qemu_version"]

_PIPE_BYTES = 1 << 20
"""As much as any user may ask for; the recorder writes this much at once."""
_TICK_SECONDS = 0.01
_LEAST_BYTES = 1 << 16
_MORE_ROOM = "set TMPDIR to a folder with more room"
_QEMU = "qemu-system-x86_64"
_COMMAND_LINE = (
    "console=ttyS0 nokaslr mitigations=off init_on_alloc=0 tsc=reliable cgroup_disable=cpuset panic=-1 "
    "no_hash_pointers quiet"
)
"""``nokaslr``: addresses as linked, so that two recordings have the same; ``mitigations=off``: ASI takes the place of
the kernel's own; ``init_on_alloc=0``: as the published measurements. ``tsc=reliable``: QEMU does not say that all CPUs
have the same TSC, which they have; without it Linux takes the HPET on more than one CPU, where each ``clock_gettime()``
is a system call. ``cgroup_disable=cpuset``: once there is a cpuset, as container engines make them, Linux adds
``__GFP_HARDWALL`` to every allocation (``prepare_alloc_pages()``), which then look like those for user data.
"""

DEFAULT_CPU = "max"
"""QEMU's ``-cpu``, where the user names none: with five levels of page tables, where the kernel can."""


def qemu_version() -> str | None:
    """Return QEMU's name and version; None if it is not installed."""
    if shutil.which(_QEMU) is None:
        return None
    told = subprocess.run([_QEMU, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return told[0] if told else None


@dataclass(frozen=True, slots=True)
class GuestMachine:
    """What the guest is to be.

    :ivar disk: Serves the disk that becomes the guest's root file system.
    :ivar cpu: QEMU's ``-cpu``.
    :ivar network: With QEMU's user-mode network.
    :ivar clock: What the guest's clock begins with, in seconds since the epoch; None: this machine's.
    """

    kernel: Path
    memory_bytes: int
    cpus: int
    append: str = ""
    disk: NbdServer | None = None
    cpu: str = DEFAULT_CPU
    network: bool = False
    clock: float | None = None

    @property
    def command_line(self) -> str:
        """The kernel's command line. ``kaslr``, which no kernel knows, takes back our ``nokaslr``."""
        ours = _COMMAND_LINE.split()
        if "kaslr" in self.append.split():
            ours.remove("nokaslr")
        return f"{' '.join(ours)} {self.append}".strip()


@dataclass(frozen=True, slots=True)
class Plugin:
    """The recorder.

    :ivar options: For tests: to go, with one CPU, the way that is there for several. ``count=callback`` counts
        instructions by callback, not inline; ``cpu=running`` looks up which CPU runs, where QEMU's word on it is true.
    """

    path: Path
    options: tuple[str, ...] = ()


class RunningGuest:
    """A running QEMU; a context manager that leaves no process behind.

    ``folder`` holds what the guest hands over (``guest-NAME``), its memory and its console.
    """

    def __init__(
        self, machine: GuestMachine, initramfs: bytes, plugin: Plugin | None, streams: Streams, folder: Path
    ) -> None:
        """Prepare; nothing runs before the block begins.

        :param plugin: The recorder; without it the same guest runs unrecorded, and its streams are not passed on.
        :param folder: An empty one, which is its caller's to remove.
        :raises RecordError: QEMU is not installed.
        """
        if shutil.which(_QEMU) is None:
            raise RecordError(f"{_QEMU} is missing; install it (Debian: apt-get install qemu-system-x86)")
        self._machine = machine
        self._initramfs = initramfs
        self._plugin = plugin
        self._streams = streams
        self.folder = folder
        self._stack = ExitStack()
        self._timed_out = False

    def __enter__(self) -> Self:
        """Start QEMU."""
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End QEMU if it still runs."""
        self._stack.close()

    @property
    def memory(self) -> Path:
        """The file that is the guest's memory."""
        return self.folder / "memory"

    @property
    def console(self) -> str:
        """What the kernel has printed."""
        return self._text("console") or ""

    def handed_over(self, name: str) -> str | None:
        """Give a text that the guest's init handed over; None if it did not."""
        return self._text(f"guest-{name}")

    def read_stream(self, size: int) -> bytes:
        """Wait for what the recorder sends, and give up to ``size`` bytes of it; none when QEMU has ended.

        Not a plain read: polars has a handler for SIGINT that restarts one, so that Ctrl-C would wait, too.
        """
        waiting = select.poll()
        waiting.register(self._stream.fileno(), select.POLLIN)
        waiting.poll()
        return os.read(self._stream.fileno(), size)

    def stop_after(self, seconds: float) -> None:
        """End QEMU if it still runs then."""

        def stop() -> None:
            if self._process.poll() is None:
                self._timed_out = True
                self._process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        self._stack.callback(timer.cancel)

    @property
    def timed_out(self) -> bool:
        """Whether :meth:`stop_after` ended it."""
        return self._timed_out

    @property
    def command_line(self) -> str:
        """The kernel's command line."""
        return self._machine.command_line

    @property
    def cpu(self) -> str:
        """The CPU, as QEMU's ``-cpu`` takes it."""
        return self._machine.cpu

    def wait(self) -> int:
        """Wait for QEMU's end and the last of the workload's output; give QEMU's exit status, -N for signal N.

        :raises RecordError: The workload's output could not be passed on.
        """
        while (status := self._process.poll()) is None:
            time.sleep(_TICK_SECONDS)  # not wait(), for the same reason as in read_stream()
        for forwarder in self._forwarders:
            forwarder.join()
            if forwarder.failure is not None:
                raise RecordError(
                    f"cannot pass on the workload's output: {forwarder.failure.strerror}; send it elsewhere"
                ) from forwarder.failure
        return status

    def emulator(self) -> str:
        """Give QEMU's name and version."""
        return qemu_version() or _QEMU

    def qemu_error(self) -> str:
        """Say why QEMU ended: its last line of complaint, or the signal."""
        lines = (self._text("qemu") or "").strip().splitlines()
        if lines:
            return lines[-1]
        if shutil.disk_usage(self.folder).free < _LEAST_BYTES:  # what it had to say went there, too
            return f"there is no space left in {self.folder.parent}; {_MORE_ROOM}"
        status = self._process.wait()
        return f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status} and said nothing"

    def panic(self) -> str | None:
        """Give the kernel's panic message, None if it did not panic."""
        found = re.search(r"Kernel panic - not syncing: ([^\r\n]*)", self.console)
        return found[1] if found else None

    def out_of_memory(self) -> str | None:
        """Give the name of the first process that the kernel killed for want of memory, None if there was none."""
        found = re.search(r"[Oo]ut of memory[^\r\n]*: Killed process \d+ \(([^\r\n)]*)\)", self.console)
        return found[1] if found else None

    def _text(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None

    def _start(self) -> None:
        memory = self._make_memory()
        try:
            (self.folder / "initramfs").write_bytes(self._initramfs)
        except OSError as error:
            raise RecordError(
                f"cannot write the guest's files into {self.folder.parent}: {error.strerror}; {_MORE_ROOM}"
            ) from error
        self._stream, stream_end = self._pipe()
        layout_end, self.layout = self._pipe_to()
        out, out_end = self._pipe()
        err, err_end = self._pipe()
        in_end, feeding_end = os.pipe()
        os.set_blocking(in_end, False)
        bell, bell_end = socket.socketpair()
        self._stack.enter_context(bell)
        ends = {"stream": stream_end, "layout": layout_end, "in": in_end, "out": out_end, "err": err_end}
        disk = self._machine.disk
        qemu_log = self._stack.enter_context((self.folder / "qemu").open("wb"))
        self._process = subprocess.Popen(
            [*_dying_with_us(), *self._command(ends, bell_end.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=qemu_log,
            stderr=qemu_log,
            pass_fds=(*ends.values(), bell_end.fileno(), memory, *([disk.client] if disk else [])),
            start_new_session=True,  # Ctrl-C is for us to see, not for QEMU
        )
        self._stack.callback(self._kill)
        bell_end.close()
        for end in ends.values():
            os.close(end)
        self._forwarders = [Forwarder(out, self._streams.out), Forwarder(err, self._streams.err)]
        for forwarder in self._forwarders:
            forwarder.start()
        self._feed(feeding_end, bell)

    def _feed(self, pipe: int, bell: socket.socket) -> None:
        if self._streams.stdin is None or self._streams.kinds()[0] not in {"tty", "pipe"}:
            os.close(pipe)
            return
        feeder = Feeder(self._streams.stdin, pipe, bell)
        feeder.start()
        self._stack.callback(feeder.stop)

    def _make_memory(self) -> int:
        """Make the guest's memory, a file without a name, so that not even SIGKILL leaves it behind; give its number.

        What opens ``folder/memory``, here or in QEMU, opens it by that number.
        """
        memory = os.memfd_create("asi-guest-memory")
        self._stack.callback(os.close, memory)
        os.ftruncate(memory, self._machine.memory_bytes)
        self.memory.symlink_to(f"/proc/self/fd/{memory}")
        return memory

    def _kill(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its session is its own
            self._process.wait()

    def _pipe(self) -> tuple[BufferedReader, int]:
        """Make a pipe from QEMU."""
        read, write = os.pipe()
        with suppress(OSError):  # this user may have too many large ones already
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return self._stack.enter_context(os.fdopen(read, "rb")), write

    def _pipe_to(self) -> tuple[int, TextIOWrapper]:
        """Make a pipe to QEMU."""
        read, write = os.pipe()
        return read, self._stack.enter_context(os.fdopen(write, "w", encoding="ascii"))

    def _command(self, ends: dict[str, int], bell: int) -> list[str]:
        """Give QEMU's command line.

        :param ends: Of the pipes: their names in the recorder's words, and QEMU's end of each.
        """
        machine = self._machine
        files = {name: _option(self.folder / name) for name in ("memory", "console")}
        command = [
            _QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "pc,memory-backend=ram", "-accel", "tcg,thread=single",
            "-cpu", machine.cpu, "-smp", str(machine.cpus), "-seed", "0",
            "-rtc", f"base={time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(machine.clock))},clock=vm",
            "-m", f"{machine.memory_bytes >> 20}M",
            "-object", f"memory-backend-file,id=ram,size={machine.memory_bytes},mem-path={files['memory']},share=on",
            "-kernel", str(machine.kernel), "-initrd", str(self.folder / "initramfs"),
            "-append", machine.command_line, "-serial", f"file:{files['console']}",
            "-chardev", f"socket,id=bell,fd={bell}", "-serial", "chardev:bell",
        ]  # fmt: skip
        if machine.cpus == 1:
            # The guest's time is its instructions. With more CPUs QEMU 7.2 does not get past their start with it.
            # An idle guest's is this machine's, where there is something outside that it may wait for: a disk's answer
            # would come after any time-out. Where there is not, the next timer comes at once.
            outside = machine.disk is not None or machine.network
            command += ["-icount", f"shift=0,sleep={'on' if outside else 'off'}"]
        if machine.disk is not None:
            command += ["-drive", machine.disk.drive]
        if machine.network:
            command += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]
        if self._plugin is not None:
            pipes = (f"{name}={number}" for name, number in ends.items())
            words = (f"file={_option(self._plugin.path)}", f"directory={_option(self.folder)}", *pipes)
            command += ["-plugin", ",".join((*words, *self._plugin.options))]
        return command


def _dying_with_us() -> list[str]:
    """Give the words before a command that end it when this process is killed; none if util-linux is missing."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _option(path: Path) -> str:
    """Write a path as part of a QEMU option, where a comma stands twice."""
    return str(path).replace(",", ",,")
