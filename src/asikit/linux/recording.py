"""Recording a workload on a real Linux kernel: boot it in QEMU with the recorder, run the workload, write the trace."""

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from asikit.linux._build import programs
from asikit.linux._guest import Initramfs, find_busybox, include_all, workload_files
from asikit.linux._layout import Layout, read_layout
from asikit.linux._qemu import Guest, Machine
from asikit.linux._root import root_image
from asikit.linux._stream import StreamReader
from asikit.linux._symbols import Symbols
from asikit.linux.errors import RecordError, WorkloadError
from asikit.linux.kernel import Kernel, find_kernel
from asikit.trace import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Recorded", "Recording", "record"]

MiB = 1 << 20
_LARGEST_MEMORY = 3072 * MiB
"""Above this QEMU's PC has a hole below 4 GiB, and a physical address is no longer an offset in the memory file."""

_MOST_CPUS = 16
"""``MAX_CPUS`` of plugin/recorder.h."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What is to be recorded.

    :param command: The workload: a program of this machine (or of ``root``) and its arguments.
    :param kernel: A bzImage; None: one in /boot, else the distribution's cloud kernel.
    :param include: Files and folders that the workload needs in the guest, under their own paths.
    :param modules: Kernel modules to load before the workload, with what they depend on.
    :param root: A folder that becomes the guest's root file system (ext4 on virtio) instead of an initramfs.
    :param append: More kernel command line.
    :param timeout: Seconds after which the recording is given up.
    """

    command: tuple[str, ...]
    kernel: Path | None = None
    memory_bytes: int = 512 * MiB
    cpus: int = 1
    include: tuple[Path, ...] = ()
    modules: tuple[str, ...] = ()
    root: Path | None = None
    append: str = ""
    timeout: float | None = None


@dataclass(slots=True)
class Recorded:
    """What became of the workload: its exit status (128 + N for signal N), and the trace's counts."""

    exit_status: int
    events: int = 0
    lost: dict[str, int] = field(default_factory=dict)


def record(
    recording: Recording,
    trace: Path,
    *,
    say: "Callable[[str], None]",
    overwrite: bool = False,
    out: BinaryIO | None = None,
    err: BinaryIO | None = None,
) -> Recorded:
    """Run the workload in a guest and write the trace; the workload's output goes to ``out`` and ``err``.

    :param say: Told, a line each time, what takes long.
    :raises RecordError: The recording could not be made; no trace is left.
    """
    with ExitStack() as stack:
        # First, so that a path that cannot be written is refused before anything boots.
        writer = stack.enter_context(TraceWriter(trace, {"source": "linux"}, overwrite=overwrite))
        guest = stack.enter_context(_guest(recording, stack, say=say))
        guest.forward_output(out or sys.stdout.buffer, err or sys.stderr.buffer)
        if recording.timeout is not None:
            guest.stop_after(recording.timeout)
        layouts: list[Layout] = []

        def configure() -> None:
            layouts.append(read_layout(guest.folder, guest.memory, recording.cpus))
            with guest.layout as pipe:
                pipe.write(layouts[0].lines)

        reader = StreamReader(guest.stream, writer, configure)
        ended = reader.run()
        status = _outcome(guest, recording, ended=ended)
        symbols = Symbols.read(guest.folder / "guest-symbols-after")
        reader.write_tables(layouts[0], symbols, _vmalloc_areas(guest.handed_over("vmallocinfo") or ""))
        writer.meta.update(_meta(recording, guest, reader, layouts[0], status))
    return Recorded(status, reader.events, reader.lost)


def run_unrecorded(recording: Recording, *, say: "Callable[[str], None]", out: BinaryIO, err: BinaryIO) -> None:
    """Run the very same guest without the recorder, to compare with.

    :raises RecordError: QEMU failed.
    """
    with ExitStack() as stack:
        guest = stack.enter_context(_guest(recording, stack, say=say, recorded=False))
        guest.forward_output(out, err)
        if guest.wait():
            raise RecordError(f"QEMU failed: {guest.qemu_error()}")


