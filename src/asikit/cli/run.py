"""``asi run``: a scenario on the model machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from asikit.cli._output import show, warn, write_json

if TYPE_CHECKING:
    from asikit.machine.kernel import Machine, Scenario
    from asikit.replay.machine import PolicyWatch


@click.command()
@click.argument("scenario", type=click.Path(), metavar="SCENARIO.py")
@click.option("--asi", type=click.Choice(["on", "off"]), default="on", show_default=True, help="The kernel's asi=.")
@click.option("--policy", metavar="NAME|FILE.toml", help="A sensitivity policy (asi replay --list-policies).")
@click.option("--seed", type=click.IntRange(min=0), help="Another order of everything that may come in any order.")
@click.option("--check", is_flag=True, help="Check the invariants after every micro-operation.")
@click.option("--trace", type=click.Path(), metavar="OUT.asitrace", help="Write what the kernel did, for asi replay.")
@click.option("--explain", type=click.IntRange(min=1), metavar="N", help="Show the N-th round trip step by step.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.run/1).")
def command(
    scenario: str,
    *,
    asi: str,
    policy: str | None,
    seed: int | None,
    check: bool,
    trace: str | None,
    explain: int | None,
    as_json: bool,
) -> None:
    """Run a scenario on the model machine and say what ASI did.

    SCENARIO.py is a Python file with a function scenario(machine) (docs/run.md, examples/).
    """
    from pathlib import Path

    from asikit.machine.kernel import load_scenario
    from asikit.report.timeline import Timeline

    loaded = load_scenario(Path(scenario))
    watch = _watch(policy)
    machine = _machine(loaded, asi=asi == "on", watch=watch, seed=seed, check=check)
    timeline = Timeline(machine, explain) if explain is not None else None
    _run(machine, loaded, trace)
    if timeline is not None and not timeline.found:
        raise click.BadParameter(f"there were only {timeline.round_trips} round trips", param_hint="'--explain'")
    warn(watch.warnings() if watch is not None else ())
    report = machine.report()
    if as_json:
        document = report.to_dict()
        del document["schema"]  # the envelope has it
        write_json(
            "run",
            {"scenario": loaded.title, "policy": policy, "seed": machine.config.seed, **_programs(machine), **document},
        )
    elif timeline is not None:
        show(timeline.report())
    else:
        from asikit.report.run import run_report

        show(run_report(loaded.title, machine, report))


def _watch(policy: str | None) -> PolicyWatch | None:
    if policy is None:
        return None
    from asikit.replay import load_policy
    from asikit.replay.machine import PolicyWatch

    return PolicyWatch(load_policy(policy))


def _machine(loaded: Scenario, *, asi: bool, watch: PolicyWatch | None, seed: int | None, check: bool) -> Machine:
    from dataclasses import replace

    from asikit.machine.kernel import Machine

    config = replace(loaded.config, asi=asi and loaded.config.asi, debug=check or loaded.config.debug)
    if seed is not None:
        config = replace(config, seed=seed)
    return Machine(config if watch is None else watch.machine_config(config))


def _programs(machine: Machine) -> dict[str, object]:
    """Return what the scenario's programs have done that a user wants to see."""
    return {
        "console": machine.console.decode(errors="backslashreplace"),
        "exit_codes": {process.name: process.exit_code for process in machine.processes},
    }


def _run(machine: Machine, loaded: Scenario, trace: str | None) -> None:
    """Run the scenario; an error in it is one line that says where."""
    if trace is None:
        loaded.run(machine)
        return
    from asikit.machine.tracing import MachineTrace

    with MachineTrace(machine, trace, command=[loaded.path.name]):
        loaded.run(machine)
