"""What a disk answers: reading, writing, what is hidden, what goes wrong."""

from __future__ import annotations

import os
from errno import ESTALE
from pathlib import Path

import pytest

from asikit.record.disk import DiskFullError, ExtraFile, HostDisk
from asikit.record.disk.ext4 import ROOT_INODE
from asikit.record.disk.files import Fixed
from asikit.record.disk.geometry import BLOCK_BYTES, Geometry
from asikit.record.disk.room import Room
from tests.record.disk.reading import Reader


def _room(**how: int) -> Room:
    sizes = {"group_blocks": 100, "offset": 10, "length": 50, "gap": 0, **how}
    return Room(what="blocks", groups=range(2), **sizes)


def test_runs_stay_in_their_part_of_a_group() -> None:
    """A run that does not fit into what is left of a group's part begins in the next group's."""
    room = _room()
    assert [room.take(30, Fixed(b"")), room.take(30, Fixed(b"")), room.take(10, Fixed(b""))] == [10, 110, 140]
    assert room.at(59) is None


def test_full_room() -> None:
    """When nothing is left, that is said."""
    room = _room()
    for _ in range(2):
        room.take(50, Fixed(b""))
    with pytest.raises(DiskFullError, match=r"^the guest's view of this machine has no blocks left$"):
        room.take(1, Fixed(b""))


def test_what_was_read_too_early_gets_no_meaning() -> None:
    """A block that was read ahead is left out: the guest would go on seeing what it read."""
    room = _room()
    room.take(1, Fixed(b""))
    for block in (12, 13, 20):
        assert room.at(block) is None
    assert [room.take(1, Fixed(b"")), room.take(5, Fixed(b"")), room.take(10, Fixed(b""))] == [11, 14, 21]


def test_gap() -> None:
    """Runs that must not touch do not."""
    room = _room(gap=1)
    assert [room.take(2, Fixed(b"")), room.take(2, Fixed(b""))] == [10, 13]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Give a folder with a few files."""
    for folder in ("usr/bin", "home/user/.ssh", "proc/1", "etc"):
        (tmp_path / "tree" / folder).mkdir(parents=True)
    for file, text in (("usr/bin/program", "1"), ("home/user/.ssh/id", "2"), ("proc/1/stat", "3"), ("etc/motd", "4")):
        (tmp_path / "tree" / file).write_text(text)
    (tmp_path / "tree/bin").symlink_to("usr/bin")
    return tmp_path / "tree"


def test_same_tree_gives_the_same_disk(tree: Path) -> None:
    """Numbers and addresses follow from the tree and the order of reading alone."""
    with HostDisk(tree) as one, HostDisk(tree) as other:
        assert Reader(one).tree() == Reader(other).tree()
        assert [one.read(at << 21, 1 << 21) for at in range(3)] == [other.read(at << 21, 1 << 21) for at in range(3)]


def test_hidden(tree: Path) -> None:
    """What is hidden is not there, under no name."""
    (tree / "elsewhere").symlink_to("home/user")
    os.link(tree / "etc/motd", tree / "etc/other-name")
    hidden = [Path("/elsewhere/.ssh"), Path("/etc/motd"), Path("/not-there")]
    with HostDisk(tree, hidden=hidden) as disk:
        seen = Reader(disk).tree()
    assert "home/user" in seen
    assert not {name for name in seen if ".ssh" in name}
    assert not {name for name in seen if name.startswith("etc/") or "id" in name}


def test_empty_folders_and_extra_files(tree: Path) -> None:
    """A folder shown empty may hold extra files; folders that the host does not have are there; links are followed."""
    extra = {
        "/proc/asi/run": ExtraFile(b"words\0"),
        "/bin/tool": ExtraFile(b"#!", mode=0o755),
        "/etc/motd": ExtraFile(b"ours"),
    }
    with HostDisk(tree, empty=[Path("/proc"), Path("/mnt/none")], extra=extra) as disk:
        reader = Reader(disk)
        seen = reader.tree()
        assert set(seen["proc"] or ()) == {"asi"}
        assert not seen["mnt/none"]
        assert set(seen["usr/bin"] or ()) == {"program", "tool"}
        assert seen["bin"] is None  # still a link
        assert reader.content("usr/bin/tool") == b"#!"
        assert reader.content("proc/asi/run") == b"words\0"
        assert reader.content("etc/motd") == b"ours"
        assert reader.inode(reader.find("usr/bin/tool")).mode == 0o100755


def test_writes_are_kept_beside(tree: Path) -> None:
    """What is written is read back, to the byte, also within a block; the host's file stays."""
    with HostDisk(tree) as disk:
        reader = Reader(disk)
        at = reader.blocks("etc/motd")[0] * BLOCK_BYTES
        disk.write(at + 1000, b"written")
        assert disk.read(at, 1) == b"4"
        assert disk.read(at + 999, 9) == b"\0written\0"
        disk.write(at - 2 * BLOCK_BYTES, b"x" * 3 * BLOCK_BYTES)
        assert disk.read(at - 5, 10) == b"x" * 10
        assert disk.read(at + BLOCK_BYTES, 3) == bytes(3)
        assert disk.written_bytes == 3 * BLOCK_BYTES
    assert (tree / "etc/motd").read_text() == "4"


