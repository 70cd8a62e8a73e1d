"""The initramfs, programs and their libraries, and programs inside a root."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asikit.record import RecordError
from asikit.record._guest import Initramfs
from asikit.record._programs import workload_files
from asikit.record._root import find_in_root, place_for

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.needs_cpio
def test_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    """The program cpio unpacks the archive to the same files, modes and links."""
    files = Initramfs()
    files.add("/deep/er/file", b"content\n", mode=0o755)
    files.add("/odd", b"123", mode=0o600)
    files.add("/empty", b"")
    files.link("/deep/link", "er/file")
    archive = files.archive()
    cpio = str(shutil.which("cpio"))
    listed = subprocess.run([cpio, "-t", "--quiet"], input=archive, capture_output=True, check=True)
    assert set(listed.stdout.decode().split()) >= {"deep/er/file", "odd", "empty", "deep/link", "etc/passwd", "proc"}
    assert not listed.stderr
    subprocess.run([cpio, "-id", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "deep/link").read_text() == "content\n"
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("deep/er/file", "odd")] == [0o755, 0o600]


@pytest.mark.needs_cpio
def test_host_files_are_what_they_were(tmp_path: Path) -> None:
    """A folder comes along with its modes, its links as they are, its pipes, and names of any bytes."""
    here = tmp_path / "here"
    (here / "real/deep").mkdir(parents=True)
    (here / "real/deep").chmod(0o700)
    (here / "real/deep/file").write_text("content")
    (here / "current").symlink_to("real/")
    (here / os.fsdecode(b"odd \xff\nname")).write_text("odd")
    os.mkfifo(here / "pipe", 0o620)
    files = Initramfs()
    files.add_host_tree(here / "current" / ".." / "real")
    files.add_host_tree(here)
    files.add_host_file(here / "current/deep/file")
    assert files.left_out() == []
    (tmp_path / "out").mkdir()
    cpio = str(shutil.which("cpio"))
    subprocess.run([cpio, "-id", "--quiet"], input=files.archive(), cwd=tmp_path / "out", check=True)
    there = tmp_path / f"out{here}"
    for path in sorted([here, *here.rglob("*")]):
        copy = there / path.relative_to(here)
        assert copy.lstat().st_mode == path.lstat().st_mode, path
        if path.is_symlink():
            assert os.readlink(copy) == os.readlink(path)  # noqa: PTH115
        elif path.is_file():
            assert copy.read_bytes() == path.read_bytes()
    assert sorted(copy.relative_to(there) for copy in there.rglob("*")) == sorted(
        path.relative_to(here) for path in here.rglob("*")
    )


@pytest.mark.needs_cpio
def test_names_of_one_file(tmp_path: Path) -> None:
    """Hard links stay links: their content is in the archive once."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "b").write_bytes(os.urandom(100_000))
    for name in "ac":
        (here / name).hardlink_to(here / "b")
    (here / "other").write_bytes((here / "b").read_bytes())
    files = Initramfs()
    files.add_host_tree(here)
    archive = files.archive()
    assert 200_000 < len(archive) < 210_000
    (tmp_path / "out").mkdir()
    cpio = str(shutil.which("cpio"))
    subprocess.run([cpio, "-id", "--quiet"], input=archive, cwd=tmp_path / "out", check=True)
    there = tmp_path / f"out{here}"
    assert {(there / name).read_bytes() for name in ("a", "b", "c", "other")} == {(here / "b").read_bytes()}
    assert len({(there / name).stat().st_ino for name in "abc"}) == 1
    assert (there / "other").stat().st_nlink == 1


def test_same_files_give_the_same_archive() -> None:
    """The order of adding, the time and the machine do not show."""
    one, other = Initramfs(), Initramfs()
    one.add("/a", b"1")
    one.add("/b", b"2")
    other.add("/b", b"2")
    other.add("/a", b"1")
    assert one.archive() == other.archive()


def test_links_bring_their_targets(tmp_path: Path) -> None:
    """A file that is a link is there with what it points to; so is a folder's whole content."""
    (tmp_path / "folder" / "empty").mkdir(parents=True)
    (tmp_path / "target").write_text("x")
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "target")
    files = Initramfs()
    files.add_host_tree(tmp_path / "folder")
    assert all(str(tmp_path / name) in files for name in ("folder/link", "target", "folder/empty"))


