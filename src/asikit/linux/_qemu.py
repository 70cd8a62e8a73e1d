"""One run of the guest: QEMU with its pipes and files, and what it left behind."""

import os
import re
import shutil
import subprocess
import tempfile
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from asikit.linux.errors import RecordError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Guest", "Machine"]

_QEMU = "qemu-system-x86_64"
_COMMAND_LINE = "console=ttyS0 nokaslr mitigations=off init_on_alloc=0 panic=-1 no_hash_pointers quiet"
"""``mitigations=off``: ASI takes the place of the kernel's own. ``init_on_alloc=0``: as the published ASI measurements."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the guest is to be."""

    kernel: Path
    memory_bytes: int
    cpus: int
    append: str = ""
    root_image: Path | None = None

    @property
    def command_line(self) -> str:
        """The kernel's command line."""
        return f"{_COMMAND_LINE} {self.append}".strip()


class Guest:
    """A running QEMU; a context manager that leaves no process and no file behind.

    ``folder`` holds what the guest hands over (``guest-NAME``), its memory and its console.
    """

    def __init__(self, machine: Machine, initramfs: bytes, plugin: Path | None) -> None:
        """Prepare; nothing runs before the block begins.

        :param plugin: The recorder; without it the same guest runs unrecorded.
        :raises RecordError: QEMU is not installed.
        """
        if shutil.which(_QEMU) is None:
            raise RecordError(f"{_QEMU} is missing; install it (Debian: apt-get install qemu-system-x86)")
        self._machine = machine
        self._initramfs = initramfs
        self._plugin = plugin
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
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        """End QEMU if it still runs, and remove its files."""
        self._stack.close()

    @property
    def memory(self) -> Path:
        """The file that is the guest's memory."""
        return self.folder / "memory"

    @property
    def console(self) -> str:
        """What the kernel has printed."""
        path = self.folder / "console"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def handed_over(self, name: str) -> str | None:
        """Give a text that the guest's init handed over; None if it did not."""
        path = self.folder / f"guest-{name}"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None

    def forward_output(self, out: BinaryIO, err: BinaryIO) -> None:
        """Pass on what the workload writes, as it comes."""
        for source, target in ((self._out, out), (self._err, err)):
            thread = threading.Thread(target=_forward, args=(source, target), daemon=True)
            thread.start()
            self._forwarders.append(thread)

    def stop_after(self, seconds: float) -> None:
        """End QEMU if it still runs then."""

        def stop() -> None:
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

    def wait(self) -> int:
        """Wait for QEMU to end and for the last of the workload's output; give QEMU's exit status."""
        status = self._process.wait()
        for thread in self._forwarders:
            thread.join()
        return status

    def qemu_error(self) -> str:
        """Give QEMU's own last line of complaint."""
        lines = (self.folder / "qemu").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def panic(self) -> str | None:
        """Give the kernel's panic message, None if it did not panic."""
        found = re.search(r"Kernel panic - not syncing: ([^\r\n]*)", self.console)
        return found[1] if found else None

    def _start(self) -> None:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="asi-", dir=_roomy_folder(self._machine.memory_bytes))))
        self._forwarders: list[threading.Thread] = []
        with self.memory.open("wb") as file:
            file.truncate(self._machine.memory_bytes)
        (self.folder / "initramfs").write_bytes(self._initramfs)
        self.stream, stream_end = self._pipe("rb")
        layout_end, self.layout = self._pipe_to("w")
        self._out, out_end = self._pipe("rb")
        self._err, err_end = self._pipe("rb")
        ends = (stream_end, layout_end, out_end, err_end)
        command = self._command(*ends)
        qemu_log = self._stack.enter_context((self.folder / "qemu").open("wb"))
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=qemu_log, stderr=qemu_log, pass_fds=ends, start_new_session=True)
        self._stack.callback(self._kill)
        for end in ends:
            os.close(end)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def _pipe(self, mode: str) -> tuple[BinaryIO, int]:
        read, write = os.pipe()
        return self._stack.enter_context(os.fdopen(read, mode)), write  # type: ignore[return-value]

    def _pipe_to(self, mode: str) -> tuple[int, "BinaryIO"]:
        read, write = os.pipe()
        return read, self._stack.enter_context(os.fdopen(write, mode))  # type: ignore[return-value]

    def _command(self, stream: int, layout: int, out: int, err: int) -> list[str]:
        machine = self._machine
        command = [
            _QEMU, "-machine", "pc,memory-backend=ram", "-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off",
            "-cpu", "max,la57=off,-rdrand,-rdseed", "-rtc", "base=2024-01-01T00:00:00,clock=vm", "-smp", str(machine.cpus),
            "-m", f"{machine.memory_bytes >> 20}M",
            "-object", f"memory-backend-file,id=ram,size={machine.memory_bytes},mem-path={self.memory},share=on",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(machine.kernel), "-initrd", str(self.folder / "initramfs"), "-append", machine.command_line,
            "-serial", f"file:{self.folder / 'console'}", "-serial", f"file:/dev/fd/{out}", "-serial", f"file:/dev/fd/{err}",
        ]  # fmt: skip
        if machine.root_image is not None:
            command += ["-drive", f"file={machine.root_image},format=raw,if=virtio,snapshot=on"]
        if self._plugin is not None:
            command += ["-plugin", f"file={self._plugin},directory={self.folder},stream={stream},layout={layout}"]
        return command


def _forward(source: BinaryIO, target: BinaryIO) -> None:
    with suppress(BrokenPipeError, ValueError):
        while data := source.read1(1 << 16):  # type: ignore[attr-defined]
            target.write(data)
            target.flush()


def _roomy_folder(memory_bytes: int) -> str | None:
    """Prefer memory to the disk for the guest's memory, if there is enough of it."""
    shm = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
    with suppress(OSError):
        if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > memory_bytes * 5 // 4:
            return str(shm)
    return None