def test_nothing_is_left(tree: Path, tmp_path: Path) -> None:
    """The file that takes what is written has no name."""
    (tmp_path / "scratch").mkdir()
    with HostDisk(tree, scratch=tmp_path / "scratch") as disk:
        disk.write(0, bytes(1 << 20))
        assert list((tmp_path / "scratch").iterdir()) == []


def test_replaced_file_cannot_be_read(tree: Path) -> None:
    """A file that is another by now is an error, not another's content."""
    with HostDisk(tree) as disk:
        reader = Reader(disk)
        block = reader.blocks("etc/motd")[0]
        (tree / "etc/new").write_text("other")
        (tree / "etc/new").rename(tree / "etc/motd")
        with pytest.raises(OSError, match="Stale") as caught:
            disk.read(block * BLOCK_BYTES, BLOCK_BYTES)
        assert caught.value.errno == ESTALE


def test_file_that_has_shrunk(tree: Path) -> None:
    """What has gone from a file's end is zeros."""
    (tree / "etc/motd").write_bytes(b"x" * 10000)
    with HostDisk(tree) as disk:
        reader = Reader(disk)
        assert reader.content("etc/motd") == b"x" * 10000
        (tree / "etc/motd").write_bytes(b"y" * 5000)
        assert reader.content("etc/motd") == b"y" * 5000 + bytes(5000)


def test_host_is_not_written(tree: Path) -> None:
    """Access times of the host's files and folders stay as they are."""
    for path in (tree / "etc/motd", tree / "etc"):
        os.utime(path, (1, 1))
    with HostDisk(tree) as disk:
        assert Reader(disk).content("etc/motd") == b"4"
    assert (tree / "etc/motd").stat().st_atime == (tree / "etc").stat().st_atime == 1


def test_folder_that_has_gone(tree: Path) -> None:
    """A folder that cannot be listed is shown empty."""
    with HostDisk(tree) as disk:
        reader = Reader(disk)
        reader.find("home")
        (tree / "home").rename(tree / "house")
        assert reader.names(reader.find("home")) == {}


def test_bitmaps_agree_with_the_layout() -> None:
    """Every group's parts are whole blocks, and its bitmaps have a bit for each."""
    geometry = Geometry(4096)
    assert geometry.guest_blocks > 0
    assert geometry.guest_block % 8 == geometry.host_inodes % 8 == 0
    assert geometry.inode_number(geometry.inode_table, ROOT_INODE - 1) == ROOT_INODE
