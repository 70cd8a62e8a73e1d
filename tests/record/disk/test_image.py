"""The made-up file system as e2fsprogs sees it."""

from __future__ import annotations

import os
import re
import stat
from itertools import chain
from pathlib import Path

import pytest

from asikit.record.disk import HostDisk
from asikit.record.disk.name_hash import SEED, name_hash
from tests.record.disk.trees import make_tree
from tests.record.disk.whole import complaints, debugfs, write_image

pytestmark = pytest.mark.needs_mke2fs

PIECE = 1 << 22


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder with one of everything."""
    folder = tmp_path_factory.mktemp("host") / "tree"
    make_tree(folder)
    return folder


@pytest.fixture(scope="module")
def image(tree: Path) -> Path:
    """Give its disk as a file."""
    path = tree.parent / "image"
    with HostDisk(tree, groups=16) as disk:
        write_image(disk, path)
    return path


def test_file_system_is_sound(image: Path) -> None:
    """e2fsck has nothing to say: inodes, extent trees, directories and their indexes, connections, link counts."""
    assert complaints(image) == []


def _same(path: Path, other: Path) -> bool:
    """Compare two files, in pieces with which the gigabytes of a sparse one take little time."""
    with path.open("rb") as one, other.open("rb") as two:
        while (piece := one.read(PIECE)) == two.read(PIECE):
            if not piece:
                return True
    return False


def test_content(tree: Path, image: Path, tmp_path: Path) -> None:
    """What debugfs copies out of the image is what is in the folder, sparse files and hard links too."""
    debugfs(image, f"rdump / {tmp_path}")
    # Not Path.rglob: until Python 3.11.4 it fails at a link whose target is too long for a path.
    for path in (Path(folder, name) for folder, *names in os.walk(tree) for name in chain(*names)):
        copy = tmp_path / path.relative_to(tree)
        if path.is_symlink():
            assert copy.readlink() == path.readlink()
        elif path.is_file():
            assert _same(path, copy)
        elif path.is_dir() and path.name != "special":  # debugfs does not copy FIFOs and the like
            assert sorted(path.iterdir()) == sorted(path / name.name for name in copy.iterdir())


def test_attributes(tree: Path, image: Path) -> None:
    """Types, permissions, owners, sizes, links and times to the nanosecond are the host's."""
    for path in [*(tree / "special").iterdir(), tree / "link-4000", tree / "sparse", tree / "files"]:
        told = debugfs(image, f'stat "/{path.relative_to(tree)}"')
        status = path.lstat()
        expected = {
            "Mode": f"{stat.S_IMODE(status.st_mode):05o}",
            "User": str(status.st_uid),
            "Group": str(status.st_gid - (status.st_gid >> 31 << 32)),  # debugfs shows it with a sign
            "Links": str(status.st_nlink),
        }
        found = {name: re.findall(rf"{name}: +(\S+)", told)[0] for name in expected}
        assert {**found, "Mode": found["Mode"].zfill(5)} == expected
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        low, extra = re.findall(r"mtime: 0x([0-9a-f]+):([0-9a-f]+)", told)[0]
        assert int(extra, 16) >> 2 == nanoseconds
        signed = int.from_bytes(bytes.fromhex(low), signed=True)
        assert signed + ((int(extra, 16) & 3) << 32) == seconds
        if not stat.S_ISDIR(status.st_mode):
            assert f"Size: {status.st_size}\n" in told or stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)


@pytest.mark.needs_root
def test_devices(image: Path) -> None:
    """Device numbers are the host's, small and large."""
    assert "Device major/minor number: 01:03" in debugfs(image, "stat /special/null")
    assert "(New-style) Device major/minor number: 300:70000" in debugfs(image, "stat /special/large")


def test_hard_links(image: Path) -> None:
    """All names of a file lead to one inode."""
    names = ("/files/4097", "/a second name", "/files/a third name")
    assert len({re.findall(r"Inode: (\d+)", debugfs(image, f'stat "{name}"'))[0] for name in names}) == 1


def test_holes(tree: Path, image: Path) -> None:
    """A sparse file takes the blocks that it has on the host, not those of its size."""
    blocks = int(re.findall(r"Blockcount: (\d+)", debugfs(image, "stat /sparse"))[0])
    assert blocks == (tree / "sparse").stat().st_blocks


def test_extent_tree(image: Path) -> None:
    """A file in a thousand pieces has an extent tree, of a level."""
    assert debugfs(image, "stat /stripes").count("(ETB0)") == 3


@pytest.mark.parametrize("name", ["a", "x" * 31, "x" * 32, "x" * 33, "y" * 255, "ünïcödé", "entry number 1234 of many"])
def test_hash_of_names(image: Path, name: str) -> None:
    """The hash is e2fsprogs'."""
    seed = b"".join(word.to_bytes(4, "little") for word in SEED).hex()
    uuid = "-".join((seed[:8], seed[8:12], seed[12:16], seed[16:20], seed[20:]))
    told = debugfs(image, f'dx_hash -h half_md4 -s {uuid} "{name}"')
    assert re.findall(r"is (0x[0-9a-f]+)", told) == [f"{name_hash(name.encode()):#x}"]


def test_index_of_two_levels(tmp_path: Path) -> None:
    """A folder that is too large for one level of index has two."""
    (tmp_path / "tree/lost+found").mkdir(parents=True)
    folder = tmp_path / "tree/folder"
    folder.mkdir()
    (folder / "0").touch()
    for number in range(1, 9000):
        os.link(folder / "0", folder / f"{number:0250}")
    with HostDisk(tmp_path / "tree", groups=16) as disk:
        write_image(disk, tmp_path / "image")
    assert complaints(tmp_path / "image") == []
    assert "Indirect levels: 1" in debugfs(tmp_path / "image", "htree_dump /folder")
    assert f"{8999:0250}" in debugfs(tmp_path / "image", "ls /folder")
