"""One vulnerability on one machine: what the processor does transiently, and what its attacker does and sees.

The machine runs as it always does. Here is what it does not model: predictions that go wrong in the victim
(`Speculation`), and what an attacker does with the structures from untrusted code. Who trained and who stored is never
asked for a verdict: it is found by comparing two runs.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from asikit.kernel import Observer
from asikit.leaks.measures import Hardening, Measure
from asikit.leaks.transient import transient_load
from asikit.leaks.vulnerability import Branch, Check, Holds, Mechanism, Party, Tag
from asikit.protocol import Space
from asikit.x86 import Datum, Training
from asikit.x86.model import CLEARING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asikit.kernel import Machine
    from asikit.kernel.percpu import CpuContext
    from asikit.leaks.vulnerability import Vulnerability, Way
    from asikit.protocol import Effect, ExitReason
    from asikit.x86 import Cpu, CpuModel, Recorder

__all__ = ["Lab", "Observation"]

KERNEL: Final = "kernel"
GADGET: Final = 0xFFFF_FFFF_8123_4560
"""Where code of the victim's is that loads from an address in a register, and then from a line that the value names."""
CHECKS: Final = (GADGET + 0x100, GADGET + 0x180)
"""Two bounds checks of the victim's, the one before and the other after it has used its secret."""
ENTRY: Final = GADGET + 0x200
"""The entry code's branch."""
ELSEWHERE: Final = GADGET + 0x300
"""An indirect branch of the kernel's that rightly goes to the gadget."""
USER_FUNCTION: Final = 0x40_1000
"""A function of a victim in user mode, or of a guest's."""
GUEST_SECRET: Final = 0x3000
"""Where a victim guest has its secret, as a guest physical address."""
_CALL, _RETURN = 5, 14
"""Where a function's branches are: the thunk that it is called through, and its return."""
_WORD: Final = 8
_FILL: Final = 32
"""Entries that fill any return stack or branch history that an attacker has to fill."""
_TOLD: Final = frozenset({*map(str, CLEARING), "stun", "unstun"})
_SHORT, _FEW = 24, 6
"""Characters of an item and items of an observation that are shown."""
_TRUSTED: Final = frozenset({KERNEL, ""})


@dataclass(frozen=True, slots=True)
class Observation:
    """Something that the attacker saw.

    :ivar step: When, in words.
    :ivar source: In what it saw it.
    :ivar value: What it was: values in hexadecimal, branches, lines.
    """

    step: str
    source: str
    value: tuple[str, ...]

    def __str__(self) -> str:
        """Text for people: what is in it besides zeroes, shortened."""
        shown = [item if len(item) <= _SHORT else f"{item[:_SHORT]}..." for item in self.value if item.strip("0")]
        more = f" and {len(shown) - _FEW} more" if len(shown) > _FEW else ""
        return f"{self.step}: {self.source}: {' '.join(shown[:_FEW]) or 'nothing'}{more}"


