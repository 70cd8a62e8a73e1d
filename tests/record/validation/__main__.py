"""Record, replay, compare, and print the tables, or write them into docs/validation.md."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.trace import Trace
from tests.record.validation.compared import Compared, compared, works_of
from tests.record.validation.real import read_real
from tests.record.validation.recorded import policies, record_works, replay_pieces
from tests.record.validation.table import differences, markdown, of_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.record.validation.recorded import Work

_PAGE = Path(__file__).parents[3] / "docs/validation.md"
_BEGIN, _END = "<!-- tables -->\n", "<!-- end of tables -->\n"


def main() -> int:
    """Print; 1 if a figure is off."""
    options = _parser().parse_args()
    begun = time.monotonic()
    names = options.workloads or _names(known_only=not options.all)
    works = works_of(names, read_real())
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        trace = Trace.open(options.trace) if options.trace else record_works(works, folder, options.kernel, say=_say)
        text, off, close = _results(trace, works)
    sys.stdout.write("\n".join([text, "", *off, ""]))
    _say(f"in {time.monotonic() - begun:.0f} s")
    if options.write:
        before, rest = _PAGE.read_text(encoding="utf-8").split(_BEGIN)
        _PAGE.write_text(f"{before}{_BEGIN}\n{text}\n\n{_END}{rest.split(_END)[1]}", encoding="utf-8")
    return 0 if close else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/validate", description=__doc__)
    parser.add_argument("workloads", nargs="*", help="which; if none is named, all whose real figures are known")
    parser.add_argument("--all", action="store_true", help="also the ones whose real figures are not known")
    parser.add_argument("--kernel", type=Path, help="the kernel to record; else the one that `asi record` takes")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the recording there")
    parser.add_argument("--trace", type=Path, help="a kept recording of the same workloads")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/validation.md")
    return parser


def _results(trace: Trace, works: Sequence[Work]) -> tuple[str, list[str], bool]:
    """Give the tables, what is off, and whether nothing is."""
    real, (mapped, unmapped) = read_real(), policies().values()
    results: dict[str, list[Compared]] = {
        "m": compared("m", replay_pieces(trace, works, mapped), real),
        "u": compared("u", replay_pieces(trace, works, unmapped, node_mapped=True), real),
    }
    node = compared("u", replay_pieces(trace, works, unmapped), real)
    text = [markdown(results, trace.recorder.kernel.release), "", of_node(node, results["u"])]
    return "\n".join(text), list(differences(results)), all(one.is_close for rows in results.values() for one in rows)


def _names(*, known_only: bool) -> list[str]:
    real = read_real()
    source = Path(__file__).with_name("workloads.c").read_text(encoding="utf-8")
    names = re.findall(r'^    \{"(\w+)", ', source, re.MULTILINE)
    return [name for name in names if name in real or not known_only]


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
