"""What can be had: choices of memory to declare, from the fewest exits to the least exposure."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from asikit.report.cost import interval
from asikit.report.replay import replay_report
from asikit.report.view import Column, Note, Report, Row, Section, Style, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asikit.advise import Advice, Beside, Choice, Ephemeral, Extension, SiteNeed, Variant
    from asikit.cost import Range
    from asikit.replay import MemorySite, ReplayResult

__all__ = ["advice_report", "ephemeral_report", "explained_report"]

_PROOFS = {"cut": "flow", "bound": "bound"}
_SHOWN_SITES = 6


def advice_report(advice: Advice, overheads: Mapping[str, Sequence[Range]], *, top: int = 5) -> Report:
    """Return the choices, the steps between them, and how far other policies are from the best.

    :param overheads: By processor: what each choice costs, in their order.
    :param top: The most steps to show.
    """
    names = ", ".join(advice.recordings)
    head = (
        Note(f"{names}, with the mechanism of {advice.base}: {advice.most:,} exits if all memory is sensitive"),
        Note(
            f"No declaration of memory avoids {advice.forced:,} of them (context switches, TLB flushes, page faults)."
        ),
        *_protected(advice),
        Note("Exposed: pages that the recording touches and the restricted address space has.", style=Style.FAINT),
    )
    parts: list[Note | Section] = [*head, Section((_choices(advice, overheads),), "What can be had")]
    if advice.steps and top:
        parts.append(Section((_steps(advice.steps, top),), "What to declare nonsensitive, in this order"))
    if advice.beside:
        parts.append(Section((_beside(advice.beside),), "Published policies beside the best"))
    parts.append(Section((_variants(advice.variants),), "What another mechanism would have"))
    if len(advice.recordings) > 1:
        parts.append(Section((_parts(advice),), "What each recording pays for a common policy"))
    return Report(tuple(parts))


def explained_report(need: SiteNeed, result: ReplayResult, *, top: int) -> Report:
    """Return who needs a site.

    :param result: Of a replay under which it alone is sensitive.
    """
    touch = (
        f"{need.stretches:,} restricted stretches touch it, {need.alone:,} of them no other memory of the direct map"
    )
    notes = (
        Note(f"{need.site}: exposes {need.exposure:,}"),
        Note(f"{touch}."),
        Note("Below is a replay under which this site alone is sensitive."),
    )
    return Report((*notes, *replay_report(result, top=top).parts))


def ephemeral_report(name: str, base: str, choices: Sequence[Ephemeral]) -> Report:
    """Return the choices of functions, from the most to none."""
    notes = (
        Note(f"{name}, with the mechanism of {base}: functions that reach user data through an ephemeral mapping"),
        Note("All memory but user data is nonsensitive here.", style=Style.FAINT),
    )
    rows = (
        Row((f"{len(choice.functions)}", f"{choice.exits:,}", _PROOFS[choice.proof], ", ".join(choice.functions)))
        for choice in choices
    )
    columns = (Column("functions", number=True), Column("exits", number=True), Column("proof"))
    return Report((*notes, Table((*columns, Column("which", breaks=True)), tuple(rows))))


def _protected(advice: Advice) -> list[Note]:
    if not advice.protected:
        return []
    return [Note(f"Sensitive in each choice: {_listed(advice.protected)}.", style=Style.FAINT)]


def _choices(advice: Advice, overheads: Mapping[str, Sequence[Range]]) -> Table:
    rows = []
    for number, choice in enumerate(advice.choices):
        costs = (interval(figures[number]) for figures in overheads.values())
        figures = (f"{choice.exits:,}", f"{choice.exposure:,}", f"{len(choice.sites):,}", _PROOFS[choice.proof])
        rows.append(Row((str(number + 1), *figures, *costs)))
    headings = ("", "exits", "exposed", "sites", "proof")
    columns = [Column(heading, number=heading != "proof") for heading in headings]
    return Table((*columns, *(Column(cpu, number=True, breaks=True) for cpu in overheads)), tuple(rows))


def _steps(steps: Sequence[Extension], top: int) -> Table:
    rows = [Row((f"-{step.fewer_exits:,}", f"+{step.more_exposure:,}", _listed(step.sites))) for step in steps[:top]]
    if steps[top:]:
        exits, exposure = (
            sum(getattr(step, what) for step in steps[top:]) for what in ("fewer_exits", "more_exposure")
        )
        rows.append(Row((f"-{exits:,}", f"+{exposure:,}", f"... and {len(steps[top:])} more steps")))
    return Table(
        (Column("exits", number=True), Column("exposed", number=True), Column("declared", breaks=True)), tuple(rows)
    )


def _beside(rows: Sequence[Beside]) -> Table:
    headings = ("exits", "exposed", "exits at\nits exposure", "exposed at\nits exits")
    return Table(
        (Column("policy"), *(Column(heading, number=True) for heading in headings)),
        tuple(
            Row((row.policy, f"{row.exits:,}", f"{row.exposure:,}", f"{row.fewest.exits:,}", _least(row.least)))
            for row in rows
        ),
    )


def _variants(variants: Sequence[Variant]) -> Table:
    headings = ("no declaration\navoids", "fewest exits")
    return Table(
        (Column("mechanism"), *(Column(heading, number=True) for heading in headings)),
        tuple(Row((row.words or "as it is", f"{row.forced:,}", f"{row.fewest:,}")) for row in variants),
    )


def _least(choice: Choice | None) -> str:
    return "-" if choice is None else f"{choice.exposure:,}"


def _parts(advice: Advice) -> Table:
    rows = []
    for number, choice in enumerate(advice.choices):
        for part in choice.parts:
            first = str(number + 1) if part is choice.parts[0] else ""
            figures = (f"{part.exits:,}", f"{part.exposure:,}", f"{part.own_best:,}", f"{part.exits - part.own_best:,}")
            rows.append(Row((first, part.name, *figures), ends_group=part is choice.parts[-1]))
    headings = ("exits", "exposed", "its own\nbest", "regret")
    return Table(
        (Column("", number=True), Column("recording"), *(Column(heading, number=True) for heading in headings)),
        tuple(rows),
    )


def _listed(sites: Sequence[MemorySite]) -> str:
    """Return sites by the key under which a policy file has them."""
    words = []
    for by, group in groupby(sites, lambda site: site.by):
        names = [site.name for site in group]
        more = f" and {len(names) - _SHOWN_SITES} more" if len(names) > _SHOWN_SITES else ""
        words.append(f"{by}: {', '.join(names[:_SHOWN_SITES])}{more}")
    return "; ".join(words)
