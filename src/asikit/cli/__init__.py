"""The command ``asi``: one module per command, each with a ``command`` object.

All modules are imported for ``asi --help``, so they import what is heavy inside their functions.
"""

from __future__ import annotations

from asikit.cli._frame import main

__all__ = ["main"]
