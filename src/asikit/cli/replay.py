"""``asi replay``: a recording through ASI under sensitivity policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from asikit import __version__
from asikit.cli._html import html_option, write_html
from asikit.cli._opening import open_trace
from asikit.cli._output import show, warn, write_json
from asikit.cli._selecting import selected, selecting

if TYPE_CHECKING:
    from pathlib import Path

    from asikit.protocol import AsiClass
    from asikit.replay import ReplayResult
    from asikit.report.view import Report
    from asikit.trace import Trace

_DEFAULT_POLICY = "denylist-2025"
_DEFAULT_TOP = 10
_PAGE_TOP = 200
"""A page has room, and a table there can be searched."""


@click.command()
@click.argument("trace", type=click.Path(), required=False)
@click.option(
    "--policy",
    "policies",
    metavar="NAME|FILE.toml",
    multiple=True,
    help=f"Which memory is sensitive; several, or a comma list, compare. [default: {_DEFAULT_POLICY}]",
)
@click.option(
    "--class",
    "classes",
    metavar="CLASS[,CLASS]",
    default="userspace,kvm",
    show_default=True,
    help="Which untrusted domains to protect from.",
)
@selecting(cpu_options=("--cpu", "--on-cpu"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.replay/1).")
@html_option
@click.option(
    "--top",
    type=click.IntRange(min=0),
    help=f"Causes and entries to show, 0 for no such tables. [default: {_DEFAULT_TOP}; HTML: {_PAGE_TOP}; JSON: all]",
)
@click.option("--list-policies", is_flag=True, help="List the policies that come with asikit, and stop.")
def command(
    trace: str | None,
    *,
    policies: tuple[str, ...],
    classes: str,
    as_json: bool,
    html: Path | None,
    top: int | None,
    list_policies: bool,
    **part: Any,  # noqa: ANN401  (the options of _selecting)
) -> None:
    """Say what ASI would do: exits, flushes and their causes.

    TRACE is a folder NAME.asitrace that `asi record` wrote. A POLICY is one of `asi replay --list-policies`, or a TOML
    file of yours (docs/policies.md). The whole recording is replayed, whatever part of it is counted.
    """
    if list_policies:
        _list_policies()
        return
    if trace is None:
        raise click.UsageError("missing argument 'TRACE'", click.get_current_context())
    # Whatever reads a trace is slow to import.
    from asikit.replay import load_policy, replay

    chosen = _classes(classes)
    names = [name.strip() for item in policies or (_DEFAULT_POLICY,) for name in item.split(",")]
    loaded = [load_policy(name) for name in dict.fromkeys(names)]
    _check_names([policy.name for policy in loaded])
    opened = open_trace(trace)
    selection, by = selected(**part)
    results = replay(opened, loaded, chosen, selection=selection, by=by)
    warn(line for result in results for line in result.warnings)
    identity = {"trace": opened.content_hash, "kernel": opened.recorder.kernel.release}
    write_html(html, lambda: _report(results, _PAGE_TOP if top is None else top), **identity)
    if as_json:
        _write_json(results, opened, top)
    else:
        show(_report(results, _DEFAULT_TOP if top is None else top))


def _classes(text: str) -> frozenset[AsiClass]:
    from asikit.replay import ALL_CLASSES

    known = {asi_class.name.lower(): asi_class for asi_class in ALL_CLASSES}
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            message = f"no class {name!r}: there are {', '.join(sorted(known))}"
            raise click.BadParameter(message, param_hint="'--class'")
    return frozenset(known[name] for name in names)


def _check_names(names: list[str]) -> None:
    """Refuse two policies that no table or document could tell apart."""
    for name in names:
        if names.count(name) > 1:
            message = f'two policies are called "{name}": rename one of the files'
            raise click.BadParameter(message, param_hint="'--policy'")


def _list_policies() -> None:
    from asikit.replay import load_policy, shipped_policies
    from asikit.report.view import Report, choices

    show(Report((choices({name: load_policy(name).title for name in shipped_policies()}),)))


def _write_json(results: list[ReplayResult], trace: Trace, top: int | None) -> None:
    documents = [result.to_dict(top=top) for result in results]
    for document in documents:
        del document["schema"]  # the envelope has it
    # What was replayed, and by what: `asi compare` compares nothing without knowing.
    recorder = trace.recorder
    identity = {
        "content_hash": trace.content_hash,
        "kernel": recorder.kernel.release,
        "workload": recorder.workload.command,
    }
    shown = documents[0] if len(documents) == 1 else {"results": documents}
    write_json("replay", shown | {"asikit": __version__, "trace": identity})


def _report(results: list[ReplayResult], top: int) -> Report:
    from asikit.report import compare_replays, replay_report

    if len(results) == 1:
        return replay_report(results[0], top=top)
    return compare_replays(results, causes=min(top, 3), top=top)
