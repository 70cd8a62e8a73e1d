"""The one reader of data files, TOML and JSON into typed values; and the one writer of files, whole or not at all.

A kind of data file is a `Shelf`: the files that come with the package are found by name, a user's own by path. What a
file may say is written once, as the type that it becomes: a dataclass or a `msgspec.Struct`, whose fields are the keys.

A refusal is one line: the file, the key, what was found, and the nearest right word or all that there are.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from asikit.errors import nearest

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from asikit.errors import AsikitError

__all__ = [
    "FILLED",
    "INHERITED",
    "SUFFIX",
    "Document",
    "KeyPlace",
    "Shelf",
    "Short",
    "checked",
    "is_own_file",
    "made",
    "read_json",
    "shipped_text",
    "typed",
    "write_whole",
]

SUFFIX = ".toml"
"""How a file's name ends; a name without it is that of a shipped file."""
INHERITED = "..."
"""As an element of a list: the elements of the inherited list stand here."""
FILLED = "filled in by the reader: no key of a file"
"""Annotates a field that a file does not have: ``name: Annotated[str, FILLED]``."""

T = TypeVar("T")


def is_own_file(name_or_file: str) -> bool:
    """Tell whether a user means a file of their own, and not the name of a shipped one."""
    return name_or_file.endswith(SUFFIX)


@dataclass(frozen=True, slots=True)
class Short:
    """Annotates a field that may be written in a shorter way.

    :ivar given: The type of the short form; an enum's is one of its words.
    :ivar means: Makes the long form of it, as a file would have it.
    """

    given: type
    means: Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where a value stands, for messages.

    :ivar file: How messages call the file.
    :ivar error: What is raised.
    :ivar noun: What the file is of.
    :ivar inherits: Whether lists may have :data:`INHERITED`.
    """

    file: str
    error: type[AsikitError]
    noun: str
    key: str = ""
    inherits: bool = False

    @property
    def table(self) -> str:
        """What messages call the table at this place."""
        return f"[{self.key}]" if self.key else f"a {self.noun}"

    def inside(self, key: str) -> KeyPlace:
        """Return the place of a key of this table."""
        return dataclasses.replace(self, key=f"{self.key}.{key}" if self.key else key)

    def fault(self, what: str) -> AsikitError:
        """Return the error to raise about the value here."""
        return self.error.usage(f"{self.file}: {self.key}: {what}" if self.key else f"{self.file}: {what}")

    def no_key(self, key: str, known: Mapping[str, object]) -> AsikitError:
        """Return the error to raise about a key that the table here does not have."""
        near = nearest(key, known) or f" (its keys: {', '.join(sorted(known))})"
        return self.error.usage(f'{self.file}: {self.table} has no key "{key}"{near}')


@dataclass(frozen=True, slots=True)
class Document:
    """A data file as it was read, with nothing in it that its kind does not have.

    :ivar name: The file's name without its suffix.
    :ivar place: The whole file, for messages.
    :ivar folder: Where a user's own file lies; None for one of the package's.
    :ivar identity: The same for two documents only if they are the same file.
    :ivar table: What it says; words are the values that they stand for.
    """

    name: str
    place: KeyPlace
    folder: Path | None
    identity: str
    table: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shelf(Generic[T]):
    """One kind of data file.

    :ivar folder: Where the package's own files are, in ``data``.
    :ivar kind: What a file becomes. Its field ``name``, if it is `FILLED`, is the file's name.
    :ivar error: What is raised when there is no such file, or when it is refused.
    :ivar noun: What a file is of, in messages.
    :ivar inherits: Whether lists may have :data:`INHERITED`.
    :ivar contradiction: Says what of a file that has the right keys and words makes no sense; nothing if all does.
    """

    folder: str
    kind: type[T]
    error: type[AsikitError]
    noun: str
    inherits: bool = False
    contradiction: Callable[[T], str] | None = None

    def names(self) -> tuple[str, ...]:
        """Return the names of the files that come with the package, sorted."""
        found = (files("asikit") / "data" / self.folder).iterdir()
        return tuple(sorted(item.name.removesuffix(SUFFIX) for item in found if item.name.endswith(SUFFIX)))

    def load(self, name_or_file: str | Path) -> T:
        """Return what a file says.

        :param name_or_file: The name of a shipped one, or the path of a TOML file (it ends in ``.toml``).
        :raises AsikitError: Of the shelf's kind: there is no such file, or it does not say what it must.
        """
        document = self.read(name_or_file)
        loaded = self.made(document, document.table)
        wrong = "" if self.contradiction is None else self.contradiction(loaded)
        if wrong:
            raise document.place.fault(wrong)
        return loaded

    def read(self, name_or_file: str | Path) -> Document:
        """Return a file's table, checked but not yet made the shelf's type; parameter and errors as for `load`."""
        source = self._found(str(name_or_file))
        own = isinstance(source, Path) and is_own_file(str(name_or_file))
        place = KeyPlace(str(source) if own else source.name, self.error, self.noun, inherits=self.inherits)
        table = checked(_toml(source, place), self.kind, place)
        return Document(
            name=source.name.removesuffix(SUFFIX),
            place=place,
            folder=Path(source.parent) if own and isinstance(source, Path) else None,
            identity=str(source.resolve()) if isinstance(source, Path) else str(source),
            table=table if isinstance(table, dict) else {},
        )

    def made(self, document: Document, table: Mapping[str, Any]) -> T:
        """Return what a table says, with what the reader fills in: the ``name`` and the ``file`` of a document."""
        known: Mapping[str, _Key] = _keys(self.kind)  # type: ignore[arg-type]  # mypy: a type may not be hashable
        filled = {"name": document.name, "file": document.place.file}
        given = {key: value for key, value in filled.items() if key in known}
        return made({**table, **given}, self.kind, document.place)

    def _found(self, text: str) -> Traversable:
        if is_own_file(text):
            return Path(text)
        known = self.names()
        if text not in known:
            raise self.error.usage(
                f'no {self.noun} "{text}"{nearest(text, known)}'
                f" (shipped: {', '.join(known)}; a file of your own ends in {SUFFIX})"
            )
        return files("asikit") / "data" / self.folder / f"{text}{SUFFIX}"


def shipped_text(name: str, kind: type[T], error: type[AsikitError], noun: str) -> T:
    """Return what one of the package's data files says that is the only one of its kind.

    :param name: Its path in ``data``.
    """
    source = files("asikit") / "data" / name
    place = KeyPlace(source.name, error, noun)
    return typed(_toml(source, place), kind, place)


def typed(value: object, kind: type[T], place: KeyPlace) -> T:
    """Return a value of a file as what it must be. Raises the place's error."""
    return made(checked(value, kind, place), kind, place)


