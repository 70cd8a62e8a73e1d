"""The keys of a policy file, and a checker that names the file, the key and the nearest right one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from asikit.errors import nearest
from asikit.protocol import CpuBug, CpuFeature, Mapped
from asikit.replay.errors import PolicyError
from asikit.replay.policy import ExitOn, MechanismKind, PolicyMechanism, Sensitivity, TouchKind
from asikit.trace import PageKind, Region, TlbFlush

__all__ = ["INHERITED", "check"]

INHERITED = "..."
"""As an element of a list: the elements of the inherited list stand here."""


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where in which file a value stands, for messages."""

    file: str
    key: str = ""

    def inside(self, key: str) -> KeyPlace:
        """Return the place of a key of this table."""
        return KeyPlace(self.file, f"{self.key}.{key}" if self.key else key)

    def fault(self, what: str) -> PolicyError:
        """Return the error to raise."""
        return PolicyError(f"{self.file}: {self.key}: {what}" if self.key else f"{self.file}: {what}")


_TYPE_NAMES = {
    bool: "true or false",
    str: "a string",
    list: "a list",
    dict: "a table",
    int: "a number",
    float: "a number",
}

Checker = Callable[[Any, KeyPlace], Any]


def _expect(value: object, wanted: type, place: KeyPlace) -> None:
    if type(value) is not wanted:
        given = _TYPE_NAMES.get(type(value), type(value).__name__)
        shown = "" if isinstance(value, (dict, list)) else f" ({value!r})"
        msg = f"must be {_TYPE_NAMES[wanted]}, not {given}{shown}"
        raise place.fault(msg)


def _boolean(value: object, place: KeyPlace) -> object:
    _expect(value, bool, place)
    return value


def _text(value: object, place: KeyPlace) -> object:
    _expect(value, str, place)
    return value


def _one_of(names: Iterable[str]) -> Checker:
    known = [str(name) for name in names]

    def checker(value: object, place: KeyPlace) -> object:
        _expect(value, str, place)
        if value not in known:
            near = nearest(str(value), known)
            raise place.fault(f'"{value}" is not one of {", ".join(sorted(known))}{near}')
        return value

    return checker


def _list_of(element: Checker) -> Checker:
    def checker(value: Any, place: KeyPlace) -> object:  # noqa: ANN401 - whatever the TOML file holds
        _expect(value, list, place)
        return [item if item == INHERITED else element(item, place) for item in value]

    return checker


def _table(**keys: Checker) -> Checker:
    def checker(value: Any, place: KeyPlace) -> object:  # noqa: ANN401 - whatever the TOML file holds
        _expect(value, dict, place)
        for key in value:
            if key not in keys:
                where = f"[{place.key}]" if place.key else "a policy"
                near = nearest(key, keys) or f" (its keys: {', '.join(sorted(keys))})"
                raise PolicyError(f'{place.file}: {where} has no key "{key}"{near}')
        return {key: keys[key](item, place.inside(key)) for key, item in value.items()}

    return checker


def _tlb_flushes(value: Any, place: KeyPlace) -> object:  # noqa: ANN401 - whatever the TOML file holds
    """A list, or ``true`` for what the published code does, ``false`` for none."""
    if isinstance(value, bool):
        return [flush.word for flush in PolicyMechanism().exit_on_tlb_flush] if value else []
    return _list_of(_one_of(flush.word for flush in TlbFlush))(value, place)


def _region(value: Any, place: KeyPlace) -> object:  # noqa: ANN401 - whatever the TOML file holds
    """One word for every access, or a table with a word for each."""
    if isinstance(value, dict):
        return _table(**{access.value: _one_of(Mapped) for access in TouchKind})(value, place)
    return dict.fromkeys([access.value for access in TouchKind], _one_of(Mapped)(value, place))


_names = _list_of(_text)
_kinds = _list_of(_one_of(PageKind))
_rules = _table(gfp=_names, unrecorded_kinds=_kinds, kinds=_kinds, allocated_by=_names, caches=_names)

_policy = _table(
    title=_text,
    inherits=_text,
    mechanism=_table(
        kind=_one_of(MechanismKind),
        exit_on=_one_of(ExitOn),
        exit_on_tlb_flush=_tlb_flushes,
        kvm_protects_user_data=_boolean,
        kvm_exit_on_user_return=_boolean,
        pti=_boolean,
        noflush=_boolean,
        smt=_boolean,
    ),
    cpu=_table(features=_list_of(_one_of(CpuFeature)), bugs=_list_of(_one_of(CpuBug)), rsb_fill=_boolean),
    memory=_table(default=_one_of(Sensitivity), sensitive=_rules, nonsensitive=_rules),
    regions=_table(**{region.value: _region for region in Region}),
    ephmap=_table(kinds=_kinds, access=_list_of(_one_of(TouchKind)), functions=_names),
)


def check(document: Mapping[str, object], file: str) -> dict[str, Any]:
    """Return the document of a policy file with every region spelled out for each access.

    :param document: What the TOML file holds.
    :param file: How messages call the file.
    :raises PolicyError: A key that no policy has, or a value that its key cannot have.
    """
    checked: dict[str, Any] = _policy(dict(document), KeyPlace(file))
    return checked
