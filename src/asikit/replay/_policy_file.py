"""Policies from TOML files: the shipped ones by name, a user's by path, with inheritance."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from asikit.documents import INHERITED, Document, Shelf, is_own_file
from asikit.replay.errors import PolicyError
from asikit.replay.policy import DEFAULT_REGIONS, Policy
from asikit.trace import Region

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from asikit.protocol import Mapped
    from asikit.replay.policy import TouchKind

__all__ = ["load_policy", "shipped_policies"]

_SHELF = Shelf("policies", Policy, PolicyError, "policy", inherits=True)


def shipped_policies() -> tuple[str, ...]:
    """Return the names of the policies that come with the package, sorted."""
    return _SHELF.names()


def load_policy(name_or_file: str | Path) -> Policy:
    """Return a policy.

    :param name_or_file: The name of a shipped policy, or the path of a TOML file (it ends in ``.toml``).
    :raises PolicyError: No such policy, a file that is not TOML, a key that no policy has, a value that its key
        cannot have, or files that inherit from each other.
    """
    document = _SHELF.read(name_or_file)
    given: set[tuple[str, str]] = set()
    table = _inherited(document, given, seen=())
    policy = _SHELF.made(document, table)
    return replace(policy, regions=_regions(policy.regions), shipped_names=frozenset(policy.names()) - given)


def _inherited(document: Document, given: set[tuple[str, str]], *, seen: tuple[str, ...]) -> Mapping[str, Any]:
    """Lay a file over the one that it inherits from.

    :param given: Gets what the user's own files have in lists: key and name.
    """
    if document.folder is not None:
        given.update(_listed(document.table))
    parent = document.table.get("inherits")
    below = {} if parent is None else _inherited(_parent(document, parent, seen), given, seen=_with(document, seen))
    return _merge(below, document.table)


def _with(document: Document, seen: tuple[str, ...]) -> tuple[str, ...]:
    return (*seen, document.identity)


def _parent(document: Document, name: str, seen: tuple[str, ...]) -> Document:
    """Read the file that a document inherits from."""
    place = document.place.inside("inherits")
    where: str | Path = name
    if is_own_file(name):
        where = name if document.folder is None else document.folder / name
        if document.folder is None or not (document.folder / name).is_file():
            raise place.fault(f"there is no file {where}")
    elif name not in _SHELF.names():
        try:
            return _SHELF.read(name)
        except PolicyError as error:
            raise place.fault(str(error)) from error
    parent = _SHELF.read(where)
    if parent.identity in _with(document, seen):
        raise place.fault("the files inherit from each other; break the circle")
    return parent


def _listed(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Give the elements of all lists, each with its list's key."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _listed(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield from ((f"{prefix}{key}", item) for item in value)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one document over another: tables key by key, lists whole but for ``"..."``, the rest replaced."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict):
            merged[key] = _merge(below.get(key, {}), value)
        elif isinstance(value, list):
            inherited = below.get(key, [])
            spread = [part for item in value for part in (inherited if item == INHERITED else [item])]
            merged[key] = list(dict.fromkeys(spread))
        else:
            merged[key] = value
    return merged


def _regions(given: Mapping[Region, Mapping[TouchKind, Mapped]]) -> Mapping[Region, Mapping[TouchKind, Mapped]]:
    """Return every region, spelled out for each access."""
    # BPF programs are text in the modules' part of the address space; a policy about that is about them too.
    given = {Region.BPF: given.get(Region.MODULES, {}), **given}
    return MappingProxyType(
        {
            region: MappingProxyType({**defaults, **given.get(region, {})})
            for region, defaults in DEFAULT_REGIONS.items()
        }
    )
