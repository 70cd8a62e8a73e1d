"""What the processor does transiently in a victim, which the machine does not model: predictions that go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.attacks.lab import KERNEL
from asikit.attacks.places import CALL, CHECKS, ELSEWHERE, ENTRY, GADGET, GUEST_SECRET, PATTERN, RETURN, USER_FUNCTION
from asikit.attacks.training import train
from asikit.attacks.vulnerability import Branch, Mechanism, Tag, Trainer
from asikit.machine.x86 import Datum, Training
from asikit.mitigations import Measure
from asikit.protocol import Space
from asikit.threat import Code, left_behind

if TYPE_CHECKING:
    from asikit.attacks.lab import Lab

__all__ = ["TransientProcessor"]

_WORD: Final = 8


class TransientProcessor:
    """The processor as far as it runs ahead; the kernel tells it of its branches and faults (`Speculation`)."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._way = lab.way
        lab.kernel.speculation = self

    # The kernel's code.

    def entered(self) -> None:
        """Entry code: its branch on where it came from, before anything that changes page tables."""
        lab = self._lab
        if self._way.branch is Branch.ENTRY and self._chance():
            trained = lab.recorder.pht.predict(lab.hw.thread, ENTRY)
            wrong = trained is not None and not trained.target and not lab.hides("pht")
            if wrong and not lab.keeps(Measure.FENCE_ENTRY):
                self._gadget("the entry code's branch")
        lab.recorder.condition(lab.hw.thread, KERNEL, ENTRY, taken=True)

    def called(self, function: int) -> None:
        """A call through a thunk: predicted by the BTB, and among a branch's targets by the history."""
        hw, recorder, branch = self._lab.hw, self._lab.recorder, function + CALL
        self._lab.sites.add(branch)
        if self._has_victim(Code.KERNEL):
            self._indirect(branch)
        recorder.branch(hw.thread, KERNEL, branch, function)
        recorder.call(hw.thread, KERNEL, branch, branch)

    def returning(self, function: int) -> None:
        """A return: predicted by the return stack, by the BTB, or run past."""
        self._lab.sites.add(function + RETURN)
        expected = self._lab.recorder.rsb.pop(self._lab.hw.thread)
        if self._has_victim(Code.KERNEL):
            self._return(function + RETURN, expected)

    def faulted(self) -> None:
        """A faulting load: answered from a structure with what was left there, before the fault is taken."""
        if self._way.mechanism is not Mechanism.INJECT or not self._lab.in_victim:
            return
        if not self._is_restricted:  # faults that ASI makes are not the victim's own
            self._lab.evidence.chance()
        for value in dict.fromkeys(entry.value[:_WORD] for entry in self._entries()):
            self._gadget("a faulting load", int.from_bytes(value, "little"))

    def check_index(self, check: int = CHECKS[0]) -> None:
        """The kernel checks an index of the attacker's, which is out of bounds."""
        recorder, thread = self._lab.recorder, self._lab.hw.thread
        self._train_itself(Code.KERNEL)
        if self._way.branch is Branch.CONDITIONAL and self._has_victim(Code.KERNEL) and self._chance():
            trained = recorder.pht.predict(thread, check)
            wrong = trained is not None and trained.target and not self._lab.hides("pht")
            if wrong and not self._lab.keeps(Measure.MASK_INDICES):
                self._gadget("a bounds check")
        recorder.condition(thread, KERNEL, check, taken=False)
        # Some branch of the kernel's goes to what serves as gadget, and teaches that.
        recorder.btb.add(Training(KERNEL, ELSEWHERE, GADGET, thread))
        if self._way.half_gadget and self._lab.in_victim and not self._lab.keeps(Measure.MASK_INDICES):
            self._half_gadget()

    # A process' code, or a guest's.

    def user_function(self, party: Code) -> None:
        """A victim in user mode, or a guest, calls a function through a pointer, and returns from it."""
        hw, recorder = self._lab.hw, self._lab.recorder
        branch = USER_FUNCTION + CALL
        recorder.btb.add(Training(hw.owner, ELSEWHERE, GADGET, hw.thread))  # as the kernel's in `check_index`
        self._train_itself(party)
        if self._has_victim(party):
            self._indirect(branch)
        recorder.branch(hw.thread, hw.owner, branch, USER_FUNCTION)
        if "rsb" not in self._way.structures:  # what it called before it was interrupted returns to somebody's entries
            recorder.call(hw.thread, hw.owner, branch, branch)
        expected = recorder.rsb.pop(hw.thread)
        if self._has_victim(party):
            self._return(USER_FUNCTION + RETURN, expected)

    def _train_itself(self, party: Code) -> None:
        """Run the attacker's code in the victim, a filter, whose branches teach what the attacker wants."""
        lab = self._lab
        if self._way.trained_by is Trainer.VICTIM and self._has_victim(party) and lab.in_victim:
            train(lab, lab.hw.owner)
            space = f", address space {lab.space.label}" if lab.kernel.protocol.config.asi else ""
            lab.story.append(f"cpu {lab.hw.number}, {lab.hw.owner}{space}: code that the attacker chose trains")

    # Predictions.

    def _indirect(self, branch: int) -> None:
        way, lab = self._way, self._lab
        if way.branch is not Branch.INDIRECT or not self._chance():
            return
        if way.tag is not Tag.HISTORY and not self._is_user and lab.keeps(Measure.NO_INDIRECT_PREDICTION):
            return
        if way.tag is Tag.HISTORY:
            made = any(entry.source in PATTERN for entry in lab.recorder.bhb.visible(lab.hw.thread))
            known = any(entry.target == GADGET for entry in lab.recorder.btb.visible(lab.hw.thread))
            if made and known and not lab.hides("bhb"):
                self._gadget("an indirect branch, by its history")
        elif "btb" in way.structures and self._btb_says_gadget(branch):
            self._gadget("an indirect branch")

    def _return(self, branch: int, expected: Training | None) -> None:
        way = self._way
        goes_wrong = way.branch in {Branch.STRAIGHT_LINE, Branch.RETURN} or (
            way.branch is Branch.UNDERFLOW and expected is None
        )
        if not goes_wrong or not self._chance():
            return
        if way.branch is Branch.STRAIGHT_LINE:
            if not self._lab.keeps(Measure.TRAP_BEHIND_RETURNS):
                self._gadget("the code behind a return")
        elif way.branch is Branch.RETURN and "rsb" in way.structures:
            if expected is not None and expected.target == GADGET and self._usable("rsb", expected):
                self._gadget("a return, by the return stack")
        else:
            thunk = not self._is_user and self._lab.keeps(Measure.NO_RETURN_PREDICTION)
            if not thunk and self._btb_says_gadget(branch):
                self._gadget("a return, by the branch target buffer")

    def _btb_says_gadget(self, branch: int) -> bool:
        trained = self._lab.recorder.btb.predict(self._lab.hw.thread, branch)
        return trained is not None and trained.target == GADGET and self._usable("btb", trained)

    def _usable(self, structure: str, entry: Training) -> bool:
        """Tell whether the processor predicts a victim's branch by an entry."""
        if self._lab.hides(structure):
            return False
        if entry.thread != self._lab.hw.thread and self._lab.keeps(Measure.ISOLATE_THREADS):
            return False
        if self._is_user or entry.owner == KERNEL:
            return True
        by_position = self._way.tag is Tag.POSITION
        if entry.owner.startswith("guest") and by_position and self._lab.keeps(Measure.FENCE_VM_EXIT):
            return False
        return by_position or not self._lab.keeps(Measure.ISOLATE_MODES)

    def _entries(self) -> list[Datum]:
        """Return what may answer a faulting load."""
        names = {name for name in self._way.structures if not self._lab.hides(name)}
        left = left_behind(self._lab.recorder, self._lab.hw.thread, names)
        return [entry for entries in left.values() for entry in entries if isinstance(entry, Datum)]

    @property
    def _is_user(self) -> bool:
        return self._lab.hw.owner != KERNEL

    @property
    def _is_restricted(self) -> bool:
        return self._lab.kernel.protocol.config.asi and self._lab.space is not Space.UNRESTRICTED

    def _has_victim(self, party: Code) -> bool:
        return self._way.mechanism is Mechanism.STEER and party in self._way.victims

    def _chance(self) -> bool:
        """Tell whether there is something to aim a victim's branch at, and take note of it."""
        if self._aim is None or not self._lab.in_victim:
            return False
        self._lab.evidence.chance()
        return True

    # Gadgets.

    @property
    def _aim(self) -> int | None:
        """What a gadget finds where it takes its address from."""
        return self._lab.register if self._way.steered else self._lab.pointer

    def _gadget(self, why: str, address: int | None = None) -> None:
        """Run the gadget transiently: load a byte at an address, and touch a line that depends on it.

        :param address: Where, if not where the gadget takes its address from by itself.
        """
        address = self._aim if address is None else address
        if address is None:
            return
        lab, hw = self._lab, self._lab.hw
        value = self._guest_load(address) if lab.kernel.cpu.in_guest else lab.load(address, 1)
        space = f", address space {lab.space.label}" if lab.kernel.protocol.config.asi else ""
        result = "nothing: it is not mapped" if value is None else f"{value.hex()}, and its line is touched"
        lab.story.append(f"cpu {hw.number}, {hw.owner}{space}: {why} runs the gadget; {address:#x} gives {result}")
        if value is not None:
            lab.lines.add(value[0])

    def _guest_load(self, address: int) -> bytes | None:
        """Load as a victim in a guest does: of its memory only the page with its secret matters."""
        known = self._lab.secret_paddr is not None and address == GUEST_SECRET
        return self._lab.kernel.physical.read(self._lab.secret_paddr or 0, 1) if known else None

    def _half_gadget(self) -> None:
        """Load what the attacker names, and do nothing with it: its line comes into the L1D."""
        lab = self._lab
        if lab.register is None:
            return
        found = lab.load(lab.register, 1)
        lab.story.append(
            f"cpu {lab.hw.number}, kernel: a bounds check loads {lab.register:#x}, which "
            + ("is not mapped" if found is None else "comes into the L1D")
        )
