"""The command ``asi``: one module per command, each with a ``command`` object.

All modules are imported for ``asi --help``, so they import what is heavy inside their functions.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command ``asi`` and end the process.

    A command says its exit code with ``click.Context.exit``; 0 when it just returns.

    :param arguments: The words after ``asi``; the process' own when None.
    :raises SystemExit: Always: 0 fine, 1 failed, 2 usage, 130 interrupted, or what the command said.
    """
    try:
        from asikit.cli._frame import run  # Ctrl-C may come before all is imported

        run(arguments)
    except KeyboardInterrupt:  # before the command has begun
        sys.stderr.write("asi: interrupted\n")
        sys.exit(130)
