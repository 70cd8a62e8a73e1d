"""Finding shared libraries as the dynamic loader does, without running what asks for them."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asikit.record._elf import HEAD_BYTES, Linked, machine_of, read_linked

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT_FOLDERS", "LibrarySearch", "Wanted"]

_LIBS: Final = ("lib/x86_64-linux-gnu", "lib64", "lib", "lib/i386-linux-gnu", "lib32")
"""What ``$LIB`` stands for, by distribution and machine; a library of another machine is passed over."""

DEFAULT_FOLDERS: Final = tuple(f"{below}/{lib}" for lib in _LIBS for below in ("", "/usr"))
"""Where each loader looks last, without a cache."""

_CACHED: Final = re.compile(r"\t(\S+) \(([^)]*)\) => (/.*)")


@dataclass(slots=True)
class Wanted:
    """What a file needs beside itself.

    :ivar found: The loader, the libraries, and theirs.
    :ivar missing: Pairs of a file and the name of a library that it needs and that is nowhere.
    """

    found: list[Path] = field(default_factory=list)
    missing: list[tuple[Path, str]] = field(default_factory=list)


class LibrarySearch:
    """Finds the libraries of many files; each library's own are looked for once."""

    def __init__(self) -> None:
        self._known: set[Path] = set()

    def wanted(self, path: Path, content: bytes) -> Wanted:
        """Give what a file needs, as far as no file before it has needed it.

        :param path: The file's place, its links resolved: what ``$ORIGIN`` is taken from.
        """
        wanted = Wanted()
        asking = [(path, content, "")]
        loaded = set()
        while asking:
            asker, held, inherited = asking.pop()
            linked = read_linked(held)
            if linked is None:
                continue
            above = ":".join(filter(None, ("" if linked.runpath else _absolute(linked.rpath, asker), inherited)))
            for name in filter(None, (linked.interpreter, *linked.needed)):
                library = self._find(name, linked, asker, above)
                if library is None:
                    wanted.missing.append((asker, name))
                    continue
                loaded.add(name)
                if library not in self._known:
                    self._known.add(library)
                    wanted.found.append(library)
                    with suppress(OSError):  # unreadable, or gone by now: whoever copies it says so
                        asking.append((library.resolve(), library.read_bytes(), above))
        # What the process has loaded already is not looked for again, wherever it was found.
        wanted.missing = [(asker, name) for asker, name in wanted.missing if name not in loaded]
        return wanted

    def _find(self, name: str, linked: Linked, asker: Path, above: str) -> Path | None:
        if "/" in name:
            places = [Path(name)] if name.startswith("/") else []
        else:
            folders = [] if linked.runpath else _folders(above, asker)
            folders += _folders(linked.runpath, asker)
            places = [folder / name for folder in folders]
            places += self._cache.get(name, [])
            places += [Path(folder, name) for folder in DEFAULT_FOLDERS]
        return next((place for place in places if _machine(place) == linked.machine), None)

    @cached_property
    def _cache(self) -> dict[str, list[Path]]:
        """What ``/etc/ld.so.cache`` has, by name; variants for processors that the guest's may not be come last."""
        ldconfig = shutil.which("ldconfig") or shutil.which("ldconfig", path="/usr/sbin:/sbin")
        if ldconfig is None:
            return {}
        told = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, errors="surrogateescape", check=False)
        lines = [found for line in told.stdout.splitlines() if (found := _CACHED.fullmatch(line))]
        cache: dict[str, list[Path]] = {}
        for line in sorted(lines, key=lambda line: "hwcap" in line[2]):
            cache.setdefault(line[1], []).append(Path(line[3]))
        return cache


def _folders(text: str, asker: Path) -> list[Path]:
    """List the folders of a search path of a file, with the loader's words in it replaced."""
    return [Path(folder) for part in text.split(":") if part for folder in _expanded(part, asker)]


def _absolute(text: str, asker: Path) -> str:
    """Write a search path so that it means the same for another file."""
    return ":".join(str(folder) for folder in _folders(text, asker))


def _expanded(folder: str, asker: Path) -> Iterator[str]:
    for lib in _LIBS if re.search(r"\$(LIB\b|\{LIB\})", folder) else ("",):
        text = folder
        for word, meaning in (("ORIGIN", str(asker.parent)), ("LIB", lib), ("PLATFORM", "x86_64")):
            text = re.sub(rf"\$({word}\b|\{{{word}\}})", meaning.replace("\\", r"\\"), text)
        yield text


def _machine(path: Path) -> tuple[int, int] | None:
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return machine_of(file.read(HEAD_BYTES))
    except OSError:
        return None
