"""Policies from TOML files: the shipped ones by name, a user's by path, with inheritance."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from asikit.errors import nearest
from asikit.protocol import CpuBug, CpuFeature, Mapped
from asikit.replay._policy_schema import INHERITED, check
from asikit.replay.errors import PolicyError
from asikit.replay.policy import (
    DEFAULT_REGIONS,
    ExitOn,
    MechanismKind,
    Policy,
    PolicyCpu,
    PolicyEphmap,
    PolicyMechanism,
    PolicyMemory,
    Rules,
    Sensitivity,
    TouchKind,
)
from asikit.trace import Region, TlbFlush

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from importlib.resources.abc import Traversable

__all__ = ["load_policy", "shipped_policies"]

_SUFFIX = ".toml"


def shipped_policies() -> tuple[str, ...]:
    """Return the names of the policies that come with the package, sorted."""
    return tuple(sorted(item.name.removesuffix(_SUFFIX) for item in _folder().iterdir() if item.name.endswith(_SUFFIX)))


def load_policy(name_or_file: str | Path) -> Policy:
    """Return a policy.

    :param name_or_file: The name of a shipped policy, or the path of a TOML file (it ends in ``.toml``).
    :raises PolicyError: No such policy, a file that is not TOML, a key that no policy has, a value that its key
        cannot have, or files that inherit from each other.
    """
    text = str(name_or_file)
    source: Traversable = Path(text) if text.endswith(_SUFFIX) else _shipped(text)
    given: set[tuple[str, str]] = set()
    policy = _build(source, _inherited(source, given, seen=()))
    return replace(policy, shipped_names=frozenset(policy.names()) - given)


def _folder() -> Traversable:
    return files("asikit") / "data" / "policies"


def _shipped(name: str) -> Traversable:
    known = shipped_policies()
    if name not in known:
        near = nearest(name, known)
        raise PolicyError(
            f'no policy "{name}"{near} (shipped: {", ".join(known)}; a file of your own ends in {_SUFFIX})'
        )
    return _folder() / f"{name}{_SUFFIX}"


def _read(source: Traversable) -> dict[str, Any]:
    shown = _shown(source)
    try:
        document = tomllib.loads(source.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{shown}: not a TOML file: {error}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{shown}: not a TOML file: it is not UTF-8 text") from error
    except OSError as error:
        raise PolicyError(f"{shown}: cannot read the policy: {error.strerror}") from error
    return check(document, shown)


def _is_shipped(source: Traversable) -> bool:
    return str(source).startswith(str(_folder()))


def _shown(source: Traversable) -> str:
    return source.name if _is_shipped(source) else str(source)


def _inherited(source: Traversable, given: set[tuple[str, str]], *, seen: tuple[str, ...]) -> dict[str, Any]:
    """Read a file and lay it over the file that it inherits from.

    :param given: Gets what the user's own files have in lists: key and name.
    """
    identity = str(source.resolve()) if isinstance(source, Path) else str(source)
    if identity in seen:
        raise PolicyError(f"{_shown(source)}: inherits: the files inherit from each other; break the circle")
    document = _read(source)
    if not _is_shipped(source):
        given.update(_listed(document))
    parent_name = document.pop("inherits", None)
    if parent_name is None:
        return _merge({}, document)
    if parent_name.endswith(_SUFFIX):
        parent: Traversable = (source.parent if isinstance(source, Path) else Path()) / parent_name
        if not parent.is_file():
            raise PolicyError(f"{_shown(source)}: inherits: there is no file {parent}")
    else:
        try:
            parent = _shipped(parent_name)
        except PolicyError as error:
            raise PolicyError(f"{_shown(source)}: inherits: {error}") from error
    return _merge(_inherited(parent, given, seen=(*seen, identity)), document)


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


def _build(source: Traversable, document: Mapping[str, Any]) -> Policy:
    memory = document.get("memory", {})
    ephmap = document.get("ephmap", {})
    return Policy(
        name=source.name.removesuffix(_SUFFIX),
        file=_shown(source),
        title=document.get("title", ""),
        mechanism=_mechanism(document.get("mechanism", {})),
        cpu=_cpu(document.get("cpu", {})),
        memory=PolicyMemory(
            default=Sensitivity(memory.get("default", Sensitivity.NONSENSITIVE)),
            sensitive=_rules(memory.get("sensitive", {})),
            nonsensitive=_rules(memory.get("nonsensitive", {})),
        ),
        regions=_regions(document.get("regions", {})),
        ephmap=PolicyEphmap(
            kinds=tuple(ephmap.get("kinds", ())),
            access=tuple(TouchKind(item) for item in ephmap.get("access", PolicyEphmap().access)),
            functions=tuple(ephmap.get("functions", ())),
        ),
    )


def _mechanism(table: Mapping[str, Any]) -> PolicyMechanism:
    named: dict[str, Any] = {
        "kind": MechanismKind,
        "exit_on": ExitOn,
        "exit_on_tlb_flush": lambda words: tuple(TlbFlush[word.upper()] for word in words),
    }
    return PolicyMechanism(**{key: named[key](value) if key in named else value for key, value in table.items()})


def _cpu(table: Mapping[str, Any]) -> PolicyCpu:
    base = PolicyCpu()
    return PolicyCpu(
        features=tuple(CpuFeature(name) for name in table.get("features", base.features)),
        bugs=tuple(CpuBug(name) for name in table.get("bugs", base.bugs)),
        rsb_fill=table.get("rsb_fill", base.rsb_fill),
    )


def _rules(table: Mapping[str, list[str]]) -> Rules:
    return Rules(**{key: tuple(names) for key, names in table.items()})


def _regions(table: Mapping[str, Mapping[str, str]]) -> Mapping[Region, Mapping[TouchKind, Mapped]]:
    # BPF programs are text in the modules' part of the address space; a policy about that is about them too.
    table = {Region.BPF: table.get(Region.MODULES, {}), **table}
    return MappingProxyType(
        {
            region: MappingProxyType(
                {access: Mapped(table.get(region, {}).get(access, default)) for access, default in defaults.items()}
            )
            for region, defaults in DEFAULT_REGIONS.items()
        }
    )
