"""Folders that come along into a real guest: what is in them works there as here."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.record.running import Command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc]

_PROGRAM = """
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void *load(const char *folder, const char *name, int how)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    void *library = dlopen(path, how);
    if (!library) {
        puts(dlerror());
        exit(3);
    }
    return library;
}

int main(int argc, char **argv)
{
    load(argv[1], "lib/server/libvm.so", RTLD_NOW | RTLD_GLOBAL);
    int (*attach)(void) = dlsym(load(argv[1], "lib/libattach.so", RTLD_NOW), "attach");
    printf("%d\\n", attach());
    return 0;
}
"""


def _compile(target: Path, source: str, *words: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    compiler = str(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"))
    subprocess.run([compiler, "-x", "c", "-", *words, "-o", str(target)], input=source, text=True, check=True)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Give an application as a JVM is: a library needs one that no path leads to, as the program has loaded it before.

    The library that is needed is under a second name, behind a link, and needs one that is nowhere.
    """
    app = tmp_path / "app"
    shared = ("-shared", "-fPIC", "-Wl,--no-as-needed")
    virtual_machine = app / "versions/1/server/libvm.so"
    _compile(virtual_machine, "int vm(void) { return 42; }", *shared, "-Wl,-soname,libvm.so")
    source = "int vm(void);\nint attach(void) { return vm(); }"
    _compile(app / "lib/libattach.so", source, *shared, f"-L{virtual_machine.parent}", "-lvm")
    (app / "lib/server").symlink_to(app / "versions/1/server")
    (app / "libvm-too.so").hardlink_to(virtual_machine)
    _compile(app / "gone/libgone.so", "", *shared, "-Wl,-soname,libgone.so")
    _compile(app / "lib/libplugin.so", "", *shared, f"-L{app}/gone", "-lgone")
    shutil.rmtree(app / "gone")
    _compile(app / "bin/main", _PROGRAM, "-ldl")
    return app


def test_library_that_only_the_program_finds(app: Path, tmp_path: Path) -> None:
    """The program does in the guest what it does here; one library that is missing is said, and is no error."""
    native = subprocess.run([app / "bin/main", app], capture_output=True, text=True, check=True)
    assert native.stdout == "42\n"
    command = Command(tmp_path)
    script = f"{app}/bin/main {app} && cmp {app}/libvm-too.so {app}/lib/server/libvm.so"
    ended = command.run("-o", "t.asitrace", "--include", str(app), "--", "sh", "-c", script)
    assert (ended.code, ended.out) == (0, native.stdout)
    missing, recorded = ended.err.splitlines()
    need = f"libgone.so, which {app}/lib/libplugin.so needs"
    assert missing == f"asi: not in the guest: {need}: a library that this machine does not have"
    assert recorded.startswith("asi: recorded ")


def test_program_that_cannot_be_loaded(app: Path, tmp_path: Path) -> None:
    """The workload's own program is refused in one line where no path leads to a library that it needs."""
    _compile(app / "bin/needy", "int vm(void);\nint main(void) { return vm(); }", f"-L{app}/lib/server", "-lvm")
    command = Command(tmp_path)
    ended = command.run("--include", str(app), "--", str(app / "bin/needy"))
    needed = f"{app}/bin/needy needs the library libvm.so, which is not on this machine; install it"
    assert (ended.code, ended.err) == (1, f"asi: error: {needed}\n")
    assert command.left() == []
