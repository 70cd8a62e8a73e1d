"""The command and its tables and mail: whole files or none, what goes with what, and what the parts say."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import polars as pl
import pytest
from click.testing import CliRunner

from asikit.cli._frame import asi
from asikit.documents import write_whole
from asikit.export import FORMATS
from asikit.export.run import ExportError, export
from asikit.replay import load_policy, replay
from asikit.replay.causes import LABELS
from tests.export.conftest import SAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from asikit.replay import History
    from asikit.trace import Trace

SAMPLE = str(SAMPLES / "phases.asitrace")
POLICY = load_policy("denylist-2025")


@pytest.mark.parametrize("table", ["exits", "trips"])
def test_tables(trace: Trace, history: History, table: str) -> None:
    """CSV and Parquet are read back by polars as the same table, the history's own."""
    csv, parquet = (b"".join(export(trace, name, [POLICY], table=table)) for name in ("csv", "parquet"))
    read = pl.read_parquet(io.BytesIO(parquet))
    own: pl.DataFrame = getattr(history, table)
    assert read.height == own.height
    assert read.columns == own.columns
    assert (
        pl.read_csv(io.BytesIO(csv), schema=read.schema)
        .with_columns(pl.col(pl.String).fill_null(""))
        .equals(read.with_columns(pl.col(pl.String).fill_null("")))
    )


def test_exits_of_chosen_round_trips(trace: Trace) -> None:
    """`where` chooses round trips, and the exits are theirs."""
    (counted,) = replay(trace, [POLICY])
    entry = max(counted.by_entry, key=lambda row: row.exits)
    parquet = b"".join(export(trace, "parquet", [POLICY], where=f"entry == '{entry.entry}'"))
    assert pl.read_parquet(io.BytesIO(parquet)).height == entry.exits


def test_csv_gives_the_causes(trace: Trace) -> None:
    """Counting the rows of a table by cause gives the replay's causes."""
    (counted,) = replay(trace, [POLICY])
    table = pl.read_csv(io.BytesIO(b"".join(export(trace, "csv", [POLICY]))))
    rows = table.with_columns(pl.col(pl.String).fill_null("")).group_by(LABELS).len().iter_rows()
    assert set(rows) == set(counted.cause_table.iter_rows())


@pytest.mark.parametrize("policies", [("denylist-2025",), ("denylist-2025", "ephmap", "blanket")])
def test_mail(trace: Trace, policies: tuple[str, ...]) -> None:
    """A mail is ASCII of 75 columns with the replay's figures, and its commands are in it."""
    loaded = [load_policy(name) for name in policies]
    mail = b"".join(export(trace, "lkml", loaded)).decode("ascii")
    assert max(map(len, mail.splitlines())) <= 75
    assert trace.recorder.kernel.release in mail
    for result in replay(trace, loaded):
        assert result.mechanism != "asi" or f"{result.exits:,}" in mail
    assert f"asi replay {trace.path.name} --policy {','.join(policies)}" in mail.replace(" \\\n      ", " ")


def test_what_does_not_go_together(trace: Trace) -> None:
    """One policy a file, but for a mail; a format that there is not is named with the nearest."""
    with pytest.raises(ExportError, match="format folded shows one policy"):
        export(trace, "folded", [POLICY, load_policy("ephmap")])
    with pytest.raises(ExportError, match="no format 'perfeto'; the nearest is \"perfetto\""):
        export(trace, "perfeto", [POLICY])


@pytest.mark.parametrize("name", FORMATS)
def test_command(name: str, tmp_path: Path) -> None:
    """Each form goes to a file and to standard output, the same bytes."""
    run = CliRunner().invoke
    file = tmp_path / f"x.{FORMATS[name].suffix}"
    words = ["export", SAMPLE, "--format", name, "--where", "task == phases"]
    assert run(asi, [*words, "-o", str(file)]).exit_code == 0
    assert run(asi, words).stdout_bytes == file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_list_of_formats() -> None:
    """All forms are listed."""
    shown = CliRunner().invoke(asi, ["export", "--list-formats"]).output
    assert all(name in shown for name in FORMATS)


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    """A file that cannot be written whole leaves what was there."""
    file = tmp_path / "x"
    file.write_text("before")

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(file, broken())
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    write_whole(file, [b"af", b"ter"])
    assert file.read_text() == "after"
