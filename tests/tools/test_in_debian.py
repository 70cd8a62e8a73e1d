"""``tools/in-debian``, with a made-up debootstrap whose Debian is a busybox."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.record.running import program

TOOL = Path(__file__).parents[2] / "tools/in-debian"

DEBOOTSTRAP = """echo "$@" >> {folder}/debootstrap.log
[ ! -e {folder}/broken ] || {{ mkdir -p "$3/dev"; echo 'E: Couldn'"'"'t download the packages'; exit 1; }}
for folder in bin dev proc sys tmp root etc/dpkg/dpkg.cfg.d etc/apt/apt.conf.d; do mkdir -p "$3/$folder"; done
cp {busybox} "$3/bin/busybox"
for name in sh cat ls env id mount sleep pwd; do ln -s busybox "$3/bin/$name"; done
printf '#!/bin/sh\\necho "$@" >> /apt.log\\n' > "$3/bin/apt-get"
chmod 755 "$3/bin/apt-get"
"""


class Tool:
    """A copy of the tool in a checkout of its own."""

    def __init__(self, folder: Path) -> None:
        """Make the checkout: a file that is committed, one that is not, one that git ignores."""
        self.folder = folder
        self.checkout = folder / "checkout"
        self.roots = folder / "cache/asikit/debian/roots"
        (self.checkout / "tools").mkdir(parents=True)
        shutil.copy(TOOL, self.checkout / "tools")
        git = str(shutil.which("git"))
        subprocess.run([git, "-C", str(self.checkout), "init", "--quiet"], check=True)
        (self.checkout / ".gitignore").write_text("ignored\n")
        for name in ("committed", "requirements.lock", "pyproject.toml", "tools/make-venv"):
            (self.checkout / name).write_text("1")
        subprocess.run([git, "-C", str(self.checkout), "add", "."], check=True)
        for name in ("new", "ignored"):
            (self.checkout / name).write_text(name)
        self.programs = folder / "programs"
        self.programs.mkdir()
        text = DEBOOTSTRAP.format(folder=folder, busybox=shutil.which("busybox"))
        program(self.programs / "debootstrap", text)
        self.environment = {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        return subprocess.run(
            [self.checkout / "tools/in-debian", *words],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )

    def prints(self, *words: str) -> str:
        """Run it, and give what the command printed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """Give the tool."""
    return Tool(tmp_path)


@pytest.mark.needs_git
@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ((), "tools/in-debian [--fresh] SUITE COMMAND...: SUITE is 12, 13, 14 or sid"),
        (("13",), "tools/in-debian [--fresh] SUITE COMMAND...: SUITE is 12, 13, 14 or sid"),
        (("11", "true"), "11 is no suite of Debian: 12, 13, 14 or sid"),
        (("../x", "true"), "../x is no suite of Debian: 12, 13, 14 or sid"),
        (("13", "true"), "tools/in-debian needs root, for debootstrap and chroot"),
    ],
)
def test_faults(tool: Tool, words: tuple[str, ...], fault: str) -> None:
    """What cannot be done is said in one line."""
    program(tool.programs / "id", "echo 1000")
    done = tool.run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {fault}\n")


@pytest.mark.needs_root
@pytest.mark.needs_busybox
@pytest.mark.needs_git
class TestAsRoot:
    """What is done in the root."""

    def test_root_is_made_once(self, tool: Tool) -> None:
        """A suite's root is made the first time, by the suite's name, with what the README asks for."""
        for suite in ("13", "trixie", "13"):
            tool.prints(suite, "true")
        (made,) = (tool.folder / "debootstrap.log").read_text().splitlines()
        assert made.split()[:2] == ["--variant=minbase", "trixie"]
        assert [path.name for path in sorted(tool.roots.iterdir())] == ["trixie", "trixie.lock"]
        assert (tool.roots / "trixie/apt.log").read_text().splitlines()[:2] == [
            "update",
            "install --no-install-recommends python3 python3-venv make gcc libc6-dev",
        ]

    def test_half_a_root_is_none(self, tool: Tool) -> None:
        """A root that could not be made is not there, and the reason is said and kept."""
        (tool.folder / "broken").touch()
        done = tool.run("sid", "true")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            f"error: debootstrap failed, see {tool.roots}/log: E: Couldn't download the packages"
        )
        assert [path.name for path in sorted(tool.roots.iterdir())] == ["log", "sid.lock"]
        (tool.folder / "broken").unlink()
        tool.prints("sid", "true")

    def test_checkout(self, tool: Tool) -> None:
        """The command finds this checkout's files as they are, but what git ignores, and its .venv of the last time."""
        names = ["committed", "pyproject.toml", "requirements.lock", "tools"]
        assert tool.prints("12", "ls", "-A").split() == sorted([".gitignore", "new", *names])
        tool.prints("12", "sh", "-c", "busybox mkdir .venv; echo kept > .venv/.asikit-installed; echo old > built")
        (tool.checkout / "committed").write_text("2")
        (tool.checkout / "new").unlink()
        assert tool.prints("12", "sh", "-c", "cat committed .venv/.asikit-installed; ls").split() == ["2kept", *names]
        (tool.checkout / "requirements.lock").write_text("2")
        assert tool.run("12", "cat", ".venv/.asikit-installed").returncode == 1

    def test_fresh(self, tool: Tool) -> None:
        """A fresh root has nothing in it, is for one command, and is gone with it."""
        done = tool.run("--fresh", "13", "sh", "-c", "ls / /asikit; exit 3")
        assert done.returncode == 3
        assert "committed" in done.stdout
        assert "apt.log" not in done.stdout
        assert list(tool.roots.iterdir()) == []

    def test_what_the_command_sees(self, tool: Tool) -> None:
        """The command has arguments as they were, an environment of its own, devices, and the ways into the network."""
        program(tool.programs / "apt-config", "echo 'Acquire::http::Proxy \"http://proxy:1\";'")
        tool.environment |= {"PYTHONPATH": "/here", "MAKEFLAGS": "-j", "PIP_INDEX_URL": "http://index", "HOME": "/here"}
        assert tool.prints("13", "sh", "-c", 'printf "<%s>" "$@"', "sh", "a b", "*") == "<a b><*>"
        words = tool.prints("13", "env").split("\n")
        assert {"HOME=/root", "PIP_INDEX_URL=http://index"} <= set(words)
        assert not [word for word in words if word.startswith(("PYTHONPATH", "MAKEFLAGS", "XDG"))]
        assert tool.prints("13", "sh", "-c", "echo x > /dev/null; cat /etc/resolv.conf /proc/self/comm").endswith(
            "cat\n"
        )
        assert "http://proxy:1" in tool.prints("13", "cat", "/etc/apt/apt.conf.d/90-of-the-host")

    def test_nothing_stays_mounted(self, tool: Tool) -> None:
        """While the command runs nobody else sees its mounts, and they end with it, also when it is killed."""
        words = [str(tool.checkout / "tools/in-debian"), "13", "sh", "-c", "echo ready; exec sleep 600"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=tool.environment) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == b"ready\n"
            assert str(tool.folder) not in Path("/proc/self/mounts").read_text()
            assert "tmpfs /tmp tmpfs" in Path(f"/proc/{running.pid}/mounts").read_text()
            running.send_signal(signal.SIGINT)
            assert running.wait(60) == -signal.SIGINT
