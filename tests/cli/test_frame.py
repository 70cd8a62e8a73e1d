"""The frame of the command: help, errors in one line, exit codes, signals, closed and full output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

import asikit
from asikit.cli import _frame, main
from asikit.errors import AsikitError
from asikit.trace import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

_ASI = [sys.executable, "-c", "from asikit.cli import main; main()"]


def _run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401
    return subprocess.run([*_ASI, *words], capture_output=True, text=True, check=False, **options)


@cache
def _whole(*words: str) -> subprocess.CompletedProcess[str]:
    """Give what the command does with all streams open."""
    return _run(*words)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Give a function that runs the command in this process and gives exit code, stdout and stderr."""

    def running(*words: str) -> tuple[int, str, str]:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            with pytest.raises(SystemExit) as caught:
                main(words)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return running


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Give a function that makes what `asi info` does what a test wants."""

    def replace(action: Callable[[], None]) -> None:
        module = types.ModuleType("asikit.cli.info")
        module.command = click.command("info")(action)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "asikit.cli.info", module)

    return replace


def test_help_imports_nothing_heavy() -> None:
    """`asi --help` is quick because it loads none of the libraries that are slow to import."""
    code = (
        "import sys\n"
        "from asikit.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    heavy = {'numpy', 'numba', 'polars', 'msgspec', 'rich', 'asikit.trace'} & sys.modules.keys()\n"
        "    print(sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "Commands:" in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["info", "--help"], ["info", "-h"]])
def test_help(run: Callable[..., tuple[int, str, str]], words: list[str]) -> None:
    """Help is data: on stdout, exit code 0."""
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: asi ")


def test_every_module_is_a_command(run: Callable[..., tuple[int, str, str]]) -> None:
    """Each public module of the package is listed, and each has a help of its own."""
    names = _frame.asi.list_commands(click.Context(_frame.asi))
    assert "info" in names
    for name in names:
        assert run(name, "--help")[0] == 0


def test_version(run: Callable[..., tuple[int, str, str]]) -> None:
    """--version says the package's version in its first line, and then what is there."""
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    first, *others = out.splitlines()
    assert first == f"asi {asikit.__version__}"
    assert [line.split(":")[0] for line in others] == ["Python", "QEMU", "kernel", "data", "formats"]
    assert others[3].endswith("7 policies, 18 CPU models, 31 vulnerabilities, 4 sample recordings")
    assert f"traces {VERSION}; JSON advise/1 attack/1 " in others[4]


def test_version_without_qemu_or_kernel(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is missing is said, with what to do; it is no error."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("asikit.record.kernel._system", lambda: tmp_path)
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert "QEMU:    none: asi record needs it (Debian: apt-get install qemu-system-x86)\n" in out
    assert "kernel:  none that can be read: asi record takes Debian's newest cloud kernel, or --kernel" in out


def test_no_words(run: Callable[..., tuple[int, str, str]]) -> None:
    """`asi` alone shows the help, as a usage error."""
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err.startswith("Usage: asi ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inof"], "no such command 'inof': did you mean 'info'? (see asi --help)"),
        (["info"], "missing argument 'TRACE' (see asi info --help)"),
        (["info", "t", "--jsn"], "no such option '--jsn'. Did you mean '--json'? (see asi info --help)"),
        (["info", "t", "u"], "got unexpected extra argument (u) (see asi info --help)"),
    ],
)
def test_usage_error(run: Callable[..., tuple[int, str, str]], words: list[str], message: str) -> None:
    """A usage error is one line that says where the help is; exit code 2."""
    assert run(*words) == (2, "", f"asi: error: {message}\n")


def test_strange_command(run: Callable[..., tuple[int, str, str]]) -> None:
    """A command that is like none lists those there are."""
    code, out, err = run("xyzzy")
    assert (code, out) == (2, "")
    assert err.startswith("asi: error: no such command 'xyzzy': there are ")
    assert err.count("\n") == 1


