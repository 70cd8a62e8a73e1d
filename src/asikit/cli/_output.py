"""The two ways a command reports, text for people and JSON for programs, on stdout; and warnings, on stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console


def write_json(name: str, document: Mapping[str, Any], *, version: int = 1) -> None:
    """Print a document in the JSON envelope of :func:`json_text`."""
    click.echo(json_text(name, document, version=version))


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
        click.echo(f"asi: warning: {line}", err=True)


def console() -> Console:
    """Give the console that text goes to: colour on a terminal only and never with NO_COLOR; lines are not wrapped."""
    # Only commands that print text pay for rich.
    from rich.console import Console  # noqa: PLC0415

    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def size_text(size: int) -> str:
    """Give a number of bytes as people read it: ``512 bytes``, ``3.2 MiB``."""
    if size < 1 << 10:
        return f"{size} bytes"
    number = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:  # noqa: PLR2004
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def _sorted(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value
