"""The bill of materials: what is installed with asikit, as locked, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bill() -> Any:  # noqa: ANN401  (JSON)
    """Make it twice; both are the same."""
    words = [sys.executable, str(ROOT / "tools/sbom.py")]
    made = {subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    (text,) = made
    return json.loads(text)


def test_components_are_the_locked_ones(bill: dict[str, Any]) -> None:
    """Each component is in the lock, with its version and all of its hashes; the developers' tools are left out."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    names = {component["name"] for component in bill["components"]}
    assert {"click", "numpy", "polars", "polars-runtime-32", "z3-solver"} <= names
    assert not {"pytest", "ruff", "mypy", "hatchling", "hypothesis"} & names
    for component in bill["components"]:
        assert f"\n{component['name']}=={component['version']} " in f"\n{lock}"
        (archives,) = component["externalReferences"]
        assert archives["hashes"]
        for one in archives["hashes"]:
            assert f"--hash=sha256:{one['content']}" in lock


def test_references_lead_somewhere(bill: dict[str, Any]) -> None:
    """Whatever depends on something names it, and everything is needed by something."""
    references = {bill["metadata"]["component"]["bom-ref"], *(one["bom-ref"] for one in bill["components"])}
    assert {one["ref"] for one in bill["dependencies"]} == references
    needed = {need for one in bill["dependencies"] for need in one["dependsOn"]}
    assert needed == references - {bill["metadata"]["component"]["bom-ref"]}
    assert all(re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[\w.]+", one) for one in references)