def made(value: object, kind: type[T], place: KeyPlace) -> T:
    """Make a type of what has been checked, and of what the reader has filled in. Raises the place's error."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:  # a rule of the type's own, in its __post_init__
        raise place.fault(str(error)) from error


def read_json(path: Path, noun: str, error: type[AsikitError]) -> Any:
    """Return what a JSON file holds.

    :param noun: What the file should be, in messages.
    :raises AsikitError: It cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise error.usage(f"{path}: cannot read the {noun}: {fault.strerror}") from fault
    except ValueError as fault:
        raise error(f"{path}: not a JSON {noun}: {fault}") from fault


def _toml(source: Traversable, place: KeyPlace) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise place.fault(f"not a TOML file: {error}") from error
    except UnicodeDecodeError as error:
        raise place.fault("not a TOML file: it is not UTF-8 text") from error
    except OSError as error:
        raise place.fault(f"cannot read the {place.noun}: {error.strerror}") from error


# What a value must be, by its type.


def checked(value: object, kind: Any, place: KeyPlace) -> object:
    """Return a value of a file with its short forms spelled out, and each word as the value that it stands for.

    :raises AsikitError: The place's: a key that is misspelt or missing, a value that its key cannot have.
    """
    if kind is Any:
        return value
    check = _OF_FORM.get(get_origin(kind)) or (
        _word if issubclass(kind, Enum) else _table if _is_table(kind) else _plain
    )
    return check(value, kind, place)


def _annotated(value: object, kind: Any, place: KeyPlace) -> object:
    kind, *notes = get_args(kind)
    for short in (note for note in notes if isinstance(note, Short)):
        if type(value) is (str if issubclass(short.given, Enum) else short.given):
            value = short.means(checked(value, short.given, place))
    value = checked(value, kind, place)
    for bounds in (note for note in notes if isinstance(note, msgspec.Meta)):
        _bound(value, bounds, place)
    return value


