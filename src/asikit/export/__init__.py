"""A recording under a policy, in the forms of the tools that people already look with.

>>> from asikit.export.run import export
>>> from asikit.replay import load_policy
>>> from asikit.trace import Trace
>>> trace = Trace.open("fio.asitrace")  # doctest: +SKIP
>>> content = b"".join(export(trace, "folded", [load_policy("denylist-2025")]))  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True, slots=True)
class Format:
    """A form.

    :ivar says: What it is, and who reads it.
    :ivar suffix: How its files are called.
    :ivar binary: It is no text.
    """

    says: str
    suffix: str
    binary: bool = False


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "perfetto": Format("a timeline: tracks by CPU and task, for ui.perfetto.dev", "pftrace", binary=True),
        "folded": Format("exits by stack, for flamegraph.pl and inferno", "folded"),
        "speedscope": Format("exits by stack, for speedscope.app", "speedscope.json"),
        "pprof": Format("exits by stack, for pprof", "pb.gz", binary=True),
        "perf-script": Format("exits one by one with their stacks, as `perf script` prints events", "perf"),
        "csv": Format("a table of the exits or of the round trips, with a line of headings", "csv"),
        "parquet": Format("a table of the exits or of the round trips", "parquet", binary=True),
        "lkml": Format("plain text of 75 columns: machine, kernel, command, table, how to reproduce", "txt"),
    }
)
"""By name."""
