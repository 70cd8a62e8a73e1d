"""A page as one HTML file that needs nothing else: no network, no other file.

What a page says lies in it as JSON, and the page's script makes elements of it whose *text* it is. A recording may come
from somebody else: a name in it may be a script. So characters that could end the JSON are escaped, those that a reader
does not see are shown as they are escaped (:func:`printable`), and a policy in the page lets nothing run or be loaded
but the one script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from asikit.documents import write_whole
from asikit.report.html.pictures import HtmlPage
from asikit.report.view.text import printable

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path

    from asikit.report.view import Report

__all__ = ["page_data", "page_of", "page_text", "write_page"]

_VENDOR = ("array", "color", "format", "interpolate", "path", "scale", "selection", "shape", "hierarchy")
"""The modules of d3, each after those that it needs."""
_SCRIPTS = ("dom", "parts", "flame", "timeline", "stacked", "main")
_ESCAPED = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<noscript>This report needs JavaScript to be shown. It loads nothing.</noscript>
<script type="application/json" id="page">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page_of(report: Report, title: str) -> HtmlPage:
    """Return the page of a report.

    :param title: Its heading, if the report has none of its own.
    """
    return HtmlPage(report.title or title, report.parts)


def page_data(page: HtmlPage) -> Any:  # noqa: ANN401  (any JSON value)
    """Return what a page says as plain values, as its script reads them."""
    return _shown(msgspec.to_builtins(page))


def page_text(page: HtmlPage) -> str:
    """Return a page as HTML."""
    script, style = _script(), _asset("page.css")
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'"
    # ASCII only: U+2028, U+2029 and half surrogates are escaped too.
    data = json.dumps(page_data(page), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return _TEMPLATE.format(
        policy=policy,
        title=html.escape(printable(page.title)),
        style=style,
        data=data.translate(_ESCAPED),
        script=script,
    )


def write_page(page: HtmlPage, path: Path) -> int:
    """Write a page to a file, all of it or nothing, and return how many bytes it has.

    :raises OSError: It cannot be written.
    """
    data = page_text(page).encode()
    write_whole(path, [data])
    return len(data)


def _shown(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    """Escape what a reader would not see, or what would turn the text around it."""
    if isinstance(value, str):
        return value if value.isprintable() else "\n".join(map(printable, value.split("\n")))
    if isinstance(value, dict):
        return {key: _shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value]
    return value


def _script() -> str:
    # d3's licence asks for its text in each copy.
    licence = f"/*\n{(_folder() / 'vendor' / 'LICENSE.txt').read_text(encoding='utf-8')}*/"
    vendored = [(_folder() / "vendor" / f"d3-{name}.min.js").read_text(encoding="utf-8") for name in _VENDOR]
    own = "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)
    return "\n".join([licence, *vendored, f'(() => {{\n"use strict";\n{own}}})();'])


def _asset(name: str) -> str:
    return (_folder() / "assets" / name).read_text(encoding="utf-8")


def _folder() -> Traversable:
    return files("asikit.report.html")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
