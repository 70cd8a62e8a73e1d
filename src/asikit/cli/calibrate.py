"""``asi calibrate``: measure what this machine's processor and kernel cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from asikit.cli._output import show, write_json

if TYPE_CHECKING:
    from asikit.cost import Calibration

_SAMPLES = 25


@click.command()
@click.option(
    "-o",
    "--output",
    metavar="CPU.toml",
    type=click.Path(path_type=Path),
    help="Write a CPU model for `asi cost --cpu`.",
)
@click.option("--like", metavar="MODEL|FILE.toml", help="Take what cannot be measured from it. [default: the nearest]")
@click.option(
    "--samples", type=click.IntRange(min=1), default=_SAMPLES, show_default=True, help="Samples of each cost."
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.calibrate/1).")
def command(*, output: Path | None, like: str | None, samples: int, force: bool, as_json: bool) -> None:
    """Measure what this machine costs, as far as user mode can see.

    It needs a C compiler, no root, and an idle machine. What cannot be measured is named, with the reason.
    """
    from datetime import UTC, datetime

    from asikit.cost import CalibrationError, base_model, calibrate, model_text, read_identity

    if output is not None and output.suffix != ".toml":
        raise click.BadParameter(f"{output}: a CPU model's name ends in .toml", param_hint="'--output'")
    if output is not None and output.exists() and not force:
        raise CalibrationError(f"{output}: there already; give another name, or --force")
    model = base_model(read_identity(), like)
    calibration = calibrate(samples=samples)
    if output is not None:
        text = model_text(calibration, model, date=datetime.now(UTC).date().isoformat())
        output.write_text(text, encoding="utf-8")
    if as_json:
        document = calibration.to_dict()
        del document["schema"]  # the envelope has it
        write_json("calibrate", document)
    else:
        _print(calibration, output)


def _print(calibration: Calibration, output: Path | None) -> None:
    from asikit.report import calibration_report

    show(calibration_report(calibration))
    if output is not None:
        click.echo(f"asi: wrote {output}: asi cost TRACE --cpu {output}", err=True)
