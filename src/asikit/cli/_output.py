"""The two ways a command reports, text for people and JSON for programs, on stdout; and warnings, on stderr."""

from __future__ import annotations

import json
import os
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

from asikit.cli._pager import on_terminal, put
from asikit.cli._progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asikit.report.view import Report

_COLUMNS = 80
_LOOKS: dict[str, Any] = {
    "plain": {"reset": False},
    "strong": {"bold": True},
    "faint": {"dim": True},
    "notable": {"fg": "cyan"},
    "warning": {"fg": "yellow"},
}
"""How a terminal shows each :class:`asikit.report.view.Style`."""


def write_json(name: str, document: Mapping[str, Any], *, version: int = 1) -> None:
    """Print a document in the JSON envelope of :func:`json_text`."""
    put(f"{json_text(name, document, version=version)}\n")


def json_text(name: str, document: Mapping[str, Any], *, version: int = 1) -> str:
    """Give the one JSON envelope: ``{"schema": "asikit.NAME/VERSION", ...}``.

    ``schema`` stands first and all other keys are sorted, at every depth, so that the same content is the same text.

    :param name: What the document is, for example ``info``.
    :param document: The content: dictionaries with string keys, lists, strings, numbers, booleans and None.
    :raises ValueError: A number is not finite.
    """
    envelope = {"schema": f"asikit.{name}/{version}", **_sorted(document)}
    return json.dumps(envelope, indent=2, ensure_ascii=False, allow_nan=False)


def warn(lines: Iterable[str]) -> None:
    """Print warnings on stderr, before what is printed on stdout."""
    for line in lines:
        progress().say(f"warning: {line}")


def show(report: Report) -> None:
    """Print a report, as wide as the terminal is: 80 columns where there is none, or as many as COLUMNS says."""
    from asikit.report.view.text import lines

    shown = lines(report, get_terminal_size(fallback=(_COLUMNS, 0)).columns)
    coloured = on_terminal() and not os.environ.get("NO_COLOR")
    put("".join(f"{click.style(line.text, **_LOOKS[line.style]) if coloured else line.text}\n" for line in shown))


def _sorted(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value
