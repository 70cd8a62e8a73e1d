"""What is given to others: the wheel has what asikit needs without a checkout, and is the same whenever it is built."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

import asikit

ROOT = Path(__file__).parents[2]
MOST_BYTES = 10_000_000
_OTHERS, _ELSEWHERE = 0o077, {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
DATA = f"asikit-{asikit.__version__}.data/data"


def _build(folder: Path, *words: str, root: Path = ROOT, umask: int = 0o022) -> Path:
    """Build into a folder; return the file that it has then."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder), *words]
    subprocess.run(
        command,
        cwd=root,
        capture_output=True,
        check=True,
        umask=umask,
        env={**os.environ, **(_ELSEWHERE if umask == _OTHERS else {})},
    )
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    return _build(tmp_path_factory.mktemp("wheel"), "--target", "wheel")


def test_wheel_has_what_is_not_code(wheel: Path) -> None:
    """The wheel has all of the package, the pages, the programs, the scenarios, the manual, the licences."""
    package = ROOT / "src/asikit"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    wanted = {f"asikit/{path.relative_to(package)}" for path in files}
    wanted |= {f"asikit/{path.relative_to(ROOT)}" for path in (ROOT / "docs").rglob("*.md")}
    wanted |= {f"asikit/examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    wanted |= {f"asikit/samples/{path.name}" for path in (ROOT / "samples").glob("*.c")}
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {name for name in names if name.startswith("asikit/")}
    assert ours == wanted
    assert {"asikit/record/plugin/api.c", "asikit/record/guest/init.c", "asikit/docs/policies.md"} <= ours
    manual = {name.removeprefix(f"{DATA}/share/man/") for name in names if name.startswith(DATA)}
    commands = {path.stem for path in (package / "cli").glob("*.py") if not path.stem.startswith("_")}
    assert {f"man1/asi-{name}.1" for name in commands} | {"man1/asi.1", "man5/asi-trace.5", "man5/asi-cpu.5"} <= manual
    assert {path.name for path in (ROOT / "LICENSES").iterdir()} <= {
        Path(name).name for name in names if "/licenses/" in name
    }
    assert wheel.stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_same_bytes(wheel: Path, tmp_path: Path) -> None:
    """Built again, elsewhere, by another user in another place, wheel and source archive are the same bytes.

    What is built from the source archive is the wheel that is built from the checkout.
    """
    archives = [
        _build(tmp_path / "one", "--target", "sdist"),
        _build(tmp_path / "two", "--target", "sdist", umask=_OTHERS),
    ]
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as archive:
        archive.extractall(tmp_path / "sources", filter="data")
    (sources,) = (tmp_path / "sources").iterdir()
    again = _build(tmp_path / "three", "--target", "wheel", root=sources, umask=_OTHERS)
    assert (again.name, again.read_bytes()) == (wheel.name, wheel.read_bytes())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an environment in which the wheel is installed, and what it depends on; no checkout is on its path."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin/python")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", python]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, env=_clean(folder))
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


def _clean(folder: Path) -> dict[str, str]:
    around = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**around, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}


def _run(folder: Path, *words: str) -> str:
    program, *others = words
    command = [str(folder / "bin" / program), *others]
    done = subprocess.run(
        command, cwd=folder, env=_clean(folder), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_installed_wheel(installed: Path) -> None:
    """Demo, pages, samples, scenarios and the manual are there without a checkout."""
    where = _run(installed, "python", "-c", "import asikit; print(asikit.__file__)")
    assert where.startswith(f"{installed}/lib/")
    assert _run(installed, "asi", "--version").startswith(f"asi {asikit.__version__}\n")
    assert _run(installed, "asi", "demo").startswith("Three recordings of a stock Linux")
    assert _run(installed, "asi", "help", "trace-format").startswith("The trace format")
    assert _run(installed, "asi", "demo", "--copy", "given") == ""
    assert "round trips" in _run(installed, "asi", "replay", "given/phases.asitrace")
    assert "round trips" in _run(installed, "asi", "run", "given/null_syscall.py")
    assert "#define" in _run(installed, "asi", "mark", "--header")
    assert (installed / "share/man/man1/asi-replay.1").is_file()


@pytest.mark.slow
@pytest.mark.needs_cc
def test_installed_wheel_builds_its_plugin(installed: Path) -> None:
    """What recording compiles is compiled from the sources that the wheel has."""
    code = "from asikit.record import mark_command; print(mark_command())"
    assert Path(_run(installed, "python", "-c", code).strip()).is_relative_to(installed / "cache")
