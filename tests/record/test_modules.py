"""Modules in the order of loading, and what they are compressed with."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from asikit.record import RecordError, Recording
from asikit.record._modules import modules_in_order, with_index
from asikit.record._root import module_place
from tests.record.conftest import run
from tests.record.kernels import module
from tests.record.running import program

if TYPE_CHECKING:
    from collections.abc import Callable

RELEASE = "6.1.0-1-amd64"


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    """Modules stand in an order in which each can be loaded, once; built-in ones are left out."""
    module(tmp_path / "kernel/arch/x86/kvm", "kvm-amd", depends="kvm,ccp")
    module(tmp_path / "kernel/arch/x86/kvm", "kvm", depends="irqbypass")
    module(tmp_path / "kernel/drivers", "ccp", b"softdep=pre: wanted not-there post: later\0")
    module(tmp_path / "kernel/lib", "wanted")
    module(tmp_path / "kernel/virt", "irqbypass")
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    found = modules_in_order(tmp_path, ["kvm_amd", "ext4", "kvm"], RELEASE)
    assert [name for name, _ in found] == ["irqbypass", "kvm", "wanted", "ccp", "kvm_amd"]
    assert all(content.startswith(b"\x7fELF") for _, content in found)


@pytest.mark.parametrize(("suffix", "compress"), [("xz", lzma.compress), ("gz", gzip.compress)])
def test_compressed(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    """Modules are unpacked, as the guest has nothing that could do it."""
    content = module(tmp_path, "overlay")
    (tmp_path / f"overlay.ko.{suffix}").write_bytes(compress(content))
    (tmp_path / "overlay.ko").unlink()
    assert modules_in_order(tmp_path, ["overlay"], RELEASE) == [("overlay", content)]


@pytest.fixture
def zstd_module(tmp_path: Path) -> bytes:
    """Write a module whose content has been through a compressor that turns it round."""
    content = module(tmp_path / "modules", "overlay")
    (tmp_path / "modules/overlay.ko").unlink()
    (tmp_path / "modules/overlay.ko.zst").write_bytes(content[::-1])
    return content


def test_zstd_of_python(tmp_path: Path, zstd_module: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that has zstd needs no program."""

    class ZstdError(Exception):
        """Python's."""

    def decompress(data: bytes) -> bytes:
        if data == b"junk":
            raise ZstdError("no magic")
        return data[::-1]

    own = ModuleType("compression.zstd")
    vars(own).update(decompress=decompress, ZstdError=ZstdError)
    monkeypatch.setitem(sys.modules, "compression", ModuleType("compression"))
    monkeypatch.setitem(sys.modules, "compression.zstd", own)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert modules_in_order(tmp_path / "modules", ["overlay"], RELEASE) == [("overlay", zstd_module)]
    (tmp_path / "modules/overlay.ko.zst").write_bytes(b"junk")
    with pytest.raises(RecordError, match=r"/overlay\.ko\.zst is not a module compressed with zstd: no magic$"):
        modules_in_order(tmp_path / "modules", ["overlay"], RELEASE)


def test_zstd_of_the_machine(tmp_path: Path, zstd_module: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without zstd runs the program, and says so if that is not there either or fails."""
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(
        RecordError, match=r"^zstd is missing, which /.*/overlay\.ko\.zst is compressed with; install it"
    ):
        modules_in_order(tmp_path / "modules", ["overlay"], RELEASE)
    (tmp_path / "unpacked").write_bytes(zstd_module)
    program(programs / "zstd", f"exec {shutil.which('cat', path='/usr/bin:/bin')} {tmp_path}/unpacked")
    assert modules_in_order(tmp_path / "modules", ["overlay"], RELEASE) == [("overlay", zstd_module)]
    program(programs / "zstd", "echo 'zstd: unsupported format' >&2; exit 1")
    with pytest.raises(RecordError, match=r"is not a module compressed with zstd: zstd: unsupported format$"):
        modules_in_order(tmp_path / "modules", ["overlay"], RELEASE)


@pytest.mark.needs_zstd
def test_zstd(tmp_path: Path) -> None:
    """What the real program has compressed is unpacked, by whatever there is here."""
    content = module(tmp_path, "overlay")
    subprocess.run([str(shutil.which("zstd")), "-q", "--rm", str(tmp_path / "overlay.ko")], check=True)
    assert modules_in_order(tmp_path, ["overlay"], RELEASE) == [("overlay", content)]


def test_index_is_made_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that was unpacked gets modprobe's index from depmod, wherever depmod looks for modules."""
    folder = tmp_path / "root/usr/lib/modules" / RELEASE
    module(folder, "overlay")
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/depmod", f"[ -d $2/usr/lib ] && touch $2/usr/lib/modules/{RELEASE}/modules.dep.bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert with_index(folder, may_write=False) is None
    assert with_index(folder, may_write=True) == folder
    assert with_index(folder, may_write=False) == folder  # it is there now


def test_index_of_a_build_tree(tmp_path: Path) -> None:
    """Modules that lie where modprobe does not look are not shown to it."""
    module(tmp_path / "drivers", "overlay")
    assert with_index(tmp_path, may_write=True) is None


def test_place_of_modules(tmp_path: Path) -> None:
    """Where ``/lib`` is a link, the folder that it leads to."""
    (tmp_path / "lib").mkdir()
    assert module_place(tmp_path, RELEASE) == Path("/lib/modules") / RELEASE
    (tmp_path / "lib").rmdir()
    (tmp_path / "lib").symlink_to("usr/lib")
    assert module_place(tmp_path, RELEASE) == Path("/usr/lib/modules") / RELEASE


@pytest.mark.needs_qemu
@pytest.mark.needs_kmod
def test_kernel_loads_a_module_by_itself(tmp_path: Path) -> None:
    """Opening a device loads its driver, as on a machine that the kernel is installed on."""
    script = "grep -c ^tun /proc/modules; : < /dev/net/tun; grep -c ^tun /proc/modules"
    assert run(Recording(("sh", "-c", script)), tmp_path / "tun.asitrace").out == "0\n1\n"