class _TenError(AsikitError):
    exit_code = 10


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (AsikitError("x.toml: no such key"), 1, "error: x.toml: no such key"),
        (AsikitError("two\nlines"), 1, "error: two lines"),
        (_TenError("a leak"), 10, "error: a leak"),
        (FileNotFoundError(2, "No such file or directory", "x"), 1, "error: x: No such file or directory"),
        (
            OSError(28, "No space left on device", "t"),
            1,
            "error: t: No space left on device: free some space or write elsewhere",
        ),
        (TimeoutError("nobody answered"), 1, "error: nobody answered"),
        (OSError(), 1, "error: OSError"),
        (click.ClickException("a file of click's"), 1, "error: a file of click's"),
        (MemoryError(), 1, "error: out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
    ],
)
def test_error_is_one_line(
    run: Callable[..., tuple[int, str, str]],
    command: Callable[[Callable[[], None]], None],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    """What a user or the machine can cause is one line on stderr and the exit code."""

    def fail() -> None:
        raise error

    command(fail)
    assert run("info") == (code, "", f"asi: {line}\n")


def test_our_bug_is_not_hidden(command: Callable[[Callable[[], None]], None]) -> None:
    """An exception that nobody can cause from outside stays a traceback: it is to be reported."""

    def fail() -> None:
        raise ZeroDivisionError

    command(fail)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with pytest.raises(ZeroDivisionError):
        main(["info"])
    for number, handler in before.items():
        signal.signal(number, handler)


def test_exit_code_of_the_command(
    run: Callable[..., tuple[int, str, str]], command: Callable[[Callable[[], None]], None]
) -> None:
    """A command's own exit code is the process'."""
    command(lambda: click.get_current_context().exit(11))
    assert run("info") == (11, "", "")


def test_closed_pipe() -> None:
    """A reader that goes away, as `head` does, is no error: nothing is said, the exit code is that of SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*_ASI, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["no-such-command"], 2), (["demo", "--json"], 0)])
def test_closed_streams(closed: str, words: list[str], code: int) -> None:
    """A stream that the shell closed takes nothing and gives nothing; all else is as it is without."""
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    done = subprocess.run([*shell, *_ASI, *words], capture_output=True, text=True, check=False)
    whole = _whole(*words)
    assert (done.returncode, whole.returncode) == (code, code)
    assert done.stdout == ("" if ">&- " in f"{closed} ".replace("2>&-", "") else whole.stdout)
    assert done.stderr == ("" if "2>&-" in closed else whole.stderr)


_NUMBERS = """
import os, sys, types, click
from asikit.cli import main
module = types.ModuleType("asikit.cli.info")
module.command = click.command("info")(lambda: print(os.open("/dev/null", os.O_RDONLY), file=sys.stderr))
sys.modules["asikit.cli.info"] = module
main(["info"])
"""


def test_closed_streams_keep_their_place() -> None:
    """No file that is opened later is in the place of a closed stream, where what is printed would go into it."""
    shell = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-c", _NUMBERS]
    done = subprocess.run(shell, capture_output=True, text=True, check=True)
    assert int(done.stderr) > 2


_IN_A_CALLBACK = """
import os, signal, sys, time, types, weakref, click
from asikit.cli import main
class Thing: pass
def work():
    thing = Thing()
    known = weakref.ref(thing, lambda _: signal.raise_signal(int(os.environ["SIGNAL"])))
    del thing
    time.sleep(60)
module = types.ModuleType("asikit.cli.info")
module.command = click.command("info")(work)
sys.modules["asikit.cli.info"] = module
main()
"""


@pytest.mark.parametrize(
    ("number", "line"), [(signal.SIGINT, "asi: interrupted\n"), (signal.SIGTERM, "asi: terminated\n")]
)
def test_signal_where_nothing_unwinds(number: signal.Signals, line: str) -> None:
    """A signal that comes in a callback, where Python prints and forgets it, ends the command all the same."""
    environment = {**os.environ, "SIGNAL": str(int(number))}
    command = [sys.executable, "-c", _IN_A_CALLBACK, "info"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", line)


def test_full_disk() -> None:
    """An output that cannot be written is one line."""
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123  (a device)
        done = subprocess.run([*_ASI, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    line = "asi: error: No space left on device: free some space or write elsewhere\n"
    assert (done.returncode, done.stderr) == (1, line)


_PRINT = """
import sys, types, click
from asikit.cli import main
from asikit.errors import AsikitError
module = types.ModuleType("asikit.cli.info")
def work():
    print("buffered")
    raise AsikitError("and then this")
module.command = click.command("info")(work)
sys.modules["asikit.cli.info"] = module
main(["info"])
"""


def test_closed_pipe_after_an_error() -> None:
    """What is still buffered for a closed output when a command fails is dropped: the error stays one line."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", _PRINT]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "asi: error: and then this\n")


_WAIT = """
import sys, time, types, click
from asikit.cli import main
module = types.ModuleType("asikit.cli.info")
def wait():
    try:
        print("waiting", flush=True)
        time.sleep(600)
    finally:
        print("tidied up", flush=True)
module.command = click.command("info")(wait)
sys.modules["asikit.cli.info"] = module
main(["info"])
"""


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "terminated")],
)
def test_signal(number: signal.Signals, code: int, line: str) -> None:
    """Ctrl-C, SIGTERM and a closed terminal (SIGHUP) unwind the command, so that it tidies up, and end in one line."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", _WAIT], text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (code, "tidied up\n", f"asi: {line}\n")


def test_interrupted_before_it_begins(tmp_path: os.PathLike[str]) -> None:
    """Ctrl-C while the command is still being imported is said in the same line."""
    Path(tmp_path, "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = _run("--version", env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "asi: interrupted\n")


def test_nohup() -> None:
    """Under nohup the command outlives its terminal."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + _WAIT.replace("600", "0.5")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "tidied up\n", "")


def test_encoding_without_the_character(tmp_path: os.PathLike[str]) -> None:
    """A terminal that cannot show a character gets it escaped."""
    done = _run("info", f"{tmp_path}/中", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (2, f"asi: error: {tmp_path}/\\u4e2d: does not exist\n")