class Lab(Observer):
    """The processor's transient side and the attacker's tools, for one way of one vulnerability.

    :ivar log: What the attacker has seen.
    :ivar story: What happened that it is about, for people.
    :ivar register: An address that the attacker has put where the victim's gadget takes it from.
    :ivar victim_cpu: Where the victim runs: what the attacker's own entries do is another attack.
    :ivar secret_paddr: Where the secret is in physical memory, once the victim has used it.
    """

    def __init__(
        self, machine: "Machine", vulnerability: "Vulnerability", way: "Way", model: "CpuModel", hardening: Hardening
    ) -> None:
        self.machine = machine
        self.kernel = machine.kernel
        self.way = way
        self.measures = hardening.measures
        self._hidden = {str(name) for bug, name in hardening.hidden if bug == vulnerability.bug}
        self.log: list[Observation] = []
        self.story: list[str] = []
        self.tell: Callable[[Observation], object] | None = None
        self.register: int | None = None
        self.victim_cpu = 0
        self.secret_paddr: int | None = None
        self._cached: set[int] = set()
        self._sites: set[int] = set()
        self._stale: dict[int, bytes] = {}
        self._prepare(model)
        machine.kernel.observers.append(self)
        machine.kernel.speculation = self

    def _prepare(self, model: "CpuModel") -> None:
        """Let the cores record, with the structures of the processor that is meant."""
        for cpu in self.kernel.cpus:
            core = cpu.hw.core
            if not core.record:
                # The rest of the model is the machine's own: a kernel that needs PCIDs runs on processors without, too.
                core.model = msgspec.structs.replace(core.model, structures=model.structures)
                core.uncore.staging_buffer.model = model.structures.staging_buffer
                core.record = True
        for cpu in self.kernel.cpus:
            cpu.hw.owner = KERNEL

    @contextmanager
    def setting_up(self) -> "Iterator[None]":
        """Record nothing of what is done inside, and forget what was recorded."""
        for cpu in self.kernel.cpus:
            cpu.hw.core.record = False
        self.kernel.speculation = None
        yield
        self.kernel.speculation = self
        for cpu in self.kernel.cpus:
            cpu.hw.core.record = True

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

    def asi_enter(self, cpu: int, space: "Space") -> None:
        """For the story."""
        self.story.append(f"cpu {cpu} goes to address space {space.label}")

    def asi_exit(self, cpu: int, reason: "ExitReason") -> None:
        """For the story."""
        self.story.append(f"cpu {cpu} goes to the unrestricted address space, because of {reason}")

    def micro_op(self, cpu: int, path: str, effect: "Effect | None") -> None:
        """For the story: what flushes."""
        del path
        if effect is not None and str(effect.kind) in _TOLD:
            self.story.append(f"cpu {cpu} does {effect.kind}")

    @property
    def _cpu(self) -> "CpuContext":
        return self.kernel.cpu

    @property
    def _hw(self) -> "Cpu":
        return self.kernel.cpu.hw

    @property
    def _recorder(self) -> "Recorder":
        recorder = self._hw.recorder
        assert recorder is not None  # noqa: S101 - `_prepare` has turned it on
        return recorder

    # What the processor does in the victim.

    def entered(self) -> None:
        """Entry code: its branch on where it came from, before anything that changes page tables."""
        if self.way.branch is Branch.ENTRY and Measure.FENCE_ENTRY not in self.measures:
            trained = self._recorder.pht.predict(self._hw.thread, ENTRY)
            if trained is not None and trained.owner != KERNEL:
                self._gadget("the entry code's branch")
        self._recorder.condition(self._hw.thread, KERNEL, ENTRY, taken=True)

    def called(self, function: int) -> None:
        """A call through a thunk: predicted by the BTB, and among a branch's targets by the history."""
        hw, recorder, branch = self._hw, self._recorder, function + _CALL
        self._sites.add(branch)
        if self.way.branch is Branch.INDIRECT and self._has_victim(Party.KERNEL):
            self._indirect(branch)
        recorder.branch(hw.thread, KERNEL, branch, function)
        recorder.call(hw.thread, KERNEL, branch, branch)

    def returning(self, function: int) -> None:
        """A return: predicted by the return stack, by the BTB, or run past."""
        self._sites.add(function + _RETURN)
        expected = self._recorder.rsb.pop(self._hw.thread)
        if self._has_victim(Party.KERNEL):
            self._return(function + _RETURN, expected)

    def faulted(self) -> None:
        """A faulting load: answered from a structure with what was left there, before the fault is taken."""
        if self.way.mechanism is not Mechanism.INJECT:
            return
        for entry in self._entries():
            if entry.owner not in _TRUSTED:
                self._gadget("a faulting load", int.from_bytes(entry.value[:_WORD], "little"))

    def _indirect(self, branch: int) -> None:
        if Measure.NO_INDIRECT_PREDICTION in self.measures and self.way.tag is not Tag.HISTORY and not self._is_user:
            return
        recorder, thread = self._recorder, self._hw.thread
        if self.way.tag is Tag.HISTORY:
            foreign = any(entry.owner != KERNEL for entry in recorder.bhb.visible(thread))
            known = any(entry.target == GADGET and entry.owner == KERNEL for entry in recorder.btb.visible(thread))
            if foreign and known:
                self._gadget("an indirect branch, by its history")
        elif "btb" in self.way.structures and self._btb_says_gadget(branch):
            self._gadget("an indirect branch")

    def _return(self, branch: int, expected: Training | None) -> None:
        way = self.way
        if way.branch is Branch.STRAIGHT_LINE:
            if Measure.TRAP_BEHIND_RETURNS not in self.measures:
                self._gadget("the code behind a return")
        elif way.branch is Branch.RETURN and "rsb" in way.structures:
            if expected is not None and expected.target == GADGET and self._usable(expected):
                self._gadget("a return, by the return stack")
        elif way.branch is Branch.RETURN or (way.branch is Branch.UNDERFLOW and expected is None):
            thunk = Measure.NO_RETURN_PREDICTION in self.measures and not self._is_user
            if not thunk and self._btb_says_gadget(branch):
                self._gadget("a return, by the branch target buffer")

    def _btb_says_gadget(self, branch: int) -> bool:
        trained = self._recorder.btb.predict(self._hw.thread, branch)
        return trained is not None and trained.target == GADGET and self._usable(trained)

    def _usable(self, entry: Training) -> bool:
        """Tell whether the processor predicts a victim's branch by an entry."""
        if "btb" in self._hidden:
            return False
        if Measure.ISOLATE_THREADS in self.measures and entry.thread != self._hw.thread:
            return False
        if self._is_user or entry.owner == KERNEL:
            return True
        if Measure.FENCE_VM_EXIT in self.measures and entry.owner.startswith("guest") and self.way.tag is Tag.POSITION:
            return False
        return Measure.ISOLATE_MODES not in self.measures or self.way.tag is Tag.POSITION

    @property
    def _is_user(self) -> bool:
        return self._hw.owner != KERNEL

    def _has_victim(self, party: Party) -> bool:
        return self.way.mechanism is Mechanism.STEER and party in self.way.victims

    def _gadget(self, why: str, address: int | None = None) -> None:
        """Run the gadget transiently: load a byte where the attacker says, and touch a line that depends on it."""
        address = self.register if address is None else address
        if address is None or self._cpu.number != self.victim_cpu:
            return
        hw = self._hw
        value = self._guest_load(address) if self._cpu.in_guest else transient_load(hw, address, 1)
        space = "" if not self.kernel.protocol.config.asi else f", {self._space()}"
        result = "nothing: it is not mapped" if value is None else f"{value.hex()}, and its line is touched"
        self.story.append(f"cpu {hw.number}, {hw.owner}{space}: {why} runs the gadget; {address:#x} gives {result}")
        if value is not None:
            self._cached.add(value[0])

    def _guest_load(self, address: int) -> bytes | None:
        """Load as a victim in a guest does: of its memory only the page with its secret matters."""
        known = self.secret_paddr is not None and address == GUEST_SECRET
        return self.kernel.physical.read(self.secret_paddr or 0, 1) if known else None

    def _space(self) -> str:
        return f"address space {Space(self._cpu.thread.cpu.cr3).label}"

    # What victims do besides what the machine models.

    def check_index(self, check: int = CHECKS[0]) -> None:
        """The kernel checks an index of the attacker's, which is out of bounds."""
        recorder, thread = self._recorder, self._hw.thread
        if self.way.branch is Branch.CONDITIONAL:
            trained = recorder.pht.predict(thread, check)
            if trained is not None and trained.target and Measure.MASK_INDICES not in self.measures:
                self._gadget("a bounds check")
        recorder.condition(thread, KERNEL, check, taken=False)
        # Some branch of the kernel's goes to what serves as gadget, and teaches that.
        recorder.btb.add(Training(KERNEL, ELSEWHERE, GADGET, thread))
        mine = self.register is not None and self._cpu.number == self.victim_cpu
        if self.way.half_gadget and mine and Measure.MASK_INDICES not in self.measures:
            assert self.register is not None  # noqa: S101 - just asked
            found = transient_load(self._hw, self.register, 1)
            self.story.append(
                f"cpu {self._hw.number}, kernel: a bounds check loads {self.register:#x}, which "
                + ("is not mapped" if found is None else "comes into the L1D")
            )

    def handle(self, secret: bytes) -> None:
        """A victim computes with a secret that it has loaded: vector registers, a division, a branch that depends."""
        hw, recorder = self._hw, self._recorder
        self.story.append(f"cpu {hw.number}, {hw.owner}, uses the secret")
        recorder.vector(hw.thread, hw.owner, secret)
        recorder.divide(hw.thread, hw.owner, int.from_bytes(secret[:_WORD], "little"))
        if self.way.holds is Holds.RANDOM:
            recorder.special(hw.thread, hw.owner, secret)
        if self.way.holds is Holds.ADDRESSES:
            base = int.from_bytes(secret[:4], "little") << 12
            recorder.branch(hw.thread, hw.owner, base + 0x10, base + 0x1000)
        newest = next((entry for entry in recorder.load_port.visible(hw.thread) if entry.value[:4] == secret[:4]), None)
        if newest is not None and newest.paddr is not None:
            self.secret_paddr = newest.paddr

    def user_function(self, party: Party) -> None:
        """A victim in user mode, or a guest, calls a function through a pointer, and returns from it."""
        hw, recorder = self._hw, self._recorder
        branch = USER_FUNCTION + _CALL
        if self._has_victim(party) and self.way.branch is Branch.INDIRECT:
            self._indirect(branch)
        recorder.branch(hw.thread, hw.owner, branch, USER_FUNCTION)
        if "rsb" not in self.way.structures:  # what it called before it was interrupted returns to somebody's entries
            recorder.call(hw.thread, hw.owner, branch, branch)
        expected = recorder.rsb.pop(hw.thread)
        if self._has_victim(party):
            self._return(USER_FUNCTION + _RETURN, expected)

    def overwrite(self, paddr: int, old: bytes) -> None:
        """A victim's store is about to hide what was in memory."""
        self._stale[paddr] = old

    # What the attacker does.

    def before(self) -> None:
        """Train or evict what the way needs, and flush the lines of the probe array."""
        self._cached.clear()
        hw, recorder = self._hw, self._recorder
        names = set(map(str, self.way.structures))
        if self.way.mechanism is Mechanism.SAMPLE and "fill_buffer" in names:
            # Loads of a cache's worth of its own lines: what the victim uses must come through a fill buffer again.
            recorder.l1d.clear(hw.thread)
        if self.way.mechanism is Mechanism.STEER:
            self._train(names)

    def _train(self, names: set[str]) -> None:
        hw, recorder = self._hw, self._recorder
        if "btb" in names and self.way.tag is Tag.ADDRESS:
            for branch in sorted({*self._sites, USER_FUNCTION + _CALL, USER_FUNCTION + _RETURN}):
                recorder.branch(hw.thread, hw.owner, branch, GADGET)
        if "bhb" in names:
            for number in range(_FILL):
                recorder.bhb.add(Training(hw.owner, number, number, hw.thread))
        if "rsb" in names:
            for number in range(_FILL):
                recorder.rsb.add(Training(hw.owner, number, GADGET, hw.thread))
        if "pht" in names:
            for check in CHECKS:
                recorder.condition(hw.thread, hw.owner, check, taken=True)
            recorder.condition(hw.thread, hw.owner, ENTRY, taken=False)

    def leave_pointer(self, address: int) -> None:
        """Leave a pointer in registers, and in a fill buffer: a load of a line that was flushed (CLFLUSH) first."""
        hw, pointer = self._hw, address.to_bytes(_WORD, "little")
        self._recorder.vector(hw.thread, hw.owner, pointer)
        self._recorder.fill_buffer.add(Datum(hw.owner, pointer * _WORD, None, hw.thread))

    def after(self, step: str, address: int | None = None) -> None:
        """Look, by whatever the way gives, and write it down.

        :param address: What the attacker is after, as it reaches it itself.
        """
        way, hw, user = self.way, self._hw, not self._cpu.in_guest
        match way.mechanism:
            case Mechanism.STEER | Mechanism.INJECT:
                self._see(step, "cached lines of the probe array", *(f"{line:02x}" for line in sorted(self._cached)))
            case Mechanism.SAMPLE:
                self._sample(step)
            case Mechanism.DEFERRED if way.defers is Check.PERMISSION and user and address is not None:
                value = transient_load(hw, address, _WORD, defer_permission=True)
                self._see(
                    step, f"transient load of {address:#x}", "nothing: not mapped" if value is None else value.hex()
                )
            case Mechanism.TERMINAL if self.secret_paddr is not None:
                if user and Measure.INVERT_ENTRIES in self.measures:
                    return
                line = self._recorder.l1d.line(self.secret_paddr)
                shown = "no such line" if line is None else f"{line.value.hex()}"
                self._see(step, f"L1D line of physical {self.secret_paddr:#x}", shown)
            case Mechanism.BYPASS:
                self._bypass(step)
            case _:
                pass

    def _sample(self, step: str) -> None:
        for structure in self._recorder.structures:
            if structure.name not in self.way.structures or structure.name in self._hidden:
                continue
            entries = structure.visible(self._hw.thread)
            shown = [
                f"{entry.source:#x}->{entry.target:#x}" if isinstance(entry, Training) else entry.value.hex()
                for entry in entries
            ]
            self._see(step, structure.name, *shown)

    def _bypass(self, step: str) -> None:
        if Measure.ORDER_LOADS in self.measures:
            return
        pending = {entry.paddr for entry in self._recorder.store_buffer.visible(self._hw.thread)}
        shown = [old.hex() for paddr, old in self._stale.items() if paddr in pending]
        self._see(step, "a load before an older store", *shown)

    def _entries(self) -> list[Datum]:
        return [
            entry
            for structure in self._recorder.structures
            if structure.name in self.way.structures
            for entry in structure.visible(self._hw.thread)
            if isinstance(entry, Datum)
        ]

    def _see(self, step: str, source: str, *value: str) -> None:
        seen = Observation(f"cpu {self._hw.number}, {step}", source, value)
        self.log.append(seen)
        self.story.append(f"the attacker sees {seen}")
        if self.tell is not None:
            self.tell(seen)
