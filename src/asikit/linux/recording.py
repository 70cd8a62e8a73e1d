"""Recording a workload on a real Linux kernel: boot it in QEMU with the recorder, run the workload, write the trace."""

import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from asikit.linux._build import programs
from asikit.linux._guest import Initramfs, find_busybox, workload_files
from asikit.linux._layout import Layout, read_layout
from asikit.linux._qemu import DEFAULT_CPU, Guest, Machine, Plugin
from asikit.linux._root import GUEST_PATH, MODULES, find_in_root, root_image
from asikit.linux._stream import StreamReader
from asikit.linux._symbols import Symbols
from asikit.linux._tables import Attribution, write_tables
from asikit.linux.errors import RecordError, WorkloadError
from asikit.linux.kernel import Kernel, find_kernel
from asikit.trace import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["DEFAULT_MEMORY", "Recorded", "Recording", "record", "run_unrecorded"]

MiB = 1 << 20
DEFAULT_MEMORY = 1024 * MiB
"""With less than 512 MiB Linux switches transparent huge pages off (``hugepage_init()``), as on no real machine."""

_LEAST_MEMORY = 96 * MiB
"""A stock kernel does not get as far as its first message with less."""

_LARGEST_MEMORY = 3072 * MiB
"""Above this QEMU's PC has a hole below 4 GiB, and a physical address is no longer an offset in the memory file."""

_KERNEL_BYTES = 80 * MiB
"""What a distribution's kernel takes before its first process runs."""

_MOST_CPUS = 16
"""``MAX_CPUS`` of plugin/recorder.h."""

_MOST_WORD_BYTES = 1 << 16
_MOST_ARGUMENTS = 1023
"""What guest/init.c has room for."""

_SIGNAL_BASE = 128
"""A shell's exit status for signal N is this plus N."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What is to be recorded.

    :param command: The workload: a program of this machine (or of ``root``) and its arguments.
    :param kernel: A bzImage; None: the newest on this machine, else Debian's cloud kernel.
    :param include: Files and folders that the workload needs in the guest, under their own paths.
    :param modules: Kernel modules to load before the workload, with what they depend on.
    :param root: A folder that becomes the guest's root file system (ext4 on virtio) instead of an initramfs.
    :param append: More kernel command line.
    :param timeout: Seconds after which the recording is given up.
    :param module_folder: Where the modules lie, if not beside the kernel or in /lib/modules.
    :param cpu: QEMU's ``-cpu``: a model's name, then ``+feature`` and ``-feature`` after commas.
    """

    command: tuple[str, ...]
    kernel: Path | None = None
    memory_bytes: int = DEFAULT_MEMORY
    cpus: int = 1
    include: tuple[Path, ...] = ()
    modules: tuple[str, ...] = ()
    root: Path | None = None
    append: str = ""
    timeout: float | None = None
    module_folder: Path | None = None
    cpu: str | None = None


@dataclass(slots=True)
class Recorded:
    """What became of the workload.

    :ivar exit_status: Its exit status, 128 + N for signal N.
    :ivar events: Events in the trace.
    :ivar lost: What could not be recorded, by kind.
    :ivar out_of_memory: The first process that the guest's kernel killed for want of memory, None if there was none.
    """

    exit_status: int
    events: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    out_of_memory: str | None = None


