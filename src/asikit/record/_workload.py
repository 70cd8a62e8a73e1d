"""What the guest is given: files, the workload's command, and as whom and where it runs."""

from __future__ import annotations

import os
import pwd
import resource
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.record._build import mark_command
from asikit.record._programs import find_busybox, find_program, missing_program, workload_files
from asikit.record._root import GUEST_PATH, find_in_root, hidden_paths, kernel_mounts, place_for
from asikit.record.disk import ExtraFile, HostDisk
from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asikit.record._guest import Initramfs
    from asikit.record.recording import Recording

__all__ = ["Workload", "prepare_workload"]

_TMP = "/tmp"  # noqa: S108  the guest's
_LIMITS = (
    resource.RLIMIT_CORE,
    resource.RLIMIT_DATA,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_MEMLOCK,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_STACK,
)
"""Limits that programs go by. Those on address space, CPU time and processes are of this machine, not of the guest."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What the guest is given for the workload.

    :ivar words: For its init.
    :ivar disk: Its root file system; None: the initramfs is.
    """

    words: list[str] = field(default_factory=list)
    disk: HostDisk | None = None


def prepare_workload(recording: Recording, files: Initramfs, own: Iterable[Path] = ()) -> Workload:
    """Find the workload's program, add the files that it needs, and say how it is to be run.

    :param own: Files and folders of the recording itself, which the guest does not see.
    :raises RecordError: Something that the workload needs is not there.
    """
    if recording.bare:
        return Workload(list(_bare(recording, files)))
    if recording.include:
        raise RecordError("--include is for --bare; without it the guest sees all files of this machine or of --root")
    root = recording.root or Path("/")
    if root.resolve() != Path("/"):
        program = find_in_root(root, recording.command[0])
        words = [*_clean_environment(recording), "tmpfs", _TMP, *_command(program, recording)]
        return Workload(words, HostDisk(root, extra=_mark_command(root, _guest_path(recording))))
    path = _path_here(recording)
    _check_here(recording.command[0], path)
    hidden = [*hidden_paths(recording.show), *own]
    disk = HostDisk(root, hidden=hidden, empty=kernel_mounts(), extra=_mark_command(root, path))
    return Workload([*_as_here(recording), *_command(recording.command[0], recording)], disk)


def _bare(recording: Recording, files: Initramfs) -> Iterator[str]:
    found, needed = workload_files(recording.command[0])
    for path in needed:
        files.add_host_file(path)
    for path in recording.include:
        files.add_host_tree(path.absolute())
    files.add_busybox(find_busybox())
    mark = mark_command()
    if not any(f"{folder}/{mark.name}" in files for folder in GUEST_PATH):
        files.add(f"/bin/{mark.name}", mark.read_bytes(), mode=0o755)
    if files.empty(_TMP):
        yield from ("tmpfs", _TMP)
    yield from _clean_environment(recording)
    yield from _command(str(found) if found else f"/bin/{recording.command[0]}", recording)


def _mark_command(root: Path, path: str | None) -> dict[str, ExtraFile]:
    """Give the command with which a script marks its phases, where the guest is to see it."""
    mark = mark_command()
    place = place_for(mark.name, root, path)
    return {} if place is None else {place: ExtraFile(mark.read_bytes(), 0o755)}


def _command(program: str, recording: Recording) -> Iterator[str]:
    for argument in (program, *recording.command[1:]):
        yield from ("arg", argument)


def _clean_environment(recording: Recording, home: str = "/root") -> Iterator[str]:
    yield from _environment({"PATH": ":".join(GUEST_PATH), "HOME": home, **dict(recording.environment)})


def _environment(variables: dict[str, str]) -> Iterator[str]:
    for name, value in variables.items():
        yield from ("env", f"{name}={value}")


def _as_here(recording: Recording) -> Iterator[str]:
    """Run it as this user, here, with this environment and these limits."""
    yield from ("host-name", socket.gethostname())
    yield from ("uid", str(os.getuid()), "gid", str(os.getgid()))
    for group in os.getgroups():
        yield from ("group", str(group))
    yield from ("cwd", _directory())
    yield from ("umask", f"{_umask():o}")
    for limit in _LIMITS:
        soft, hard = resource.getrlimit(limit)
        yield from ("limit", f"{limit} {soft} {hard}")
    if recording.clean_environment:
        yield from _clean_environment(recording, home=pwd.getpwuid(os.getuid()).pw_dir)
    else:
        yield from _environment(_inherited(recording) | dict(recording.environment))


def _inherited(recording: Recording) -> dict[str, str]:
    return dict(os.environ if recording.inherited is None else recording.inherited)


def _directory() -> str:
    try:
        return str(Path.cwd())
    except OSError as error:
        raise RecordError(f"the current directory is gone ({error.strerror}); change to another") from error


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _guest_path(recording: Recording) -> str:
    """Give the ``PATH`` of a clean environment."""
    return dict(recording.environment).get("PATH", ":".join(GUEST_PATH))


def _path_here(recording: Recording) -> str | None:
    """Give the ``PATH`` of a workload that runs as here."""
    if recording.clean_environment:
        return _guest_path(recording)
    return (_inherited(recording) | dict(recording.environment)).get("PATH")


def _check_here(command: str, path: str | None) -> None:
    """Look for the workload's program as a shell would, before anything boots; init will find it in the same way.

    :raises RecordError: There is none, or it cannot be executed.
    """
    if find_program(command, path) is None:
        raise missing_program(command)
