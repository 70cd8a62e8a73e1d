"""Completion in the shell: click's own scripts, and what an option's value may be."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["SHELLS", "add_values", "install"]

SHELLS: Final = ("bash", "zsh", "fish")
_VARIABLE: Final = "_ASI_COMPLETE"
_TRACE: Final = ".asitrace"
_TOML: Final = ".toml"


def add_values(name: str, command: click.Command) -> click.Command:
    """Have a command's options and arguments complete their values: by what they are called, and what they take."""
    for parameter in command.params:
        known = _known(name, parameter)
        if known is not None:
            parameter._custom_shell_complete = known  # noqa: SLF001  (decorators would repeat it at each option)
    return command


def install(shell: str) -> tuple[Path, str]:
    """Write the script for a shell, of this user alone; return where, and what else there is to do.

    :raises OSError: It cannot be written.
    """
    data = _folder("XDG_DATA_HOME", ".local/share")
    where, then = {
        "bash": (data / "bash-completion/completions/asi", "it is found by the package bash-completion"),
        "zsh": (data / "zsh/site-functions/_asi", "put `fpath=({folder} $fpath)` before compinit in ~/.zshrc"),
        "fish": (_folder("XDG_CONFIG_HOME", ".config") / "fish/completions/asi.fish", "fish finds it by itself"),
    }[shell]
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(_script(shell), encoding="utf-8")
    return where, f"{then.format(folder=where.parent)}; it holds in the shells that you start from now on"


def _script(shell: str) -> str:
    found = get_completion_class(shell)
    assert found is not None
    made = found(click.Group("asi"), {}, "asi", _VARIABLE)
    return made.source_template % made.source_vars()


def _folder(variable: str, below_home: str) -> Path:
    base = os.environ.get(variable)
    return Path(base) if base else Path.home() / below_home


def _known(command: str, parameter: click.Parameter) -> Any:  # noqa: ANN401  (click's type of it is its own)
    """Return what completes a parameter, if it takes names of ours."""
    name, takes = f"{parameter.name}".rstrip("s"), str(parameter.metavar)
    if isinstance(parameter, click.Argument):
        return {"trace": _paths(_TRACE), "scenario": _paths(".py"), "topic": _names(_topics)}.get(name)
    if takes.startswith("MODEL|FILE"):
        return _names(lambda: _shelf("cpus"), file=True)
    if command == "verify":
        return _names(_mutants) if name == "mutant" else None
    of_names: dict[str, Callable[[], Iterable[str]]] = {
        "policie": lambda: _shelf("policies"),
        "policy": lambda: _shelf("policies"),
        "vulnerability": lambda: _shelf("vulnerabilities"),
        "mitigation": _mitigations,
        "vector": _vectors,
    }
    return _names(of_names[name], file="FILE" in takes) if name in of_names else None


def _shelf(folder: str) -> list[str]:
    """Return the names of data files, without importing the room that reads them."""
    found = (files("asikit") / "data" / folder).iterdir()
    return sorted(item.name.removesuffix(_TOML) for item in found if item.name.endswith(_TOML))


def _mitigations() -> Iterable[str]:
    from asikit.mitigations import mitigation_names

    return mitigation_names()


def _vectors() -> Iterable[str]:
    from asikit.attacks import Vector

    return [str(vector) for vector in Vector]


def _mutants() -> Iterable[str]:
    from asikit.proofs import ALTERNATIVES, CATALOGUE

    return [*(mutant.name for mutant in (*CATALOGUE, *ALTERNATIVES)), "all"]


def _topics() -> Iterable[str]:
    from asikit.cli._shipped import pages

    return pages()


def _names(known: Callable[[], Iterable[str]], *, file: bool = False) -> Any:  # noqa: ANN401  (as above)
    """Return a completer of names, also of the last one of a comma list; of files, too, where one may be given."""

    def completer(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        found = [CompletionItem(f"{before}{comma}{name}") for name in known() if name.startswith(last)]
        return found if found or not file else [CompletionItem(incomplete, type="file")]

    return completer


def _paths(suffix: str) -> Any:  # noqa: ANN401  (as above)
    """Return a completer of the paths that end so, and of the folders on the way to them."""

    def completer(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        shown, _, last = incomplete.rpartition("/")
        folder = Path(f"{shown}/" if "/" in incomplete else ".").expanduser()
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            return []
        found = [entry for entry in entries if entry.name.startswith(last) and (last or not entry.name.startswith("."))]
        before = f"{shown}/" if "/" in incomplete else ""
        wanted = [CompletionItem(f"{before}{entry.name}") for entry in found if entry.name.endswith(suffix)]
        ways = [entry for entry in found if entry.is_dir() and not entry.name.endswith(suffix)]
        return [*wanted, *(CompletionItem(f"{before}{entry.name}/") for entry in ways)]

    return completer
