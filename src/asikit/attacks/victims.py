"""What victims do for an attack, whatever the position: the kernel's work with a secret, and a process' own."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from asikit.attacks.attacker import Attacker
from asikit.attacks.places import CHECKS, branch_of
from asikit.attacks.processor import TransientProcessor
from asikit.attacks.vulnerability import Holds, Mechanism
from asikit.machine.mm import GFP_USER
from asikit.machine.x86 import Training
from asikit.threat import Code, left_behind

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.attacks.lab import Lab
    from asikit.machine.kernel import Machine, User
    from asikit.machine.mm import Gfp

__all__ = ["DEPTH", "PAGE", "WORD", "Play", "VictimWork"]

DEPTH: Final = 40
"""Calls inside of one another that any return stack is too small for."""
_NESTED: Final = 12
"""Calls inside of one another that no return stack is too small for."""
PAGE: Final = 4096
"""Bytes."""
WORD: Final = 8
"""Bytes, of an address and of what is loaded of a secret."""
_LINE: Final = 64
"""Bytes, of a cache line."""
_KEYCTL: Final = 250


class VictimWork(StrEnum):
    """What kernel code of the victim's does in a round."""

    IDLE = "idle"
    """It checks an index of the attacker's and calls functions, and uses no secret: most entries need none."""
    SECRET = "secret"  # noqa: S105 - what it works with
    """It uses the secret in the middle."""
    FAULTS = "faults"
    """It uses the secret between two loads of the attacker's pages, not there yet: under ASI the first fault exits."""


@dataclass
class Play:
    """One attack on one machine.

    :ivar secret: Eight bytes that the attacker must not learn.
    :ivar processor: What the processor does transiently in the victim.
    :ivar attacker: What the attacker does besides running.
    """

    machine: Machine
    lab: Lab
    secret: bytes
    processor: TransientProcessor = field(init=False)
    attacker: Attacker = field(init=False)
    _copies: int = 0

    def __post_init__(self) -> None:
        self.processor = TransientProcessor(self.lab)
        self.attacker = Attacker(self.lab)

    def kernel_secret(self, gfp: Gfp = GFP_USER) -> int:
        """Put the secret where the kernel has it; returns its address, which the attacker knows and aims at."""
        with self.lab.setting_up():
            key = self.machine.allocate(self.secret * (PAGE // len(self.secret)), gfp)
        self.lab.register = key
        self.lab.secret_paddr = self.machine.kernel.layout.phys(key)
        return key

    def system_call(self, body: Callable[[], object]) -> None:
        """Execute a system call of the running process', with kernel code of the victim's as its body."""

        def handler() -> int:
            body()
            return 0

        self.machine.kernel.entry.syscall(_KEYCTL, "keyctl", handler)

    def call_for_work(self, address: int, work: VictimWork, pages: int) -> None:
        """Execute a system call that does the kernel's work of a round; see `use_key`."""
        self.system_call(lambda: self.use_key(address, work, pages))

    def use_key(self, address: int, work: VictimWork, pages: int = 0) -> None:
        """Kernel code that works with a secret: branches, loads that fault, and in the middle the load of the secret.

        :param pages: Two pages of the running process' that are not there yet; for FAULTS alone.
        """
        kernel, lab = self.machine.kernel, self.lab
        with kernel.function("keyctl_read_key"):
            self.branches()
            if work is VictimWork.FAULTS:
                kernel.uaccess.from_user(pages, WORD)
            if work is not VictimWork.IDLE:
                self.use(address, kernel.access.load, kernel.access.store)
                lab.pointer = address
            if work is VictimWork.FAULTS:
                kernel.uaccess.from_user(pages + PAGE, WORD)
            self.branches(CHECKS[1], "crypto_shash_final")
            lab.pointer = None

    def branches(self, check: int = CHECKS[0], function: str = "crypto_shash_update") -> None:
        """Kernel code with branches of all kinds, and no secret.

        :param function: What it calls. After its first call it is predicted rightly, until somebody teaches it anew.
        """
        self.processor.check_index(check)
        self._descend(function, DEPTH)

    def _descend(self, function: str, depth: int) -> None:
        """Call a function inside of itself, deeper than a return stack is."""
        with self.machine.kernel.function(function):
            if depth:
                self._descend(function, depth - 1)

    def deep_in_calls(self, body: Callable[[], object], depth: int = _NESTED) -> None:
        """Kernel code that returns from some calls after something else has happened inside of them."""
        with self.machine.kernel.function("crypto_shash_update"):
            if depth:
                self.deep_in_calls(body, depth - 1)
            else:
                body()

    def use(self, address: int, load: Callable[[int, int], bytes], store: Callable[[int, bytes], object]) -> None:
        """Load the secret, copy it to another line of its page, and compute with it, as whoever runs."""
        value = load(address, WORD)
        self._copies += 1
        store(address + self._copies * _LINE % PAGE, value)
        self.handle(value)

    def use_own_secret(self, user: User, address: int) -> None:
        """User code that works with its own secret."""
        self.use(address, user.load, user.store)
        self.lab.pointer = address
        self.processor.user_function(Code.USER)
        self.lab.pointer = None

    def handle(self, secret: bytes) -> None:
        """Compute with a secret that was loaded: vector registers, a division, a branch that depends."""
        lab, hw, recorder = self.lab, self.lab.hw, self.lab.recorder
        lab.story.append(f"cpu {hw.number}, {hw.owner}, uses the secret")
        recorder.vector(hw.thread, hw.owner, secret)
        recorder.divide(hw.thread, hw.owner, int.from_bytes(secret[:WORD], "little"))
        if lab.way.holds is Holds.RANDOM:
            recorder.special(hw.thread, hw.owner, secret)
        if lab.way.holds is Holds.ADDRESSES:
            branch = branch_of(secret)
            recorder.branch(hw.thread, hw.owner, branch, branch + 0x1000)
        newest = next((entry for entry in recorder.load_port.visible(hw.thread) if entry.value[:4] == secret[:4]), None)
        if newest is not None and newest.paddr is not None:
            lab.secret_paddr = newest.paddr
        if self._is_exposed(secret):
            lab.evidence.chance()
            lab.filled(*map(str, lab.way.structures))

    def _is_exposed(self, secret: bytes) -> bool:
        """Tell whether a secret that was just used is where an attack of this way looks for it."""
        lab, recorder = self.lab, self.lab.recorder
        match lab.way.mechanism:
            case Mechanism.TERMINAL:
                return lab.secret_paddr is not None and recorder.l1d.line(lab.secret_paddr) is not None
            case Mechanism.SAMPLE:
                left = branch_of(secret)
                return any(
                    entry.source == left if isinstance(entry, Training) else secret[:WORD] in entry.value
                    for entries in left_behind(recorder, lab.hw.thread, lab.way.structures).values()
                    for entry in entries
                )
            case _:
                return False

    def overwrite(self, paddr: int, old: bytes) -> None:
        """Take note that a store of the victim's is about to hide what was in memory."""
        self.lab.stale[paddr] = old
        self.lab.evidence.chance()
