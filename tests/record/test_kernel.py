"""Finding a kernel and its modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.record import RecordError, find_kernel, kernel, read_release
from tests.record.kernels import bzimage, module

if TYPE_CHECKING:
    from pathlib import Path


def no_download(line: str) -> None:
    """Fail when a download is announced."""
    pytest.fail(line)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the root of a machine that has nothing yet."""
    root = tmp_path / "machine"
    root.mkdir()
    monkeypatch.setattr(kernel, "_system", lambda: root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


def test_release(tmp_path: Path) -> None:
    """The release is read from where the boot protocol has it."""
    assert read_release(bzimage(tmp_path / "vmlinuz", "6.1.0-13-amd64")) == "6.1.0-13-amd64"


def test_not_a_kernel(tmp_path: Path) -> None:
    """What is not a kernel, or not one of this processor, is refused with its path."""
    (tmp_path / "text").write_text("hello")
    for path, fault in (
        (tmp_path / "text", "is not an x86 Linux kernel image"),
        (tmp_path / "nothing", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (bzimage(tmp_path / "narrow", "6.1.0", wide=False), "is not a 64-bit kernel"),
        (bzimage(tmp_path / "silent", ""), "does not say its release"),
    ):
        with pytest.raises(RecordError, match=fault) as caught:
            find_kernel(path, no_download)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("release", ["4.19.0-27-amd64", "6.12.118+deb13-amd64", "7.3.4", "9.0-rc1", "odd"])
def test_no_release_is_refused(machine: Path, release: str) -> None:
    """A version number decides nothing."""
    assert find_kernel(bzimage(machine / "vmlinuz", release), no_download).release == release


LAYOUTS = {
    "Debian to 12": ("boot/vmlinuz-REL", "lib/modules/REL/kernel"),
    "Debian 13": ("boot/vmlinuz-REL", "usr/lib/modules/REL/kernel"),
    "Debian since 7.x": ("usr/lib/modules/REL/vmlinuz", "usr/lib/modules/REL/kernel"),
    "Fedora": ("lib/modules/REL/vmlinuz", "lib/modules/REL/kernel"),
    "Arch": ("boot/vmlinuz-linux", "usr/lib/modules/REL/kernel"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", [True, False], ids=["given", "installed"])
def test_layouts(machine: Path, tmp_path: Path, layout: str, *, given: bool) -> None:
    """Kernel and modules are found in the layouts of distributions, of an unpacked package as of this machine."""
    release = "6.12.118+deb13-amd64"
    image, modules = (name.replace("REL", release) for name in LAYOUTS[layout])
    root = tmp_path / "unpacked" if given else machine
    made = bzimage(root / image, release)
    module(root / modules / "fs", "overlay")
    found = find_kernel(made if given else None, no_download)
    assert (found.image, found.release) == (made, release)
    assert [name for name, _ in found.module_files(["overlay"])] == ["overlay"]


def test_modules_of_this_machine(machine: Path, tmp_path: Path) -> None:
    """A copy of this machine's kernel has its modules: on Ubuntu only root can read the original."""
    module(machine / "lib/modules/6.8.0-31-generic/kernel/fs", "overlay")
    found = find_kernel(bzimage(tmp_path / "vmlinuz-6.8.0-31-generic", "6.8.0-31-generic"), no_download)
    assert found.modules == machine / "lib/modules/6.8.0-31-generic"


def test_image_without_its_modules(machine: Path, tmp_path: Path) -> None:
    """A folder that has nothing but the image has no modules: Debian's linux-binary package without linux-modules."""
    found = find_kernel(bzimage(tmp_path / "usr/lib/modules/7.3.4/vmlinuz", "7.3.4"), no_download)
    assert found.modules is None
    module(machine / "lib/modules/7.3.4/kernel", "overlay")
    assert find_kernel(found.image, no_download).modules == machine / "lib/modules/7.3.4"


def test_newest_in_boot(machine: Path) -> None:
    """Of the kernels here the newest that has its modules is taken, else the newest; versions are compared as such."""
    releases = ("6.12.9+deb13-amd64", "6.12.117+deb13-amd64", "6.12.118+deb13-amd64", "6.12.118-rc19", "6.12-rc20")
    for release in releases:
        bzimage(machine / f"boot/vmlinuz-{release}", release)
    (machine / "boot/vmlinuz-9").write_text("not a kernel")
    (machine / "boot/vmlinuz-gone").symlink_to("nowhere")
    assert find_kernel(None, no_download).release == "6.12.118+deb13-amd64"
    for release in ("6.12.9+deb13-amd64", "6.12.117+deb13-amd64"):
        module(machine / "lib/modules" / release / "kernel", "overlay")
    found = find_kernel(None, no_download)
    assert found == kernel.KernelImage(
        machine / "boot/vmlinuz-6.12.117+deb13-amd64", "6.12.117+deb13-amd64", machine / "lib/modules" / found.release
    )
    newest = bzimage(machine / "usr/lib/modules/7.3.4+deb13-amd64/vmlinuz", "7.3.4+deb13-amd64")
    module(newest.parent / "kernel", "overlay")
    assert find_kernel(None, no_download).image == newest


@pytest.fixture
def with_modules(machine: Path) -> kernel.KernelImage:
    """Give a kernel with a module."""
    module(machine / "lib/modules/6.1.0-1-amd64/kernel", "overlay")
    return find_kernel(bzimage(machine / "boot/vmlinuz", "6.1.0-1-amd64"), no_download)


def test_missing_modules(with_modules: kernel.KernelImage, tmp_path: Path) -> None:
    """A module that is not there is named, and so is a kernel without modules."""
    with pytest.raises(RecordError, match=r"^kernel 6\.1\.0-1-amd64 has no module 'nothing' in /"):
        with_modules.module_files(["nothing"])
    alone = find_kernel(bzimage(tmp_path / "a/b/vmlinuz", "6.1.0-99-none"), no_download)
    fault = (
        r"not on this machine \(kvm wanted\); give the folder that has lib/modules/6\.1\.0-99-none with --modules DIR"
    )
    with pytest.raises(RecordError, match=fault):
        alone.module_files(["kvm"])


@pytest.mark.parametrize("below", ["lib/modules/7.3.0-rc1+/kernel/fs", "usr/lib/modules/7.3.0-rc1+/kernel/fs", "fs"])
def test_modules_of_a_build(machine: Path, tmp_path: Path, below: str) -> None:
    """A kernel that was built from a tree has its modules where --modules says: installed somewhere, or in the tree."""
    tree = tmp_path / "linux"
    image = bzimage(tree / "arch/x86/boot/bzImage", "7.3.0-rc1+")
    module(machine / "lib/modules/7.3.0-rc1+", "overlay", b"of another build")
    content = module(tree / below / "overlayfs", "overlay", b"vermagic=7.3.0-rc1+ SMP preempt mod_unload \0")
    (tree / below / "overlayfs/.overlay.ko.cmd").write_text("savedcmd_fs/overlayfs/overlay.ko := ld")
    found = find_kernel(image, no_download, modules=tree)
    assert found.module_files(["overlay"]) == [("overlay", content)]


def test_modules_of_another_kernel(machine: Path, tmp_path: Path) -> None:
    """A tree's module that an earlier build left, or one of another kernel, is refused rather than loaded in vain."""
    image = bzimage(machine / "bzImage", "7.3.0-rc2+")
    module(tmp_path / "tree/fs", "overlay", b"vermagic=7.3.0-rc1+ SMP preempt mod_unload \0")
    found = find_kernel(image, no_download, modules=tmp_path / "tree")
    with pytest.raises(
        RecordError, match=r"/fs/overlay\.ko is a module of Linux 7\.3\.0-rc1\+, but the kernel is 7\.3\."
    ):
        found.module_files(["overlay"])


def test_given_folder_without_modules(machine: Path, tmp_path: Path) -> None:
    """A folder without modules is refused, and it is said how to make one; a kernel with all built in needs none."""
    image = bzimage(machine / "bzImage", "7.3.0")
    with pytest.raises(RecordError, match=r"^--modules /.*/none: no such folder$"):
        find_kernel(image, no_download, modules=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match=r"no modules in it; make modules_install INSTALL_MOD_PATH=/.*/empty in the"):
        find_kernel(image, no_download, modules=tmp_path / "empty")
    (tmp_path / "empty/modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    assert find_kernel(image, no_download, modules=tmp_path / "empty").module_files(["ext4"]) == []
