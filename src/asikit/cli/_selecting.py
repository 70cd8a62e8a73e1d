"""The options with which a command looks at a part of a recording only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.replay import By, Selection

_Command = TypeVar("_Command", bound="Callable[..., Any]")

_BY = ("task", "pid", "cpu", "phase")


def selecting(*, cpu_options: tuple[str, ...]) -> Callable[[_Command], _Command]:
    """Add the options to a command; what they say arrives as ``tasks``, ``pids``, ``on_cpus``, ``phases`` and so on.

    :param cpu_options: What the recorded CPU is chosen with: another option of the command may be called so already.
    """
    options = (
        click.option(
            "--task", "tasks", metavar="NAME", multiple=True, help="Count this task's part only; may be a glob."
        ),
        click.option("--pid", "pids", metavar="N", type=int, multiple=True, help="Count this process' part only."),
        click.option(*cpu_options, "on_cpus", metavar="N", type=int, multiple=True, help="Count this CPU's part only."),
        click.option(
            "--phase",
            "phases",
            metavar="NAME",
            multiple=True,
            help="Count what lies in this phase only (docs/mark.md).",
        ),
        click.option(
            "--between",
            metavar="A:B",
            help="Count from A to B only: instructions (5M) or shares of the recording (10%).",
        ),
        click.option(
            "--where",
            metavar="EXPRESSION",
            help="Count what an expression allows: 'task == redis-server and entry == recvfrom' (docs/where.md).",
        ),
        click.option("--by", type=click.Choice(_BY), help="Show a table by task, process, CPU or open phases, too."),
    )

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def selected(
    *,
    tasks: tuple[str, ...],
    pids: tuple[int, ...],
    on_cpus: tuple[int, ...],
    phases: tuple[str, ...],
    between: str | None,
    where: str | None,
    by: str | None,
) -> tuple[Selection | None, By | None]:
    """Return what the options say: nothing, if none was given."""
    from asikit.replay import By, Selection

    chosen = Selection(tasks, pids, on_cpus, phases, between, where)
    return (None if chosen == Selection() else chosen), (None if by is None else By(by))
