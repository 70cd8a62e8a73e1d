"""``tools/debian-kernel``, with a made-up apt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.record.archive import Archive
from tests.record.kernels import bzimage
from tests.record.running import program

TOOL = Path(__file__).parents[2] / "tools/debian-kernel"


class Tool:
    """The tool, on a machine with a made-up archive."""

    def __init__(self, folder: Path) -> None:
        """Begin with an archive that has nothing."""
        self.archive = Archive(folder)
        self.kernels = folder / "cache/asikit/debian/kernels"
        program(
            self.archive.programs / "apt-config",
            "echo 'Acquire::http::Proxy \"http://proxy:1\";'; echo 'APT::Other \"1\";'",
        )
        (folder / "keyring").touch()
        self._environment = {
            **os.environ,
            "PATH": f"{self.archive.programs}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "DEBIAN_KEYRING": str(folder / "keyring"),
        }

    def add(self, *names: str) -> None:
        """Add kernels that are one package: ``6.12.9+deb13-cloud-amd64``."""
        for name in names:
            bzimage(self.archive.add(f"linux-image-{name}") / f"boot/vmlinuz-{name}", name)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        return subprocess.run([TOOL, *words], capture_output=True, text=True, check=False, env=self._environment)

    def images(self, *words: str) -> list[str]:
        """Run it, and give the images below the folder of kernels."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return [str(Path(line).relative_to(self.kernels)) for line in done.stdout.splitlines()]


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """Give the tool."""
    return Tool(tmp_path)


def test_newest_of_a_series_and_flavour(tool: Tool) -> None:
    """Of a series the newest version is taken, of the flavour that was asked for; one before its release if need be."""
    tool.add("6.1.0-9-cloud-amd64", "6.1.0-13-cloud-amd64", "6.1.0-0.deb11.48-cloud-amd64", "6.1.0-13-rt-amd64")
    tool.add("6.12.9+deb13-amd64", "6.12.118+deb13-amd64", "6.12.117+deb12-amd64", "6.12.118+deb13-cloud-amd64")
    tool.add("6.12-amd64", "6.16.1+deb13-amd64", "7.4-cloud-amd64", "61.1.9+deb13-cloud-amd64")
    assert tool.images("6.1", "6.1-rt", "6.12-generic", "7.4", "6.12-cloud") == [
        "6.1-cloud/boot/vmlinuz-6.1.0-13-cloud-amd64",
        "6.1-rt/boot/vmlinuz-6.1.0-13-rt-amd64",
        "6.12-generic/boot/vmlinuz-6.12.118+deb13-amd64",
        "7.4-cloud/boot/vmlinuz-7.4-cloud-amd64",
        "6.12-cloud/boot/vmlinuz-6.12.118+deb13-cloud-amd64",
    ]


def test_kernel_in_parts(tool: Tool) -> None:
    """The image comes out of whichever package has it, with its modules beside it; modules that are gone are told."""
    release = "7.2.13+deb14-cloud-amd64"
    folder = f"usr/lib/modules/{release}"
    tool.archive.add(
        f"linux-image-{release}", f"dracut | initramfs-tools, linux-binary-{release}, linux-modules-{release} (= 1)"
    )
    bzimage(tool.archive.add(f"linux-binary-{release}", f"linux-base-{release}") / folder / "vmlinuz", release)
    done = tool.run("7.2")
    assert done.stdout == f"{tool.kernels}/7.2-cloud/{folder}/vmlinuz\n"
    assert f"linux-image-{release}: its modules are no longer in Debian's suites" in done.stderr
    (tool.archive.add(f"linux-modules-{release}") / folder / "kernel").mkdir(parents=True)
    (tool.archive.add(f"linux-base-{release}") / folder).mkdir(parents=True)
    done = tool.run("--update", "7.2")
    assert (tool.kernels / "7.2-cloud" / folder / "kernel").is_dir()
    assert "no longer" not in done.stderr


def test_cache(tool: Tool) -> None:
    """What is in the cache is given without the network; ``--update`` looks for a newer one."""
    tool.add("6.1.0-9-cloud-amd64")
    first = tool.images("6.1")
    tool.add("6.1.0-13-cloud-amd64")
    program(tool.archive.programs / "apt-get", "exit 1")
    assert tool.images("6.1") == first
    assert tool.run("--update", "6.1").returncode == 1
    assert tool.images("6.1") == first


def test_own_apt(tool: Tool, tmp_path: Path) -> None:
    """Its apt is not the machine's, but goes the machine's ways into the network."""
    tool.add("6.1.0-9-cloud-amd64")
    tool.images("6.1")
    text = (tmp_path / "cache/asikit/debian/apt/apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://proxy:1";' in text
    assert "APT::Other" not in text
    assert f'Dir::State::lists "{tmp_path}/cache/asikit/debian/apt/lists";' in text


@pytest.mark.parametrize(
    ("name", "apt_get", "fault"),
    [
        ("6.2", "", "Debian's suites have no cloud kernel 6.2 (any more); they have 6.1 6.12"),
        ("6.1-rt", "", "Debian's suites have no rt kernel 6.1 (any more); they have 6.1 6.12"),
        ("6.1-fast", "", "6.1-fast: the flavours are cloud, generic and rt"),
        (
            "6.1",
            "[ $1 = update ] || { echo 'E: Failed to fetch: 404' >&2; exit 100; }",
            "linux-image-6.1.0-9-cloud-amd64 could not be downloaded: E: Failed to fetch: 404",
        ),
        ("6.12", "", "linux-image-6.12.1+deb13-cloud-amd64 and what it depends on have no kernel in them"),
    ],
)
def test_faults(tool: Tool, name: str, apt_get: str, fault: str) -> None:
    """What cannot be had ends with one line that says so, and leaves nothing."""
    tool.add("6.1.0-9-cloud-amd64")
    tool.archive.add("linux-image-6.12.1+deb13-cloud-amd64")
    if apt_get:
        program(tool.archive.programs / "apt-get", apt_get)
    done = tool.run(name)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (1, "", f"error: {fault}")
    assert list(tool.kernels.iterdir()) == []


def test_no_lists(tool: Tool) -> None:
    """Without the network it says what apt said."""
    program(tool.archive.programs / "apt-get", "echo 'W: Could not resolve the host' >&2")
    done = tool.run("6.1")
    assert done.stderr.splitlines()[-1] == "error: no package lists: W: Could not resolve the host"
