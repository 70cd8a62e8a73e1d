"""What a user can do wrong and what can go wrong: one clear line, the right exit code, nothing left.

Here QEMU is a script that does what a QEMU in trouble does, so that no kernel boots.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from asikit.record._stream import RecordType
from tests.record.kernels import bzimage
from tests.record.running import Command, program

pytestmark = [pytest.mark.needs_cc, pytest.mark.needs_busybox]

REBUILD = "remove asikit's compiled programs from the cache (~/.cache/asikit/programs)"
CONSOLE = 'for word; do case $word in file:*/console) console="${word#file:}";; esac; done'
FOLDER = 'for word; do case $word in file:*/console) folder="${word#file:}"; folder="${folder%/console}";; esac; done'
FIND_OUT = "for word; do case $word in *,out=*) out=${word#*,out=}; out=${out%%,*};; esac; done"
CONFIGURE = chr(RecordType.CONFIGURE)
STREAM = 'for word; do case $word in *,stream=*) stream="${word#*,stream=}"; stream="${stream%%,*}";; esac; done'


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Give a folder of programs that are found first."""
    folder = tmp_path / "programs"
    folder.mkdir()
    return folder


@pytest.fixture
def command(tmp_path: Path, programs: Path) -> Command:
    """Give the command, on a machine with these programs."""
    command = Command(tmp_path, programs)
    command.replace_qemu("exit 0")
    return command


@pytest.fixture
def vmlinuz(tmp_path: Path) -> str:
    """Give a kernel that looks like one from outside."""
    return str(bzimage(tmp_path / "boot/vmlinuz", "6.1.0-1-amd64"))


@pytest.mark.parametrize(
    ("qemu", "line"),
    [
        ("exit 0", "the guest ended before the workload did; it was powered off or reset from inside"),
        ("echo odd >&2; exit 1", "the guest ended before the workload did; QEMU: odd"),
        ("kill -9 $$", "the guest ended before the workload did; QEMU: it was killed by signal 9"),
        ("exit 3", "the guest ended before the workload did; QEMU: it ended with status 3 and said nothing"),
        (
            f"{CONSOLE}; echo '[ 1.0] Kernel panic - not syncing: VFS: no root' > $console",
            "the guest's kernel panicked: VFS: no root",
        ),
        (
            f"{CONSOLE}; echo 'Kernel panic - not syncing: System is deadlocked on memory' > $console",
            "the guest's kernel panicked: System is deadlocked on memory; give it more memory (--memory)",
        ),
        (f"{FOLDER}; printf 'cannot load module x' > $folder/guest-error", "in the guest: cannot load module x"),
        (
            f"{STREAM}; head -c 32 /dev/zero | tr '\\0' c >&$stream",
            f"the recorder's stream has a record of unknown type 99; {REBUILD}",
        ),
        (
            f"{STREAM}; (printf {CONFIGURE}; head -c 31 /dev/zero) >&$stream; exec sleep 60",
            "the guest's /proc/kallsyms is empty; record a kernel with CONFIG_KALLSYMS_ALL=y",
        ),
    ],
)
def test_qemu_and_kernel_in_trouble(command: Command, vmlinuz: str, qemu: str, line: str) -> None:
    """However the guest ends before its time, the line says how."""
    command.replace_qemu(qemu)
    ended = command.run("--kernel", vmlinuz, "--", "true")
    assert (ended.code, ended.out, ended.err) == (1, "", f"asi: error: {line}\n")
    assert command.left() == []


