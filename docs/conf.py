"""The site: `make site` builds it in build/site, and a warning is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "asikit"
author = "the asikit authors"
copyright = author  # noqa: A001  (Sphinx's name)
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["examples"]
myst_enable_extensions = ["attrs_block", "deflist"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"asikit {version}"
html_show_sphinx = False
html_copy_source = False

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}

_PAGES = {"../CONTRIBUTING.md": "contributing.md"}
"""Files beside this folder that the pages link to, and the page that shows each here."""


def _link_inside(app: Sphinx, name: str, content: list[str]) -> None:
    """Let links to files of the checkout lead to pages of the site."""
    del app, name
    for file, page in _PAGES.items():
        content[0] = content[0].replace(f"]({file}", f"]({page}")


def setup(app: Sphinx) -> None:
    """Sphinx calls it."""
    app.connect("source-read", _link_inside)
