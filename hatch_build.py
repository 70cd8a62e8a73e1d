"""What hatchling puts into the wheel beside the package.

That is docs/ for `asi help`, what `asi demo --copy` copies, and the manual for `man`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface):  # type: ignore[type-arg]  # its parameter is hatchling's own
    """Adds to a wheel, but not to one that stands for this checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Say what to include, and where."""
        if version == "editable":
            return
        root = Path(self.root)
        beside = (("docs", "**/*.md"), ("examples", "*.py"), ("samples", "*.c"))
        for file in (file for folder, pattern in beside for file in sorted((root / folder).glob(pattern))):
            build_data["force_include"][str(file)] = f"asikit/{file.relative_to(root)}"
        sys.path.insert(0, str(root / "tools"))
        write = import_module("manual").write  # the tool beside this one
        self._folder = TemporaryDirectory()
        for path, file in write(Path(self._folder.name)).items():
            build_data["shared_data"][str(file)] = f"share/man/{path}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Clear away."""
        if version != "editable":
            self._folder.cleanup()
