"""Reading the files that describe vulnerabilities: ``data/vulnerabilities/NAME.toml``, and those of a user's own.

What is refused here would else be an attack that never takes place, and whose verdict would say nothing.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec

from asikit.attacks.errors import LeakError
from asikit.attacks.soundness import contradiction
from asikit.attacks.vectors import vector_named
from asikit.attacks.vulnerability import Vulnerability
from asikit.errors import nearest
from asikit.machine.x86 import cpu_names

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["load_vulnerability", "vulnerability_names"]

_SUFFIX = ".toml"


def vulnerability_names() -> tuple[str, ...]:
    """Return the names of the vulnerabilities that come with the package, sorted."""
    return tuple(sorted(item.name.removesuffix(_SUFFIX) for item in _folder().iterdir() if item.name.endswith(_SUFFIX)))


def load_vulnerability(name_or_file: str) -> Vulnerability:
    """Return a vulnerability.

    :param name_or_file: The name of a shipped one, or the path of a TOML file (it ends in ``.toml``).
    :raises LeakError: There is none of that name, or the file does not describe one; the message says where.
    """
    if name_or_file.endswith(_SUFFIX):
        source: Traversable = Path(name_or_file)
    elif name_or_file in vulnerability_names():
        source = _folder() / f"{name_or_file}{_SUFFIX}"
    else:
        near = nearest(name_or_file, vulnerability_names())
        raise LeakError(
            f'no vulnerability "{name_or_file}"{near} (asi attack --list; a file of your own ends in {_SUFFIX})'
        )
    shown = str(source) if isinstance(source, Path) else source.name
    try:
        document = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise LeakError(f"{shown}: cannot read the vulnerability: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LeakError(f"{shown}: not a TOML file: it is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise LeakError(f"{shown}: not a TOML file: {error}") from error
    return _checked(document, shown, source.name.removesuffix(_SUFFIX))


def _folder() -> Traversable:
    return files("asikit") / "data" / "vulnerabilities"


def _checked(document: dict[str, Any], shown: str, name: str) -> Vulnerability:
    _check_words(document, Vulnerability, shown, "")
    try:
        vulnerability = msgspec.convert({**document, "name": name}, Vulnerability)
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at `$.")
        raise LeakError(f"{shown}: {key.rstrip('`')}: {what}" if key else f"{shown}: {what}") from error
    if bool(vulnerability.ways) == bool(vulnerability.not_expressible):
        raise LeakError(f"{shown}: give [[ways]], or say in not_expressible why there are none")
    if vulnerability.ways and vulnerability.bug is None and not vulnerability.cpus:
        raise LeakError(f"{shown}: say which processors have it: bug, a name of CPU models' bugs, or cpus, their names")
    for cpu in vulnerability.cpus:
        if cpu not in cpu_names() and not cpu.endswith(_SUFFIX):
            raise LeakError(
                f'{shown}: cpus: no CPU model "{cpu}"{nearest(cpu, cpu_names())} (a file of your own ends in {_SUFFIX})'
            )
    for number, way in enumerate(vulnerability.ways, 1):
        wrong = contradiction(way)
        if wrong:
            raise LeakError(f"{shown}: way {number}, {way.mechanism}: {wrong}")
        for vector in way.vectors:
            try:
                vector_named(vector)
            except LeakError as error:
                raise LeakError(f"{shown}: way {number}: {error}") from error
    return vulnerability


def _check_words(value: object, kind: Any, shown: str, place: str) -> None:  # noqa: ANN401, C901 - a type, of any form
    """Refuse misspelt keys and words with the nearest right one; msgspec does the rest. Raises LeakError."""
    arguments = [each for each in get_args(kind) if each not in {type(None), ...}]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        # A vulnerability's name is its file's.
        fields = {field.name: field.type for field in msgspec.structs.fields(kind) if field.name != "name"}
        for key, item in value.items():
            if key not in fields:
                near = nearest(key, fields) or f" (its keys: {', '.join(sorted(fields))})"
                raise LeakError(f'{shown}: no key "{key}"{f" in {place}" if place else ""}{near}')
            _check_words(item, fields[key], shown, f"{place}.{key}" if place else key)
    elif isinstance(kind, type) and issubclass(kind, StrEnum) and isinstance(value, str):
        known = [word.value for word in kind]
        if value not in known:
            raise LeakError(f'{shown}: {place}: "{value}" is not one of {", ".join(known)}{nearest(value, known)}')
    elif isinstance(value, list) and arguments:
        for item in value:
            _check_words(item, arguments[0], shown, place)
    elif get_origin(kind) is dict and isinstance(value, dict):
        for key, item in value.items():
            _check_words(key, arguments[0], shown, place)
            _check_words(item, arguments[1], shown, place)
    elif isinstance(value, str) and len(arguments) == 1:
        _check_words(value, arguments[0], shown, place)