def test_timeout(command: Command, vmlinuz: str) -> None:
    """A guest that takes too long is ended."""
    command.replace_qemu("exec sleep 60")
    ended = command.run("--kernel", vmlinuz, "--timeout", "0.2", "--", "true")
    line = "the workload still ran after 0.2 s; give it more time (--timeout) or less to do"
    assert (ended.code, ended.err) == (1, f"asi: error: {line}\n")
    assert command.left() == []


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals(command: Command, vmlinuz: str, number: int, code: int, word: str) -> None:
    """Ctrl-C and SIGTERM during the boot end QEMU too, and all that it has started."""
    command.replace_qemu("sleep 60")
    process = command.start("--kernel", vmlinuz, "--", "true")
    command.qemu()
    process.send_signal(number)
    ended = command.end(process)
    assert (ended.code, ended.err) == (code, f"asi: {word}\n")
    assert command.left() == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--", "no-such-program"], "no program 'no-such-program' on this machine, and busybox has none of that name;"),
        (["--memory", "32M", "--", "true"], "--memory must be whole megabytes from 96M to 3G, not 33554432 bytes"),
        (["--memory", "8G", "--", "true"], "--memory must be whole megabytes from 96M to 3G, not 8589934592 bytes"),
        (["--cpus", "0", "--", "true"], "--cpus must be between 1 and 16, not 0"),
        (["--module", "kvm", "--", "true"], "the modules of /"),
        (["--include", "/no/such", "--", "true"], "--include /no/such: no such file or folder"),
        (["--root", "/no/such", "--", "true"], "--root /no/such: no such folder"),
        (["--root", "/", "--bare", "--", "true"], "--root and --bare exclude each other"),
        (["--root", "/", "--include", "/etc", "--", "true"], "--include is for --bare;"),
        (["-o", "no/where.asitrace", "--", "true"], "no/where.asitrace: "),
        (["-o", "/proc/x.asitrace", "--", "true"], "/proc/x.asitrace: "),
    ],
)
def test_bad_input(command: Command, vmlinuz: str, words: list[str], line: str) -> None:
    """What is wrong is refused before anything boots."""
    ended = command.run("--kernel", vmlinuz, *words)
    assert (ended.code, len(ended.err.splitlines())) == (1, 1)
    assert ended.err.startswith(f"asi: error: {line}")
    assert command.left() == []


@pytest.mark.parametrize(
    ("workload", "line"),
    [
        ("./mine", "./mine is not executable; run `chmod +x ./mine`, or record `/bin/sh -e ./mine`"),
        ("./text", "./text is not executable; run `chmod +x ./text`, or record `sh ./text`"),
        ("./folder", "./folder is a folder; give a program in it"),
        ("folder/", "folder/ is a folder; give a program in it"),
        ("./nothing", "./nothing: there is no such program on this machine; check the path"),
        ("text/nothing", "text/nothing: there is no such program on this machine; check the path"),
        (
            "mine",
            (
                "no program 'mine' on this machine, and busybox has none of that name; "
                "install it or give its path; for the file in this folder write ./mine"
            ),
        ),
        (
            "./lost",
            (
                "{here}/lost: its first line names '/no/interpreter', which is no program of this machine; "
                "install it or mend the line"
            ),
        ),
        (
            "./crlf",
            (
                "{here}/crlf: its first line names '/bin/sh\\r', which is no program of this machine; "
                "install it or mend the line"
            ),
        ),
        (
            "./own",
            (
                "{here}/own: its first line names '{here}/own', which is no program of this machine; "
                "install it or mend the line"
            ),
        ),
    ],
)
def test_programs_that_cannot_be_run(command: Command, vmlinuz: str, workload: str, line: str) -> None:
    """What a shell would not run either is refused before anything boots, with what to do."""
    here = command.folder
    (here / "folder").mkdir()
    (here / "mine").write_text("#!/bin/sh -e\n")
    (here / "text").write_text("echo\n")
    for name, interpreter in (("lost", "/no/interpreter"), ("crlf", "/bin/sh\r"), ("own", f"{here}/own")):
        (here / name).write_bytes(f"#!{interpreter}\n".encode())
        (here / name).chmod(0o755)
    before = command.left()
    ended = command.run("--kernel", vmlinuz, "--", workload)
    assert (ended.code, ended.err) == (1, f"asi: error: {line.format(here=here)}\n")
    assert command.left() == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "missing argument '-- COMMAND...'"),
        (["--"], "missing argument '-- COMMAND...'"),
        (
            ["--memory", "much", "--", "true"],
            "invalid value for '--memory': 'much' is not a size; write it like 512M or 2G",
        ),
        (["--timeout", "0", "--", "true"], "invalid value for '--timeout': 0.0 is not in the range x>0"),
    ],
)
def test_usage(command: Command, words: list[str], line: str) -> None:
    """A wrong command line is a usage error."""
    ended = command.run(*words)
    assert (ended.code, ended.err) == (2, f"asi: error: {line} (see asi record --help)\n")
    assert command.left() == []


