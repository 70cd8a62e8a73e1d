"""``asi record``: what a real Linux kernel does under a workload."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from asikit.cli._output import json_text
from asikit.cli._progress import StatusLine, progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.record import Recorded, Recording

    _Integer = click.ParamType[int]
else:
    _Integer = click.ParamType  # before click 8.4 it takes no type

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIGNAL_BASE: Final = 128
_PATH: Final = click.Path(path_type=Path)


class _Size(_Integer):
    """A size in bytes, written as QEMU and systemd write it: ``512M``, ``2G``."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Give the number of bytes."""
        found = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", str(value), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is not a size; write it like 512M or 2G", param, ctx)
        return int(found[1]) * _UNITS[found[2].upper()]


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-o", "--output", type=_PATH, metavar="TRACE", help="The trace. [default: COMMAND.asitrace]")
@click.option("--overwrite", is_flag=True, help="Replace the trace if it is there already.")
@click.option(
    "--kernel",
    type=_PATH,
    metavar="VMLINUZ",
    help="The kernel. [default: the newest of this machine, else Debian's cloud kernel]",
)
@click.option(
    "--modules",
    "module_folder",
    type=_PATH,
    metavar="DIR",
    help="The kernel's modules: a folder with lib/modules, or a kernel's build tree. [default: those beside it]",
)
@click.option("--memory", type=_Size(), default="1G", show_default=True, help="The guest's memory.")
@click.option("--cpus", type=int, default=1, show_default=True, help="The guest's CPUs.")
@click.option("--cpu", metavar="MODEL", help="The guest's CPU model, one of QEMU's (-cpu help). [default: max]")
@click.option("--env", "environment", multiple=True, metavar="NAME[=VALUE]", help="A variable to set or keep.")
@click.option("--clean-env", is_flag=True, help="Without this environment: PATH, HOME and --env alone.")
@click.option("--net", "network", is_flag=True, help="With a network to the outside (QEMU's user-mode network).")
@click.option("--show", type=_PATH, multiple=True, metavar="PATH", help="Credentials that the guest may see (~/.ssh).")
@click.option(
    "--module", "modules", multiple=True, metavar="NAME", help="A kernel module to load first, for example kvm-amd."
)
@click.option("--root", type=_PATH, metavar="DIR", help="DIR is the guest's root file system. [default: /]")
@click.option("--bare", is_flag=True, help="A guest with COMMAND, its libraries and busybox, in memory.")
@click.option("--include", type=_PATH, multiple=True, metavar="PATH", help="With --bare: a file or folder.")
@click.option("--skip-startup", is_flag=True, help="Record from the program's entry point on.")
@click.option("--repeat", type=click.IntRange(min=1), default=1, metavar="N", help="Record N times: NAME.1 to NAME.N.")
@click.option("--json", "summary", type=_PATH, metavar="FILE", help="Write a summary (schema asikit.record/1) to FILE.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done, and when.")
@click.option("--append", default="", metavar="TEXT", help="More kernel command line.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Give up after S seconds.")
@click.argument("workload", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    output: Path | None,
    *,
    overwrite: bool,
    kernel: Path | None,
    module_folder: Path | None,
    memory: int,
    cpus: int,
    cpu: str | None,
    environment: tuple[str, ...],
    clean_env: bool,
    network: bool,
    show: tuple[Path, ...],
    include: tuple[Path, ...],
    bare: bool,
    modules: tuple[str, ...],
    root: Path | None,
    skip_startup: bool,
    repeat: int,
    summary: Path | None,
    verbose: bool,
    append: str,
    timeout: float | None,
    workload: tuple[str, ...],
) -> None:
    """Run COMMAND under a real Linux kernel and record what the kernel does.

    Boots a stock kernel in QEMU (software emulation; no root, no KVM) and runs COMMAND in it as it would run here: it
    sees this machine's files, the current directory, the environment and standard input. What it writes to files is
    thrown away; its output is passed on. The trace is a folder for `asi info` and `asi replay`.
    """
    inherited = tuple(os.environ.items())  # before polars, which sets a variable when it is imported
    from asikit.record import Recording

    recording = Recording(
        workload,
        kernel=kernel,
        memory_bytes=memory,
        cpus=cpus,
        include=include,
        modules=modules,
        root=root,
        append=append,
        timeout=timeout,
        module_folder=module_folder,
        cpu=cpu,
        bare=bare,
        environment=tuple(_variables(environment)),
        inherited=inherited,
        clean_environment=clean_env,
        show=show,
        network=network,
        skip_startup=skip_startup,
    )
    name = output or Path(f"{Path(workload[0]).name}.asitrace")
    traces = [name] if repeat == 1 else [name.with_suffix(f".{number}{name.suffix}") for number in range(1, repeat + 1)]
    done = {trace: _record(recording, trace, overwrite=overwrite, verbose=verbose) for trace in traces}
    if summary is not None:
        from asikit.documents import write_whole

        text = json_text("record", {"recordings": [_summary(*each) for each in done.items()]})
        write_whole(summary, [f"{text}\n".encode()])
    statuses = [recorded.exit_status for recorded in done.values()]
    click.get_current_context().exit(next((status for status in statuses if status), 0))


def _record(recording: Recording, trace: Path, *, overwrite: bool, verbose: bool) -> Recorded:
    from asikit.record import RecordingStatus, Streams, record
    from asikit.trace import TraceExistsError

    progress().end()  # a recording has a line of its own
    status, own = RecordingStatus(), Streams.of_this_process()
    with StatusLine(status, verbose=verbose) as line:
        streams = replace(own, out=line.above(own.out), err=line.above(own.err))
        try:
            done = record(recording, trace, say=line.say, overwrite=overwrite, streams=streams, status=status)
        except TraceExistsError as error:
            advice = "already exists: choose another name (-o), or replace it with --overwrite"
            raise TraceExistsError.at(trace, advice) from error
    _report(done, trace)
    return done


def _summary(trace: Path, done: Recorded) -> dict[str, object]:
    return {"trace": str(trace), "bytes": _size(trace), **asdict(done)}


def _size(trace: Path) -> int:
    return sum(file.stat().st_size for file in trace.rglob("*") if file.is_file())


def _variables(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Read NAME=VALUE, or NAME, whose value is this environment's; one that is not set here is not set there.

    :raises click.BadParameter: There is no name.
    """
    for word in words:
        name, given, value = word.partition("=")
        if not name:
            raise click.BadParameter(f"{word!r} has no name before its value", param_hint="'--env'")
        if given:
            yield name, value
        elif name in os.environ:
            yield name, os.environ[name]


def _report(done: Recorded, trace: Path) -> None:
    from asikit.report import size_text

    lost = sum(done.lost.values())
    note = f"; {lost:,} were lost (see asi info)" if lost else ""
    _say(f"recorded {done.events:,} events into {trace} ({size_text(_size(trace))}){note}")
    if done.out_of_memory is not None:
        _say(f"the guest ran out of memory and killed {done.out_of_memory!r}; give it more (--memory)")
    if done.left:
        _say(f"still running when the command had ended, and ended with the guest: {', '.join(done.left)}")
    if done.exit_status:
        _say(f"the workload {_ending(done.exit_status)}; the trace holds what it did until then")


def _ending(status: int) -> str:
    signal = status - _SIGNAL_BASE
    return f"was killed by signal {signal}" if signal > 0 else f"exited with status {status}"


def _say(line: str) -> None:
    sys.stdout.flush()
    click.echo(f"asi: {line}", err=True)
