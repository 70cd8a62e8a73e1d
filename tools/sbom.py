#!/usr/bin/env python3
"""Writes what asikit is made of when it is installed from requirements.lock: a CycloneDX 1.6 bill of materials.

    python tools/sbom.py [FILE]

Versions and hashes are the lock's; licences, and who needs whom, are what the installed packages say. What developers
need alone is not in it. The same lock gives the same bytes, on Pythons for which it has the same versions. The usual
generators list all of a lock or all of an environment, without telling the two apart, and bring a dozen packages.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import NAMESPACE_URL, uuid5

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT: Final = Path(__file__).parents[1]
_VERSION: Final = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_PAGE: Final = "https://pypi.org/project/{}/{}/"


def bill() -> dict[str, Any]:
    """Return the bill of materials.

    :raises SystemExit: What is installed is not what is locked.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = _VERSION.search((ROOT / "src/asikit/__init__.py").read_text(encoding="utf-8"))
    assert found is not None
    own = f"pkg:pypi/asikit@{found[1]}"
    locked = _locked((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    needs = _closure(_names(project["dependencies"]))
    for name in needs:
        there = metadata(name)["Version"]
        if name not in locked or locked[name][0] != there:
            sys.exit(f"error: {name} {there} is installed, and requirements.lock has another: make clean, make demo")
    of = {name: f"pkg:pypi/{name}@{locked[name][0]}" for name in needs}
    content: dict[str, Any] = {
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "asikit",
                "version": found[1],
                "purl": own,
                "licenses": [{"expression": project["license"]}],
            }
        },
        "components": [_component(name, *locked[name], of[name]) for name in needs],
        "dependencies": [
            {"ref": own, "dependsOn": sorted(of[name] for name in _names(project["dependencies"]))},
            *({"ref": of[name], "dependsOn": sorted(of[one] for one in _required(name))} for name in needs),
        ],
    }
    number = uuid5(NAMESPACE_URL, json.dumps(content, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{number}", "version": 1}
    return head | content


def _locked(text: str) -> dict[str, tuple[str, list[str]]]:
    """Return the version and the hashes of each package that a lock has for this Python."""
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        one = Requirement(line.partition("--hash")[0])
        if one.marker is None or one.marker.evaluate():
            found[str(canonicalize_name(one.name))] = (str(one.specifier).removeprefix("=="), _HASH.findall(line))
    return found


def _component(name: str, version: str, hashes: list[str], reference: str) -> dict[str, Any]:
    """Return a component; its archives, one for each kind of machine, are told by their hashes."""
    licence = _licence(metadata(name))
    page = {
        "type": "distribution",
        "url": _PAGE.format(name, version),
        "hashes": [{"alg": "SHA-256", "content": one} for one in sorted(hashes)],
    }
    component = {"type": "library", "bom-ref": reference, "name": name, "version": version, "purl": reference}
    return {**component, **({"licenses": [licence]} if licence else {}), "externalReferences": [page]}


def _licence(said: Any) -> dict[str, Any]:  # noqa: ANN401  (its type lacks `get` in some Pythons)
    """Return a package's licence: an expression of SPDX if it gives one, else in its own words, if they are few."""
    expression = said.get("License-Expression")
    if expression:
        return {"expression": expression}
    classes = [one.rpartition(" :: ")[2] for one in said.get_all("Classifier", []) if one.startswith("License :: ")]
    words = classes[0] if classes else (said.get("License") or "").strip()
    return {"license": {"name": words}} if words and "\n" not in words else {}


def _closure(names: Iterable[str]) -> list[str]:
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += _required(name)
    return sorted(found)


def _required(name: str) -> list[str]:
    return _names(metadata(name).get_all("Requires-Dist", []))


def _names(requirements: Iterable[str]) -> list[str]:
    """Return the names of what is required here, without extras."""
    read = [Requirement(one) for one in requirements]
    return [canonicalize_name(one.name) for one in read if one.marker is None or one.marker.evaluate({"extra": ""})]


if __name__ == "__main__":
    made = json.dumps(bill(), indent=2) + "\n"
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(made, encoding="utf-8")
    else:
        sys.stdout.write(made)