def _guest(recording: Recording, stack: ExitStack, *, say: "Callable[[str], None]", recorded: bool = True) -> Guest:
    if not 64 * MiB <= recording.memory_bytes <= _LARGEST_MEMORY:
        raise RecordError(f"--memory must be between 64M and 3G, not {recording.memory_bytes // MiB}M")
    if not 1 <= recording.cpus <= _MOST_CPUS:
        raise RecordError(f"--cpus must be between 1 and {_MOST_CPUS}, not {recording.cpus}")
    kernel = find_kernel(recording.kernel, say)
    built = programs()
    modules = [*recording.modules, *(("virtio_pci", "virtio_blk", "ext4") if recording.root else ())]
    image = None
    if recording.root is not None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asi-root-")))
        image = root_image(recording.root, folder / "root.ext4", say=say)
    machine = Machine(kernel.image, recording.memory_bytes, recording.cpus, recording.append, image)
    initramfs = _initramfs(recording, kernel, modules, built.init.read_bytes())
    return Guest(machine, initramfs, built.plugin if recorded else None)


def _initramfs(recording: Recording, kernel: Kernel, modules: list[str], init: bytes) -> bytes:
    files = Initramfs()
    files.add("/init", init, mode=0o755)
    words: list[str] = []
    for name, content in kernel.module_files(modules) if modules else ():
        files.add(f"/asi/modules/{name}.ko", content)
        words += ["module", f"/asi/modules/{name}.ko"]
    command = recording.command[0]
    if recording.root is None:
        program, needed = workload_files(command)
        for path in needed:
            files.add_host_file(path)
        include_all(files, recording.include)
        files.add_busybox(find_busybox())
        command = str(program) if program else f"/bin/{command}"
        if files.empty("/tmp"):  # noqa: S108  the guest's
            words += ["tmpfs", "/tmp"]  # noqa: S108
    else:
        words += ["root"]
    words += ["send-kernel", "env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "env", "HOME=/root"]
    words += [word for argument in (command, *recording.command[1:]) for word in ("arg", argument)]
    files.add("/asi/run", "".join(f"{word}\0" for word in words).encode())
    return files.archive()


def _outcome(guest: Guest, recording: Recording, *, ended: bool) -> int:
    """Wait for the guest's end, and give the workload's exit status.

    :raises RecordError: It did not come to that.
    """
    qemu_status = guest.wait()
    if guest.timed_out:
        raise RecordError(f"the workload still ran after {recording.timeout:g} s; give it more (--timeout) or less to do")
    error = guest.handed_over("error")
    if error is not None:
        raise WorkloadError(f"in the guest: {error}")
    panic = guest.panic()
    if panic is not None:
        raise RecordError(f"the guest's kernel panicked: {panic}")
    status = guest.handed_over("status")
    if status is None or not ended:
        cause = f"QEMU: {guest.qemu_error()}" if qemu_status else "it powered off or reset by itself"
        raise RecordError(f"the guest ended before the workload did; {cause}")
    kind, number = status.split()
    return int(number) + (128 if kind == "signal" else 0)


def _vmalloc_areas(text: str) -> list[tuple[int, int, str]]:
    """Parse /proc/vmallocinfo: lines ``0xSTART-0xEND SIZE CALLER+0x../0x.. ...``."""
    areas = []
    for line in text.splitlines():
        words = line.split()
        start, _, end = words[0].partition("-")
        areas.append((int(start, 16), int(end, 16), words[2].split("+")[0] if len(words) > 2 else ""))  # noqa: PLR2004
    return areas


def _meta(recording: Recording, guest: Guest, reader: StreamReader, layout: Layout, status: int) -> dict[str, object]:
    version = (guest.handed_over("version") or "").strip()
    emulator = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True)  # noqa: S607
    return {
        "kernel": {
            "release": version.split()[2] if version else "",
            "version": version,
            "command_line": guest.command_line,
        },
        "machine": {
            "cpus": recording.cpus,
            "memory_bytes": recording.memory_bytes,
            "threads_per_core": 1,
            "cpu_model": "QEMU max",
            "emulator": emulator.stdout.splitlines()[0],
        },
        "workload": {"command": list(recording.command), "exit_status": status},
        "clock": {
            "unit": "instructions",
            "instructions": [reader.instructions[cpu][0] for cpu in sorted(reader.instructions)],
            "kernel_instructions": [reader.instructions[cpu][1] for cpu in sorted(reader.instructions)],
            "note": "counted by translation block: a block that is left early counts whole",
        },
        "lost": reader.lost,
        "gfp_flags": layout.gfp_flags,
        "syscalls": {str(number): name for number, name in layout.syscalls.items()},
        "vectors": {str(vector): name for vector, name in layout.vectors.items()},
    }
