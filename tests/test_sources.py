"""What the data is taken from: every citation names a source that there is, and every source is cited."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from asikit.attacks import load_vulnerability, vulnerability_names
from asikit.cost import Basis, cpu_parameters
from asikit.machine.x86 import cpu_names, load_cpu
from asikit.mitigations import load_mitigation, shipped_mitigations
from asikit.sources import cited, known_sources, spelt_out

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

KEY = re.compile(r"(?<![\w.-])@([\w-]+)")


def texts(folder: Traversable | None = None) -> Iterator[tuple[str, str]]:
    """Give each shipped TOML file but the list of sources itself: name and text."""
    for item in (folder or files("asikit") / "data").iterdir():
        if item.is_dir() and not item.name.endswith(".asitrace"):
            yield from texts(item)
        elif item.name.endswith(".toml") and item.name != "sources.toml":
            yield item.name, item.read_text(encoding="utf-8")


def test_each_citation_names_a_source() -> None:
    """In values and in comments."""
    unknown = {(name, key) for name, text in texts() for key in KEY.findall(text) if key not in known_sources()}
    assert not unknown


def test_each_source_is_cited() -> None:
    """One that nothing is taken from is none."""
    used = {key for _, text in texts() for key in cited(text)}
    assert set(known_sources()) - used == set()


def test_each_source_can_be_found() -> None:
    """Who, what, when, where, and what was taken; no two have one name."""
    known = known_sources()
    for source in known.values():
        assert source.where.startswith("https://")
        assert all((source.author, source.title, source.taken))
        assert 1990 < source.year < 2030
        assert source.line.endswith(source.where)
    assert len({source.short for source in known.values()}) == len(known)


def test_nothing_else_is_cited() -> None:
    """No file that is not in the repository."""
    for name, text in texts():
        assert ".csv" not in text, name
        assert not re.findall(r"(?<![/\w-])[\w-]+\.md\b", text), name


@pytest.mark.parametrize("name", vulnerability_names())
def test_each_vulnerability_has_a_source(name: str) -> None:
    """Of which each part can be followed."""
    source = load_vulnerability(name).source
    for part in source.split("; "):
        assert cited(part), part


@pytest.mark.parametrize("name", cpu_names())
def test_each_figure_that_is_not_an_estimate_has_a_source(name: str) -> None:
    """What somebody measured or documented can be followed; an estimate says from what it is estimated."""
    for key, parameter in cpu_parameters(load_cpu(name)).items():
        assert parameter.cites or parameter.basis is Basis.ESTIMATE, key
        assert "@" not in parameter.source


def test_each_piece_of_a_mitigation_has_a_source() -> None:
    """A path of Linux's tree, or a work."""
    for work in (work for name in shipped_mitigations() for work in load_mitigation(name).work):
        assert cited(work.source), work.name


def test_a_text_with_citations() -> None:
    """The works are called by their short names; what is no key stays; a path of Linux's tree is Linux's."""
    assert spelt_out("@behrens-2022, a@b.c and @nobody-1999") == "Behrens et al., EuroSys 2022, a@b.c and @nobody-1999"
    assert cited("@ward-2020, @behrens-2022, @ward-2020; arch/x86/Kconfig") == ("ward-2020", "behrens-2022", "linux")
    assert cited("nothing") == ()
