"""What the guest sees of this machine, or of a folder that becomes its root file system."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

from asikit.record._links import follow
from asikit.record.errors import RecordError

__all__ = [
    "GUEST_PATH",
    "MODULES",
    "NETWORK_MODULES",
    "find_in_root",
    "hidden_paths",
    "kernel_mounts",
    "module_place",
    "place_for",
]

GUEST_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where the guest looks for programs."""

_USUAL = ("/usr/bin", "/bin")
"""Folders that are in every ``PATH``."""

MODULES = ("virtio_pci", "virtio_blk", "ext4")
"""What the guest needs to mount its disk."""

NETWORK_MODULES = ("virtio_pci", "virtio_net")

_KERNEL_TYPES = frozenset((
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
    "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs",
    "tracefs",
))  # fmt: skip
"""File systems of the kernel's own, which hold no files."""

_OF_WHAT_RUNS = (Path("/run/systemd"), Path("/run/udev"))
"""By these programs know that systemd or udev runs, and leave work to it; in the guest neither does."""

_MOUNT_POINT = 4
"""Which word of a line of mountinfo it is (Documentation/filesystems/proc.rst, 3.5)."""

_CREDENTIALS = (
    ".ssh", ".gnupg", ".password-store", ".local/share/keyrings", ".local/share/kwalletd", ".pki", ".netrc", ".pgpass",
    ".git-credentials", ".config/git/credentials", ".config/gh", ".config/gcloud", ".config/rclone", ".aws", ".azure",
    ".kube", ".docker/config.json", ".config/containers/auth.json", ".cargo/credentials.toml", ".npmrc", ".pypirc",
    ".vault-token", ".mozilla", ".thunderbird", ".config/google-chrome", ".config/chromium", ".config/BraveSoftware",
    ".config/microsoft-edge", ".config/opera", ".config/vivaldi", "snap/firefox", "snap/chromium",
)  # fmt: skip
"""Where programs keep keys, passwords and tokens, below a home folder."""


def kernel_mounts() -> list[Path]:
    """Give the folders of this machine that are its running system's, not files.

    The guest's kernel has its own of most; some a look at would mount.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        mounts = []
    found = {Path("/proc"), Path("/sys"), Path("/dev"), *_OF_WHAT_RUNS}
    for line in mounts:
        before, _, behind = line.partition(b" - ")
        if behind.split()[0].decode() in _KERNEL_TYPES:
            found.add(Path(os.fsdecode(_unescaped(before.split()[_MOUNT_POINT]))))
    return sorted(path for path in found if not any(parent in found for parent in path.parents))


def hidden_paths(shown: tuple[Path, ...] = ()) -> list[Path]:
    """Give the files and folders with credentials in the usual places, of all users, but for what is asked for."""
    homes = {Path.home(), *(Path(user.pw_dir) for user in pwd.getpwall())}
    paths = [home / name for home in sorted(homes) for name in _CREDENTIALS]
    asked = [Path(os.path.abspath(path.expanduser())) for path in shown]  # noqa: PTH100  (links as they are)
    return [path for path in paths if not any(path.is_relative_to(one) or one.is_relative_to(path) for one in asked)]


def module_place(root: Path, release: str) -> Path:
    """Give the folder, as the guest will see it, where modprobe looks for a kernel's modules."""
    folder = _inside(root, "/lib/modules")
    return Path("/lib/modules" if folder is None else f"/{folder.relative_to(root)}") / release


def place_for(name: str, root: Path, path: str | None) -> str | None:
    """Give the path, as the guest will see it, of a program of ours that the workload is to find by its name.

    :param path: The workload's ``PATH``.
    :return: None: there is one of the user's by that name, or no folder.
    """
    folders = [folder for folder in (path or os.defpath).split(":") if folder.startswith("/")]
    if any(os.path.lexists(found) for folder in folders if (found := _inside(root, f"{folder}/{name}"))):
        return None
    # Where it is found, too, when a script sets a PATH of its own.
    usual = [folder for folder in _USUAL if folder in folders]
    there = [folder for folder in (*usual, *reversed(folders)) if (found := _inside(root, folder)) and found.is_dir()]
    return f"{there[0]}/{name}" if there else None


def _unescaped(path: bytes) -> bytes:
    """Read a path of mountinfo, where blanks and backslashes are octal numbers (``mangle()``, fs/proc_namespace.c)."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), path)


def find_in_root(root: Path, command: str) -> str:
    """Find the workload's program inside a root, and give its path there.

    :raises RecordError: The root is not a folder, or has no such program.
    """
    if not root.is_dir():
        raise RecordError(f"--root {root}: no such folder")
    paths = [f"/{command.lstrip('/')}"] if "/" in command else [f"{folder}/{command}" for folder in GUEST_PATH]
    for path in paths:
        found = _inside(root, path)
        if found is not None and found.is_file() and os.access(found, os.X_OK):
            return path
    raise RecordError(f"--root {root} has no program {command!r}; there is no {' or '.join(paths)} in it")


def _inside(root: Path, path: str) -> Path | None:
    """Follow a path as the guest will, whose ``/`` is the root: its absolute links stay inside."""

    def target(here: str) -> str | None:
        on_host = root / here.lstrip("/")
        return str(on_host.readlink()) if on_host.is_symlink() else None

    try:
        return root / follow(path, target).lstrip("/")
    except OSError:
        return None
