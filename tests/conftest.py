"""Which tests are left out, why, and how that is said."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import hypothesis
import pytest

from tests.once import Once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xdist.workermanage import WorkerController

# Marker, the programs of which one must be there, and the Debian package that has it.
_NEEDS: Final = {
    "needs_qemu": (("qemu-system-x86_64",), "qemu-system-x86"),
    "needs_qemu_io": (("qemu-io",), "qemu-utils"),
    "needs_busybox": (("busybox",), "busybox-static"),
    "needs_cpio": (("cpio",), "cpio"),
    "needs_fio": (("fio",), "fio"),
    "needs_mke2fs": (("mke2fs", "/sbin/mke2fs"), "e2fsprogs"),
    "needs_git": (("git",), "git"),
    "needs_apt": (("apt-get",), "apt"),
    "needs_zstd": (("zstd",), "zstd"),
    "needs_kmod": (("modprobe", "/sbin/modprobe"), "kmod"),
    "needs_make": (("make",), "make"),
    "needs_sqlite3": (("sqlite3",), "sqlite3"),
    "needs_ip": (("ip",), "iproute2"),
    "needs_ps": (("ps",), "procps"),
    "needs_go": (("go",), "golang-go"),
    "needs_chromium": (("chromium", "chromium-browser", "google-chrome"), "chromium"),
    "needs_zsh": (("zsh",), "zsh"),
    "needs_fish": (("fish",), "fish"),
    "needs_mandoc": (("mandoc",), "mandoc"),
    "needs_cc": (("cc", "gcc", "clang"), "gcc"),
}

_REQUIRE_ALL: Final = "ASIKIT_REQUIRE_ALL"
_LEFT_OUT: Final = pytest.StashKey[Counter[str]]()
_SLOW: Final = pytest.StashKey[Counter[str]]()
_TOLD: Final = {"left_out": _LEFT_OUT, "slow": _SLOW}
"""What a process that runs tests for another one tells it in the end. Each of them has collected all tests."""

# No deadlines: a test's verdict does not depend on how busy the machine is. In CI the examples are the same every time.
hypothesis.settings.register_profile("asikit", deadline=None, derandomize=_REQUIRE_ALL in os.environ)
hypothesis.settings.load_profile("asikit")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Give what makes things once for all processes of this run: each of them has its own folder in a shared one."""
    own = tmp_path_factory.getbasetemp()
    return Once((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "once")


def _missing(item: pytest.Item) -> list[str]:
    """Give the packages whose program a test needs and that is not there; ``root`` if it needs to be root."""
    wants_root = item.get_closest_marker("needs_root") is not None and os.geteuid() != 0
    return ["root"] * wants_root + [
        package
        for marker, (programs, package) in _NEEDS.items()
        if item.get_closest_marker(marker) is not None and not any(shutil.which(program) for program in programs)
    ]


def _require_all() -> bool:
    return os.environ.get(_REQUIRE_ALL, "") not in {"", "0"}


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    for key in _TOLD.values():
        config.stash[key] = Counter()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that are left out, and count them."""
    for item in items:
        missing = _missing(item)
        if missing:
            packages = " ".join(missing)
            config.stash[_LEFT_OUT][packages] += 1
            if not _require_all():
                item.add_marker(pytest.mark.skip(reason=f"needs {packages}"))


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count the slow tests that are not run, by folder."""
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.config.stash[_SLOW][str(Path(item.location[0]).parent)] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that gave the tests, if there is one."""
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told.update({name: dict(session.config.stash[key].items()) for name, key in _TOLD.items()})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    """Hear from a process that has run tests for this one."""
    told: dict[str, dict[str, int]] = getattr(node, "workeroutput", {})
    for name, key in _TOLD.items():
        counts: Counter[str] = Counter(told.get(name, node.config.stash[key]))
        node.config.stash[key] = counts


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that would be left out where all are required."""
    missing = _missing(item)
    if missing:
        pytest.fail(f"needs {' '.join(missing)}, and {_REQUIRE_ALL} is set", pytrace=False)


def _advice(packages: str) -> str:
    """Give how to get them."""
    names = " ".join(name for name in packages.split() if name != "root")
    return f" (apt-get install {names})" if names else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which tests were left out, and why."""
    for packages, count in sorted(config.stash[_LEFT_OUT].items()):
        verb = "failed" if _require_all() else "left out"
        terminalreporter.write_line(f"{verb}: {count} test(s) that need {packages}{_advice(packages)}")
    slow = config.stash[_SLOW]
    if slow:
        where = ", ".join(f"{folder} {count}" for folder, count in sorted(slow.items()))
        terminalreporter.write_line(f"left to make test-all: {slow.total()} slow test(s): {where}")
