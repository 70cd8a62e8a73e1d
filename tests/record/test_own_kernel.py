"""A kernel that was built from a tree: its image and modules lie there, and nothing is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.record import Recording, find_kernel
from asikit.trace import Trace
from tests.record.conftest import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.needs_qemu
@pytest.mark.needs_busybox
@pytest.mark.needs_cc
def test_kernel_and_modules_of_a_tree(tmp_path: Path) -> None:
    """The kernel boots from arch/x86/boot, and loads modules of the tree that are not compressed."""
    distribution = find_kernel(None, print)
    image = tmp_path / "linux/arch/x86/boot/bzImage"
    image.parent.mkdir(parents=True)
    image.write_bytes(distribution.image.read_bytes())
    for name, content in distribution.module_files(["overlay"]):
        path = tmp_path / f"linux/fs/{name}/{name}.ko"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    recording = Recording(
        ("grep", "overlay", "/proc/filesystems"),
        kernel=image,
        module_folder=tmp_path / "linux",
        modules=("overlay",),
        bare=True,
    )
    made = run(recording, tmp_path / "t.asitrace")
    assert made.out == "nodev\toverlay\n"
    assert Trace.open(made.trace).meta["kernel"]["release"] == distribution.release
