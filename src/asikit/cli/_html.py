"""The option with which a command writes its report as one HTML file, too."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from asikit import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from asikit.report.html import HtmlPage
    from asikit.report.recording import RecordingView
    from asikit.report.view import Report

__all__ = ["html_option", "keep_words", "write_html", "write_recordings"]

_Command = TypeVar("_Command", bound="Callable[..., Any]")

_WORDS = "asikit.words"


def html_option(command: _Command) -> _Command:
    """Add ``--html FILE`` to a command; it arrives as ``html``."""
    return click.option(
        "--html",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the report to FILE, too, as one HTML page that needs nothing else.",
    )(command)


def keep_words(context: click.Context, words: list[str]) -> None:
    """Remember what was typed."""
    context.meta[_WORDS] = [str(context.info_name), *words]


def write_html(path: Path | None, build: Callable[[], Report | HtmlPage], **made: str) -> None:
    """Write a report to a file, if there is one to write to.

    :param made: What the report was made of, by name.
    """
    if path is None:
        return
    from asikit.report.html import HtmlPage, page_of

    built = build()
    _write(
        built if isinstance(built, HtmlPage) else page_of(built, click.get_current_context().command_path), path, made
    )


def write_recordings(path: Path, recordings: Sequence[RecordingView]) -> None:
    """Write the page about recordings to a file, and say how large it is."""
    from asikit.report import size_text
    from asikit.report.recording import recording_page

    size = _write(recording_page(recordings), path, {})
    click.echo(f"{path}: {size_text(size)}")


def _write(page: HtmlPage, path: Path, made: Mapping[str, str]) -> int:
    """Write a page with the command as it was typed, and return how many bytes it has."""
    from asikit.report.html import write_page

    command = shlex.join(click.get_current_context().meta.get(_WORDS, ()))
    return write_page(page.with_made((("command", command), ("asikit", __version__), *made.items())), path)
