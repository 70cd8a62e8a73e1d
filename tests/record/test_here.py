"""What the recorded guest shows of this machine, and what goes in and out of it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from asikit.record import Recording, find_kernel
from asikit.record._build import programs
from asikit.trace import EventKind, Trace
from tests.record.conftest import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.once import Once

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc]

ASI = (sys.executable, "-c", "from asikit.cli import main; main()", "record")
HERE = Path(__file__).parent
CACHE = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
NOBODY = 65534
PATIENCE_SECONDS = 120
SECRET = "it is a secret"  # noqa: S105


def _record(folder: Path, *words: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*ASI, *words], cwd=folder, capture_output=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True)
class Shown:
    """A folder with a few files, credentials among them, and what the guest showed of it and of this machine.

    :ivar environment: What `asi record` had.
    :ivar found: What ``LOOK`` printed.
    """

    folder: Path
    environment: dict[str, str]
    found: dict[str, Any]


def talk(port: int) -> str:
    """Give a script that talks to a server of this machine."""
    return f"exec 3<>/dev/tcp/10.0.2.2/{port} && echo hello >&3 && cat <&3"


LOOK = """
import json, os, socket, subprocess, time

def sh(script):
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout

print(json.dumps({
    "environment": dict(os.environ),
    "listed": sh("ls -A"),
    "read": sh("cat .ssh/* .netrc notes"),
    "age": time.time() - os.stat("old").st_mtime,
    "host": socket.gethostname(),
    "talked": subprocess.run(["bash", "-c", TALK], capture_output=True, text=True).__dict__,
    "written": sh("echo new >> old; cat old; mkdir d; mv old d/moved; ls d; rm -r d; ls"),
}))
"""


@pytest.fixture(scope="module")
def shown(once: Once) -> Shown:
    """Look at this machine from within, once for several tests."""

    def looking(folder: Path) -> Shown:
        for name in (".ssh/id_ed25519", ".netrc", "notes"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f"{SECRET}\n")
        (folder / "old").write_text("old\n")
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "ASI_A": "a b\nc", "ASI_B": ""}
        environment |= {"XDG_CACHE_HOME": CACHE, "LC_ALL": "C.UTF-8", "TMPDIR": str(folder)}
        # A python3 of PATH may be a script, which changes the environment.
        look = f"TALK = {talk(NOBODY)!r}{LOOK}"
        words = ("--env", "ASI_C=x=y", "-o", "t", "--", sys.executable, "-c", look)
        done = _record(folder, *words, env=environment)
        assert done.returncode == 0, done.stderr
        return Shown(folder, environment, json.loads(done.stdout))

    return once("here", looking)


def test_environment(shown: Shown, tmp_path: Path) -> None:
    """It is this one; ``--clean-env`` leaves PATH, HOME and what ``--env`` names."""
    assert shown.found["environment"] == {**shown.environment, "ASI_C": "x=y"}
    words = ("--clean-env", "--env", "ASI_A", "--env", "NOT_SET", "-o", "t", "--", "env", "-0")
    clean = _record(tmp_path, *words, env=shown.environment)
    assert set(_variables(clean.stdout)) - {"LC_CTYPE"} == {"ASI_A", "HOME", "PATH"}


def test_bad_environment(tmp_path: Path) -> None:
    """A value without a name is refused."""
    done = _record(tmp_path, "--env", "=x", "--", "true")
    assert done.returncode == 2
    assert done.stderr.startswith(b"asi: error: invalid value for '--env': '=x' has no name before its value")


def test_folder_that_is_gone(tmp_path: Path) -> None:
    """A current directory that has been removed is named as the cause."""
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    command = ["sh", "-c", script, "sh", *ASI, "--", "true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"the current directory is gone" in done.stderr


def _variables(printed: bytes) -> dict[str, str]:
    lines = (line.partition("=") for line in printed.decode().rstrip("\0").split("\0"))
    return {name: value for name, _, value in lines}


def test_credentials(shown: Shown, tmp_path: Path) -> None:
    """They are not there, unless they are asked for; the trace holds nothing of them."""
    assert (shown.found["listed"], shown.found["read"]) == ("notes\nold\n", f"{SECRET}\n")
    for name in (".ssh/id_ed25519", ".netrc", "notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{SECRET}\n")
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": CACHE}
    words = ("--", "sh", "-c", "ls -A; cat .ssh/* .netrc notes")
    asked = _record(tmp_path, "--show", "~/.ssh", "-o", "t", *words, env=environment)
    assert asked.stdout.decode().split("\n") == [".ssh", "notes", SECRET, SECRET, ""]
    traces = (shown.folder / "t", tmp_path / "t")
    for file in (path for trace in traces for path in trace.rglob("*") if path.is_file()):
        assert SECRET.encode() not in file.read_bytes()


def test_nothing_is_written(shown: Shown) -> None:
    """What the command changes it sees, and nobody else."""
    assert shown.found["written"] == "old\nnew\nmoved\nnotes\n"
    assert (shown.folder / "old").read_text() == "old\n"


def test_own_files(shown: Shown) -> None:
    """What a recording makes for itself it does not show: its folder of temporary files, and the unfinished trace."""
    assert shown.environment["TMPDIR"] == str(shown.folder)
    assert shown.found["listed"] == "notes\nold\n"
    assert sorted(path.name for path in shown.folder.iterdir()) == [".netrc", ".ssh", "notes", "old", "t"]


@pytest.fixture
def others() -> Iterator[Path]:
    """Give a folder with a kernel, of a user who may do nothing: of this one, if it is not root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernel, built = find_kernel(None, print), programs().plugin.parent
        (folder / "boot").mkdir()
        shutil.copy(kernel.image, folder / "boot/vmlinuz")
        shutil.copytree(built, folder / "cache/asikit/programs" / built.name)
        if kernel.modules is not None:
            shutil.copytree(kernel.modules, folder / "lib/modules" / kernel.release, symlinks=True)
        for path in [folder, *folder.rglob("*")] if os.geteuid() == 0 else []:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        (folder / "secret").write_text(SECRET)
        (folder / "secret").chmod(0)
        yield folder


