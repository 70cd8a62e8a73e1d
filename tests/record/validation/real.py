"""What a real kernel with ASI did (``real.csv``)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["REASONS", "Real", "read_real"]

Runs = tuple[int, int]
"""Of two runs."""

REASONS = ("page_fault", "context_switch", "switch_mm", "tlb_flush")


@dataclass(frozen=True)
class Real:
    """A workload's exits, of each of two runs.

    :ivar program: Of which it was a part: those of one program start and end alike.
    :ivar size: Operations.
    :ivar exits: By variant: ``m`` and ``u``.
    :ivar by_reason: Of variant ``m``.
    """

    workload: str
    program: str
    size: int
    exits: Mapping[str, Runs]
    by_reason: Mapping[str, Runs]


def read_real() -> dict[str, Real]:
    """Read the figures, by workload."""
    lines = Path(__file__).with_name("real.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {
        row["workload"]: Real(
            row["workload"],
            row["program"],
            int(row["size"]),
            {variant: _runs(row, variant) for variant in ("m", "u")},
            {reason: _runs(row, reason) for reason in REASONS},
        )
        for row in rows
    }


def _runs(row: Mapping[str, str], name: str) -> Runs:
    return int(row[f"{name}_1"]), int(row[f"{name}_2"])
