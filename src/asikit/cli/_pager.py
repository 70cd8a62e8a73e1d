"""Where a command's text goes: to stdout as it is, or to a pager where a terminal is too small for it, as git does."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import click

from asikit.cli._progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["on_terminal", "put"]

_DEFAULT: Final = "less"
_LESS: Final = "FRX"
"""less' options where the user has set none: end if all fits, colours pass, the text stays on the screen."""
_NONE: Final = ("", "cat")


def on_terminal() -> bool:
    """Tell whether stdout is a terminal that can do more than print lines."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def put(text: str) -> None:
    """Print text that ends its last line."""
    progress().end()
    pager = _pager() if on_terminal() and _is_long(text) else None
    if pager is None:
        click.echo(text, nl=False)
    else:
        _page(text, pager)


def _pager() -> str | None:
    """Return the command of the pager; None for none. One that is not there is none, too."""
    context = click.get_current_context(silent=True)
    if context is not None and context.find_root().params.get("no_pager"):
        return None
    pager = next((os.environ[name] for name in ("ASI_PAGER", "PAGER") if name in os.environ), _DEFAULT)
    if pager.strip() in _NONE:
        return None
    try:
        program = shlex.split(pager)[0]
    except ValueError:  # a quotation mark without its other
        program = pager
    return pager if shutil.which(program) else None


def _is_long(text: str) -> bool:
    """Tell whether text has more lines than the terminal, with room for the prompt."""
    columns, rows = shutil.get_terminal_size()
    return sum(1 + max(0, len(click.unstyle(line)) - 1) // columns for line in text.splitlines()) >= rows


def _page(text: str, pager: str) -> None:
    """Show text in a pager and wait for its end. Who leaves it early has seen enough: that is no error."""
    sys.stdout.flush()
    # Through the shell, as git does: the variable may hold options.
    words, environment = ["/bin/sh", "-c", pager], {"LESS": _LESS, **os.environ}
    with (
        subprocess.Popen(words, stdin=subprocess.PIPE, env=environment) as run,  # noqa: S603  (what the user wants)
        _its_own_interrupts(),  # once it runs: what a shell finds ignored it cannot trap
    ):
        try:
            with suppress(BrokenPipeError):
                run.communicate(text.encode(errors="backslashreplace"))
        except BaseException:  # terminated: the pager is to give the terminal back
            run.terminate()
            raise


@contextmanager
def _its_own_interrupts() -> Iterator[None]:
    """Leave Ctrl-C to the pager: it ends a search there."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # signals can be set in the main thread only
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
