"""What victims do for an attack, whatever the position: the kernel's work with a secret, and a process' own."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from asikit.leaks.lab import CHECKS
from asikit.leaks.vulnerability import Party
from asikit.mm import GFP_USER

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.kernel import Machine, User
    from asikit.leaks.lab import Lab
    from asikit.mm import Gfp

__all__ = ["DEPTH", "PAGE", "WORD", "Play", "Work"]

DEPTH: Final = 40
"""Calls inside of one another that any return stack is too small for."""
PAGE: Final = 4096
"""Bytes."""
WORD: Final = 8
"""Bytes, of an address and of what is loaded of a secret."""
_LINE: Final = 64
"""Bytes, of a cache line."""
_KEYCTL: Final = 250


class Work(StrEnum):
    """What kernel code of the victim's does in a round."""

    IDLE = "idle"
    """It checks an index of the attacker's and calls functions, and uses no secret: most entries need none."""
    SECRET = "secret"  # noqa: S105 - what it works with
    """It uses the secret in the middle."""
    FAULTS = "faults"
    """The same between two loads of the attacker's pages that are not there yet: under ASI the first fault exits."""


@dataclass
class Play:
    """One attack on one machine.

    :ivar secret: Eight bytes that the attacker must not learn.
    """

    machine: "Machine"
    lab: "Lab"
    secret: bytes
    _copies: int = 0

    def kernel_secret(self, gfp: "Gfp" = GFP_USER) -> int:
        """Put the secret where the kernel has it; returns its address, which the attacker knows and aims at."""
        with self.lab.setting_up():
            key = self.machine.allocate(self.secret * (PAGE // len(self.secret)), gfp)
        self.lab.register = key
        self.lab.secret_paddr = self.machine.kernel.layout.phys(key)
        return key

    def system_call(self, body: "Callable[[], object]") -> None:
        """Execute a system call of the running process', with kernel code of the victim's as its body."""

        def handler() -> int:
            body()
            return 0

        self.machine.kernel.entry.syscall(_KEYCTL, "keyctl", handler)

    def call_for_work(self, address: int, work: Work, pages: int) -> None:
        """Execute a system call that does the kernel's work of a round; see `use_key`."""
        self.system_call(lambda: self.use_key(address, work, pages))

    def use_key(self, address: int, work: Work, pages: int = 0) -> None:
        """Kernel code that works with a secret: branches, loads that fault, and in the middle the load of the secret.

        :param pages: Two pages of the running process' that are not there yet; for FAULTS alone.
        """
        kernel, lab = self.machine.kernel, self.lab
        with kernel.function("keyctl_read_key"):
            self.branches()
            if work is Work.FAULTS:
                kernel.uaccess.from_user(pages, WORD)
            if work is not Work.IDLE:
                self.use(address, kernel.access.load, kernel.access.store)
                lab.pointer = address
            if work is Work.FAULTS:
                kernel.uaccess.from_user(pages + PAGE, WORD)
            self.branches(CHECKS[1], "crypto_shash_final")
            lab.pointer = None

    def branches(self, check: int = CHECKS[0], function: str = "crypto_shash_update") -> None:
        """Kernel code with branches of all kinds, and no secret.

        :param function: What it calls. After its first call it is predicted rightly, until somebody teaches it anew.
        """
        self.lab.check_index(check)
        self._descend(function, DEPTH)

    def _descend(self, function: str, depth: int) -> None:
        """Call a function inside of itself, deeper than a return stack is."""
        with self.machine.kernel.function(function):
            if depth:
                self._descend(function, depth - 1)

    def use(self, address: int, load: "Callable[[int, int], bytes]", store: "Callable[[int, bytes], object]") -> None:
        """Load the secret, copy it to another line of its page, and compute with it, as whoever runs."""
        value = load(address, WORD)
        self._copies += 1
        store(address + self._copies * _LINE % PAGE, value)
        self.lab.handle(value)

    def use_own_secret(self, user: "User", address: int) -> None:
        """User code that works with its own secret."""
        self.use(address, user.load, user.store)
        self.lab.pointer = address
        self.lab.user_function(Party.USER)
        self.lab.pointer = None