def test_without_root(others: Path) -> None:
    """A recording wants no root, and what the user cannot read stays so in the guest, where nobody else is."""
    is_root = os.geteuid() == 0
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"] if is_root else []
    environment = {**os.environ, "HOME": str(others), "XDG_CACHE_HOME": f"{others}/cache", "TMPDIR": str(others)}
    script = "id -u; cat secret /etc/shadow; echo written > new; cat new"
    words = ["--kernel", "boot/vmlinuz", "-o", "t", "--", "sh", "-c", script]
    done = subprocess.run([*become, *ASI, *words], cwd=others, capture_output=True, env=environment, check=False)
    assert done.stdout.decode() == f"{NOBODY if is_root else os.geteuid()}\nwritten\n"
    denied = [f"cat: {path}: Permission denied" for path in ("secret", "/etc/shadow")]
    assert (done.stderr.decode().splitlines()[:-1], done.returncode) == (denied, 0)
    Trace.open(others / "t").verify()


def test_time_and_host(shown: Shown) -> None:
    """The wall clock is this machine's: files are not of the future. So is the host's name."""
    assert -1 <= shown.found["age"] < 600
    assert shown.found["host"] == os.uname().nodename


@pytest.mark.slow
@pytest.mark.parametrize("bare", [False, True])
def test_loopback(tmp_path: Path, compiled: Callable[[Path], str], *, bare: bool) -> None:
    """A program that talks to itself over 127.0.0.1 does as it does here."""
    program = compiled(HERE / "loopback.c")
    made = run(Recording((program,), bare=bare), tmp_path / "t.asitrace")
    assert (made.out, made.done.exit_status) == ("20000\n", 0)