def record(  # noqa: PLR0913  (each named at the call)
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
    :param overwrite: Replace a trace that is there already.
    :raises RecordError: The recording could not be made; no trace is left.
    :raises TraceError: The trace could not be written; none is left.
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
            with suppress(BrokenPipeError), guest.layout as pipe:  # a QEMU that has died is seen at the stream's end
                pipe.write(layouts[0].lines)

        reader = StreamReader(guest.read_stream, writer, configure)
        reader.run()
        status = _outcome(guest, recording, ended=reader.ended)
        symbols = Symbols.read(guest.folder / "guest-symbols-after", known=layouts[0].symbols)
        write_tables(writer, reader.rows, Attribution(layouts[0], symbols))
        writer.meta.update(_meta(recording, guest, reader, layouts[0], status))
        return Recorded(status, reader.events, reader.lost, guest.out_of_memory())


def run_unrecorded(recording: Recording, *, say: "Callable[[str], None]", out: BinaryIO, err: BinaryIO) -> None:
    """Run the very same guest without the recorder, to compare with.

    :raises RecordError: QEMU failed, or the guest's kernel panicked.
    """
    with ExitStack() as stack:
        guest = stack.enter_context(_guest(recording, stack, say=say, recorded=False))
        guest.forward_output(out, err)
        if guest.wait():
            raise RecordError(f"QEMU failed: {guest.qemu_error()}")
        if guest.panic() is not None:
            raise RecordError(f"the guest's kernel panicked: {guest.panic()}")


def _guest(recording: Recording, stack: ExitStack, *, say: "Callable[[str], None]", recorded: bool = True) -> Guest:
    if recording.memory_bytes % MiB or not _LEAST_MEMORY <= recording.memory_bytes <= _LARGEST_MEMORY:
        raise RecordError(f"--memory must be whole megabytes from 96M to 3G, not {recording.memory_bytes} bytes")
    if not 1 <= recording.cpus <= _MOST_CPUS:
        raise RecordError(f"--cpus must be between 1 and {_MOST_CPUS}, not {recording.cpus}")
    if recording.root is not None and recording.include:
        raise RecordError("--include and --root exclude each other; put the files into the root")
    files = Initramfs()
    workload = list(_add_workload(recording, files))
    kernel = find_kernel(recording.kernel, say, modules=recording.module_folder)
    words = [*_add_modules(recording, kernel, files), *workload]
    built = programs()
    files.add("/init", built.init.read_bytes(), mode=0o755)
    files.add("/asi/run", _script(words))
    image = None
    if recording.root is not None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asi-root-")))
        image = root_image(recording.root, folder / "root.ext4", say=say)
    machine = Machine(
        kernel.image, recording.memory_bytes, recording.cpus, recording.append, image, recording.cpu or DEFAULT_CPU
    )
    archive = files.archive()
    _check_room(len(archive), recording.memory_bytes)
    return Guest(machine, archive, Plugin(built.plugin) if recorded else None)


def _check_room(archive_bytes: int, memory_bytes: int) -> None:
    """Refuse what the guest could not unpack: for a while it has its files twice, beside its kernel.

    :raises RecordError: The memory is too small.
    """
    needed = 2 * archive_bytes + _KERNEL_BYTES
    if needed > memory_bytes:
        raise RecordError(
            f"the guest's files are {archive_bytes // MiB} MiB, too much for {memory_bytes // MiB}M of memory; "
            f"give it at least {needed // MiB + 1}M (--memory)"
        )


def _add_modules(recording: Recording, kernel: Kernel, files: Initramfs) -> "Iterator[str]":
    """Add the modules, and give the words that have init load them."""
    names = [*recording.modules, *(MODULES if recording.root is not None else ())]
    for name, content in kernel.module_files(names) if names else ():
        path = f"/asi/modules/{name}.ko"
        files.add(path, content)
        yield from ("module", path)


def _add_workload(recording: Recording, files: Initramfs) -> "Iterator[str]":
    """Add what the workload needs, and give the words that have init run it.

    :raises RecordError: Something that the workload needs is not there.
    """
    program, *arguments = recording.command
    if recording.root is not None:
        program = find_in_root(recording.root, program)
        yield "root"
    else:
        found, needed = workload_files(program)
        for path in needed:
            files.add_host_file(path)
        for path in recording.include:
            files.add_host_tree(path.absolute())
        files.add_busybox(find_busybox())
        program = str(found) if found else f"/bin/{program}"
        if files.empty("/tmp"):  # noqa: S108  the guest's
            yield from ("tmpfs", "/tmp")  # noqa: S108
    yield from ("send-kernel", "env", f"PATH={':'.join(GUEST_PATH)}", "env", "HOME=/root")
    for argument in (program, *arguments):
        yield from ("arg", argument)


def _script(words: list[str]) -> bytes:
    """Write the words as guest/init.c reads them.

    :raises RecordError: It has not enough room for them.
    """
    script = "".join(f"{word}\0" for word in words).encode(errors="surrogateescape")
    if len(script) >= _MOST_WORD_BYTES or words.count("arg") > _MOST_ARGUMENTS:
        raise RecordError(
            f"the command line is too long: at most {_MOST_ARGUMENTS} arguments and 64 KiB; put it into a script"
        )
    return script


def _outcome(guest: Guest, recording: Recording, *, ended: bool) -> int:
    """Wait for the guest's end, and give the workload's exit status.

    :raises RecordError: It did not come to that.
    """
    qemu_status = guest.wait()
    if guest.timed_out:
        raise RecordError(
            f"the workload still ran after {recording.timeout:g} s; give it more time (--timeout) or less to do"
        )
    error = guest.handed_over("error")
    if error is not None:
        raise WorkloadError(f"in the guest: {error}")
    panic = guest.panic()
    if panic is not None:
        advice = "; give it more memory (--memory)" if "memory" in panic.lower() else ""
        raise RecordError(f"the guest's kernel panicked: {panic}{advice}")
    status = guest.handed_over("status")
    if qemu_status and recording.cpu is not None and not guest.console:
        raise RecordError(f"--cpu {recording.cpu}: {guest.qemu_error()}; what there is: qemu-system-x86_64 -cpu help")
    if status is None or not ended:
        cause = f"QEMU: {guest.qemu_error()}" if qemu_status else "it was powered off or reset from inside"
        raise RecordError(f"the guest ended before the workload did; {cause}")
    kind, number = status.split()
    return int(number) + (_SIGNAL_BASE if kind == "signal" else 0)


def _meta(recording: Recording, guest: Guest, reader: StreamReader, layout: Layout, status: int) -> dict[str, object]:
    version = (guest.handed_over("version") or "").strip()
    return {
        "kernel": {
            "release": version.split()[2] if version else "",
            "version": version,
            "command_line": guest.command_line,
            "forms": layout.forms,
            "missing": layout.missing,
        },
        "machine": {
            "cpus": recording.cpus,
            "memory_bytes": recording.memory_bytes,
            "threads_per_core": 1,
            "cpu_model": f"QEMU {guest.cpu}",
            "emulator": guest.emulator(),
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
