"""A folder with one of everything that file systems have."""

from __future__ import annotations

import os
import socket
from pathlib import Path

CONTENT = bytes(range(251)) * 5000
"""Of a period that is no power of two, so that a block at the wrong place shows."""

SIZES = (0, 1, 59, 60, 4095, 4096, 4097, 1 << 20)
MANY = 3000


def make_tree(root: Path) -> None:
    """Fill a folder. Device nodes are made by root only."""
    root.mkdir(exist_ok=True)
    (root / "lost+found").mkdir(mode=0o700)
    files = root / "files"
    files.mkdir()
    for size in SIZES:
        (files / str(size)).write_bytes(CONTENT[:size])
    os.link(files / "4097", root / "a second name")
    os.link(files / "4097", files / "a third name")
    for length in (1, 59, 60, 255, 4000):
        (root / f"link-{length}").symlink_to("x" * length)
    (root / "link-to-file").symlink_to("files/4096")
    _make_sparse(root / "sparse", size=3 << 30)
    _make_striped(root / "stripes")
    deep = root / "deep"
    for depth in range(40):
        deep /= f"level {depth}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("found\n")
    many = root / "many"
    many.mkdir()
    for number in range(MANY):
        (many / f"entry number {number} of many").write_bytes(b"%d" % number)
    for number in range(100):
        (root / "folders" / str(number)).mkdir(parents=True)
    names = os.fsencode(root / "names")
    os.mkdir(names)  # noqa: PTH102
    for name in (b"\xff\xfe not UTF-8", b"n" * 255, "ünïcödé".encode(), b" blank", b"-dash"):
        Path(os.fsdecode(names + b"/" + name)).write_bytes(name)
    _make_special(root / "special")


def _make_sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for at in (0, 5 << 20, 2 << 30, size - 3):
            file.seek(at)
            file.write(b"%d" % at)
        file.truncate(size)


def _make_striped(path: Path) -> None:
    """Make a file of more pieces than an inode has room for, so that it has an extent tree."""
    with path.open("wb") as file:
        for number in range(1000):
            file.seek(number * 16384)
            file.write(CONTENT[number : number + 5000])


def _make_special(folder: Path) -> None:
    folder.mkdir()
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2750), ("sticky", 0o1777), ("none", 0)):
        (folder / name).touch()
        (folder / name).chmod(mode)
    (folder / "shared").mkdir()
    (folder / "shared").chmod(0o1777)
    for name, at in (("old", -86_400), ("precise", 1_234_567_890.123456789), ("late", 1 << 32)):
        (folder / name).touch()
        os.utime(folder / name, (at, at))
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path is short
        listener.bind("socket")
        os.chdir(here)
    if os.geteuid() == 0:
        os.mknod(folder / "null", 0o20666, os.makedev(1, 3))
        os.mknod(folder / "large", 0o60600, os.makedev(300, 70000))
        os.chown(folder / "precise", 70000, 3_000_000_000)
