"""`asi help`: every page of the documentation, as wide as the terminal; and the other door, `python -m asikit`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from asikit.cli import _frame
from asikit.report.topic import topic_report
from asikit.report.view.text import text

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
PAGES = {
    path.stem: path for path in sorted((ROOT / "docs").rglob("*.md")) if path.stem != "contributing"
}  # that one shows a file of the checkout, which is no part of the package


def asi(*words: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the package as a module."""
    command = [sys.executable, "-m", "asikit", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_module_is_the_command() -> None:
    """`python -m asikit` says what `asi` says, and calls itself so."""
    done = asi("replay")
    assert (done.returncode, done.stderr) == (2, "asi: error: missing argument 'TRACE' (see asi replay --help)\n")


def test_topics() -> None:
    """Without a topic there is a line for each page: its name, and its first heading."""
    done = asi("help")
    assert (done.returncode, done.stderr) == (0, "")
    starts = [line.split()[0] for line in done.stdout.splitlines() if line[:1].strip()]
    assert starts == sorted(set(PAGES) - {"index"})
    assert "The trace format" in done.stdout


def test_every_command_and_format_is_a_topic() -> None:
    """What one can type, and each kind of file that one can write, has a page."""
    wanted = {*_frame.asi.list_commands(click.Context(_frame.asi)), "trace-format", "policies", "cpu-models"}
    assert wanted | {"vulnerabilities"} <= set(PAGES)


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("polices", 'no topic "polices"; the nearest is "policies"'),
        ("rec", 'no topic "rec"; the nearest is "record"'),
        ("xyzzy", 'no topic "xyzzy"'),
    ],
)
def test_misspelt_topic(topic: str, says: str) -> None:
    """A topic that is not there is a usage error, with the nearest that there is."""
    done = asi("help", topic)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"asi: error: {says} (asi help lists them) (see asi help --help)\n"


def test_page_is_what_the_file_says() -> None:
    """A page of Markdown becomes text: headings, lists, tables, examples, links that lead out."""
    page = """# Title *one*

First `words`, and a [page](other.md) and a [site](https://example.org/x).

| a | b |
|---|---|
| `x` | long words |

## Then

* one
  two
* three

  more

```console
$ asi   demo
```

> said
"""
    assert (
        text(topic_report(page), 40)
        == """\
Title one

First words, and a page and a site
<https://example.org/x>.

 a   b
 ──────────────
 x   long words

Then
* one two
* three
  more

  $ asi   demo

  said
"""
    )


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [60, 100])
def test_page_fits(name: str, width: int) -> None:
    """Each page is shown, and only examples, which are shown as they were typed, may be broken at the edge."""
    lines = text(topic_report(PAGES[name].read_text(encoding="utf-8")), width).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= width
    assert not any(line.startswith(("#", "```", "|--")) for line in lines)
