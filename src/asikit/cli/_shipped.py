"""What comes with the package beside its code: the pages of the documentation, samples, programs, scenarios."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["pages", "programs", "samples", "scenarios"]

_OF_THE_SITE = frozenset({"index", "contributing"})
"""Pages that are nothing by themselves: a table of contents, and one that shows a file of the checkout."""


def pages() -> dict[str, Path]:
    """Return the file of each page of the documentation, by name."""
    folder = _beside("docs")
    found = folder.rglob("*.md") if folder is not None else []
    return {path.stem: path for path in sorted(found, key=lambda path: path.stem) if path.stem not in _OF_THE_SITE}


def samples() -> list[Path]:
    """Return the sample recordings."""
    return sorted(Path(str(files("asikit.data") / "samples")).glob("*.asitrace"))


def scenarios() -> list[Path]:
    """Return the scenarios for the model machine."""
    folder = _beside("examples")
    return sorted(folder.glob("*.py")) if folder is not None else []


def programs() -> list[Path]:
    """Return the programs that some samples are recordings of, in C."""
    folder = _beside("samples")
    return sorted(folder.glob("*.c")) if folder is not None else []


def _beside(name: str) -> Path | None:
    """Return a folder of the installed package; in a checkout it lies beside the sources."""
    package = Path(str(files("asikit")))
    return next((one for one in (package / name, package.parents[1] / name) if one.is_dir()), None)
