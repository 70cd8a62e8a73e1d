"""The reader of data files: one standard of words for all kinds, whatever types a file becomes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from asikit.attacks import load_vulnerability
from asikit.documents import FILLED, INHERITED, KeyPlace, Shelf, Short, checked, read_json, typed
from asikit.errors import AsikitError, nearest
from asikit.machine.x86 import load_cpu
from asikit.mitigations import load_mitigation
from asikit.replay import load_policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Colour(StrEnum):
    """Words that are their values."""

    RED = "red"
    GREEN = "green"


class Level(IntEnum):
    """Words that stand for numbers."""

    LOW = 1
    HIGH = 2

    @property
    def word(self) -> str:
        """What files call it."""
        return self.name.lower()


class Leaf(msgspec.Struct, frozen=True, kw_only=True):
    """A table of its own."""

    colour: Colour
    width: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1
    share: float = 0.5


@dataclass(frozen=True)
class Tree:
    """A file."""

    title: str
    name: Annotated[str, FILLED] = ""
    secret: Annotated[int, FILLED] = 0
    leaves: tuple[Leaf, ...] = ()
    levels: Annotated[tuple[Level, ...], Short(bool, lambda given: ["high"] if given else [])] = ()
    by_colour: dict[Colour, int] | None = None
    what: dict[str, Any] | None = None


PLACE = KeyPlace("mine.toml", AsikitError, "tree")


def test_a_file_becomes_its_type() -> None:
    """Tables, lists, words, words that stand for numbers, a short form, and whatever a file likes."""
    leaf = {"colour": "red", "share": 1}
    table = {"title": "x", "leaves": [leaf], "levels": True, "by_colour": {"green": 3}, "what": {"ever": [1]}}
    assert typed(table, Tree, PLACE) == Tree(
        "x",
        leaves=(Leaf(colour=Colour.RED, share=1.0),),
        levels=(Level.HIGH,),
        by_colour={Colour.GREEN: 3},
        what={"ever": [1]},
    )
    assert typed({"title": "x", "levels": ["low"]}, Tree, PLACE).levels == (Level.LOW,)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"leafs": []}, 'mine.toml: a tree has no key "leafs"; the nearest is "leaves"'),
        ({"zz": 1}, 'mine.toml: a tree has no key "zz" (its keys: by_colour, leaves, levels, title, what)'),
        ({"secret": 1}, 'mine.toml: a tree has no key "secret" (its keys: by_colour, leaves, levels, title, what)'),
        ({"name": "x"}, "mine.toml: name: a tree's name is its file's; remove the key"),
        ({"title": 3}, "mine.toml: title: must be a string, not a number (3)"),
        ({"leaves": {}}, "mine.toml: leaves: must be a list, not a table"),
        ({"leaves": [{"width": 2}]}, 'mine.toml: [leaves] lacks the key "colour"'),
        (
            {"leaves": [{"colour": "rod"}]},
            'mine.toml: leaves.colour: "rod" is not one of green, red; the nearest is "red"',
        ),
        ({"leaves": [{"colour": "red", "width": 0}]}, "mine.toml: leaves.width: must be 1 to 9, not 0"),
        (
            {"leaves": [{"colour": "red", "width": 1.5}]},
            "mine.toml: leaves.width: must be a whole number, not a number (1.5)",
        ),
        (
            {"leaves": [{"colour": "red", "width": True}]},
            "mine.toml: leaves.width: must be a number, not true or false (True)",
        ),
        ({"levels": ["1"]}, 'mine.toml: levels: "1" is not one of high, low'),
        ({"levels": [INHERITED]}, 'mine.toml: levels: "..." is not one of high, low'),
        ({"by_colour": {"gren": 1}}, 'mine.toml: [by_colour] has no key "gren"; the nearest is "green"'),
        ({"by_colour": {"green": "x"}}, "mine.toml: by_colour.green: must be a number, not a string ('x')"),
    ],
)
def test_refusals(more: dict[str, object], message: str) -> None:
    """A line each: the file, the key, what was found, and the nearest right word or all there are."""
    with pytest.raises(AsikitError) as caught:
        typed({"title": "x", **more}, Tree, PLACE)
    assert (str(caught.value), caught.value.exit_code) == (message, 2)


def test_a_key_that_is_missing() -> None:
    """The table is named."""
    with pytest.raises(AsikitError, match=r'^mine.toml: a tree lacks the key "title"$'):
        typed({}, Tree, PLACE)


def test_inherited_elements_stay() -> None:
    """Where files are laid over each other, a list may hold the mark for what is inherited, between its own words."""
    place = KeyPlace("mine.toml", AsikitError, "tree", inherits=True)
    assert checked({"title": "x", "levels": [INHERITED, "low"]}, Tree, place) == {
        "title": "x",
        "levels": [INHERITED, 1],
    }


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("zen2", ["zen-1200", "zen2-7452", "zen3-5600x"], '; the nearest is "zen2-7452"'),
        ("ephmpa", ["ephmap", "ephmpa-long"], '; the nearest is "ephmpa-long"'),
        ("epmap", ["ephmap", "blanket"], '; the nearest is "ephmap"'),
        ("", ["ephmap"], ""),
        ("qqq", ["ephmap"], ""),
    ],
)
def test_nearest(word: str, known: list[str], hint: str) -> None:
    """A name that begins with the word is meant, however much longer it is; else the one that is spelt most alike."""
    assert nearest(word, known) == hint


LOADERS: dict[str, Callable[[str], object]] = {
    "policy": load_policy,
    "CPU model": load_cpu,
    "vulnerability": load_vulnerability,
    "mitigation": load_mitigation,
}


@pytest.mark.parametrize("noun", LOADERS)
def test_all_kinds_are_refused_in_the_same_words(noun: str, tmp_path: Path) -> None:
    """A name, a file that is not there, one that is no text, one that is no TOML, and a key: each ends with 2."""
    load, path = LOADERS[noun], tmp_path / "mine.toml"

    def refusal(name_or_file: str) -> str:
        with pytest.raises(AsikitError) as caught:
            load(name_or_file)
        assert caught.value.exit_code == 2
        return str(caught.value).replace(f"{tmp_path}/", "")

    unknown = refusal("nonesuch")
    assert unknown.startswith(f'no {noun} "nonesuch"')
    assert "(shipped: " in unknown
    assert unknown.endswith("; a file of your own ends in .toml)")
    assert refusal(str(path)) == f"mine.toml: cannot read the {noun}: No such file or directory"
    path.write_bytes(b"\xff")
    assert refusal(str(path)) == "mine.toml: not a TOML file: it is not UTF-8 text"
    path.write_text("[", encoding="utf-8")
    assert refusal(str(path)).startswith("mine.toml: not a TOML file: ")
    path.write_text("titel = 1", encoding="utf-8")
    assert refusal(str(path)) == f'mine.toml: a {noun} has no key "titel"; the nearest is "title"'
    path.write_text("title = 1", encoding="utf-8")
    assert refusal(str(path)).startswith("mine.toml: ")


def test_a_shelf_names_what_it_has() -> None:
    """The files that come with the package, sorted; each is found by its name."""
    shelf = Shelf("policies", Tree, AsikitError, "tree")
    assert shelf.names() == tuple(sorted(shelf.names()))
    assert "ephmap" in shelf.names()


def test_json(tmp_path: Path) -> None:
    """What is no JSON, and what is not there, is a line that says what it should have been."""
    path = tmp_path / "a.json"
    with pytest.raises(AsikitError) as caught:
        read_json(path, "document", AsikitError)
    assert str(caught.value) == f"{path}: cannot read the document: No such file or directory"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(AsikitError, match="not a JSON document: "):
        read_json(path, "document", AsikitError)
    path.write_text(json.dumps([1]), encoding="utf-8")
    assert read_json(path, "document", AsikitError) == [1]
