"""One run of a story: a machine is made, everybody is put onto it, and what untrusted code came by is handed back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from asikit.machine.kernel import DeadlockError, InvariantError, Machine, MachineConfig
from asikit.machine.mm import GFP_KERNEL
from asikit.proofs.stage.between import InBetween, StoryOver
from asikit.proofs.stage.boundary import Boundary
from asikit.proofs.stage.contents import ATTACKER, VICTIM, content_of, process_secrets
from asikit.proofs.stage.eavesdropper import Eavesdropper, Secret
from asikit.proofs.stage.interleaver import StoryInterleaver
from asikit.proofs.stage.kernel_code import Handler, Meeting, OrdinaryCode
from asikit.proofs.stage.programs import GuestProgram, UserProgram
from asikit.proofs.stage.reader import ScriptReader
from asikit.proofs.stage.script import Script
from asikit.proofs.stage.turning import TurningPage
from asikit.protocol import MisuseError
from asikit.threat import KERNEL, assumed, nothing_is_sensitive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asikit.machine.kernel import Kernel, Task
    from asikit.machine.mm import MmStruct
    from asikit.proofs.model import World
    from asikit.proofs.stage.eavesdropper import Learnt
    from asikit.proofs.story import StoryStep
    from asikit.threat import Owner

__all__ = ["Performance", "perform"]

_MEMORY = 16 << 20
_NEVER = 1 << 60
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Performance:
    """What one run gave.

    :ivar learnt: What untrusted code came by.
    :ivar kind: `deadlock` or `broken rule` if the run ended so, else empty.
    :ivar says: Who waits, or which rule was broken.
    :ivar missed: Steps that the machine could not follow.
    """

    learnt: tuple[Learnt, ...]
    kind: str
    says: str
    missed: int


def perform(world: World, steps: Sequence[StoryStep], changed: Owner | None = None) -> Performance:
    """Run a story on a machine.

    :param world: The model that the machine is of.
    :param changed: Whose secret is another one, if anybody's is.
    """
    script = Script(steps)
    interleaver = StoryInterleaver(script)
    turns = any(step.verb == "turns sensitive" for step in steps)
    machine = _machine(world, interleaver, turns=turns)
    kernel = machine.kernel
    mms = {ATTACKER: kernel.contexts.new(), VICTIM: kernel.contexts.new()}
    address = machine.allocate(content_of(KERNEL, changed))
    page = None
    if turns:
        address = machine.allocate(bytes(2 * _PAGE), GFP_KERNEL)
        page = TurningPage(
            machine, address, content_of(KERNEL, changed), shootdown=world.shootdown, other=world.threads
        )
    kernels = Secret(KERNEL, kernel.layout.phys(address), (address,))
    eavesdropper = Eavesdropper(world, kernel, mms, (kernels, *process_secrets(kernel, mms, changed)))
    reader = ScriptReader(script, kernel)
    between = InBetween(kernel, reader, eavesdropper, page, world.threads)
    handler = Handler(kernel, reader, address)
    code = OrdinaryCode(
        kernel,
        reader,
        Meeting(kernel, world.threads, lambda: page is None or page.waits, partial(interleaver.begin, between)),
        GuestProgram(kernel, reader, eavesdropper),
        handler,
        _other_mm(world, kernel, mms),
        address,
    )
    _give_to(kernel, code, handler, Boundary(kernel, reader))
    user = UserProgram(kernel, reader, eavesdropper)
    for number in range(world.threads):
        mm = mms[ATTACKER]
        if number:
            mm.get()
        _start(kernel, user.run, "actor", mm, number)
    if page is not None:
        _start(kernel, page.run, "flipper", None, page.other)
    kind, says = _run(machine)
    return Performance(tuple(eavesdropper.learnt), kind, says, script.missed)


def _machine(world: World, interleaver: StoryInterleaver, *, turns: bool) -> Machine:
    """Return a machine of a world that has just booted.

    :param turns: Memory is to turn sensitive, from another core.
    """
    smt = world.threads > 1
    machine = Machine(
        MachineConfig(
            cpus=world.threads * (2 if turns else 1),
            smt=smt,
            memory=_MEMORY,
            timer_period=_NEVER,
            protocol=world.protocol,
            sensitivity=None if world.unmapped else nothing_is_sensitive,
            pageblock_order=1 if turns else 9,
        ),
        interleaver=interleaver,
    )
    if not world.boot_tainted:
        for cpu in machine.kernel.cpus:
            cpu.thread = cpu.thread._replace(cpu=cpu.thread.cpu._replace(taints=0))
    return machine


def _give_to(kernel: Kernel, code: OrdinaryCode, handler: Handler, boundary: Boundary) -> None:
    """Let a kernel do as told: these are its own places for what a scenario lets it do."""
    kernel.exit_work = code.exit_work
    kernel.speculation = boundary
    kernel.interrupts.on_nmi = handler.run
    kernel.observers.append(boundary)


def _start(kernel: Kernel, run: Callable[[], None], name: str, mm: MmStruct | None, cpu: int) -> None:
    # One cookie for all: which mm runs beside which is the story's to say.
    kernel.start(kernel.new_task(run, comm=name, mm=mm, cpu=cpu, pinned=True, cookie=1))


def _other_mm(world: World, kernel: Kernel, mms: dict[Owner, MmStruct]) -> Callable[[Task], None]:
    """Return how a task comes to run another process' code, as in `exec_mmap()`: without a switch of tasks."""

    def switch(task: Task) -> None:
        if world.threads > 1 and world.core_scheduling:
            return  # the scheduler does not let the siblings run different processes
        mm = mms[VICTIM if task.mm is mms[ATTACKER] else ATTACKER]
        task.mm = task.active_mm = mm
        kernel.sched.switch_mm(kernel.contexts.of(mm))

    return switch


def _run(machine: Machine) -> tuple[str, str]:
    """Run a machine with its first core as the proofs assume it; returns the error or wait in which that ended."""
    core = machine.kernel.cpus[0].hw.core
    core.model = assumed(core.model)
    core.record = True
    try:
        machine.run()
    except StoryOver as end:
        says = str(end)
        return ("deadlock" if says else ""), says
    except DeadlockError as error:
        return "deadlock", f"the machine stands still: {error}"
    except (InvariantError, MisuseError) as error:
        return "broken rule", str(error)
    finally:
        machine.kernel.close()
    return "", ""
