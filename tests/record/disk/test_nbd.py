"""The server, asked by QEMU's own client."""

from __future__ import annotations

import json
import shutil
import subprocess
from errno import ENOSPC
from typing import TYPE_CHECKING

import pytest

from asikit.record.disk import HostDisk, NbdServer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs_qemu_io


@pytest.fixture
def disk(tmp_path: Path) -> HostDisk:
    """Give a small disk."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("content")
    return HostDisk(tmp_path / "tree", groups=16)


def _io(server: NbdServer, path: Path | None, *commands: str) -> str:
    """Have qemu-io run commands."""
    program = shutil.which("qemu-io")
    assert program is not None
    where = (
        "server.type=fd,server.str=" + str(server.client) if path is None else f"server.type=unix,server.path={path}"
    )
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        [program, "--image-opts", f"driver=nbd,{where}", *words],
        capture_output=True,
        text=True,
        check=False,
        pass_fds=() if path is not None else (server.client,),
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("named", [True, False])
def test_qemu_reads_and_writes(disk: HostDisk, tmp_path: Path, named: bool) -> None:
    """QEMU's client finds the size, reads what is there and what it wrote, in pieces that are no blocks, too."""
    path = tmp_path / "socket" if named else None
    with disk, NbdServer(disk, path) as server:
        told = _io(
            server, path, "length", "read -v 1080 2", "write -P 0x5a 5000 9000", "read -P 0x5a 5000 9000", "flush"
        )
        assert "2 GiB" in told
        assert "53 ef" in told  # the magic number
        assert "verification failed" not in told
        assert "read 9000/9000 bytes at offset 5000" in told
        assert disk.read(4999, 9002) == b"\0" + b"\x5a" * 9000 + b"\0"
        assert server.written_bytes == 9000
        assert server.failure is None
    assert path is None or not path.exists()


def test_clients_one_after_the_other(disk: HostDisk, tmp_path: Path) -> None:
    """A second client sees what the first wrote."""
    path = tmp_path / "socket"
    with disk, NbdServer(disk, path) as server:
        assert "wrote" in _io(server, path, "write -P 1 1M 4k")
        assert "failed" not in _io(server, path, "read -P 1 1M 4k")


def test_unreadable_file_is_an_error_for_the_guest_alone(disk: HostDisk, tmp_path: Path) -> None:
    """A file that cannot be read fails; the rest goes on, and there is nothing to tell the user."""
    with disk, NbdServer(disk, tmp_path / "socket") as server:
        geometry = disk._geometry
        disk.read(geometry.inode_table * 4096, 4096)
        disk.read((geometry.inode_table + 1) * 4096, 4096)  # the file's inode
        at = disk._rooms.data._starts[-1] * 4096
        (tmp_path / "tree/file").unlink()
        told = _io(server, tmp_path / "socket", f"read {at} 4k", "read 0 4k")
        assert "read failed: Input/output error" in told
        assert "read 4096/4096 bytes at offset 0" in told
        assert server.failure is None


def test_too_large_a_tree_is_told(disk: HostDisk, tmp_path: Path) -> None:
    """When the disk has no inodes left, the guest gets an error, and the user can be told why."""
    disk.close()
    for number in range(600):
        (tmp_path / "tree" / str(number)).mkdir()
    with HostDisk(tmp_path / "tree", groups=2) as small, NbdServer(small, tmp_path / "socket") as server:
        at = small._geometry.inode_table * 4096
        assert "read failed: Input/output error" in _io(server, tmp_path / "socket", f"read {at} 4k")
        assert server.failure == "the guest's view of this machine has no inodes left"


def test_full_host_is_told(disk: HostDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the host has no room for what the guest writes, the guest hears so, and the user can be told why."""

    def full(*_: object) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(disk._scratch, "write", full)
    with disk, NbdServer(disk, tmp_path / "socket") as server:
        assert "write failed: No space left on device" in _io(server, tmp_path / "socket", "write 0 4k")
        assert server.failure == "cannot keep what the guest writes: No space left on device"


def test_words_for_qemu(disk: HostDisk, tmp_path: Path) -> None:
    """QEMU takes the option, with a path that has a comma, too."""
    (tmp_path / "a,b").mkdir()
    for path in (None, tmp_path / "a,b" / "socket"):
        with NbdServer(disk, path) as server:
            done = subprocess.run(
                [
                    str(shutil.which("qemu-system-x86_64")),
                    "-nodefaults",
                    "-display",
                    "none",
                    "-S",
                    "-qmp",
                    "stdio",
                    "-drive",
                    server.drive,
                ],
                input='{"execute":"qmp_capabilities"}{"execute":"query-block"}{"execute":"quit"}',
                capture_output=True,
                text=True,
                check=True,
                pass_fds=() if path else (server.client,),
            )
        (answer,) = (json.loads(line) for line in done.stdout.splitlines() if '"inserted"' in line)
        assert answer["return"][0]["inserted"]["image"]["virtual-size"] == disk.size
    disk.close()
