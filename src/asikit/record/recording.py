"""Recording a workload on a real Linux kernel: boot it in QEMU with the recorder, run the workload, write the trace."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.record._build import programs
from asikit.record._guest import Initramfs
from asikit.record._layout import KernelLayout, read_layout
from asikit.record._qemu import DEFAULT_CPU, GuestMachine, Plugin, RunningGuest
from asikit.record._root import MODULES, NETWORK_MODULES, module_place
from asikit.record._stream import StreamReader
from asikit.record._streams import Streams
from asikit.record._symbols import Symbols
from asikit.record._tables import Attribution, write_tables
from asikit.record._workload import Workload, prepare_workload
from asikit.record.disk import GuestDisk, NbdServer
from asikit.record.errors import RecordError, WorkloadError
from asikit.record.kernel import KernelImage, find_kernel
from asikit.trace import SVM_EXITS, ScratchFolder, TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["DEFAULT_MEMORY", "Recorded", "Recording", "RecordingStatus", "record", "run_unrecorded"]

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

_SIGNAL_BASE = 128
"""A shell's exit status for signal N is this plus N."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What is to be recorded.

    The guest sees this machine's files, or those of ``root``, and may change them for itself; the workload runs in the
    current directory, as this user, with this environment. Not so a ``bare`` one, which has what it is given.

    :ivar command: The workload: a program of this machine (or of ``root``) and its arguments.
    :ivar kernel: A bzImage; None: the newest on this machine, else Debian's cloud kernel.
    :ivar include: Files and folders that the workload needs in a bare guest, under their own paths.
    :ivar modules: Kernel modules to load before the workload, with what they depend on.
    :ivar root: A folder that becomes the guest's root file system; the workload runs as root in ``/``, with a clean
        environment.
    :ivar append: More kernel command line.
    :ivar timeout: Seconds after which the recording is given up.
    :ivar module_folder: Where the modules lie, if not beside the kernel or in /lib/modules.
    :ivar cpu: QEMU's ``-cpu``: a model's name, then ``+feature`` and ``-feature`` after commas.
    :ivar bare: The guest has nothing but the command, its libraries, busybox and what is included, in an initramfs.
    :ivar environment: Variables to set: names and values.
    :ivar inherited: The environment that the workload has as a child of its user's shell. [default: this process's]
    :ivar clean_environment: Without this environment: PATH and HOME alone, and ``environment``.
    :ivar show: Folders and files with credentials that the guest may see, which are hidden from it otherwise.
    :ivar network: With QEMU's user-mode network. Loopback is always there.
    :ivar skip_startup: Record from the entry point of the command's program on, when the dynamic linker is done.
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
    bare: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    inherited: tuple[tuple[str, str], ...] | None = None
    clean_environment: bool = False
    show: tuple[Path, ...] = ()
    network: bool = False
    skip_startup: bool = False


@dataclass(slots=True)
class Recorded:
    """What became of the workload.

    :ivar exit_status: Its exit status, 128 + N for signal N.
    :ivar events: Events in the trace.
    :ivar lost: What could not be recorded, by kind.
    :ivar out_of_memory: The first process that the guest's kernel killed for want of memory, None if there was none.
    :ivar left: Processes that the workload left running, by name; they ended with the guest.
    :ivar kernel: The guest kernel's release.
    :ivar instructions: What the guest's CPUs have executed meanwhile.
    """

    exit_status: int
    events: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    out_of_memory: str | None = None
    left: tuple[str, ...] = ()
    kernel: str = ""
    instructions: int = 0


@dataclass(slots=True)
class RecordingStatus:
    """How far a recording has come: kept up to date by :func:`record`, for another thread to show.

    :ivar stage: What is being done.
    :ivar events: Events so far.
    :ivar guest_ns: The guest's time since the workload began, in nanoseconds: one CPU's instructions.
    :ivar bytes: The trace's size so far.
    :ivar told: Called with each stage as it begins, if given.
    """

    stage: str = "preparing"
    events: int = 0
    guest_ns: int = 0
    bytes: int = 0
    told: Callable[[str], None] | None = None

    def begin(self, stage: str) -> None:
        """Begin a stage."""
        self.stage = stage
        if self.told is not None:
            self.told(stage)


def record(
    recording: Recording,
    trace: Path,
    *,
    say: Callable[[str], None],
    overwrite: bool = False,
    streams: Streams | None = None,
    status: RecordingStatus | None = None,
    disk: GuestDisk | None = None,
) -> Recorded:
    """Run the workload in a guest and write the trace.

    :param streams: The workload's standard streams. [default: this process's]
    :param status: Kept up to date.
    :param say: Told, a line each time, what takes long.
    :param overwrite: Replace a trace that is there already.
    :param disk: The guest's, with the files of ``recording.root``; left open. [default: made up of them as it is read]
    :raises RecordError: The recording could not be made; no trace is left.
    :raises TraceError: The trace could not be written; none is left.
    """
    with ExitStack() as stack:
        # First, so that a path that cannot be written is refused before anything boots.
        status = status or RecordingStatus()
        writer = stack.enter_context(TraceWriter(trace, {"source": "linux"}, overwrite=overwrite))
        own = (writer.unfinished,)
        streams = streams or Streams.of_this_process()
        guest = stack.enter_context(_guest(recording, stack, streams, say=say, own=own, disk=disk))
        if recording.timeout is not None:
            guest.stop_after(recording.timeout)
        status.begin("booting")
        layouts: list[KernelLayout] = []

        def read(size: int) -> bytes:
            status.events, status.guest_ns, status.bytes = reader.events, reader.clock, writer.size_bytes
            return guest.read_stream(size)

        def configure() -> None:
            status.begin("running")
            layouts.append(read_layout(guest.folder, guest.memory, recording.cpus))
            with suppress(BrokenPipeError), guest.layout as pipe:  # a QEMU that has died is seen at the stream's end
                pipe.write(layouts[0].lines)

        reader = StreamReader(read, writer, configure)
        reader.run()
        exit_status = _outcome(guest, recording, ended=reader.ended)
        status.begin("writing")
        symbols = Symbols.read(guest.folder / "guest-symbols-after", known=layouts[0].symbols)
        write_tables(writer, reader.rows, Attribution(layouts[0], symbols))
        writer.meta.update(_meta(recording, guest, reader, layouts[0], exit_status))
        return Recorded(
            exit_status,
            reader.events,
            reader.lost,
            guest.out_of_memory(),
            left=tuple(sorted(set((guest.handed_over("left") or "").split("\n")) - {""})),
            kernel=writer.meta["kernel"]["release"],
            instructions=sum(of_cpu for of_cpu, _ in reader.instructions.values()),
        )


