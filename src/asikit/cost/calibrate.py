"""What this machine's processor and kernel cost, measured from user mode, as a CPU model.

A small C program (``calibrate.c``) takes the samples; here they become medians with 95 % intervals, and a model file
that ``asi cost --cpu`` takes. What needs ring 0 is not measured but named, with the reason.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asikit.cost._statistics import Estimate, estimate
from asikit.cost.errors import CalibrationError
from asikit.cost.host import read_identity
from asikit.cost.parameters import Unit
from asikit.machine.x86 import load_cpu

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asikit.cost.host import Identity
    from asikit.machine.x86 import CpuModel

__all__ = ["CALIBRATE_SCHEMA", "Calibration", "Measurement", "calibrate", "model_text"]

CALIBRATE_SCHEMA = "asikit.calibrate/1"
"""``schema`` of the JSON form."""

SAMPLES = 25
_TIMEOUT = 120  # seconds: it takes about one
_CLOCK = "imul"
_CLOCK_CYCLES = 3  # of a multiplication (Fog, instruction tables: 3 on Intel since 2008 and on AMD since Zen)
_ALWAYS_MISSING = {
    "cr3_write": "writing CR3 needs ring 0",
    "page_fault": "user mode sees only whole faults, with the kernel's work (minor_fault)",
    "bhb_clear": "the kernel's loop clears the history that the kernel sees",
    "spec_ctrl_write": "writing IA32_SPEC_CTRL needs ring 0",
    "tlb_walk": "what a walk costs depends on what it finds in the caches",
}
_HOW = {
    "frequency": "a chain of multiplications of 3 cycles each",
    "verw": "a loop of the instruction in user mode",
    "lfence": "a loop of the instruction in user mode",
    "rsb_fill": "a loop of 32 calls, as the kernel's, in user mode",
    "system_call": "getppid()",
    "minor_fault": "first writes to 256 pages of anonymous memory",
    "context_switch": "a byte to and fro between two processes on one CPU, by pipes; half a round",
    "fork": "fork, _exit, waitpid",
    "fork_page_copy": "first writes to 256 pages after fork",
    "clear_pageblock": "rep stosb over 2 MiB",
    "ibpb": "switches to and from a process with PR_SPEC_INDIRECT_BRANCH off, less those without: with STIBP's MSR"
    " writes, and mispredictions after it",
    "l1d_flush": "switches from a process with PR_SPEC_L1D_FLUSH, less those without: the refill is in it",
    "ipi": "membarrier() with a thread running on another CPU, less without",
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """A cost as measured.

    :ivar name: A parameter's.
    :ivar figures: In ns; of ``frequency``, in GHz.
    :ivar how: By what.
    """

    name: str
    unit: Unit
    figures: Estimate
    how: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """The outcome.

    :ivar missing: What could not be measured, and why.
    """

    identity: Identity
    measured: tuple[Measurement, ...]
    missing: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema": CALIBRATE_SCHEMA,
            "cpu": {"name": self.identity.name, "model": self.identity.model, "microcode": self.identity.microcode},
            "measured": {
                one.name: {
                    "unit": one.unit.value,
                    "median": one.figures.median,
                    "low": one.figures.low,
                    "high": one.figures.high,
                    "samples": one.figures.runs,
                    "how": one.how,
                }
                for one in self.measured
            },
            "missing": dict(self.missing),
        }


def calibrate(*, samples: int = SAMPLES) -> Calibration:
    """Measure this machine. It takes a second or two; other load on it makes the intervals wide.

    :param samples: Of each cost; fewer than 6 give no interval.
    :raises CalibrationError: There is no C compiler, or the measuring program failed.
    :raises HostError: /proc/cpuinfo is not an x86 machine's.
    """
    identity = read_identity()
    found, missing = parse(_run(samples))
    if _CLOCK not in found:
        raise CalibrationError("the measuring program printed no clock: it was interrupted")
    measured = [Measurement("frequency", Unit.GIGAHERTZ, _frequency(found.pop(_CLOCK)), _HOW["frequency"])]
    for name, values in found.items():
        figures = estimate(values)
        if figures.median <= 0:
            missing[name] = f"lost in the noise: {figures.median:.0f} ns, {_interval(figures)}"
        else:
            measured.append(Measurement(name, Unit.NANOSECONDS, figures, _HOW[name]))
    return Calibration(identity, tuple(measured), missing | _ALWAYS_MISSING)


def parse(text: str) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the samples in ns by name, and the reasons for what is missing, from what the program prints.

    :raises CalibrationError: A line is neither.
    """
    found: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for line in text.splitlines():
        if matched := re.fullmatch(r"missing (\w+) (.+)", line):
            missing[matched[1]] = matched[2]
        elif matched := re.fullmatch(r"(\w+) (-?\d+\.\d+)", line):
            found.setdefault(matched[1], []).append(float(matched[2]))
        else:
            raise CalibrationError(f"the measuring program printed {line!r}, which is no sample")
    # A measurement that ended early has a reason and a few samples.
    return {name: values for name, values in found.items() if name not in missing}, missing


def model_text(calibration: Calibration, like: CpuModel, *, date: str) -> str:
    """Return a CPU model file: this processor's features, bugs and costs, and the structures of a known model.

    :param like: The model for what the kernel does not say: structures and sizes.
    :param date: When it was measured.
    """
    # It writes text that only a few callers need.
    from asikit.cost._model_file import model_file  # noqa: PLC0415

    return model_file(calibration, like, f"asi calibrate, {date}, Linux {platform.release()}")


def base_model(identity: Identity, like: str | None) -> CpuModel:
    """Return the model to take structures from: the one asked for, the nearest, or the generic one."""
    return load_cpu(like or identity.model or "generic")


def _frequency(nanoseconds: list[float]) -> Estimate:
    return estimate([_CLOCK_CYCLES / value for value in nanoseconds])


def _interval(figures: Estimate) -> str:
    if figures.low is None or figures.high is None:
        return f"{figures.runs} samples"
    return f"{figures.low:.0f} to {figures.high:.0f} ns"


def _run(samples: int) -> str:
    """Compile and run the measuring program, and return what it prints."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None or shutil.which(compiler) is None:
        missing = f"the C compiler {compiler}" if compiler else "a C compiler"
        raise CalibrationError(f"{missing} is missing; install one (Debian: apt-get install gcc libc6-dev) or set CC")
    with (
        tempfile.TemporaryDirectory(prefix="asikit-calibrate-") as folder,
        as_file(files("asikit.cost") / "calibrate.c") as source,
    ):
        program = Path(folder) / "calibrate"
        command = [compiler, "-O2", "-w", "-pthread", "-o", str(program), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (the user's compiler)
        if done.returncode:
            complaint = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
            raise CalibrationError(f"{compiler} could not compile the measuring program: {complaint}")
        try:
            ran = subprocess.run(  # noqa: S603  (the program just made)
                [str(program), str(samples)], capture_output=True, text=True, check=False, timeout=_TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise CalibrationError(f"measuring took more than {_TIMEOUT} s; try again on an idle machine") from error
    if ran.returncode:
        raise CalibrationError(f"the measuring program ended with {ran.returncode}; no memory or no processes left?")
    return ran.stdout
