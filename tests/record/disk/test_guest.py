"""Linux' own ext4 driver on the disk: it sees what the host has, and keeps what it writes."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from asikit.record._programs import find_busybox
from asikit.record.disk import HostDisk
from tests.record.disk.booting import boot
from tests.record.disk.trees import MANY, make_tree
from tests.record.disk.whole import complaints, write_image
from tests.record.kernels import debian_kernel

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_busybox,
    pytest.mark.needs_apt,
    pytest.mark.needs_mke2fs,
    pytest.mark.slow,
]

OURS = HostDisk.mount_options
KNOWN_TO_ALL = "inode_readahead_blks=0"
"""What the guest's init leaves of the options on a kernel that does not know the last, as 5.10."""

LOOK = """
find . | wc -l
find . -type f ! -name sparse -print0 | sort -z | xargs -0 sha256sum | sha256sum
find . ! -type d -print0 | sort -z | xargs -0 stat -c '%n %f %u %g %s %Y %Z %h %t %T' | sha256sum
find . -type d -print0 | sort -z | xargs -0 stat -c '%n %f %u %g %Y %Z' | sha256sum
find . -type l -print0 | sort -z | xargs -0 -n1 readlink | sha256sum
dd if=sparse bs=1M skip=3071 2>/dev/null | sha256sum
"""
"""What a host and a guest must answer alike. Access times change as one looks, and folders have sizes of their own."""

CHANGE = """
mkdir new
for i in $(seq 2000); do echo $i > new/file$i; done
for i in $(seq 300); do echo $i > "many/another $i"; done
rm many/entry*1*of*
mv files/4096 folders/7/
ln files/4095 new/hard
rm -r deep folders/1* names files/1048576
rm "a second name" stripes
mkdir dirs
for i in $(seq 150); do mkdir dirs/$i; done
dd if=/dev/zero of=big bs=1M count=40 2>/dev/null
echo end >> big
echo more >> files/4097
echo x > special/none
rmdir special/shared
seq 100000 > seq
mkdir -p "long way/to the/bottom"
"""

SUMMARY = """
find . -type f ! -name sparse -print0 | sort -z | xargs -0 sha256sum
find . ! -type d -print0 | sort -z | xargs -0 stat -c '%n %f %u %g %s %h %t %T'
"""


@pytest.mark.parametrize(
    ("series", "cpus", "options"),
    [
        ("5.10", 1, KNOWN_TO_ALL),
        ("6.1", 1, OURS),
        ("6.1", 2, "rw"),
        ("7.3", 1, OURS),
    ],
)
def test_linux_sees_the_host(tmp_path: Path, series: str, cpus: int, options: str) -> None:
    """What the guest sees is the host's; after changes and another mount, what a copy with the same changes has.

    With Linux' own options it reads much ahead of what refers to it.
    """
    tree, copy = tmp_path / "tree", tmp_path / "copy"
    make_tree(tree)
    make_tree(copy)
    script = f"cd /disk\n{LOOK}\n{CHANGE}\ncd /; umount /disk; mount -t ext4 /dev/vda /disk; cd /disk\n{SUMMARY}"
    with HostDisk(tree, scratch=tmp_path, groups=64) as disk:
        booted = boot(debian_kernel(series), disk, tmp_path, script, cpus=cpus, options=options)
        write_image(disk, tmp_path / "image")
    assert "EXT4-fs (vda): mounted" in booted.kernel
    assert [line for line in booted.kernel.splitlines() if "EXT4-fs" in line and "mount" not in line] == []
    assert booted.text == _on_host(tree, LOOK) + _on_host(copy, f"{CHANGE}\n{SUMMARY}")
    assert complaints(tmp_path / "image") == []
    assert len(list((tree / "many").iterdir())) == MANY  # the host's are as they were


def _on_host(folder: Path, script: str) -> str:
    done = subprocess.run(
        [find_busybox(), "sh", "-c", f"PATH={_applets(folder.parent)}\n{script}"],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.decode(errors="surrogateescape")


def _applets(folder: Path) -> Path:
    """Make a folder of busybox' applets, so that the host's programs and the guest's are the same."""
    applets = folder / "applets"
    if not applets.exists():
        applets.mkdir()
        for name in subprocess.run(
            [find_busybox(), "--list"], capture_output=True, text=True, check=True
        ).stdout.split():
            (applets / name).symlink_to(find_busybox())
    return applets
