"""A made-up machine without a kernel, whose apt has made-up packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.record.kernels import bzimage, module
from tests.record.running import program

if TYPE_CHECKING:
    from pathlib import Path

CLOUD = "linux-image-cloud-amd64"

_APT_CACHE = """cd {lists}
if [ "$1" = pkgnames ]; then
    ls | grep "^$2"
    exit 0
fi
shift 2
status=100
for name; do
    if [ -e "$name" ]; then
        cat "$name"
        echo
        status=0
    else
        echo "N: Unable to locate package $name" >&2
    fi
done
[ $status = 0 ] || echo 'E: No packages found' >&2
exit $status"""
"""As apt does: what is not known is left out, and nothing known is a failure."""

_APT_GET = """[ "$1" = download ] || exit 0
shift
for name; do
    echo "$name" > "$name"_1_amd64.deb
done"""


class Archive:
    """A machine without a kernel, its programs, and the packages that its apt knows."""

    def __init__(self, folder: Path) -> None:
        """Begin with an apt that knows nothing."""
        self.machine, self.programs = folder / "machine", folder / "programs"
        self.cache = folder / "cache/asikit/kernels"
        self._lists, self._files = folder / "lists", folder / "files"
        for made in (self.machine, self.programs, self._lists, self._files):
            made.mkdir()
        program(self.programs / "apt-cache", _APT_CACHE.format(lists=self._lists))
        program(self.programs / "apt-get", _APT_GET)
        program(self.programs / "dpkg-deb", f'mkdir -p "$3"; cp -r "{self._files}/$(cat "$2")/." "$3"')

    def add(self, package: str, depends: str = "", size: int = 1_000_000) -> Path:
        """Add a package, and give the folder for its files."""
        fields = {"Package": package, "Version": "1", "Depends": depends, "Size": str(size), "Description": "Linux"}
        lines = [f"{name}: {value}" for name, value in fields.items() if value]
        (self._lists / package).write_text("\n".join(lines) + "\n")
        (self._files / package).mkdir()
        return self._files / package


def debian_12(archive: Archive) -> str:
    """Add the packages as Debian 12 has them: all in one. Give the release."""
    release = "6.1.0-56-cloud-amd64"
    archive.add(CLOUD, f"linux-image-{release} (= 6.1.192-2)", 1500)
    files = archive.add(f"linux-image-{release}", "kmod, linux-base (>= 4.3~), initramfs-tools | linux-initramfs-tool")
    bzimage(files / f"boot/vmlinuz-{release}", release)
    module(files / f"lib/modules/{release}/kernel/fs", "overlay")
    return release


def debian_13(archive: Archive) -> str:
    """Add the packages as Debian 13 has them: the modules below /usr. Give the release."""
    release = "6.12.118+deb13-cloud-amd64"
    archive.add(CLOUD, f"linux-image-{release} (= 6.12.118-1)", 1500)
    files = archive.add(f"linux-image-{release}", "kmod, initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool")
    bzimage(files / f"boot/vmlinuz-{release}", release)
    module(files / f"usr/lib/modules/{release}/kernel/fs", "overlay")
    return release


def sid(archive: Archive) -> str:
    """Add the packages as sid has them: the image, the modules and what is built in apart. Give the release."""
    release = "7.2.13+deb14-cloud-amd64"
    parts = ", ".join(f"linux-{part}-{release} (= 7.2.13-1)" for part in ("base", "binary", "modules"))
    archive.add(CLOUD, f"linux-base-cloud-amd64 (= 7.2.13-1), linux-image-{release} (= 7.2.13-1)", 1500)
    archive.add("linux-base-cloud-amd64", f"linux-base-{release} (= 7.2.13-1)", 1500)
    archive.add(f"linux-image-{release}", f"dracut | initramfs-tools | linux-initramfs-tool, {parts}", 1500)
    folder = f"usr/lib/modules/{release}"
    (archive.add(f"linux-base-{release}") / folder).mkdir(parents=True)
    bzimage(archive.add(f"linux-binary-{release}", f"linux-base-{release}") / folder / "vmlinuz", release)
    module(archive.add(f"linux-modules-{release}", f"kmod, linux-base-{release}") / folder / "kernel/fs", "overlay")
    return release
