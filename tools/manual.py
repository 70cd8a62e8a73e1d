#!/usr/bin/env python3
"""Makes the manual's pages: one for each command, from its help and its page in docs/, and one for each file format.

    python tools/manual.py FOLDER

click-man makes pages of commands alone, without what docs/ say; so this is our own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))  # a build has not installed what it builds

import asikit  # noqa: E402
from asikit.cli import _frame  # noqa: E402

FORMATS: Final = {
    "asi-trace": ("trace-format", "recordings of what a kernel did"),
    "asi-policy": ("policies", "which memory is sensitive"),
    "asi-cpu": ("cpu-models", "processors, their structures and costs"),
    "asi-vulnerability": ("vulnerabilities", "vulnerabilities, by their mechanism"),
}
"""The pages of section 5: from which page of docs/ each is made, and what the format is of."""


_IDLE: Final = {(".PP", ".SH"), (".PP", ".SS")}


@dataclass(frozen=True, slots=True)
class ManualPage:
    """A page of the manual.

    :ivar section: 1 for commands, 5 for formats.
    """

    name: str
    section: int
    text: str

    @property
    def path(self) -> str:
        """Where it is installed, below the folder of all manuals."""
        return f"man{self.section}/{self.name}.{self.section}"


def manual() -> list[ManualPage]:
    """Return all pages."""
    docs = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))}
    group = _frame.asi
    with click.Context(group, info_name="asi", **group.context_settings) as context:
        names = group.list_commands(context)
        commands = {name: group.get_command(context, name) for name in names}
        pages = [_of_command("asi", group, context, "", [f"asi-{name}" for name in names])]
        for name, command in commands.items():
            assert command is not None
            with click.Context(command, parent=context, info_name=name) as own:
                pages.append(_of_command(f"asi-{name}", command, own, docs[name], ["asi"]))
    return pages + [_of_format(name, docs[page], says) for name, (page, says) in FORMATS.items()]


def _of_command(name: str, command: click.Command, context: click.Context, page: str, also: list[str]) -> ManualPage:
    said = [" ".join(one.split()) for one in (command.help or "").split("\n\n")]
    lines = [*_head(name, 1, said[0].rstrip(".")), ".SH SYNOPSIS"]
    lines.append(f"\\fB{_safe(context.command_path)}\\fR {_safe(' '.join(command.collect_usage_pieces(context)))}")
    lines.append(".SH DESCRIPTION")
    for paragraph in said:
        lines += [".PP", _safe(paragraph)]
    lines.append(".SH OPTIONS")
    records = [option.get_help_record(context) for option in command.get_params(context)]
    for option, says in [record for record in records if record is not None and record[1]]:
        lines += [".TP", f"\\fB{_safe(option)}\\fR", _safe(says)]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for one in command.list_commands(context):
            found = command.get_command(context, one)
            assert found is not None
            lines += [".TP", f"\\fB{_safe(one)}\\fR", _safe(found.get_short_help_str(200))]
    lines += _body(page)
    lines += [".SH SEE ALSO", ", ".join(f"\\fB{_safe(one)}\\fR(1)" for one in also)]
    return ManualPage(name, 1, _joined(lines))


def _of_format(name: str, page: str, says: str) -> ManualPage:
    return ManualPage(name, 5, _joined([*_head(name, 5, says), *_body(page), ".SH SEE ALSO", "\\fBasi\\fR(1)"]))


def _head(name: str, section: int, says: str) -> list[str]:
    title = f'.TH {_safe(name.upper())} {section} "" "asikit {asikit.__version__}" "asikit"'
    return [title, ".nh", ".ad l", ".SH NAME", f"{_safe(name)} \\- {_safe(says)}"]


def _joined(lines: list[str]) -> str:
    """Return the lines as text; a paragraph that follows a heading need not begin."""
    after = ["", *lines]
    kept = (line for before, line in zip(after, lines, strict=False) if (line, before[:3]) not in _IDLE)
    return "".join(f"{line}\n" for line in kept)


# Markdown as roff.


def _body(page: str) -> list[str]:
    """Return a page of docs/; its first paragraphs, which have no heading, are about the whole."""
    lines, started = [], False
    for node in SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(page)).children:
        if node.type == "heading" and node.tag == "h1":
            continue
        if node.type != "heading" and not started:
            lines.append(".SH OVERVIEW")
        started = True
        lines += _block(node)
    return lines


def _block(node: SyntaxTreeNode) -> Iterator[str]:
    match node.type:
        case "heading":
            yield f".{'SH' if node.tag == 'h2' else 'SS'} {_quoted(_inline(node))}"
        case "paragraph":
            yield from (".PP", _line(node))
        case "fence" | "code_block":
            yield from (".PP", ".RS 2", ".EX")
            yield from (_safe(line) for line in node.content.rstrip("\n").split("\n"))
            yield from (".EE", ".RE")
        case "bullet_list" | "ordered_list":
            yield from _list(node)
        case "table":
            yield from _table(node)
        case "blockquote":
            yield from _inside(node.children, 2)
        case "html_block" | "hr":
            pass
        case _:
            yield from (".PP", _line(node))


def _list(node: SyntaxTreeNode) -> Iterator[str]:
    for number, item in enumerate(node.children, 1):
        yield ".IP \\(bu 2" if node.type == "bullet_list" else f".IP {number}. 4"
        first, *more = item.children
        yield from [_line(first)] if first.type == "paragraph" else _block(first)
        yield from _inside(more, 4)


def _inside(nodes: Sequence[SyntaxTreeNode], indent: int) -> Iterator[str]:
    if nodes:
        yield f".RS {indent}"
        for node in nodes:
            yield from _block(node)
        yield ".RE"


def _table(node: SyntaxTreeNode) -> Iterator[str]:
    """Yield a row as a paragraph: its first cell stands out, and the others, if several, have their headings."""
    head, *bodies = node.children
    headings = [_inline(cell) for cell in head.children[0].children]
    for row in (row for body in bodies for row in body.children):
        first, *others = (_inline(cell) for cell in row.children)
        yield from (".TP", _start(first) or "\\&")
        said = [
            other if len(others) == 1 else f"{name}: {other}" for name, other in zip(headings[1:], others, strict=True)
        ]
        yield _start("; ".join(one for one in said if one)) or "\\&"


def _line(node: SyntaxTreeNode) -> str:
    return _start(_inline(node))


def _inline(node: SyntaxTreeNode) -> str:
    if node.type == "text":
        return _safe(node.content, start=False)
    if node.type == "code_inline":
        return f"\\fB{_safe(node.content, start=False)}\\fR"
    if node.type in {"softbreak", "hardbreak"}:
        return " "
    if node.type == "html_inline":
        return ""
    inside = "".join(_inline(one) for one in node.children)
    if node.type in {"em", "strong"}:
        return f"\\f{'I' if node.type == 'em' else 'B'}{inside}\\fR"
    return inside


def _safe(text: str, *, start: bool = True) -> str:
    """Return text of which nothing is taken for a request or an escape.

    :param start: A line begins with it.
    """
    found = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("^", "\\(ha")
    found = found.replace("~", "\\(ti").replace("'", "\\(aq").replace('"', "\\(dq")
    return _start(found) if start else found


def _start(line: str) -> str:
    return f"\\&{line}" if line.startswith(".") else line


def _quoted(text: str) -> str:
    return f'"{text}"'


def write(folder: Path) -> Mapping[str, Path]:
    """Write all pages; return, by where each is installed below ``man``, its file."""
    written = {}
    for page in manual():
        path = folder / page.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page.text, encoding="utf-8")
        written[page.path] = path
    return written


if __name__ == "__main__":
    write(Path(sys.argv[1]))
