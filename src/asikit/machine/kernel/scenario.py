"""Scenarios: Python files that say what a machine's programs do.

A scenario file has a function ``scenario(machine)`` that puts processes, files and handlers onto a machine. It may have
``CONFIG``, the `MachineConfig` that it needs. The first line of its docstring is its title.
"""

from __future__ import annotations

import inspect
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.errors import AsikitError
from asikit.machine.kernel.core.config import MachineConfig
from asikit.machine.kernel.core.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asikit.machine.kernel.machine import Machine

__all__ = ["Scenario", "load_scenario", "place_of"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a file says.

    :ivar path: The file.
    :ivar title: The first line of its docstring, without the full stop.
    :ivar config: The machine that it needs.
    :ivar build: Puts everything onto a machine.
    """

    path: Path
    title: str
    config: MachineConfig
    build: Callable[[Machine], None]

    def run(self, machine: Machine) -> None:
        """Put everything onto a machine and run it until all processes have ended.

        :raises ScenarioError: The scenario's own code failed; the message says where.
        :raises MachineError: The machine found something wrong: a deadlock, a broken invariant.
        """
        try:
            self.build(machine)
            machine.run()
        except AsikitError:
            raise
        except SystemExit as error:
            place = place_of(error, self.path)
            raise ScenarioError(f"{place}: sys.exit() would end asi; use user.exit(CODE)") from error
        except Exception as error:
            if not _is_the_scenarios(error, self.path):
                raise
            raise ScenarioError(f"{place_of(error, self.path)}: {type(error).__name__}: {error}") from error


def load_scenario(path: Path) -> Scenario:
    """Run a scenario file's top level and return what it defines.

    :raises ScenarioError: The file is not there, is not Python, fails, or lacks a ``scenario``.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ScenarioError.usage(f"{path}: cannot be read: {error.strerror}") from error
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise ScenarioError(f"{path}:{line or 1}: not Python: {getattr(error, 'msg', error)}") from error
    names: dict[str, object] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(code, names)  # noqa: S102 - running the user's file is what is asked for
    except Exception as error:
        raise ScenarioError(f"{place_of(error, path)}: {type(error).__name__}: {error}") from error
    build, config = names.get("scenario"), names.get("CONFIG", MachineConfig())
    if not callable(build) or not _takes_one(build):
        raise ScenarioError(f"{path}: defines no function scenario(machine)")
    if not isinstance(config, MachineConfig):
        raise ScenarioError(f"{path}: CONFIG is a {type(config).__name__}, not a MachineConfig")
    title = str(names.get("__doc__") or path.stem).strip().splitlines()[0].removesuffix(".")
    return Scenario(path, title, config, build)


def _takes_one(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True


def place_of(error: BaseException, path: Path) -> str:
    """Return where in a scenario file an error came from, as ``FILE:LINE``; the file alone if it did not."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _is_the_scenarios(error: Exception, path: Path) -> bool:
    """Tell an error of a scenario's own code, or a system call's that it lets through, from a bug of the machine."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    return innermost.filename == str(path) or isinstance(error, OSError)
