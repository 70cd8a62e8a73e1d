"""What every command shares: finding it, its errors in one line, its exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import PurePath
from pkgutil import iter_modules
from typing import TYPE_CHECKING, NoReturn

import click

from asikit.cli._html import keep_words
from asikit.cli._progress import Progress
from asikit.errors import AsikitError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

PROGRAM = "asi"

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_PIPE_CLOSED = 128 + signal.SIGPIPE

_ASKS = "_ASI_COMPLETE"
"""The variable with which a shell asks for completions; click's scripts set it."""

_AGAIN_SECONDS = 0.01
"""So much later a signal is sent again."""

# What a newcomer does first stands first; commands that are not in the list follow by name.
_ORDER = (
    *(
        "help",
        "demo",
        "record",
        "mark",
        "info",
        "replay",
        "trace",
        "cost",
        "advise",
        "report",
        "export",
        "compare",
        "host",
    ),
    *("calibrate", "run"),
)


class _Commands(click.Group):
    """Loads ``asikit.cli.NAME`` when the command NAME is used or listed.

    A module whose name begins with an underscore is no command; an underscore inside a name is typed as a dash.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        names = [module.name.replace("_", "-") for module in iter_modules(_package_path()) if module.name[0] != "_"]
        return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = import_module(f"asikit.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        if ctx.resilient_parsing:  # the shell asks what may come next
            from asikit.cli._completion import add_values

            return add_values(cmd_name, command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Give the command; for a misspelt one, name the nearest.

        :raises click.UsageError: There is no such command.
        """
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            near = get_close_matches(args[0], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise click.UsageError(f"no such command {args[0]!r}: {hint}", ctx)
        return super().resolve_command(ctx, args)


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived: unwind as for Ctrl-C, so that no half output is left."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.exit_code = 128 + number


def _version(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001  (click's form)
    if not value or context.resilient_parsing:
        return
    from asikit.cli._pager import put
    from asikit.cli._version import version_text

    group = context.command
    assert isinstance(group, click.Group)
    commands = (group.get_command(context, name) for name in group.list_commands(context))
    put(version_text(command for command in commands if command is not None))
    context.exit()


def _install_completion(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is None or context.resilient_parsing:
        return
    from asikit.cli._completion import SHELLS, install

    shell = value or PurePath(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise click.BadParameter(f"{shell!r} is none of {', '.join(SHELLS)}: name one", context, option)
    where, then = install(shell)
    click.echo(f"asi: wrote {where}: {then}", err=True)
    context.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Say the version, what is found here to work with, and stop.",
)
@click.option(
    "--install-completion",
    is_flag=False,
    flag_value="",
    metavar="[SHELL]",
    is_eager=True,
    expose_value=False,
    callback=_install_completion,
    help="Have bash, zsh or fish complete what you type, and stop. [default: your shell]",
)
@click.option("--no-pager", is_flag=True, help="Print long output as it is.")
def asi(*, no_pager: bool) -> None:
    """Address Space Isolation (ASI) that one can run, attack, prove and price.

    Record what a Linux kernel does under your workload, run ASI over the recording, and see how often it would leave
    the restricted address space, and why.
    """


def run(arguments: Sequence[str] | None) -> NoReturn:
    """Run the command and end the process: :func:`asikit.cli.main`."""
    _open_closed_streams()
    # A name in a trace may hold a character that the terminal's encoding lacks: show it escaped rather than fail.
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a test's stand-in for the stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with suppress(ValueError):  # signals can be set in the main thread only
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup: the command is to outlive its terminal
                signal.signal(number, _terminate)
    if arguments is None:  # the process is this command's alone
        sys.unraisablehook = _send_again
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = _run(words) if _ASKS not in os.environ else _answer()
    if arguments is None:
        _ignore_signals()
    sys.exit(code)


def _answer() -> int:
    """Answer the shell, which asks what may come next in a command line that its environment has."""
    from click.shell_completion import shell_complete

    return shell_complete(asi, {}, PROGRAM, _ASKS, os.environ[_ASKS])


def _run(words: list[str]) -> int:
    """Run the command and give the exit code. What a user can cause ends in one line, all else is our bug."""
    try:
        code = _invoke(words)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = EXIT_USAGE
    except click.UsageError as error:
        code = _usage_error(error)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except AsikitError as error:
        code = _fail(str(error), error.exit_code)
    except BrokenPipeError:
        code = EXIT_PIPE_CLOSED
    except OSError as error:
        code = _fail(_os_error(error), EXIT_FAILED)
    except (KeyboardInterrupt, click.Abort):
        code = _end("interrupted", EXIT_INTERRUPTED)
    except _Terminated as end:
        code = _end("terminated", end.exit_code)
    except MemoryError:
        code = _fail("out of memory", EXIT_FAILED)
    _settle_output()
    return code


def _invoke(words: list[str]) -> int:
    # Not Command.main: it has its own way with Ctrl-C and closed pipes.
    try:
        typed = list(words)  # parsing takes words out
        with asi.make_context(PROGRAM, words) as context, Progress(context) as context.obj:
            keep_words(context, typed)
            asi.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


def _usage_error(error: click.UsageError) -> int:
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else PROGRAM
    # Only the first letter of a sentence: an option's name stays as it is.
    return _fail(f"{message[:1].lower()}{message[1:]} (see {command} --help)", EXIT_USAGE)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split("\n"))
    return _end(f"error: {line}", code)


def _end(line: str, code: int) -> int:
    with suppress(OSError):  # nobody reads the diagnostics: the exit code still tells
        click.echo(f"{PROGRAM}: {line}", err=True)
    return code


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    what = error.strerror or str(error) or type(error).__name__
    advice = ": free some space or write elsewhere" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    return f"{where}{what}{advice}"


def _settle_output() -> None:
    """Write what is still buffered; when nobody takes it, drop it, or the interpreter complains at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def _open_closed_streams() -> None:
    """Have what the shell closed (``>&-``) take and give nothing; else the next file opened would be in its place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this stream's
            os.set_inheritable(nowhere, nowhere == number)
            setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8"))


def _send_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Have a signal once more that came where nothing can be unwound, as in a callback of a weak reference."""
    error = unraisable.exc_value
    if not isinstance(error, KeyboardInterrupt | _Terminated):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else error.number
    # By another thread and later: from here it would come at the same place.
    threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()


def _ignore_signals() -> None:
    """When all is done and said: while the interpreter ends, a signal would end in Python's own words."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _terminate(number: int, frame: FrameType | None) -> None:
    del frame
    raise _Terminated(number)


def _package_path() -> list[str]:
    return list(import_module("asikit.cli").__path__)