def test_links_lead_there_as_here(tmp_path: Path) -> None:
    """A path through a link to a folder is there under both names, as are busybox and its links."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files = Initramfs()
    files.add_host_file(tmp_path / "link/file")
    assert str(tmp_path / "link/file") in files
    assert str(tmp_path / "real/file") in files
    files.add(str(tmp_path / "link/other"), b"")
    assert str(tmp_path / "real/other") in files


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    """Give a folder with what can be in a folder and cannot come along."""
    folder = tmp_path / "odd"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "outside").symlink_to("../elsewhere")
    (folder / "inside").symlink_to("deep")
    (folder / "kernel").symlink_to("/proc")
    (folder / "nowhere").symlink_to("no/such/file")
    (folder / "circle").symlink_to("circle")
    (folder / "deep/up").symlink_to("..")
    (folder / "file").write_text("x")
    (folder / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(str(folder / "a.sock"))
        other.bind(str(folder / "b.sock"))
        yield folder


def test_what_cannot_come_along(odd: Path) -> None:
    """It is left out and said, a line for each reason; what leads nowhere here leads nowhere there, without a word."""
    files = Initramfs()
    files.add_host_tree(odd)
    elsewhere = "a folder elsewhere; --include it, too, if it is needed"
    assert files.left_out() == [
        f"not in the guest: {odd}/a.sock and 1 more: a socket, which nobody serves there",
        f"not in the guest: {odd.parent}/elsewhere, to which {odd}/outside links: {elsewhere}",
    ]
    assert all(
        str(odd / name) in files for name in ("circle", "deep/up", "file", "inside", "kernel", "nowhere", "null")
    )
    files.add_host_tree(odd.parent / "elsewhere")
    assert len(files.left_out()) == 1


def test_what_vanishes(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or folder that cannot be read, or is gone when its turn comes, is left out and said."""
    reading = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == odd / "file":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return reading(path)

    listing = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path == odd / "deep":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return listing(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(Path, "iterdir", iterdir)
    files = Initramfs()
    files.add_host_tree(odd)
    assert f"not in the guest: {odd}/file: Permission denied" in files.left_out()
    assert f"not in the guest: {odd}/deep: No such file or directory" in files.left_out()
    with pytest.raises(RecordError, match=r"^cannot read .*/odd/file for the guest: Permission denied$"):
        Initramfs().add_host_tree(odd / "file")


def test_what_the_guest_has_itself() -> None:
    """The kernel's own files are the guest's."""
    files = Initramfs()
    for path in ("/proc", "/dev/null"):
        files.add_host_tree(Path(path))
    assert files.left_out() == ["not in the guest: /proc and 1 more: the guest has its own"]


def test_more_than_fits(tmp_path: Path) -> None:
    """Files for which no guest has memory are refused before they are read."""
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 40)
    with pytest.raises(RecordError, match=r"huge: with it the guest's files are more than 1536 MiB, .* --include less"):
        Initramfs().add_host_tree(tmp_path)


@pytest.mark.needs_cc
def test_missing_library_of_an_included_file(tmp_path: Path) -> None:
    """A library that an included file needs is no matter if it is included under any path; else it is said."""
    app = tmp_path / "app"
    (app / "server").mkdir(parents=True)
    compiler = str(shutil.which("cc"))
    for target, *words in (("server/libvm.so", "-Wl,-soname,libvm.so"), ("libattach.so", str(app / "server/libvm.so"))):
        command = [compiler, "-shared", "-Wl,--no-as-needed", "-x", "c", "/dev/null", "-x", "none", *words]
        subprocess.run([*command, "-o", str(app / target)], check=True)
    files = Initramfs()
    files.add_host_tree(app)
    assert files.left_out() == []
    alone = Initramfs()
    alone.add_host_tree(app / "libattach.so")
    assert alone.left_out() == [
        f"not in the guest: libvm.so, which {app}/libattach.so needs: a library that this machine does not have"
    ]


