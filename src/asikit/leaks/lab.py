"""One vulnerability on one machine: what the processor does transiently, and what its attacker does and sees.

The machine runs as it always does. Here is what it does not model: predictions that go wrong in the victim
(`Speculation`), and what an attacker does with the structures from untrusted code. Who trained an entry is asked only
where the processor itself tells modes, guests or threads apart; whether the secret gets out is never asked, but found
by comparing two runs.
"""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from asikit.kernel import Observer
from asikit.leaks.evidence import Evidence, Observation
from asikit.leaks.measures import Hardening, Measure
from asikit.leaks.transient import transient_load
from asikit.leaks.vulnerability import Branch, Holds, Mechanism, Party, Tag
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

__all__ = ["Lab"]

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
_PATTERN: Final = range(USER_FUNCTION + 0x1000, USER_FUNCTION + 0x1000 + _FILL)
"""Branches of the attacker's that make the history by which a victim's branch goes to the gadget."""
_TOLD: Final = frozenset({*map(str, CLEARING), "stun", "unstun"})
_OUT_OF_REACH: Final = "nothing: out of reach"
"""What a look gives that a measure of the kernel's, or microcode, keeps from getting there."""


class Lab(Observer):
    """The processor's transient side and the attacker's tools, for one way of one vulnerability.

    :ivar log: What the attacker has seen.
    :ivar story: What happened that it is about, for people; `told` is how much of it had been told at each look.
    :ivar evidence: Whether the attack took place.
    :ivar register: An address that the attacker has put where the victim's gadget takes it from.
    :ivar pointer: An address that the victim itself has there, of its secret, while it works with that.
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
        self.told: list[int] = []
        self.tell: Callable[[Observation], object] | None = None
        self.evidence = Evidence()
        self.register: int | None = None
        self.pointer: int | None = None
        self.victim_cpu = 0
        self.secret_paddr: int | None = None
        self._cached: set[int] = set()
        self._last: dict[str, tuple[str, ...]] = {}
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
        if self.way.branch is Branch.ENTRY and self._chance():
            trained = self._recorder.pht.predict(self._hw.thread, ENTRY)
            wrong = trained is not None and not trained.target and "pht" not in self._hidden
            if wrong and Measure.FENCE_ENTRY not in self.measures:
                self._gadget("the entry code's branch")
        self._recorder.condition(self._hw.thread, KERNEL, ENTRY, taken=True)

    def called(self, function: int) -> None:
        """A call through a thunk: predicted by the BTB, and among a branch's targets by the history."""
        hw, recorder, branch = self._hw, self._recorder, function + _CALL
        self._sites.add(branch)
        if self._has_victim(Party.KERNEL):
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
        if self.way.mechanism is not Mechanism.INJECT or self._cpu.number != self.victim_cpu:
            return
        if not self._is_restricted:  # faults that ASI makes are not the victim's own
            self.evidence.chance()
        for entry in self._entries():
            self._gadget("a faulting load", int.from_bytes(entry.value[:_WORD], "little"))

    def _indirect(self, branch: int) -> None:
        if self.way.branch is not Branch.INDIRECT or not self._chance():
            return
        if Measure.NO_INDIRECT_PREDICTION in self.measures and self.way.tag is not Tag.HISTORY and not self._is_user:
            return
        recorder, thread = self._recorder, self._hw.thread
        if self.way.tag is Tag.HISTORY:
            made = any(entry.source in _PATTERN for entry in recorder.bhb.visible(thread))
            known = any(entry.target == GADGET for entry in recorder.btb.visible(thread))
            if made and known and "bhb" not in self._hidden:
                self._gadget("an indirect branch, by its history")
        elif "btb" in self.way.structures and self._btb_says_gadget(branch):
            self._gadget("an indirect branch")

    def _return(self, branch: int, expected: Training | None) -> None:
        way = self.way
        goes_wrong = way.branch in {Branch.STRAIGHT_LINE, Branch.RETURN} or (
            way.branch is Branch.UNDERFLOW and expected is None
        )
        if not goes_wrong or not self._chance():
            return
        if way.branch is Branch.STRAIGHT_LINE:
            if Measure.TRAP_BEHIND_RETURNS not in self.measures:
                self._gadget("the code behind a return")
        elif way.branch is Branch.RETURN and "rsb" in way.structures:
            if expected is not None and expected.target == GADGET and self._usable("rsb", expected):
                self._gadget("a return, by the return stack")
        else:
            thunk = Measure.NO_RETURN_PREDICTION in self.measures and not self._is_user
            if not thunk and self._btb_says_gadget(branch):
                self._gadget("a return, by the branch target buffer")

    def _btb_says_gadget(self, branch: int) -> bool:
        trained = self._recorder.btb.predict(self._hw.thread, branch)
        return trained is not None and trained.target == GADGET and self._usable("btb", trained)

    def _usable(self, structure: str, entry: Training) -> bool:
        """Tell whether the processor predicts a victim's branch by an entry."""
        if structure in self._hidden:
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

    @property
    def _is_restricted(self) -> bool:
        return self.kernel.protocol.config.asi and Space(self._cpu.thread.cpu.cr3) is not Space.UNRESTRICTED

    def _has_victim(self, party: Party) -> bool:
        return self.way.mechanism is Mechanism.STEER and party in self.way.victims

    def _chance(self) -> bool:
        """Tell whether there is something to aim a victim's branch at, and take note of it."""
        if self._aim is None or self._cpu.number != self.victim_cpu:
            return False
        self.evidence.chance()
        return True

    @property
    def _aim(self) -> int | None:
        """What a gadget finds where it takes its address from."""
        return self.register if self.way.steered else self.pointer

    def _gadget(self, why: str, address: int | None = None) -> None:
        """Run the gadget transiently: load a byte at an address, and touch a line that depends on it.

        :param address: Where, if not where the gadget takes its address from by itself.
        """
        address = self._aim if address is None else address
        if address is None:
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
        if self.way.branch is Branch.CONDITIONAL and self._has_victim(Party.KERNEL) and self._chance():
            trained = recorder.pht.predict(thread, check)
            wrong = trained is not None and trained.target and "pht" not in self._hidden
            if wrong and Measure.MASK_INDICES not in self.measures:
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
            branch = _branch_of(secret)
            recorder.branch(hw.thread, hw.owner, branch, branch + 0x1000)
        newest = next((entry for entry in recorder.load_port.visible(hw.thread) if entry.value[:4] == secret[:4]), None)
        if newest is not None and newest.paddr is not None:
            self.secret_paddr = newest.paddr
        if self._is_exposed(secret):
            self.evidence.chance()

    def _is_exposed(self, secret: bytes) -> bool:
        """Tell whether a secret that was just used is where an attack of this way looks for it."""
        recorder = self._recorder
        match self.way.mechanism:
            case Mechanism.TERMINAL:
                return self.secret_paddr is not None and recorder.l1d.line(self.secret_paddr) is not None
            case Mechanism.SAMPLE:
                left = _branch_of(secret)
                return any(
                    entry.source == left if isinstance(entry, Training) else secret[:_WORD] in entry.value
                    for structure in recorder.structures
                    if structure.name in self.way.structures
                    for entry in structure.visible(self._hw.thread)
                )
            case _:
                return False

    def user_function(self, party: Party) -> None:
        """A victim in user mode, or a guest, calls a function through a pointer, and returns from it."""
        hw, recorder = self._hw, self._recorder
        branch = USER_FUNCTION + _CALL
        recorder.btb.add(Training(hw.owner, ELSEWHERE, GADGET, hw.thread))  # as the kernel's in `check_index`
        if self._has_victim(party):
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
        self.evidence.chance()

    # What the attacker does.

    def before(self) -> None:
        """Train or evict what the way needs, and flush the lines of the probe array."""
        self._cached.clear()
        self.evidence.prepared()
        self.evict()
        if self.way.mechanism is Mechanism.STEER:
            self._train(set(map(str, self.way.structures)))

    def evict(self) -> None:
        """Load a cache's worth of other lines, if that matters: the secret must come through a fill buffer again.

        The attacker does it, and a victim's other work does.
        """
        if self.way.mechanism is Mechanism.SAMPLE and "fill_buffer" in self.way.structures:
            self._recorder.l1d.clear(self._hw.thread)

    def _train(self, names: set[str]) -> None:
        hw, recorder = self._hw, self._recorder
        if "btb" in names and self.way.tag is Tag.ADDRESS:
            for branch in sorted({*self._sites, USER_FUNCTION + _CALL, USER_FUNCTION + _RETURN}):
                recorder.branch(hw.thread, hw.owner, branch, GADGET)
        if "bhb" in names:
            for number in range(_FILL):
                recorder.bhb.add(Training(hw.owner, _PATTERN[number], _PATTERN[number], hw.thread))
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
        match self.way.mechanism:
            case Mechanism.STEER | Mechanism.INJECT:
                self._see(step, "cached lines of the probe array", *(f"{line:02x}" for line in sorted(self._cached)))
            case Mechanism.SAMPLE:
                self._sample(step)
            case Mechanism.DEFERRED:
                self._deferred(step, address)
            case Mechanism.TERMINAL:
                self._terminal(step)
            case Mechanism.BYPASS:
                self._bypass(step)

    def _deferred(self, step: str, address: int | None) -> None:
        if address is None and self.secret_paddr is not None:  # user memory, which the kernel maps too
            address = self.kernel.layout.virt(self.secret_paddr)
        if address is None or self._cpu.in_guest:
            return
        self.evidence.chance()
        value = transient_load(self._hw, address, _WORD, defer_permission=True)
        self._see(step, f"transient load of {address:#x}", "nothing: not mapped" if value is None else value.hex())

    def _terminal(self, step: str) -> None:
        if self.secret_paddr is None:
            return
        line = self._recorder.l1d.line(self.secret_paddr)
        if "l1d" in self._hidden or (Measure.INVERT_ENTRIES in self.measures and not self._cpu.in_guest):
            shown = _OUT_OF_REACH
        else:
            shown = "no such line" if line is None else line.value.hex()
        self._see(step, f"L1D line of physical {self.secret_paddr:#x}", shown)

    def _sample(self, step: str) -> None:
        for structure in self._recorder.structures:
            if structure.name not in self.way.structures:
                continue
            if structure.name in self._hidden:
                self._see(step, structure.name, _OUT_OF_REACH)
                continue
            entries = structure.visible(self._hw.thread)
            shown = [
                f"{entry.source:#x}->{entry.target:#x}" if isinstance(entry, Training) else entry.value.hex()
                for entry in entries
            ]
            self._see(step, structure.name, *shown)

    def _bypass(self, step: str) -> None:
        if Measure.ORDER_LOADS in self.measures:
            self._see(step, "a load before an older store", _OUT_OF_REACH)
            return
        pending = {entry.paddr for entry in self._recorder.store_buffer.visible(self._hw.thread)}
        shown = [old.hex() for paddr, old in self._stale.items() if paddr in pending]
        self._see(step, "a load before an older store", *shown)

    def _entries(self) -> list[Datum]:
        return [
            entry
            for structure in self._recorder.structures
            if structure.name in self.way.structures and structure.name not in self._hidden
            for entry in structure.visible(self._hw.thread)
            if isinstance(entry, Datum)
        ]

    def _see(self, step: str, source: str, *value: str) -> None:
        seen = Observation(f"cpu {self._hw.number}, {step}", source, value)
        self.log.append(seen)
        self.evidence.look()
        again = self._last.get(source) == value
        self._last[source] = value
        self.story.append("the attacker sees nothing new" if again else f"the attacker sees {seen}")
        self.told.append(len(self.story))
        if self.tell is not None:
            self.tell(seen)


def _branch_of(secret: bytes) -> int:
    """Return where a victim has a branch whose address depends on a secret."""
    return (int.from_bytes(secret[:4], "little") << 12) + 0x10
