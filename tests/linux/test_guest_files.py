"""The initramfs, programs and their libraries, and programs inside a root."""

import shutil
import subprocess
from pathlib import Path

import pytest

from asikit.linux import RecordError
from asikit.linux._guest import Initramfs, workload_files
from asikit.linux._root import find_in_root


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


def test_scripts_bring_their_interpreter(tmp_path: Path) -> None:
    """A script as workload needs its interpreter and what that is linked with."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    program, needed = workload_files(str(script))
    assert program == script
    assert {script, Path("/bin/sh")} <= set(needed)


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
