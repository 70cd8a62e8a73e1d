"""A guest that has nothing but busybox and the disk, mounted on /disk, and runs a shell script."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.record._guest import Initramfs
from asikit.record._programs import find_busybox
from asikit.record._qemu import GuestMachine, RunningGuest
from asikit.record._streams import Streams
from asikit.record.disk import HostDisk, NbdServer
from asikit.record.kernel import find_kernel
from asikit.trace import ScratchFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PATIENCE_SECONDS = 600.0
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do [ -f $module ] && insmod $module; done
exec >/dev/ttyS2 2>/dev/ttyS2
stty raw </dev/ttyS2
mkdir /disk
{before}
mount -t ext4 -o {options} /dev/vda /disk
{script}
cd /
umount /disk
echo END OF SCRIPT
dmesg
sleep 1
poweroff -f
"""


@dataclass(frozen=True)
class Booted:
    """What became of it.

    :ivar text: What the script wrote.
    :ivar kernel: What the kernel said.
    """

    text: str
    kernel: str


class _Guest(RunningGuest):
    """A guest with the disk."""

    server: NbdServer
    text: Path

    def _command(self, ends: dict[str, int], bell: int) -> list[str]:
        command = super()._command(ends, bell)
        # The guest waits for its disk in the host's time; else its clock runs on by minutes meanwhile.
        command = [word.replace("sleep=off", "sleep=on") for word in command]
        return [*command, "-drive", self.server.drive, "-serial", f"file:{self.text}"]


def boot(
    kernel: Path,
    disk: HostDisk,
    folder: Path,
    script: str,
    *,
    options: str = HostDisk.mount_options,
    before: str = "",
    cpus: int = 1,
    served: Callable[[NbdServer], None] = lambda _: None,
) -> Booted:
    """Run a shell script in a guest.

    :param options: The mount's.
    :param before: Shell commands before the mount.
    :param served: Given the server when the guest has ended.
    """
    files = Initramfs()
    files.add_busybox(find_busybox())
    for number, (name, content) in enumerate(
        find_kernel(kernel, print).module_files(("virtio_pci", "virtio_blk", "ext4"))
    ):
        files.add(f"/modules/{number:03}-{name}.ko", content)
    files.add("/init", _INIT.format(options=options, before=before, script=script).encode(), mode=0o755)
    with NbdServer(disk, folder / "disk.socket") as server, ScratchFolder.temporary() as own:
        guest = _Guest(
            GuestMachine(kernel, 512 << 20, cpus, "quiet loglevel=1"),
            files.archive(),
            None,
            Streams.to(io.BytesIO(), io.BytesIO()),
            own,
        )
        guest.server = server
        guest.text = folder / "text"
        with guest:
            guest.stop_after(_PATIENCE_SECONDS)
            status = guest.wait()
            assert not status, guest.qemu_error()
        served(server)
    told, _, kernel_said = guest.text.read_bytes().decode(errors="surrogateescape").partition("END OF SCRIPT\n")
    return Booted(told, kernel_said)
