"""``asi advise``: which memory to declare nonsensitive, with proof that nothing is better."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asikit.cli._html import html_option, write_html
from asikit.cli._opening import open_trace
from asikit.cli._output import show, warn, write_json

if TYPE_CHECKING:
    from asikit.advise import Advice, Choice, Study
    from asikit.cost import Range
    from asikit.replay import MemorySite
    from asikit.report.view import Report

_DEFAULT_POLICY = "ephmap"
_USER_DATA = "anon,page_cache,shmem,hugetlb"
_BESIDE = ("denylist-2025", "ephmap", "no-boot-memory", "allowlist-2022")


@click.command()
@click.argument("traces", metavar="TRACE...", type=click.Path(), nargs=-1, required=True)
@click.option(
    "--policy",
    metavar="NAME|FILE.toml",
    default=_DEFAULT_POLICY,
    show_default=True,
    help="Whose mechanism, regions and ephemeral mappings the choices have.",
)
@click.option(
    "--must-protect",
    "protect",
    metavar="NAME[,NAME]",
    default=_USER_DATA,
    show_default=True,
    help="Kinds of page, or sites, that stay sensitive; globs; none for none.",
)
@click.option(
    "--weight",
    "weights",
    metavar="SITE=N",
    multiple=True,
    help="What a page of a site exposes, instead of 1: 'caches kmalloc-*=10'.",
)
@click.option("--points", type=click.IntRange(min=2, max=100), default=12, show_default=True, help="Choices to show.")
@click.option("--budget", type=click.IntRange(min=0), metavar="N", help="The one choice that exposes at most N pages.")
@click.option("--cpu", "cpus", metavar="MODEL|FILE.toml", multiple=True, help="Price the choices on this processor.")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write each choice to DIR, a new folder, as a policy file.",
)
@click.option("--explain", metavar="SITE", help="Say who needs a site ('caches filp'), and stop.")
@click.option(
    "--ephemeral", is_flag=True, help="Say which functions should use an ephemeral mapping of user data, and stop."
)
@click.option("--top", type=click.IntRange(min=0), default=10, show_default=True, help="Steps, or causes, to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.advise/1).")
@html_option
def command(
    traces: tuple[str, ...],
    *,
    policy: str,
    protect: str,
    weights: tuple[str, ...],
    points: int,
    budget: int | None,
    cpus: tuple[str, ...],
    output: Path | None,
    explain: str | None,
    ephemeral: bool,
    top: int,
    as_json: bool,
    html: Path | None,
) -> None:
    """Find the memory to declare nonsensitive: the fewest exits for each exposure.

    TRACE is a folder NAME.asitrace that `asi record` wrote; of several, one policy for all is looked for. A choice says
    of each slab cache, allocating function and kind of page whether the restricted address space has it. Each choice is
    proved to be the best (docs/advise.md).
    """
    from asikit.advise import Study, advise
    from asikit.replay import load_policy

    if ephemeral:
        _ephemeral(traces, policy, points, output, as_json=as_json, html=html)
        return
    subject = Study(
        {_name(trace): open_trace(trace) for trace in dict.fromkeys(traces)},
        load_policy(policy),
        protect=() if protect == "none" else tuple(word.strip() for word in protect.split(",")),
        weights=dict(map(_weight, weights)),
    )
    if explain is not None:
        show(_explained(subject, explain, top))
        return
    others = [load_policy(name) for name in _BESIDE]
    advice = advise(
        subject, [one for one in others if one.mechanism == subject.base.mechanism], points=points, budget=budget
    )
    overheads = _overheads(subject, advice, _words(cpus))
    if output is not None:
        _write_policies(subject, advice, output)
    report = _report(advice, overheads, top)
    write_html(html, lambda: report)
    if as_json:
        write_json("advise", _document(advice, overheads))
    else:
        show(report)


def _name(trace: str) -> str:
    return Path(trace).resolve().name.removesuffix(".asitrace")


def _words(items: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(word.strip() for item in items for word in item.split(",") if word.strip()))


def _weight(text: str) -> tuple[str, int]:
    site, equals, number = text.rpartition("=")
    if not equals or not number.isdecimal():
        raise click.BadParameter(f"{text!r} is not SITE=N, N a whole number", param_hint="'--weight'")
    return site, int(number)


def _report(advice: Advice, overheads: dict[str, list[Range]], top: int) -> Report:
    from asikit.report import advice_report

    return advice_report(advice, overheads, top=top)


def _overheads(subject: Study, advice: Advice, cpus: list[str]) -> dict[str, list[Range]]:
    """Return by processor what each choice costs, if there is one recording."""
    if not cpus:
        return {}
    if len(subject.traces) > 1:
        raise click.UsageError("--cpu prices one recording: give one TRACE", click.get_current_context())
    from asikit.cost import price
    from asikit.machine.x86 import load_cpu

    (trace,) = subject.traces.values()
    models = [load_cpu(cpu) for cpu in cpus]
    policies = [subject.policy(choice, f"choice-{number:02}") for number, choice in enumerate(advice.choices, 1)]
    result = price(trace, models, policies=policies, mitigations=("none", "asi"))
    warn(result.warnings)
    overhead = {(row.cpu, row.policy): row.overhead for row in result.rows}
    return {model.name: [overhead[model.name, policy.name] for policy in policies] for model in models}


def _write_policies(subject: Study, advice: Advice, folder: Path) -> None:
    from asikit import __version__
    from asikit.advise import policy_text

    texts = []
    for number, choice in enumerate(advice.choices, 1):
        title = f"{choice.exits:,} exits at an exposure of {choice.exposure:,} in {', '.join(advice.recordings)}"
        policy = subject.policy(choice, f"choice-{number:02}", title)
        comment = f"By asi advise {__version__}, of {', '.join(advice.recordings)}.\nWhat is not named is sensitive."
        texts.append(policy_text(policy, comment))
    _write_files(folder, texts)


def _write_files(folder: Path, texts: list[str]) -> None:
    folder.mkdir(parents=True)
    for number, text in enumerate(texts, 1):
        (folder / f"choice-{number:02}.toml").write_text(text, encoding="utf-8")


def _explained(subject: Study, text: str, top: int) -> Report:
    from asikit.advise import AdviseError
    from asikit.errors import nearest
    from asikit.replay import replay
    from asikit.report import explained_report

    site = next((site for site in subject.sites if str(site) == text), None)
    if site is None:
        known = sorted(map(str, subject.sites))
        raise AdviseError(f"--explain {text}: no such site in the recording{nearest(text, known)}")
    if len(subject.traces) > 1:
        raise click.UsageError("--explain looks at one recording: give one TRACE", click.get_current_context())
    (trace,) = subject.traces.values()
    (result,) = replay(trace, [subject.all_but(site)])
    return explained_report(subject.need(site), result, top=top)


def _ephemeral(
    traces: tuple[str, ...], name: str, points: int, output: Path | None, *, as_json: bool, html: Path | None
) -> None:
    from asikit.advise import USER_DATA, advise_ephemeral, policy_text
    from asikit.replay import load_policy
    from asikit.report import ephemeral_report

    if len(traces) > 1:
        raise click.UsageError("--ephemeral looks at one recording: give one TRACE", click.get_current_context())
    (trace,) = traces
    policy = load_policy(name)
    choices = advise_ephemeral(open_trace(trace), policy, USER_DATA, points=points)
    if output is not None:
        texts = [policy_text(choice.policy) for choice in choices]
        _write_files(output, texts)
    report = ephemeral_report(_name(trace), policy.name, choices)
    write_html(html, lambda: report)
    if as_json:
        rows = [{"exits": one.exits, "functions": list(one.functions), "proof": one.proof} for one in choices]
        write_json("advise", {"base": policy.name, "recordings": [_name(trace)], "ephemeral": rows})
    else:
        show(report)


def _document(advice: Advice, overheads: dict[str, list[Range]]) -> dict[str, Any]:
    return {
        "base": advice.base,
        "recordings": list(advice.recordings),
        "forced": advice.forced,
        "most": advice.most,
        "protected": list(map(str, advice.protected)),
        "choices": [
            _choice(choice)
            | {"overhead": {cpu: _range(figures[number]) for cpu, figures in overheads.items()}}
            | {"parts": [asdict(part) for part in choice.parts]}
            for number, choice in enumerate(advice.choices)
        ],
        "steps": [
            {"sites": _sites(step.sites), "fewer_exits": step.fewer_exits, "more_exposure": step.more_exposure}
            for step in advice.steps
        ],
        "beside": [
            {
                "policy": row.policy,
                "exits": row.exits,
                "exposure": row.exposure,
                "fewest": _choice(row.fewest),
                "least": None if row.least is None else _choice(row.least),
            }
            for row in advice.beside
        ],
        "variants": [asdict(variant) for variant in advice.variants],
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "exits": choice.exits,
        "exposure": choice.exposure,
        "proof": choice.proof,
        "sites": _sites(choice.sites),
    }


def _sites(sites: tuple[MemorySite, ...]) -> list[str]:
    return list(map(str, sites))


def _range(overhead: Range) -> dict[str, float]:
    return {"low": overhead.low, "best": overhead.mid, "high": overhead.high}
