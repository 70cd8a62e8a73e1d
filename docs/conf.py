"""The site: `make site` builds it in build/site, and a warning is an error."""

from __future__ import annotations

from asikit import __version__

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