def _bound(value: Any, bounds: msgspec.Meta, place: KeyPlace) -> None:
    low, high = bounds.ge, bounds.le
    if (low is not None and value < low) or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"{low} to {high}"
        raise place.fault(f"must be {wanted}, not {value}")


def _optional(value: object, kind: Any, place: KeyPlace) -> object:
    (kind,) = (each for each in get_args(kind) if each is not type(None))
    return checked(value, kind, place)


def _list(value: Any, kind: Any, place: KeyPlace) -> object:
    _expect(value, list, place)
    of_item = get_args(kind)[0]
    return [item if place.inherits and item == INHERITED else checked(item, of_item, place) for item in value]


def _table(value: Any, kind: type, place: KeyPlace) -> object:
    _expect(value, dict, place)
    keys = _keys(kind)
    known = {name: key for name, key in keys.items() if not key.is_filled}
    for name in value:
        if name == "name" and name in keys and name not in known:
            owner = place.noun.split()[-1]
            raise place.inside(name).fault(f"a {owner}'s name is its file's; remove the key")
        if name not in known:
            raise place.no_key(name, known)
    for name, key in known.items():
        if key.is_required and name not in value:
            raise place.error.usage(f'{place.file}: {place.table} lacks the key "{name}"')
    return {name: checked(item, known[name].kind, place.inside(name)) for name, item in value.items()}


def _mapping(value: Any, kind: Any, place: KeyPlace) -> object:
    _expect(value, dict, place)
    of_key, of_item = get_args(kind)
    if isinstance(of_key, type) and issubclass(of_key, Enum):
        known = _words(of_key)
        for name in value:
            if name not in known:
                raise place.no_key(name, known)
    return {name: checked(item, of_item, place.inside(name)) for name, item in value.items()}


def _word(value: object, kind: type[Enum], place: KeyPlace) -> object:
    _expect(value, str, place)
    known, word = _words(kind), str(value)
    if word not in known:
        raise place.fault(f'"{word}" is not one of {", ".join(sorted(known))}{nearest(word, known)}')
    return known[word]


def _plain(value: object, kind: type, place: KeyPlace) -> object:
    _expect(value, kind, place)
    return value


_OF_FORM: Mapping[Any, Callable[[Any, Any, KeyPlace], object]] = {
    Annotated: _annotated,
    Union: _optional,
    UnionType: _optional,
    dict: _mapping,
    Mapping: _mapping,
    list: _list,
    tuple: _list,
    frozenset: _list,
}


_TYPE_NAMES = {
    bool: "true or false",
    str: "a string",
    list: "a list",
    dict: "a table",
    int: "a number",
    float: "a number",
}


def _expect(value: object, wanted: type, place: KeyPlace) -> None:
    if type(value) is wanted or (wanted is float and type(value) is int):
        return
    given = _TYPE_NAMES.get(type(value), type(value).__name__)
    must = "a whole number" if wanted is int and type(value) is float else _TYPE_NAMES[wanted]
    shown = "" if isinstance(value, (dict, list)) else f" ({value!r})"
    raise place.fault(f"must be {must}, not {given}{shown}")


class _Key(NamedTuple):
    kind: Any
    is_required: bool
    is_filled: bool


@cache
def _keys(kind: type) -> dict[str, _Key]:
    """Return the keys of a table by the names that a file has for them."""
    if issubclass(kind, msgspec.Struct):
        return {
            field.encode_name: _Key(field.type, field.required, _is_filled(field.type))
            for field in msgspec.structs.fields(kind)
        }
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: _Key(
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            _is_filled(hints[field.name]),
        )
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]  # a dataclass: `_is_table`
    }


def _is_table(kind: type) -> bool:
    return issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind)


def _is_filled(kind: Any) -> bool:
    return get_origin(kind) is Annotated and FILLED in get_args(kind)


@cache
def _words(kind: type[Enum]) -> dict[str, object]:
    """Return the words of an enum, each with its value. Where members have a `word`, files have that."""
    return {str(getattr(member, "word", member.value)): member.value for member in kind}


def write_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file whole or not at all: what was there stays until all is written.

    :raises OSError: It cannot be written; it names the file that was asked for.
    """
    if path.exists() and not path.is_file():  # a device or a pipe takes what it is given
        with path.open("wb") as device:
            device.writelines(pieces)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # beside it: a rename does not cross file systems
    try:
        with partial.open("xb") as file:
            file.writelines(pieces)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