def test_scripts_bring_their_interpreter(tmp_path: Path) -> None:
    """A script as workload needs its interpreter and what that is linked with."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    program, needed = workload_files(str(script))
    assert program == script
    assert {script, Path("/bin/sh")} <= set(needed)


def test_included_scripts_bring_their_interpreter(tmp_path: Path) -> None:
    """Where they can be executed; what only looks like a script brings nothing."""
    for name, mode in (("program", 0o755), ("text", 0o644)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "script").write_text("#!/usr/bin/env -S A=b ls -l\n")
        (tmp_path / name / "script").chmod(mode)
    program, text = Initramfs(), Initramfs()
    program.add_host_tree(tmp_path / "program")
    text.add_host_tree(tmp_path / "text")
    assert all(path in program for path in ("/usr/bin/env", str(shutil.which("ls")), "/lib64/ld-linux-x86-64.so.2"))
    assert not any(path in text for path in ("/usr/bin/env", str(shutil.which("ls"))))


@pytest.mark.needs_busybox
def test_missing_program() -> None:
    """What neither this machine nor busybox has is named."""
    with pytest.raises(RecordError, match=r"^no program 'no-such-program' on this machine, and busybox has none"):
        workload_files("no-such-program")


@pytest.mark.needs_busybox
def test_busybox_stands_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What this machine lacks and busybox has is left to busybox."""
    for name in ("busybox", "ldd"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workload_files("httpd") == (None, [])


def test_missing_include(tmp_path: Path) -> None:
    """A path to include that is not there is named."""
    with pytest.raises(RecordError, match=r"--include .*/nothing: no such file or folder"):
        Initramfs().add_host_tree(tmp_path / "nothing")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a root with merged /usr, whose links are absolute, as distributions have them."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("/usr/bin")
    (tmp_path / "usr/bin/real").write_text("#!/bin/sh\n")
    (tmp_path / "usr/bin/real").chmod(0o755)
    (tmp_path / "usr/bin/name").symlink_to("/bin/../bin/real")
    (tmp_path / "usr/bin/loop").symlink_to("loop")
    (tmp_path / "usr/bin/data").write_text("no program")
    (tmp_path / "usr/bin/outside").symlink_to("/../../etc/passwd")
    return tmp_path


@pytest.mark.parametrize(("command", "found"), [("name", "/usr/bin/name"), ("/bin/real", "/bin/real")])
def test_program_in_root(root: Path, command: str, found: str) -> None:
    """A program is found as the guest will find it: links are followed inside the root."""
    assert find_in_root(root, command) == found


@pytest.mark.parametrize("command", ["sh", "/bin/sh", "loop", "data", "outside", "/usr/bin"])
def test_no_program_in_root(root: Path, command: str) -> None:
    """What this machine has is not what the root has."""
    with pytest.raises(RecordError, match=f"^--root {root} has no program '{command}'; there is no /"):
        find_in_root(root, command)


def test_no_root(tmp_path: Path) -> None:
    """A root that is not there is named."""
    with pytest.raises(RecordError, match=r"^--root .*/nothing: no such folder$"):
        find_in_root(tmp_path / "nothing", "sh")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/opt:/usr/bin:/bin", "/usr/bin/ours"),
        ("/bin", "/bin/ours"),
        ("relative::/opt:/own", "/own/ours"),
        ("/opt:/none", "/opt/ours"),
        (None, "/usr/bin/ours"),
        ("/none", None),
    ],
)
def test_place_for_a_program_of_ours(root: Path, path: str | None, place: str | None) -> None:
    """It lies in a folder of PATH that is there, if it can in one that each script has in its PATH."""
    for folder in ("opt", "own"):
        (root / folder).mkdir()
    assert place_for("ours", root, path) == place


@pytest.mark.parametrize("theirs", ["usr/bin/ours", "own/ours"])
def test_a_program_of_the_users_stays(root: Path, theirs: str) -> None:
    """Where the user has a program of that name in PATH, there is none of ours."""
    (root / "own").mkdir()
    (root / theirs).touch()
    assert place_for("ours", root, "/bin:/own") is None
