"""The libraries of programs, found without running them: as the machine's own loader finds them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asikit.record._elf import read_linked
from asikit.record._libraries import LibrarySearch

_SHELL = Path(str(shutil.which("sh"))).resolve()


class Link(Protocol):
    """Links a program, or a library if its name says so, with libraries and options."""

    def __call__(self, name: str, *libraries: Path, options: str = "") -> Path:
        """Give its path."""


@pytest.fixture
def link(tmp_path: Path) -> Link:
    """Give what links in a folder of its own."""

    def linking(name: str, *libraries: Path, options: str = "") -> Path:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        kind = ["-shared", "-fPIC", f"-Wl,-soname,{target.name}"] if ".so" in name else []
        source = "int main(void) { return 0; }" if not kind else ""
        compiler = str(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"))
        words = [*kind, "-Wl,--no-as-needed", *options.split(), "-Wl,--allow-shlib-undefined", *map(str, libraries)]
        command = [compiler, "-x", "c", "-", "-x", "none", "-o", str(target), *words]
        subprocess.run(command, input=source, text=True, check=True)
        return target

    return linking


def _found(path: Path) -> tuple[set[str], set[str]]:
    """Give the libraries that are found, by their real paths, and the names of those that are not."""
    wanted = LibrarySearch().wanted(path, path.read_bytes())
    return {str(library.resolve()) for library in wanted.found}, {name for _, name in wanted.missing}


def _ldd(path: Path) -> tuple[set[str], set[str]]:
    """Give the libraries that the loader itself finds, and the names of those that it does not."""
    told = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout  # noqa: S607
    found = {str(Path(match[1]).resolve()) for match in re.finditer(r"(/\S+) \(0x", told)}
    return found, set(re.findall(r"(\S+) => not found", told))


@pytest.mark.needs_cc
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib", True),
        ("-Wl,--enable-new-dtags,-rpath,${ORIGIN}/../lib", True),
        ("-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib", True),
        ("-Wl,--enable-new-dtags,-rpath,/no/such:$ORIGIN/../lib", True),
        ("-Wl,--enable-new-dtags,-rpath,$ORIGINAL/../lib", False),
        ("", False),
    ],
)
def test_search_paths(link: Link, options: str, found: bool) -> None:
    """A library is found by the path in the program that needs it, and by that only."""
    library = link("lib/libprivate.so")
    program = link("bin/program", library, options=options)
    assert _found(program) == _ldd(program)
    assert (str(library) in _found(program)[0]) is found


@pytest.mark.needs_cc
@pytest.mark.parametrize("tags", ["enable", "disable"])
def test_search_paths_of_what_asked_for_a_library(link: Link, tags: str) -> None:
    """A program's RPATH serves its libraries, too; its RUNPATH does not."""
    inner = link("lib/libinner.so")
    outer = link("lib/libouter.so", inner)
    program = link("program", outer, options=f"-Wl,--{tags}-new-dtags,-rpath,$ORIGIN/lib")
    assert _found(program) == _ldd(program)
    assert _found(program)[1] == ({"libinner.so"} if tags == "enable" else set())


@pytest.mark.needs_cc
def test_search_path_that_replaces_others(link: Link) -> None:
    """A library with a RUNPATH of its own is not served by the RPATH of what asked for it."""
    inner = link("lib/libinner.so")
    outer = link("lib/libouter.so", inner, options="-Wl,--enable-new-dtags,-rpath,/no/such")
    program = link("program", outer, options="-Wl,--disable-new-dtags,-rpath,$ORIGIN/lib")
    assert _found(program) == _ldd(program)
    assert _found(program)[1] == {"libinner.so"}


@pytest.mark.needs_cc
def test_loaded_by_another(link: Link) -> None:
    """A library that the process has loaded already is not missing, though no path leads to it."""
    inner = link("lib/libinner.so")
    outer = link("lib/libouter.so", inner)
    program = link("program", outer, inner, options="-Wl,--enable-new-dtags,-rpath,$ORIGIN/lib")
    assert _found(program) == _ldd(program)
    assert _found(program)[1] == set()


@pytest.mark.needs_cc
def test_of_another_machine(link: Link, tmp_path: Path) -> None:
    """A file of the right name that is no library of this machine is passed over, as the loader does."""
    library = link("lib/libprivate.so")
    program = link("program", library, options="-Wl,-rpath,$ORIGIN/odd:$ORIGIN/fifo:$ORIGIN/lib")
    (tmp_path / "odd").mkdir()
    head = bytearray(library.read_bytes())
    head[18:20] = (183).to_bytes(2, "little")  # EM_AARCH64
    (tmp_path / "odd/libprivate.so").write_bytes(head)
    assert str(library) in _found(program)[0]


@pytest.mark.parametrize("name", ["sh", "ls", "python3", "ldconfig", "ldd", "mount", "ssh", "perl"])
def test_as_the_loader_finds_them(name: str) -> None:
    """This machine's programs have the libraries that its loader says they have."""
    path = Path(shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin") or "/bin/sh").resolve()
    assert _found(path) == _ldd(path)


@settings(max_examples=500)
@given(st.data())
def test_damaged(data: st.DataObject) -> None:
    """A file that only begins as a program, or has odd bytes in its headers, is no error."""
    content = bytearray(_SHELL.read_bytes()[:4096])
    del content[data.draw(st.integers(0, len(content))) :]
    for place in data.draw(st.lists(st.integers(0, max(0, min(len(content), 1024) - 1)), max_size=8)):
        if content:
            content[place] = data.draw(st.integers(0, 255))
    read_linked(bytes(content))
