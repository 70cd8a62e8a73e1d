"""The leak matrix as text, and one cell step by step."""

from __future__ import annotations

from itertools import groupby
from string import ascii_lowercase
from textwrap import TextWrapper, fill, shorten
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.text import Text

from asikit.attacks import (
    NO_VECTOR,
    Vector,
    Verdict,
    load_vulnerability,
    mitigation,
    mitigation_names,
    vulnerability_names,
)
from asikit.machine.x86 import load_cpu
from asikit.sources import cited, known_sources, spelt_out

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from asikit.attacks import Finding

__all__ = ["attack_names", "attack_reason", "attack_report"]

WIDTH: Final = 80
_FIRST: Final = 16
_WIDE: Final = 10
_NARROW: Final = 5
_FEW_COLUMNS: Final = 6
_MOST_LINES: Final = 30
_WORDS: Final = {Verdict.LEAK: "LEAK", Verdict.NO_LEAK: "-", Verdict.UNKNOWN: "?"}


def attack_report(findings: Sequence[Finding]) -> RenderableType:
    """Return the matrix: a block for each vulnerability, a line for each vector, a column for each mitigation."""
    columns = list(dict.fromkeys(found.cell.mitigation for found in findings))
    wide = len(columns) <= _FEW_COLUMNS and all(len(name) < _WIDE for name in columns)
    heads = columns if wide else list(ascii_lowercase[: len(columns)])
    room = _WIDE if wide else _NARROW
    lines = [Text(" " * _FIRST + "".join(f"{head:<{room}}" for head in heads).rstrip(), style="dim")]
    for (name, cpu), block in groupby(findings, key=lambda found: (found.cell.vulnerability, found.cell.cpu)):
        lines += _block(name, cpu, list(block), room)
    leaks = sum(found.verdict is Verdict.LEAK for found in findings)
    lines += [Text(), Text(f"{leaks} of {len(findings)} attacks leak (LEAK); - is no leak, ? unknown")]
    if not wide:
        for head, name in zip(heads, columns, strict=True):
            lines += _wrapped(f"{head}  ", f"{name}: {mitigation(name).says}")
    return Group(*lines)


def _block(name: str, cpu: str, block: list[Finding], room: int) -> list[Text]:
    if block[0].cell.vector == NO_VECTOR:
        return _wrapped(f"{name}: unknown, as ", block[0].reason)
    has_it = load_vulnerability(name).concerns(load_cpu(cpu))
    lines = _bold(f"{name} on {cpu}{'' if has_it else ', which does not have it'}")
    for vector, row in groupby(block, key=lambda found: found.cell.vector):
        cells = "".join(f"{_WORDS[found.verdict]:<{room}}" for found in row)
        lines.append(Text(f"  {vector:<{_FIRST - 2}}{cells}".rstrip()))
    return lines


def attack_reason(finding: Finding) -> RenderableType:
    """Return one cell's verdict and, step by step, how it came about."""
    cell = finding.cell
    title = f"{finding.verdict}: {cell.vulnerability}, {cell.vector}, on {cell.cpu}, {cell.mitigation}"
    vulnerability, known = load_vulnerability(cell.vulnerability), known_sources()
    lines = [*_bold(title), *_wrapped("", vulnerability.title)]
    lines += _wrapped("source: ", spelt_out(vulnerability.source)) if vulnerability.source else []
    for key in cited(vulnerability.source):
        lines += _reference(known[key].line)
    lines += _wrapped("", f"{cell.mitigation}: {mitigation(cell.mitigation).says}")
    if finding.way:
        lines += [Text(f"mechanism: {finding.way}")]
    if finding.story:
        lines += [Text(), Text("What happened, with the first secret", style="bold")]
        lines += _steps(finding)
    lines += [Text(), *_wrapped("=> ", finding.reason)]
    return Group(*lines)


def _steps(finding: Finding) -> list[Text]:
    """Return what happened: of a leak the last steps, which lead to it, else the first."""
    steps = [(step, sum(1 for _ in same)) for step, same in groupby(finding.story)]
    left_out = max(0, len(steps) - _MOST_LINES)
    skipped = left_out if finding.verdict is Verdict.LEAK else 0
    lines = [Text(f"     {skipped} steps, and then")] if skipped else []
    for number, (step, times) in enumerate(steps[skipped : skipped + _MOST_LINES], skipped + 1):
        again = f" ({times} times)" if times > 1 else ""
        lines += _wrapped(f"{number:>3}. ", shorten(step, 4 * WIDTH, placeholder=" ...") + again)
    return lines if skipped == left_out else [*lines, Text(f"     and {left_out} more")]


def attack_names() -> RenderableType:
    """Return what there is to choose from."""
    lines = [Text("Vulnerabilities", style="bold")]
    for name in vulnerability_names():
        lines += _wrapped(f"  {name:<18}", load_vulnerability(name).title)
    lines += [Text(), Text("Vectors", style="bold"), *_wrapped("  ", ", ".join(Vector))]
    lines += [Text(), Text("Mitigations", style="bold")]
    for name in mitigation_names():
        lines += _wrapped(f"  {name:<24}", mitigation(name).says)
    return Group(*lines)


def _bold(title: str) -> list[Text]:
    return [Text(line, style="bold") for line in _lines("", title)]


def _wrapped(label: str, text: str) -> list[Text]:
    return [Text(line) for line in _lines(label, text)]


def _reference(text: str) -> list[Text]:
    """Return a reference; its address stays in one piece, or it could not be followed."""
    wrapper = TextWrapper(
        WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return [Text(line) for line in wrapper.wrap(text)]


def _lines(label: str, text: str) -> Iterable[str]:
    indent = " " * min(len(label), 26)
    return fill(text, WIDTH, initial_indent=label, subsequent_indent=indent).splitlines()
