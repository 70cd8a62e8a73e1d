"""Finding a kernel and its modules."""

import lzma
from typing import TYPE_CHECKING

import pytest

from asikit.linux import RecordError, find_kernel, kernel, read_release
from tests.linux.running import program

if TYPE_CHECKING:
    from pathlib import Path


def image(path: "Path", release: str, *, wide: bool = True) -> "Path":
    """Write what looks like a bzImage from outside."""
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x400).to_bytes(2, "little")
    head[0x236] = wide
    text = f"{release} (somebody@somewhere) #1 SMP".encode() if release else b""
    head[0x600 : 0x600 + len(text)] = text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head)
    return path


def module(folder: "Path", name: str, depends: str = "", more: bytes = b"") -> bytes:
    """Write a module that has nothing but a ``.modinfo``."""
    content = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0" + more + b"name=" + name.encode() + b"\0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ko").write_bytes(content)
    return content


def no_download(line: str) -> None:
    """Fail when a download is announced."""
    pytest.fail(line)


def test_release(tmp_path: "Path") -> None:
    """The release is read from where the boot protocol has it."""
    assert read_release(image(tmp_path / "vmlinuz", "6.1.0-13-amd64")) == "6.1.0-13-amd64"


def test_not_a_kernel(tmp_path: "Path") -> None:
    """What is not a kernel, or not one of this processor, is refused with its path."""
    (tmp_path / "text").write_text("hello")
    for path, fault in (
        (tmp_path / "text", "is not an x86 Linux kernel image"),
        (tmp_path / "nothing", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (image(tmp_path / "narrow", "6.1.0", wide=False), "is not a 64-bit kernel"),
        (image(tmp_path / "silent", ""), "does not say its release"),
    ):
        with pytest.raises(RecordError, match=fault) as caught:
            find_kernel(path, no_download)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("release", ["6.10.0", "6.12.43+deb13-amd64", "7.0.1", "5.10.0-30-amd64", "odd"])
def test_unknown_release_is_refused(tmp_path: "Path", release: str) -> None:
    """A kernel whose page flags are other ones is refused rather than recorded wrongly."""
    given = image(tmp_path / "vmlinuz", release)
    with pytest.raises(RecordError) as caught:
        find_kernel(given, no_download)
    assert str(caught.value) == (
        f"{given} is Linux {release}, whose page flags are not known here (those of 5.15 to 6.9 are); "
        "give another kernel with --kernel VMLINUZ"
    )


def test_newest_usable_in_boot(tmp_path: "Path", monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kernels in /boot, the newest that is known and has its modules is taken; versions are compared as such."""
    boot = tmp_path / "boot"
    monkeypatch.setattr(kernel, "_boot_folder", lambda: boot)
    for release in ("6.1.0-9-amd64", "6.1.0-13-amd64", "6.1.0-20-amd64", "6.12.1-amd64"):
        image(boot / f"vmlinuz-{release}", release)
    (boot / "vmlinuz-old").write_text("not a kernel")
    for release in ("6.1.0-9-amd64", "6.1.0-13-amd64", "6.12.1-amd64"):
        (tmp_path / "lib/modules" / release).mkdir(parents=True)
    found = find_kernel(None, no_download)
    assert (found.release, found.modules) == ("6.1.0-13-amd64", tmp_path / "lib/modules/6.1.0-13-amd64")


@pytest.fixture
def empty_machine(tmp_path: "Path", monkeypatch: pytest.MonkeyPatch) -> "Path":
    """Give a folder of programs, the only ones on a machine without kernels."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setattr(kernel, "_boot_folder", lambda: tmp_path / "boot")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return programs


APT_CACHE = "echo linux-image-cloud-amd64; echo '  Depends: linux-image-6.1.0-1-cloud-amd64'"


def test_download(empty_machine: "Path", tmp_path: "Path") -> None:
    """Without a kernel here one is downloaded, said first, and the next time it is there."""
    made = image(tmp_path / "made", "6.1.0-1-cloud-amd64")
    program(empty_machine / "apt-cache", APT_CACHE)
    program(empty_machine / "apt-get", "touch $2.deb")
    program(empty_machine / "dpkg-deb", f"mkdir -p $3/boot; cp {made} $3/boot/vmlinuz-6.1.0-1-cloud-amd64")
    said: list[str] = []
    first = find_kernel(None, said.append)
    assert first.release == "6.1.0-1-cloud-amd64"
    assert [line.split(" (")[0] for line in said] == [
        "no kernel in /boot that can be recorded: downloading linux-image-6.1.0-1-cloud-amd64"
    ]
    (empty_machine / "apt-get").unlink()
    assert find_kernel(None, no_download) == first


@pytest.mark.parametrize(
    ("apt_get", "dpkg_deb", "fault"),
    [
        (
            "echo 'E: Could not connect' >&2; exit 100",
            "",
            r"apt-get download linux-image-\S+ failed: Could not connect;",
        ),
        ("true", "", "downloaded nothing"),
        ("touch $2.deb", "echo 'dpkg-deb: error: half' >&2; exit 2", "dpkg-deb -x .* failed: dpkg-deb: error: half;"),
        ("touch $2.deb", "mkdir -p $3/boot", "has no kernel in it;"),
    ],
)
def test_failed_download(empty_machine: "Path", tmp_path: "Path", apt_get: str, dpkg_deb: str, fault: str) -> None:
    """A download that fails ends with what failed and what to do, and leaves nothing in the cache."""
    program(empty_machine / "apt-cache", APT_CACHE)
    program(empty_machine / "apt-get", apt_get)
    program(empty_machine / "dpkg-deb", dpkg_deb)
    said: list[str] = []
    with pytest.raises(RecordError, match=fault) as caught:
        find_kernel(None, said.append)
    assert len(said) == 1
    assert str(caught.value).endswith("give --kernel VMLINUZ")
    assert list((tmp_path / "cache/asikit/kernels").iterdir()) == []


def test_nothing_to_download(empty_machine: "Path") -> None:
    """Package lists that are missing are asked for."""
    program(empty_machine / "apt-cache", "true")
    program(empty_machine / "apt-get", "true")
    program(empty_machine / "dpkg-deb", "true")
    with pytest.raises(RecordError, match="package lists lack linux-image-cloud-amd64; run apt-get update"):
        find_kernel(None, no_download)


@pytest.fixture
def with_modules(tmp_path: "Path") -> kernel.Kernel:
    """Give a kernel with a few modules."""
    release = "6.1.0-1-amd64"
    folder = tmp_path / "lib/modules" / release
    module(folder / "kernel/arch/x86/kvm", "kvm-amd", "kvm,ccp")
    module(folder / "kernel/arch/x86/kvm", "kvm", "irqbypass")
    module(folder / "kernel/drivers", "ccp", "", b"softdep=pre: wanted not-there post: later\0")
    module(folder / "kernel/lib", "wanted")
    content = module(folder / "kernel/virt", "irqbypass")
    (folder / "kernel/virt/irqbypass.ko").unlink()
    (folder / "kernel/virt/irqbypass.ko.xz").write_bytes(lzma.compress(content))
    (folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return find_kernel(image(tmp_path / "boot/vmlinuz", release), no_download)


def test_modules_come_after_what_they_need(with_modules: kernel.Kernel) -> None:
    """Modules stand in an order in which each can be loaded, once, unpacked; built-in ones are left out."""
    found = with_modules.module_files(["kvm_amd", "ext4", "kvm"])
    assert [name for name, _ in found] == ["irqbypass", "kvm", "wanted", "ccp", "kvm_amd"]
    assert all(content.startswith(b"\x7fELF") for _, content in found)


def test_missing_modules(with_modules: kernel.Kernel, tmp_path: "Path") -> None:
    """A module that is not there is named, and so is a kernel without modules."""
    with pytest.raises(RecordError, match=r"^kernel 6\.1\.0-1-amd64 has no module 'nothing' in /"):
        with_modules.module_files(["nothing"])
    alone = find_kernel(image(tmp_path / "a/b/vmlinuz", "6.1.0-99-none"), no_download)
    with pytest.raises(
        RecordError, match=r"not on this machine \(kvm wanted\); put them into lib/modules/6\.1\.0-99-none"
    ):
        alone.module_files(["kvm"])
