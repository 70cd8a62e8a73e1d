"""The notebook runs from its first cell to its last, and shows what the commands print."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from asikit.report.cost import percent

ROOT = Path(__file__).parents[2]
NOTEBOOK, README = ROOT / "examples/notebook/replay.py", ROOT / "README.md"

_RUN = """
import json, runpy, sys

outputs, names = runpy.run_path(sys.argv[1])["app"].run()
charts = [json.loads(output.to_json()) for output in outputs if hasattr(output, "to_json")]
print(json.dumps({
    "counts": names["counts"].rows(),
    "causes": names["causes"].filter(policy="denylist-2025")["exits"].sum(),
    "trips": names["lengths"]["round trips"].sum(),
    "prices": names["prices"].rows(),
    "charts": [sum(map(len, chart["datasets"].values())) for chart in charts],
}))
"""


def test_notebook(tmp_path: Path) -> None:
    """Counts, causes, round trips and prices are those that the README's demo shows, and each chart has data."""
    words = [sys.executable, "-c", _RUN, str(NOTEBOOK)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran: dict[str, Any] = json.loads(done.stdout)
    assert ran["counts"] == [
        ["denylist-2025", 9655, 1363, 8292, 0],
        ["ephmap", 9655, 5515, 4140, 4157],
        ["writes-too", 9655, 7562, 2093, 6205],
        ["tmpfs-is-public", 9655, 8128, 1527, 0],
    ]
    assert (ran["causes"], ran["trips"]) == (8292, 9655)
    best = {(cpu, mitigation): percent(middle) for cpu, mitigation, _, middle, _ in ran["prices"]}
    for cpu in ("skylake-6600u", "zen2-7452"):
        row = re.search(rf"^ +(?:page-cache)? +{cpu}((?: +[\d.]+%){{4}})$", README.read_text("utf-8"), re.MULTILINE)
        assert row is not None
        assert [best[cpu, name] for name in ("linux", "blanket", "asi, ephmap")] == row[1].split()[1:]
    assert len(ran["charts"]) == 3
    assert all(ran["charts"])


def test_notebook_is_as_its_editor_writes_it() -> None:
    """Its editor has no complaint: whoever opens the notebook and saves it changes only what was meant."""
    words = [sys.executable, "-m", "marimo", "check", "--strict", str(NOTEBOOK)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr).strip()) == (0, "")
