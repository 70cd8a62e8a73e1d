"""Counterexamples run on the machine: a model of a processor and a kernel, with the mutant's protocol in it.

>>> from asikit.proofs import mutant, reproduce, verify, world_for
>>> world, candidate = world_for(threads=1), mutant("no-verw")
>>> found = verify(world, candidate).counterexample
>>> reproduce(world, candidate, found).leaks
True

The machine follows the story (`asikit.proofs._director`), and its core does transiently what the assumptions about the
hardware let it do (`asikit.proofs._attacker`). It leaks if what untrusted code comes by differs between two runs that
differ only in a secret that it must not learn: non-interference. The same story on the machine with the protocol as it
is must show nothing: the control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asikit.machine.kernel import DeadlockError, InvariantError, Machine, MachineConfig
from asikit.machine.mm import GFP_KERNEL, MapFlags, Prot
from asikit.proofs._attacker import LINE, Eavesdropper, Learnt, Secret
from asikit.proofs._director import Director, StoryOver
from asikit.protocol import AsiClass, MisuseError
from asikit.threat import (
    KERNEL,
    Code,
    Owner,
    assumed,
    first_difference,
    leave_stale_translations,
    nothing_is_sensitive,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asikit.machine.kernel import Kernel, Task
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.mm import MmStruct
    from asikit.proofs.model import World
    from asikit.proofs.story import Counterexample
    from asikit.threat import Mutant

ATTACKER, VICTIM = Owner(Code.USER, "the process"), Owner(Code.USER, "another process")
_MEMORY = 16 << 20
_NEVER = 1 << 60
_PAGE = 4096
_CONTENT = {KERNEL: b"K", ATTACKER: b"P", VICTIM: b"V", ATTACKER.guest: b"p", VICTIM.guest: b"v"}
_CHANGED = b"!"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What became of a counterexample on the machine.

    :ivar leaks: Whether the machine with the mutant goes wrong and the machine without it does not; None if the
        unchanged protocol goes wrong there too.
    :ivar kind: `leak`, `deadlock` or `broken rule`, as in a counterexample; empty if nothing went wrong.
    :ivar says: What went wrong, or that nothing did.
    :ivar missed: Steps of the story that the machine could not follow.
    """

    leaks: bool | None
    kind: str
    says: str
    missed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"kind": self.kind or None, "says": self.says, "missed": self.missed}


@dataclass(frozen=True, slots=True)
class _Run:
    """What one run gave: what was learnt, and the error or wait in which it ended."""

    learnt: tuple[Learnt, ...]
    kind: str
    says: str
    missed: int


def reproduce(world: World, candidate: Mutant | None, found: Counterexample) -> Reproduction:
    """Run a counterexample on the machine.

    :param world: The model as it is, without the mutant.
    :param candidate: The mutant; without one there is no control.
    """
    base = world if candidate is None else candidate.base(world)
    kind, says, missed = _outcome(base if candidate is None else candidate.edit(base), found)
    if not kind or candidate is None:
        return Reproduction(leaks=bool(kind), kind=kind, says=says, missed=missed)
    control, control_says, _ = _outcome(base, found)
    if control:
        return Reproduction(None, kind, f"the unchanged protocol does so too: {control_says}", missed)
    return Reproduction(leaks=True, kind=kind, says=says, missed=missed)


def _outcome(world: World, found: Counterexample) -> tuple[str, str, int]:
    """Return how a story ends on the machine: kind, sentence, and steps that could not be followed."""
    plain = _Stage(world, found).run(None)
    guests = AsiClass.KVM in world.config.classes
    for owner in (each for each in _CONTENT if guests or each.code is not Code.GUEST):
        other = _Stage(world, found).run(owner)
        leak = _difference(world, owner, plain.learnt, other.learnt)
        if leak:
            return "leak", leak, plain.missed
    if plain.kind:
        return plain.kind, plain.says, plain.missed
    return "", "what untrusted code comes by does not depend on a secret, and nothing else goes wrong", plain.missed


def _difference(world: World, owner: Owner, one: tuple[Learnt, ...], other: tuple[Learnt, ...]) -> str:
    """Return who learns a secret, from two runs that differ in it; empty if nobody does who must not."""
    mine, theirs = ([each for each in learnt if world.must_not_learn(each.who, owner)] for learnt in (one, other))
    found = first_difference(mine, theirs)
    return "" if found is None else f"{found.seen.who} learns data of {owner}: {found.seen.how}"


