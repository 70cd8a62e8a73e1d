"""Commands as people type them: under `asi record` they print what they print here, and end as they end here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_cc, pytest.mark.needs_make]

ASI = (sys.executable, "-c", "from asikit.cli import main; main()", "record", "--overwrite", "-o")
OURS = re.compile(rb"^asi: .*\n", re.MULTILINE)
INPUT = b"three\none\ntwo\n"
SCRIPTS = {
    "hello.sh": '#!/bin/sh\necho "hello $1, $# words"\nexit 4\n',
    "hello.bash": '#!/bin/bash\nfor w in "$@"; do printf "<%s>" "$w"; done; echo\n',
    "hello.pl": '#!/usr/bin/perl\nprint "perl ", scalar(@ARGV), "\\n";\n',
    "hello.py": "#!/usr/bin/env python3\nimport os, sys\nprint(sys.argv[1:], os.getcwd() == os.environ['PWD'])\n",
    "hello.awk": "#!/usr/bin/awk -f\nBEGIN { print 6 * 7 }\n",
    "hello.sed": "#!/bin/sed -f\ns/o/0/g\n",
}
SOURCE = '#include <stdio.h>\nint main(int n, char **v) { printf("%d %s\\n", n, v[n - 1]); return n; }\n'
MAKEFILE = "all: a.o b.o\n\t@echo built\na.o b.o: program.c\n\t$(CC) -c -o $@ $<\n"
PYTHON_SERVER = (
    "import socket as s, threading as t; a = s.create_server(('localhost', 0)); "
    "t.Thread(target=lambda: a.accept()[0].sendall(b'over loopback')).start(); "
    "print(s.create_connection(a.getsockname()).recv(99))"
)

FIRST = [
    "./hello.sh 'a b' c",
    "make -s -j2",
]
"""A script, and several processes that work on files. `make test` runs them."""

MORE = [
    "python3 -c 'import os, signal; os.kill(os.getpid(), signal.SIGTERM)'",
    "./hello.py a 'ü ö'",
    "ls -l sub",
    "sh -c 'echo out; echo err >&2; exit 9'",
    "python3 -c 'raise SystemExit(7)'",
    "sort",
    "printenv TYPED",
    "sh -c 'echo new > new; cat new; rm input; ls'",
    "true",
    "false",
    "./hello.bash 'it'\"'\"'s' \"two  blanks\" '*' '$HOME' ''",
    "./hello.pl a b",
    "./hello.awk",
    "./hello.sed < input",
    "sh hello.sh",
    "perl hello.pl",
    "python3 -c 'import sys; print(sys.stdin.read().upper())' < input",
    f"python3 -c {shlex.quote(PYTHON_SERVER)}",
    "pwd",
    "ls",
    "ls /etc",
    "ls no-such-file",
    "cat input",
    "cat -",
    "cat 'sub/with blank.txt' sub/größe.txt",
    "cat sub/../input",
    "cat link",
    "head -2 input",
    "sort -r input",
    "wc -l",
    "wc input sub/größe.txt",
    "sh -c 'grep -rn one . | sort'",
    "grep -c nothing input",
    "sh -c 'find . -name \"*.txt\" -newer program.c | sort'",
    "stat -c '%n %s %a %U %h' input hello.sh link",
    "stat -c '%n %a %U' sub",
    "id",
    "hostname",
    "env LANG=C sort input",
    "printf '%s\\n' a 'b c' '\"'",
    "echo non-ASCII: äöü €",
    "tee copy",
    "tee /dev/stderr",
    "dd if=/dev/zero bs=1000 count=3 status=none",
    "seq 5",
    "awk '{ print NR \": \" $0 }' input",
    "sed -n 2p input",
    "tar -cf - -C sub .",
    "gcc -o program program.c",
    "sh -c 'gcc -o program program.c && ./program x y'",
    "sh -c 'seq 1000 | sort -n | tail -1'",
    "sh -c 'kill -9 $$'",
    "sh -c 'cat; echo done'",
    "sh -c 'mkdir -p a/b && cd a/b && pwd && ls ../..'",
    "sh -c 'umask; ulimit -n; ulimit -s'",
    "sh -c 'test -t 0 || echo no terminal; test -t 1 || echo nor there'",
    "sh -c 'echo to stdout > /dev/stdout; echo to stderr > /dev/stderr'",
    "sh -c '(sleep 0.2; echo late) & wait; echo $?'",
    "sh -c 'for i in 1 2 3; do (exit $i) || echo $?; done'",
    "bash -c 'diff <(seq 3) <(seq 4); echo ${PIPESTATUS[0]}'",
    "bash -c 'set -o pipefail; false | cat; echo $?'",
    "bash -c 'trap \"echo trapped\" EXIT; exit 5'",
    "timeout 1 sleep 100",
    "xargs -n1 echo item",
    "nice -n 5 nice",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a few files to work on."""
    folder = tmp_path_factory.mktemp("a folder")
    (folder / "sub").mkdir()
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "input").write_bytes(INPUT)
    (folder / "program.c").write_text(SOURCE)
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "sub/with blank.txt").write_text("one\n")
    (folder / "sub/größe.txt").write_text("two\n")
    (folder / "link").symlink_to("sub/größe.txt")
    return folder


def test_there_are_sixty() -> None:
    """The promise is about sixty commands and more."""
    assert len({*FIRST, *MORE}) >= 60


@pytest.mark.parametrize("typed", [*FIRST, *(pytest.param(typed, marks=pytest.mark.slow) for typed in MORE)])
def test_as_typed(folder: Path, tmp_path: Path, typed: str) -> None:
    """What it prints, to both outputs, and its exit status are those that it has here. What it writes is not here."""
    words = shlex.split(typed.replace(" < input", ""))
    here = tmp_path / "here"
    shutil.copytree(folder, here, symlinks=True)
    recorded = _run([*ASI, str(tmp_path / "trace"), "--", *words], here)
    assert sorted(path.name for path in here.rglob("*")) == sorted(path.name for path in folder.rglob("*"))
    native = _run(words, here)
    status = 128 - native.returncode if native.returncode < 0 else native.returncode
    assert (recorded.stdout, OURS.sub(b"", recorded.stderr)) == (native.stdout, native.stderr)
    assert recorded.returncode == status


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "TYPED": "a value; with $signs", "PWD": str(folder)}
    return subprocess.run(
        words, input=INPUT, capture_output=True, cwd=folder, env=environment, check=False, timeout=300
    )
