"""What one attack's two sides share: the machine with its cores recording, and what has happened on it so far.

The sides are `asikit.attacks.processor`, what the processor does transiently in the victim, and
`asikit.attacks.attacker`.
Who trained an entry is asked only where the processor itself tells modes, guests or threads apart; whether the secret
gets out is never asked, but found by comparing two runs.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from asikit.attacks.evidence import Evidence, Observation
from asikit.attacks.stops import emptied, hidden, kept, stunned, unmapped
from asikit.attacks.vulnerability import HIDES, UNMAPPED, Mechanism
from asikit.machine.kernel import Observer
from asikit.machine.x86 import Sharing
from asikit.machine.x86.model import CLEARING
from asikit.machine.x86.structures import StagingBuffer
from asikit.protocol import EffectKind, Space
from asikit.threat import transient_load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asikit.attacks.stops import Obstacle
    from asikit.attacks.vulnerability import Vulnerability, Way
    from asikit.machine.kernel import Machine
    from asikit.machine.x86 import Cpu, CpuModel, Recorder
    from asikit.machine.x86.model import Structures
    from asikit.mitigations import Hardening, Measure
    from asikit.protocol import Effect, ExitReason

__all__ = ["KERNEL", "Lab"]

_ENDLESS: Final = 1 << 30
"""Entries of a structure that loses none."""

KERNEL: Final = "kernel"
"""Who runs, of the kernel's code (`Cpu.owner`)."""
_TOLD: Final = frozenset({*map(str, CLEARING), "stun", "unstun"})


def _without_sizes(structures: Structures) -> Structures:
    """Return structures that lose nothing for want of room: that others come after an entry is no protection of it.

    How deep the return stack is decides when a return finds it empty.
    """
    names = (name for name in structures.__struct_fields__ if name != "rsb")
    changed = {name: msgspec.structs.replace(getattr(structures, name), entries=_ENDLESS) for name in names}
    return msgspec.structs.replace(structures, **changed)