def run_unrecorded(recording: Recording, *, say: Callable[[str], None], streams: Streams) -> None:
    """Run the very same guest without the recorder, which passes the streams on, to compare with.

    :raises RecordError: QEMU failed, or the guest's kernel panicked.
    """
    with ExitStack() as stack:
        guest = stack.enter_context(_guest(recording, stack, streams, say=say, recorded=False))
        if guest.wait():
            raise RecordError(f"QEMU failed: {guest.qemu_error()}")
        if guest.panic() is not None:
            raise RecordError(f"the guest's kernel panicked: {guest.panic()}")


def _guest(
    recording: Recording,
    stack: ExitStack,
    streams: Streams,
    *,
    say: Callable[[str], None],
    recorded: bool = True,
    own: tuple[Path, ...] = (),
    disk: GuestDisk | None = None,
) -> RunningGuest:
    if recording.memory_bytes % MiB or not _LEAST_MEMORY <= recording.memory_bytes <= _LARGEST_MEMORY:
        raise RecordError(f"--memory must be whole megabytes from 96M to 3G, not {recording.memory_bytes} bytes")
    if not 1 <= recording.cpus <= _MOST_CPUS:
        raise RecordError(f"--cpus must be between 1 and {_MOST_CPUS}, not {recording.cpus}")
    if recording.root is not None and recording.bare:
        raise RecordError("--root and --bare exclude each other")
    folder = stack.enter_context(ScratchFolder.temporary())
    files = Initramfs()
    workload = prepare_workload(recording, files, (*own, folder))
    if workload.disk is not None:
        stack.enter_context(workload.disk)
    for line in files.left_out():
        say(line)
    kernel = find_kernel(recording.kernel, say, modules=recording.module_folder)
    disk = disk or _disk(recording, workload, kernel)
    words = [*_add_modules(recording, kernel, files), *_around(recording, disk), *workload.words, *streams.words()]
    built = programs()
    files.add("/init", built.init.read_bytes(), mode=0o755)
    files.add("/asi/run", "".join(f"{word}\0" for word in words).encode(errors="surrogateescape"))
    archive = files.archive()
    _check_room(len(archive), recording.memory_bytes)
    server = None if disk is None else stack.enter_context(NbdServer(disk))
    machine = GuestMachine(
        kernel.image,
        recording.memory_bytes,
        recording.cpus,
        recording.append,
        server,
        recording.cpu or DEFAULT_CPU,
        network=recording.network,
    )
    return RunningGuest(machine, archive, Plugin(built.plugin) if recorded else None, streams, folder)


def _disk(recording: Recording, workload: Workload, kernel: KernelImage) -> GuestDisk | None:
    """Give the guest's disk, if it has one."""
    if workload.disk is None:
        return None
    modules = kernel.indexed_modules()
    if modules is not None:  # where the guest's kernel has modprobe look for what it lacks
        workload.disk.graft(module_place(recording.root or Path("/"), kernel.release), modules)
    return workload.disk


def _around(recording: Recording, disk: GuestDisk | None) -> Iterator[str]:
    """Give the words that have init prepare the guest."""
    yield from ("kernel", "")
    if disk is not None:
        yield from ("root", disk.mount_options)
    if recording.network:
        yield from ("network", "")
    if recording.skip_startup:
        yield from ("skip-startup", "")


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


def _add_modules(recording: Recording, kernel: KernelImage, files: Initramfs) -> Iterator[str]:
    """Add the modules, and give the words that have init load them."""
    names = [*(() if recording.bare else MODULES), *(NETWORK_MODULES if recording.network else ()), *recording.modules]
    for name, content in kernel.module_files(names) if names else ():
        path = f"/asi/modules/{name}.ko"
        files.add(path, content)
        yield from ("module", path)


def _outcome(guest: RunningGuest, recording: Recording, *, ended: bool) -> int:
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
        raise RecordError.usage(
            f"--cpu {recording.cpu}: {guest.qemu_error()}; what there is: qemu-system-x86_64 -cpu help"
        )
    if status is None or not ended:
        cause = f"QEMU: {guest.qemu_error()}" if qemu_status else "it was powered off or reset from inside"
        raise RecordError(f"the guest ended before the workload did; {cause}")
    kind, number = status.split()
    return int(number) + (_SIGNAL_BASE if kind == "signal" else 0)


def _meta(
    recording: Recording, guest: RunningGuest, reader: StreamReader, layout: KernelLayout, status: int
) -> dict[str, object]:
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
        # QEMU's own emulation (TCG) has nested virtualization for SVM only.
        "vm_exits": {str(code): name for code, name in SVM_EXITS.items()},
    }
