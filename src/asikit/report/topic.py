"""A page of the documentation as a report, so that it fits the terminal as every other report does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from asikit.report.view import Column, Note, Report, Row, Section, Table, Verbatim, choices

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["inline_text", "markdown", "topic_list", "topic_report"]

_INDENT = "  "

Part = Note | Verbatim | Table


def topic_list(pages: Mapping[str, str]) -> Report:
    """Return the names of pages, each with its first heading.

    :param pages: By name the text, in Markdown.
    """
    return Report((choices({name: topic_report(text).title for name, text in pages.items()}),))


def topic_report(page: str) -> Report:
    """Return a page.

    :param page: Its text, in Markdown.
    """
    title, sections = "", [("", list[Part]())]
    for node in markdown(page).children:
        if node.type == "heading" and not title:
            title = inline_text(node)
        elif node.type == "heading":
            sections.append((inline_text(node), []))
        else:
            parts = sections[-1][1]
            parts += [*([Note("")] if parts else []), *_parts(node)]
    return Report(tuple(Section(tuple(parts), title=name) for name, parts in sections if parts or name), title=title)


def markdown(page: str) -> SyntaxTreeNode:
    """Return what a page consists of."""
    return SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(page))


def _parts(node: SyntaxTreeNode, label: str = "") -> Iterator[Part]:
    match node.type:
        case "paragraph":
            yield Note(inline_text(node), label=label)
        case "fence" | "code_block":
            yield Verbatim("\n".join(f"{_INDENT}{line}".rstrip() for line in node.content.rstrip("\n").split("\n")))
        case "table":
            yield _table(node)
        case "bullet_list" | "ordered_list":
            for number, item in enumerate(node.children, 1):
                mark = "* " if node.type == "bullet_list" else f"{number}. "
                first, *more = item.children
                yield from _parts(first, f"{label}{mark}")
                for one in more:
                    yield from _parts(one, " " * len(f"{label}{mark}"))
        case "blockquote":
            for one in node.children:
                yield from _parts(one, f"{label}{_INDENT}")
        case "html_block" | "hr":
            pass
        case _:
            yield Note(inline_text(node), label=label)


def _table(node: SyntaxTreeNode) -> Table:
    head, *bodies = node.children
    rows = [row for body in bodies for row in body.children]
    columns = tuple(Column(inline_text(cell), breaks=True) for cell in head.children[0].children)
    return Table(columns, tuple(Row(tuple(inline_text(cell) for cell in row.children)) for row in rows))


def inline_text(node: SyntaxTreeNode) -> str:
    """Return what a reader sees of inline text; where a link leads out of the documentation stands behind it."""
    if node.type in {"text", "code_inline"}:
        return node.content
    if node.type in {"softbreak", "hardbreak"}:
        return " "
    if node.type == "html_inline":
        return ""
    inside = "".join(inline_text(one) for one in node.children)
    target = str(node.attrs.get("href", "")) if node.type == "link" else ""
    return f"{inside} <{target}>" if "://" in target and target != inside else inside
