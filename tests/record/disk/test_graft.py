"""A folder of the host that the guest sees at another place."""

from __future__ import annotations

from pathlib import Path

from asikit.record.disk.tree import HostTree


def _tree(tmp_path: Path) -> HostTree:
    (tmp_path / "root/usr/lib/modules/old").mkdir(parents=True)
    (tmp_path / "root/usr/lib/file").write_text("root's\n")
    (tmp_path / "elsewhere/kernel/fs").mkdir(parents=True)
    (tmp_path / "elsewhere/kernel/fs/one.ko").write_text("a module\n")
    return HostTree(tmp_path / "root", hidden=(), empty=(), extra={})


def _names(tree: HostTree, path: bytes) -> list[bytes]:
    """List a folder as a guest does, which has looked at all folders above it."""
    entries = tree.entries(b"", tree.root().identity)
    at = b""
    for name in path.split(b"/"):
        (entry,) = [entry for entry in entries if entry.name == name]
        at = at + b"/" + name if at else name
        entries = tree.entries(at, entry.identity)
    return [entry.name for entry in entries]


def test_graft_is_shown_beside_what_is_there(tmp_path: Path) -> None:
    """Folders above a graft have their own entries, too; those below are its own."""
    tree = _tree(tmp_path)
    tree.graft(Path("/usr/lib/modules/new"), tmp_path / "elsewhere")
    assert _names(tree, b"usr/lib") == [b"file", b"modules"]
    assert _names(tree, b"usr/lib/modules") == [b"new", b"old"]
    assert _names(tree, b"usr/lib/modules/new/kernel/fs") == [b"one.ko"]
    (entry,) = tree.entries(b"usr/lib/modules/new/kernel/fs", (0, 0))
    assert entry.identity is not None
    with open(tree.open(b"usr/lib/modules/new/kernel/fs/one.ko", entry.identity)) as file:  # noqa: PTH123  (a descriptor)
        assert file.read() == "a module\n"


def test_graft_where_the_host_has_no_folder(tmp_path: Path) -> None:
    """The folders that lead to it are made up."""
    tree = _tree(tmp_path)
    tree.graft(Path("/opt/here/there"), tmp_path / "elsewhere")
    assert _names(tree, b"opt/here") == [b"there"]
    assert _names(tree, b"opt/here/there/kernel") == [b"fs"]


def test_graft_that_has_gone(tmp_path: Path) -> None:
    """The folder above is shown without it."""
    tree = _tree(tmp_path)
    tree.graft(Path("/usr/lib/modules/new"), tmp_path / "gone")
    assert _names(tree, b"usr/lib/modules") == [b"old"]