class Lab(Observer):
    """One way of one vulnerability on one machine.

    :ivar measures: What is different on the processor or in the kernel, and holds against the way.
    :ivar log: What the attacker has seen.
    :ivar story: What happened that it is about, for people; `told` is how much of it had been told at each look.
    :ivar tell: Is given what the attacker sees, when it sees it.
    :ivar evidence: Whether the attack took place.
    :ivar register: An address that the attacker has put where the victim's gadget takes it from.
    :ivar pointer: An address that the victim itself has there, of its secret, while it works with that.
    :ivar victim_cpu: Where the victim runs: what the attacker's own entries do is another attack.
    :ivar secret_paddr: Where the secret is in physical memory, once the victim has used it.
    :ivar lines: Lines of the attacker's probe array that are cached: what a gadget transmits.
    :ivar sites: Branches of the kernel's that were executed so far.
    :ivar stops: What stopped the attack, and how often.
    :ivar stale: What was in memory before the victim's stores, by physical address.
    """

    def __init__(
        self, machine: Machine, vulnerability: Vulnerability, way: Way, model: CpuModel, hardening: Hardening
    ) -> None:
        self.machine = machine
        self.kernel = machine.kernel
        self.way = way
        self.measures = frozenset(measure for measure in hardening.measures if not way.is_broken(measure))
        self._before_idle = hardening.before_idle
        self._hidden = {str(name) for bug, name in hardening.hidden if bug == vulnerability.bug}
        self.log: list[Observation] = []
        self.story: list[str] = []
        self.told: list[int] = []
        self.tell: Callable[[Observation], object] | None = None
        self.evidence = Evidence()
        self.register: int | None = None
        self.pointer: int | None = None
        self.victim_cpu = 0
        self.secret_paddr: int | None = None
        self.lines: set[int] = set()
        self.sites: set[int] = set()
        self.stale: dict[int, bytes] = {}
        self.stops: Counter[Obstacle] = Counter()
        self._filled: set[str] = set()
        self._prepare(model)
        machine.kernel.observers.append(self)

    def _prepare(self, model: CpuModel) -> None:
        """Let the cores record, with the structures of the processor that is meant."""
        structures = _without_sizes(model.structures)
        staging = StagingBuffer(structures.staging_buffer, threads=1)
        for cpu in self.kernel.cpus:
            core = cpu.hw.core
            if not core.record:
                # The rest of the model is the machine's own: a kernel that needs PCIDs runs on processors without, too.
                core.model = msgspec.structs.replace(core.model, structures=structures)
                core.uncore.staging_buffer = staging
                core.record = True
        for cpu in self.kernel.cpus:
            cpu.hw.owner = KERNEL
        self._share()

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """Record nothing of what is done inside, and forget what was recorded."""
        for cpu in self.kernel.cpus:
            cpu.hw.core.record = False
        speculation, self.kernel.speculation = self.kernel.speculation, None
        yield
        self.kernel.speculation = speculation
        for cpu in self.kernel.cpus:
            cpu.hw.core.record = True
        self._share()

    def _share(self) -> None:
        """Let all cores have one structure where a processor has one for all."""
        first, *others = (cpu.hw.core.recorder for cpu in self.kernel.cpus)
        assert first is not None
        for structure in first.structures:
            if structure.model.sharing is Sharing.UNCORE:
                for recorder in others:
                    setattr(recorder, structure.name, structure)

    # The running CPU.

    @property
    def hw(self) -> Cpu:
        """The processor's side of it."""
        return self.kernel.cpu.hw

    @property
    def recorder(self) -> Recorder:
        """The structures of its core."""
        recorder = self.hw.recorder
        assert recorder is not None  # `_prepare` has turned it on
        return recorder

    @property
    def in_victim(self) -> bool:
        """Whether it is the victim's."""
        return self.kernel.cpu.number == self.victim_cpu

    @property
    def space(self) -> Space:
        """The address space that it has loaded."""
        return Space(self.kernel.cpu.thread.cpu.cr3)

    @property
    def shares_out(self) -> bool:
        """Whether the way is about a structure of which threads have parts that change hands when one sleeps."""
        return any(each.is_shared_out for each in self.recorder.structures if each.name in self.way.structures)

    def hides(self, structure: str) -> bool:
        """Tell whether new microcode keeps the vulnerability from a structure."""
        hides = structure in self._hidden and not self.way.is_broken(HIDES)
        if hides:
            self.stops[hidden(structure)] += 1
        return hides

    def keeps(self, measure: Measure) -> bool:
        """Tell whether a measure keeps the attack from going on here."""
        is_taken = measure in self.measures
        if is_taken:
            self.stops[kept(measure)] += 1
        return is_taken

    def filled(self, *names: str) -> None:
        """Note that structures hold what the attack is about: the secret, or what was trained."""
        self._filled.update(names)

    def _empty(self, hw: Cpu, step: str, kind: str) -> None:
        """Note what a primitive empties of it."""
        assert hw.recorder is not None
        for structure in hw.recorder.structures:
            if structure.name in self._filled and kind in structure.model.cleared_by:
                self._filled.discard(structure.name)
                trained = self.way.mechanism is Mechanism.STEER
                self.stops[emptied(step, kind, structure.name, trained=trained)] += 1

    def load(self, address: int, size: int, *, defer_permission: bool = False) -> bytes | None:
        """Load transiently on the CPU that runs: what the current page tables give, None if they give nothing.

        If it is not kept from what is not mapped, what the direct map would have there.
        """
        value = transient_load(self.hw, address, size, defer_permission=defer_permission)
        if value is None and self.way.is_broken(UNMAPPED) and address in self.kernel.layout.direct_map:
            return self.kernel.physical.read(self.kernel.layout.phys(address), size)
        if value is None:
            space = f" in address space {self.space.label}" if self.kernel.protocol.config.asi else ""
            self.stops[unmapped(space)] += 1
        return value

    def evict(self) -> None:
        """Load a cache's worth of other lines, if that matters: the secret must come through a fill buffer again.

        The attacker does it, and a victim's other work does.
        """
        if self.way.mechanism is Mechanism.SAMPLE and "fill_buffer" in self.way.structures:
            self.recorder.l1d.clear(self.hw.thread)

    # Whose code runs.

    def entry(self, cpu: int, kind: str, number: int) -> None:
        """The kernel's."""
        del kind, number
        self.kernel.cpus[cpu].hw.owner = KERNEL

    def vm_exit(self, cpu: int, code: int) -> None:
        """The kernel's."""
        del code
        self.kernel.cpus[cpu].hw.owner = KERNEL

    def return_user(self, cpu: int, *, by_iret: bool) -> None:
        """A process'."""
        del by_iret
        context = self.kernel.cpus[cpu]
        context.hw.owner = f"process {context.task.comm!r}"

    def vm_entry(self, cpu: int) -> None:
        """A guest's."""
        context = self.kernel.cpus[cpu]
        context.hw.owner = f"guest of {context.task.comm!r}"

    def idle(self, cpu: int) -> None:
        """What the kernel does before it sleeps."""
        hw = self.kernel.cpus[cpu].hw
        for kind in self._before_idle:
            self._empty(hw, "the kernel, before the CPU slept,", str(kind))
            hw.core.do(kind, hw.thread)
            self.story.append(f"cpu {cpu} does {kind}, before it sleeps")

    # The story.

    def asi_enter(self, cpu: int, space: Space) -> None:
        """For the story."""
        self.story.append(f"cpu {cpu} goes to address space {space.label}")

    def asi_exit(self, cpu: int, reason: ExitReason) -> None:
        """For the story."""
        self.story.append(f"cpu {cpu} goes to the unrestricted address space, because of {reason}")

    def micro_op(self, cpu: int, path: str, effect: Effect | None) -> None:
        """For the story: what flushes."""
        if effect is None or str(effect.kind) not in _TOLD:
            return
        self.story.append(f"cpu {cpu} does {effect.kind}")
        if effect.kind is EffectKind.STUN:
            self.stops[stunned()] += 1
        else:
            self._empty(self.kernel.cpus[cpu].hw, path, str(effect.kind))
