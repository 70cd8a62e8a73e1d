"""Running one program on a machine that checks itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asikit.machine.kernel import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel.objects.process import Process
    from asikit.machine.user.user import User


def run(program: Callable[[User], object], **config: Any) -> tuple[Machine, Process]:  # noqa: ANN401 - MachineConfig's
    """Run a program to its end in debug mode; returns the machine and the program's process."""
    machine = Machine(debug=True, **config)
    process = machine.process(program)
    machine.run()
    return machine, process