def test_existing_output(command: Command, vmlinuz: str) -> None:
    """What is there is not touched, and nothing boots for it."""
    (command.folder / "mine.asitrace").write_text("precious")
    ended = command.run("--kernel", vmlinuz, "-o", "mine.asitrace", "--", "true")
    assert (ended.code, ended.err.split(":")[:3]) == (1, ["asi", " error", " mine.asitrace"])
    assert (command.folder / "mine.asitrace").read_text() == "precious"
    assert command.left() == [str(command.folder / "mine.asitrace")]


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("qemu-system-x86_64", "qemu-system-x86_64 is missing; install it (Debian: apt-get install qemu-system-x86)"),
        ("busybox", "busybox is missing; install one (Debian: apt-get install busybox-static)"),
        ("cc", "a C compiler is missing; install one (Debian: apt-get install gcc libc6-dev) or set CC"),
    ],
)
def test_missing_programs(command: Command, programs: Path, vmlinuz: str, missing: str, line: str) -> None:
    """A program that recording needs and this machine lacks is named, with its package."""
    for name in {"busybox", "ldd", "cc", "ls"} - {missing}:
        (programs / name).symlink_to(str(shutil.which(name)))
    if missing == "qemu-system-x86_64":
        (programs / missing).unlink()
    if missing == "cc":
        command.environment["XDG_CACHE_HOME"] = str(programs / "cache")
    command.environment.pop("CC", None)
    command.environment["PATH"] = str(programs)
    ended = command.run("--kernel", vmlinuz, "--", str(programs / "ls"))
    assert (ended.code, ended.err) == (1, f"asi: error: {line}\n")
    assert command.left() == []


def test_compiler_that_fails(command: Command, programs: Path, vmlinuz: str) -> None:
    """The compiler's own complaint is passed on, and no half program stays in the cache."""
    program(programs / "cc", "echo 'In file included' >&2; echo 'x.c:1: error: no luck' >&2; exit 1")
    command.environment["XDG_CACHE_HOME"] = str(programs / "cache")
    ended = command.run("--kernel", vmlinuz, "--", "true")
    assert ended.code == 1
    assert ended.err == f"asi: error: {programs}/cc could not compile recorder.so: x.c:1: error: no luck\n"
    assert [path for path in (programs / "cache").rglob("*") if path.is_file()] == []


def test_cache_that_cannot_be_written(command: Command, vmlinuz: str) -> None:
    """A cache folder that cannot be made is named, with the way out."""
    command.environment["XDG_CACHE_HOME"] = "/dev/null"
    ended = command.run("--kernel", vmlinuz, "--", "true")
    assert ended.code == 1
    assert ended.err.endswith("Not a directory; set XDG_CACHE_HOME to a folder that can be written\n")


def test_library_that_is_missing(command: Command, programs: Path, vmlinuz: str) -> None:
    """A program whose library is not here is refused with the library's name."""
    shutil.copy(str(shutil.which("ls")), programs / "needy")
    program(programs / "ldd", "case $1 in */needy) echo '	libodd.so.1 => not found';; *) exit 1;; esac")
    ended = command.run("--kernel", vmlinuz, "--", "needy")
    needed = f"{programs}/needy needs the library libodd.so.1, which is not on this machine; install it"
    assert (ended.code, ended.err) == (1, f"asi: error: {needed}\n")
    assert command.left() == []


def test_output_that_nobody_takes(command: Command, vmlinuz: str) -> None:
    """A reader of the workload's output that goes away does not hold up the guest."""
    command.replace_qemu(f"{FIND_OUT}; head -c 1000000 /dev/zero > /dev/fd/$out; echo done >&2; exit 1")
    reader, writer = socket.socketpair()
    reader.close()
    with writer, os.fdopen(os.dup(writer.fileno()), "wb") as out:
        ended = command.end(command.start("--kernel", vmlinuz, "--", "true", stdout=out))
    assert ended.err == "asi: error: the guest ended before the workload did; QEMU: done\n"


def test_output_on_a_full_disk(command: Command, vmlinuz: str) -> None:
    """Output that cannot be written is an error, after which no trace is left."""
    command.replace_qemu(f"{FIND_OUT}; head -c 1000000 /dev/zero > /dev/fd/$out")
    with Path("/dev/full").open("wb") as full:
        ended = command.end(command.start("--kernel", vmlinuz, "--", "true", stdout=full))
    line = "cannot pass on the workload's output: No space left on device; send it elsewhere"
    assert ended.err.splitlines()[0] == f"asi: error: {line}"
    assert ended.code == 1
    assert command.left() == []


def test_trace_that_is_there(command: Command, vmlinuz: str) -> None:
    """What is there by the trace's name is kept, and the line says how to have it replaced."""
    (command.folder / "t").mkdir()
    ended = command.run("--kernel", vmlinuz, "-o", "t", "--", "true")
    line = "t: already exists: choose another name (-o), or replace it with --overwrite"
    assert (ended.code, ended.err) == (1, f"asi: error: {line}\n")
    assert command.left() == [str(command.folder / "t")]