def test_network(shown: Shown, tmp_path: Path) -> None:
    """A server here answers the guest at 10.0.2.2, which asks QEMU for names; without ``--net`` nothing is reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_SECONDS)

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(client.recv(100).upper())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        script = f"({talk(server.getsockname()[1])}); cat /etc/resolv.conf"
        reached = _record(tmp_path, "--net", "-o", "t", "--", "bash", "-c", script)
        thread.join(PATIENCE_SECONDS)
    assert reached.stdout == b"HELLO\nnameserver 10.0.2.3\n"
    alone = shown.found["talked"]
    assert (alone["stdout"], alone["returncode"]) == ("", 1)
    assert "Network is unreachable" in alone["stderr"]


def test_streams_and_what_still_runs(tmp_path: Path) -> None:
    """A megabyte goes in and comes out, and the input's end is seen.

    A process that outlives the command is named, and holds nothing up.
    """
    data = bytes(range(256)) * 4096
    script = "sleep 1000 & cat; sleep 0.5; echo begun"
    done = _record(tmp_path, "-o", "t", "--", "sh", "-c", script, input=data)
    line = b"asi: still running when the command had ended, and ended with the guest: sleep\n"
    assert (done.returncode, done.stdout == data + b"begun\n") == (0, True)
    assert done.stderr.endswith(line)


def test_closed_output(tmp_path: Path) -> None:
    """Where output is closed, the recording is made and the output dropped."""
    command = ("sh", "-c", 'exec "$@" >&-', "sh", *ASI, "-o", "t", "--", "sh", "-c", "echo lost; exit 7")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 7
    assert b"Traceback" not in done.stderr
    assert Trace.open(tmp_path / "t").meta["workload"]["exit_status"] == 7


def test_terminal(tmp_path: Path) -> None:
    """On a terminal the command has one, of that size, and a line says how far the recording is."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 77))
    command = [*ASI, "-o", "t", "--", "sh", "-c", 'test -t 0 && test -t 1 && stty size; read line; echo "<$line>"']
    with subprocess.Popen(command, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        said = b""
        while True:
            try:
                said += os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            if b"33 77" in said and b"typed" not in said:
                os.write(master, b"typed\n")
    text = said.decode()
    assert "33 77\r\n" in text
    assert "<typed>\r\n" in text
    assert re.search(r"asi: booting, \d+ s", text)
    assert process.returncode == 0


@pytest.mark.slow
def test_skip_startup(tmp_path: Path) -> None:
    """Recorded from the entry point of the program on, there is neither the exec nor the dynamic linker."""
    source = tmp_path / "source"
    source.write_text("content\n")
    command = ("cat", str(source))

    def calls(*, skip: bool) -> list[str]:
        made = run(Recording(command, skip_startup=skip), tmp_path / f"{skip}.asitrace")
        assert (made.out, made.done.exit_status) == (source.read_text(), 0)
        trace = Trace.open(made.trace)
        names = {int(number): name for number, name in trace.meta["syscalls"].items()}
        events = pl.concat(list(trace.events())).filter(pl.col("kind") == EventKind.ENTRY_SYSCALL)
        return [names.get(number, "?") for number in events["arg"].to_list()]

    whole, skipped = calls(skip=False), calls(skip=True)
    assert "execve" in whole
    assert "execve" not in skipped
    assert whole.count("mmap") > skipped.count("mmap")
    assert "write" in skipped


@pytest.mark.slow
def test_repeat_and_summary(tmp_path: Path) -> None:
    """Each run has a trace of its own, and the summary tells of each."""
    done = _record(tmp_path, "--repeat", "2", "--json", "summary", "-o", "t.asitrace", "--", "sh", "-c", "exit 3")
    assert done.returncode == 3
    document = json.loads((tmp_path / "summary").read_text())
    assert document["schema"] == "asikit.record/1"
    assert [each["trace"] for each in document["recordings"]] == ["t.1.asitrace", "t.2.asitrace"]
    for each in document["recordings"]:
        assert each["exit_status"] == 3
        assert each["events"] == Trace.open(tmp_path / each["trace"]).rows("events")


@pytest.mark.slow
def test_many_and_long_words(tmp_path: Path) -> None:
    """A command line may be as long as here."""
    words = ["x" * 100_000, *map(str, range(3000))]
    script = "import sys; print(len(sys.argv[1]), len(sys.argv))"
    done = _record(tmp_path, "-o", "t", "--", "python3", "-c", script, *words)
    assert done.stdout == b"100000 3002\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--", "no-such-program"], "no program 'no-such-program' on this machine; install it or give its path"),
        (["--", "./not-executable"], "./not-executable is not executable; run `chmod +x ./not-executable`, or record"),
        (["--", "./none"], "./none: there is no such program on this machine"),
        (["--", "./folder"], "./folder is a folder; give a program in it"),
        (["--include", "x", "--", "true"], "--include is for --bare;"),
    ],
)
def test_refused_before_anything_boots(tmp_path: Path, words: list[str], line: str) -> None:
    """A command that cannot run is refused at once, in one line."""
    (tmp_path / "not-executable").write_text("#!/bin/sh\n")
    (tmp_path / "folder").mkdir()
    done = _record(tmp_path, *words)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"asi: error: {line}")
    assert done.stderr.count(b"\n") == 1
