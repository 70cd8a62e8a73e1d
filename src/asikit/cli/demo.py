"""``asi demo``: the sample recordings under three policies."""

import click

from asikit.cli._output import console, write_json

SAMPLES = ("page-cache", "processes", "kvm-guest")
POLICIES = ("blanket", "denylist-2025", "ephmap")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.demo/1).")
def command(*, as_json: bool) -> None:
    """Replay the sample recordings under three policies.

    The samples come with the package: they were made with `asi record` from a stock Debian kernel (samples/record.sh).
    """
    from importlib.resources import files  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from asikit.replay import load_policy, replay  # noqa: PLC0415
    from asikit.report import overview  # noqa: PLC0415
    from asikit.trace import Trace  # noqa: PLC0415

    folder = Path(str(files("asikit.data") / "samples"))
    policies = [load_policy(name) for name in POLICIES]
    traces = {name: Trace.open(folder / f"{name}.asitrace") for name in SAMPLES}
    results = {name: replay(trace, policies) for name, trace in traces.items()}
    if as_json:
        write_json("demo", {"recordings": {name: [r.to_dict(top=5) for r in rs] for name, rs in results.items()}})
        return
    release = traces[SAMPLES[0]].recorder.kernel.release
    out = console()
    out.print(f"Three recordings of a stock Linux {release}, each replayed under three policies:")
    out.print(overview(results))
