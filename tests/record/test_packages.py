"""Downloading Debian's cloud kernel, with a made-up apt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.record import RecordError, find_kernel, kernel
from tests.record.archive import CLOUD, Archive, debian_12, debian_13, sid
from tests.record.kernels import bzimage
from tests.record.running import program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def no_download(line: str) -> None:
    """Fail when a download is announced."""
    pytest.fail(line)


def find_kernel_fails() -> str:
    """Give the fault of finding a kernel."""
    with pytest.raises(RecordError) as caught:
        find_kernel(None, no_download)
    return str(caught.value)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Give a machine that has nothing."""
    made = Archive(tmp_path)
    monkeypatch.setattr(kernel, "_system", lambda: made.machine)
    monkeypatch.setenv("PATH", f"{made.programs}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


@pytest.mark.parametrize(("suite", "megabytes"), [(debian_12, 1), (debian_13, 1), (sid, 3)])
def test_download(archive: Archive, suite: Callable[[Archive], str], megabytes: int) -> None:
    """Without a kernel here one is downloaded with its modules, said first, and the next time it is there."""
    release = suite(archive)
    said: list[str] = []
    first = find_kernel(None, said.append)
    assert first.release == release
    assert [name for name, _ in first.module_files(["overlay"])] == ["overlay"]
    assert said == [
        f"no kernel in /boot to record: downloading {CLOUD} ({megabytes} MB; needs no root) into {archive.cache}"
    ]
    assert [path.name for path in archive.cache.iterdir()] == [f"{CLOUD}_1"]
    (archive.programs / "apt-get").unlink()
    assert find_kernel(None, no_download) == first


def test_parts_that_are_gone(archive: Archive) -> None:
    """A kernel without its modules is one, too: Debian removes them from its archive first."""
    release = "7.0.13+deb13-cloud-amd64"
    archive.add(CLOUD, f"linux-binary-{release} (= 1), linux-modules-{release} (= 1)")
    bzimage(archive.add(f"linux-binary-{release}") / f"boot/vmlinuz-{release}", release)
    found = find_kernel(None, lambda _: None)
    assert (found.release, found.modules) == (release, None)


@pytest.mark.parametrize(
    ("apt_get", "dpkg_deb", "fault"),
    [
        (
            "echo 'E: Could not connect' >&2; exit 100",
            "",
            rf"^apt-get download {CLOUD} failed: Could not connect; run apt-get update, or give a kernel with",
        ),
        ("true", "", r"^the packages linux-image-\S+ linux-image-\S+ have no kernel in them;"),
        (
            "touch x.deb",
            "echo 'dpkg-deb: error: half' >&2; exit 2",
            "^dpkg-deb -x x.deb failed: dpkg-deb: error: half;",
        ),
        ("touch x.deb", "mkdir -p $3/boot", r"^the packages linux-image-\S+ linux-image-\S+ have no kernel in them;"),
    ],
)
def test_failed_download(archive: Archive, apt_get: str, dpkg_deb: str, fault: str) -> None:
    """A download that fails ends with what failed and what to do, and leaves nothing in the cache."""
    debian_12(archive)
    program(archive.programs / "apt-get", apt_get)
    program(archive.programs / "dpkg-deb", dpkg_deb)
    said: list[str] = []
    with pytest.raises(RecordError, match=fault) as caught:
        find_kernel(None, said.append)
    assert len(said) == 1
    assert str(caught.value).endswith("with --kernel VMLINUZ")
    assert list(archive.cache.iterdir()) == []


def test_another_download_at_the_same_time(archive: Archive) -> None:
    """What another recording is downloading is not taken for a kernel, and what it has finished stays."""
    release = debian_12(archive)
    bzimage(archive.cache / ".download-x/root/boot/vmlinuz-9", "9.0")
    bzimage(archive.cache / ".download-x/boot/vmlinuz-9", "9.0")
    theirs = archive.cache / f"{CLOUD}_1/boot" / f"vmlinuz-{release}"

    def say(line: str) -> None:
        del line
        bzimage(theirs, release)

    found = find_kernel(None, say)
    assert (found.image, found.modules) == (theirs, None)


def test_nothing_to_download(archive: Archive) -> None:
    """Package lists that are missing are asked for."""
    assert find_kernel_fails() == (
        f"no kernel in {archive.machine}/boot to record, and this machine's package lists lack {CLOUD}; "
        "run apt-get update, or give one with --kernel VMLINUZ"
    )


def test_no_apt(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is not Debian's is told to get a kernel otherwise."""
    monkeypatch.setenv("PATH", str(archive.machine))
    assert find_kernel_fails() == (
        f"no kernel in {archive.machine}/boot to record, and no apt-get to download one: install a kernel, "
        "or give one with --kernel VMLINUZ"
    )


def test_only_root_can_read(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that only root can read, as Ubuntu's, is named with the command that makes it readable."""
    hidden = bzimage(archive.machine / "boot/vmlinuz-6.8.0-31-generic", "6.8.0-31-generic")
    hidden.chmod(0)
    monkeypatch.setattr("os.access", lambda path, mode: path != hidden)  # noqa: ARG005  (tests may run as root)
    monkeypatch.setattr(kernel, "read_release", unreadable)
    assert find_kernel_fails() == (
        f"only root can read the kernels in {archive.machine}/boot: make a copy that you can read "
        f"(sudo install -m 644 {hidden} .) and give it with --kernel"
    )


def unreadable(image: Path) -> str:
    """Fail as a file does that only root can read."""
    raise RecordError(f"cannot read the kernel {image}: Permission denied")