class _Stage:
    """One machine with what a story needs."""

    def __init__(self, world: World, found: Counterexample) -> None:
        self._world = world
        smt = world.threads > 1
        self._flips = any(step.verb == "turns sensitive" for step in found.steps)
        self._director = director = Director(found.steps)
        self._machine = machine = Machine(
            MachineConfig(
                cpus=2 if smt or self._flips else 1,
                smt=smt,
                memory=_MEMORY,
                timer_period=_NEVER,
                protocol=world.protocol,
                sensitivity=None if world.unmapped else nothing_is_sensitive,
                pageblock_order=1 if self._flips else 9,
            ),
            interleaver=director,
        )
        self._kernel: Kernel = machine.kernel
        self._page_turned = False
        if not world.boot_tainted:
            for cpu in self._kernel.cpus:
                cpu.thread = cpu.thread._replace(cpu=cpu.thread.cpu._replace(taints=0))

    def run(self, changed: Owner | None) -> _Run:
        """Run the story; `changed` is whose secret is another one, if anybody's is."""
        kernel, director = self._kernel, self._director
        mms = {ATTACKER: kernel.contexts.new(), VICTIM: kernel.contexts.new()}
        attacker = Eavesdropper(self._world, kernel, mms)
        attacker.secrets = list(self._secrets(mms, changed))
        self._connect(attacker, mms)
        core = kernel.cpus[0].hw.core
        core.model = assumed(core.model)
        core.record = True
        try:
            self._machine.run()
        except StoryOver as end:
            says = str(end)
            kind = "deadlock" if says else ""
        except DeadlockError as error:
            kind, says = "deadlock", f"the machine stands still: {error}"
        except (InvariantError, MisuseError) as error:
            kind, says = "broken rule", str(error)
        else:
            kind, says = "", ""
        finally:
            kernel.close()
        return _Run(tuple(attacker.learnt), kind, says, director.missed)

    # What the machine has.

    def _secrets(self, mms: dict[Owner, MmStruct], changed: Owner | None) -> Iterator[Secret]:
        kernel = self._kernel
        content = {owner: (_CHANGED if owner == changed else byte) * LINE for owner, byte in _CONTENT.items()}
        address = self._machine.allocate(content[KERNEL])
        if self._flips:
            address = self._machine.allocate(bytes(2 * _PAGE), GFP_KERNEL)
            self._turning, self._content = address, content[KERNEL]
        self._director.secret = address
        yield Secret(KERNEL, kernel.layout.phys(address), (address,))
        for name, mm in mms.items():
            owners = [name]
            if AsiClass.KVM in kernel.protocol.config.classes:
                kernel.domains.init(kernel.contexts.of(mm), AsiClass.KVM)
                owners.append(name.guest)  # a guest's memory is its process'
            for owner in owners:
                vaddr = mm.mmap(_PAGE, Prot.READ | Prot.WRITE, MapFlags.PRIVATE | MapFlags.ANONYMOUS)
                mm.handle_mm_fault(vaddr, write=True)
                found = mm.translate(vaddr)
                assert found is not None  # it was just mapped
                paddr = found[0] * _PAGE
                kernel.physical.write(paddr, content[owner])
                yield Secret(owner, paddr, (vaddr, kernel.layout.virt(paddr)))

    def _connect(self, attacker: Eavesdropper, mms: dict[Owner, MmStruct]) -> None:
        """Let the director have the machine, and each hardware thread of the story a task."""
        kernel, director = self._kernel, self._director
        director.kernel, director.attacker = kernel, attacker
        director.actors = self._world.threads
        director.other_mm = self._other_mm(mms)
        director.turn_sensitive = self._turn_sensitive
        kernel.exit_work = director.exit_work
        kernel.speculation = director
        kernel.interrupts.on_nmi = director.handler
        kernel.observers.append(director)
        for number in range(self._world.threads):
            mm = mms[ATTACKER]
            if number:
                mm.get()
            self._start(director.user, "actor", mm, number)
        if self._flips:
            self._start(self._flipper, "flipper", None, 1)

    def _start(self, run: Callable[[], None], name: str, mm: MmStruct | None, cpu: int) -> None:
        # One cookie for all: which mm runs beside which is the story's to say.
        self._kernel.start(self._kernel.new_task(run, comm=name, mm=mm, cpu=cpu, pinned=True, cookie=1))

    def _other_mm(self, mms: dict[Owner, MmStruct]) -> Callable[[Task], None]:
        """Return how a task comes to run another process' code, as in `exec_mmap()`: without a switch of tasks."""
        kernel = self._kernel

        def switch(task: Task) -> None:
            if self._world.threads > 1 and self._world.core_scheduling:
                return  # the scheduler does not let the siblings run different processes
            mm = mms[VICTIM if task.mm is mms[ATTACKER] else ATTACKER]
            task.mm = task.active_mm = mm
            kernel.sched.switch_mm(kernel.contexts.of(mm))

        return switch

    # Memory that turns sensitive: another core does that.

    def _turn_sensitive(self, cpu: CpuContext) -> bool:
        cpu.hw.load(self._turning, LINE)  # so the TLB has its translation
        self._page_turned = True
        return True

    def _flipper(self) -> None:
        kernel = self._kernel
        while not self._page_turned:
            kernel.wait_for(kernel.cpu, "a page to turn sensitive", lambda: self._page_turned, idle=True)
        if not self._world.shootdown:
            leave_stale_translations(self._machine)
        kernel.direct_map.set_direct_map_sensitive(kernel.layout.phys(self._turning) // _PAGE, 2, sensitive=True)
        kernel.access.store(self._turning, self._content)
        while True:
            kernel.wait_for(kernel.cpu, "nothing", lambda: False, idle=True)
