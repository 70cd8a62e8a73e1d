"""Local APICs: interrupts between processors, non-maskable interrupts, the timer (SDM 3A chapter 11, 6.7)."""

from __future__ import annotations

from typing import Final

__all__ = ["ApicBus", "LocalApic"]

_FIRST_VECTOR: Final = 16
_LAST_VECTOR: Final = 255
_CLASS_SHIFT: Final = 4


class ApicBus:
    """What connects the local APICs of a machine: they find each other by the number of their CPU."""

    def __init__(self) -> None:
        self._apics: dict[int, LocalApic] = {}

    def attach(self, apic: LocalApic) -> None:
        """Add an APIC. Raises ValueError if there is one with its number."""
        if apic.number in self._apics:
            raise ValueError(f"there are two CPUs with number {apic.number}")
        self._apics[apic.number] = apic

    def apic(self, number: int) -> LocalApic:
        """Return the APIC of a CPU. Raises ValueError if there is no such CPU."""
        if number not in self._apics:
            raise ValueError(f"there is no CPU {number} (there are {', '.join(map(str, sorted(self._apics)))})")
        return self._apics[number]


class LocalApic:
    """The local APIC of one logical processor.

    A vector that is requested twice before it is taken comes once (one IRR bit each). An interrupt is taken if its
    priority class, bits 7:4 of the vector, is above that of every one in service (11.8.3.1); TPR stays 0.

    :ivar number: Number of the CPU.
    :ivar nmi_blocked: An NMI's handler runs: further ones wait, at most one, until its IRET (6.7.1).
    :ivar now: The timer's clock, in units of the logical clock.
    """

    __slots__ = ("_bus", "_in_service", "_nmi", "_requested", "_timer", "nmi_blocked", "now", "number")

    def __init__(self, number: int, bus: ApicBus) -> None:
        self.number = number
        self.nmi_blocked = False
        self.now = 0
        self._bus = bus
        self._requested: set[int] = set()
        self._in_service: list[int] = []
        self._nmi = False
        # Period (0: one shot), vector and the time of the next expiry.
        self._timer: tuple[int, int, int] | None = None
        bus.attach(self)

    # Interrupts.

    def request(self, vector: int) -> None:
        """An interrupt arrives (IRR). Raises ValueError for a vector that no APIC accepts (11.5.2)."""
        if not _FIRST_VECTOR <= vector <= _LAST_VECTOR:
            raise ValueError(f"an interrupt's vector is {_FIRST_VECTOR} to {_LAST_VECTOR}, not {vector}")
        self._requested.add(vector)

    def send_ipi(self, target: int, vector: int) -> None:
        """Send an interrupt to the CPU with number `target`, which may be this one."""
        self._bus.apic(target).request(vector)

    def send_nmi(self, target: int) -> None:
        """Send a non-maskable interrupt to the CPU with number `target`."""
        self._bus.apic(target).request_nmi()

    @property
    def requested(self) -> frozenset[int]:
        """Vectors that wait (IRR)."""
        return frozenset(self._requested)

    @property
    def in_service(self) -> tuple[int, ...]:
        """Vectors whose handlers have not said EOI (ISR), innermost last."""
        return tuple(self._in_service)

    @property
    def pending(self) -> int | None:
        """The vector to take next, if interrupts are enabled; None if none waits or its class is too low."""
        if not self._requested:
            return None
        vector = max(self._requested)
        if self._in_service and vector >> _CLASS_SHIFT <= self._in_service[-1] >> _CLASS_SHIFT:
            return None
        return vector

    def acknowledge(self) -> int:
        """Take the pending interrupt (from IRR to ISR) and return its vector. Raises ValueError if there is none."""
        vector = self.pending
        if vector is None:
            raise ValueError(f"no interrupt is pending on CPU {self.number}")
        self._requested.remove(vector)
        self._in_service.append(vector)
        return vector

    def eoi(self) -> None:
        """The innermost handler is done; nothing happens without one (11.8.5)."""
        if self._in_service:
            self._in_service.pop()

    # Non-maskable interrupts.

    def request_nmi(self) -> None:
        """An NMI arrives; one is remembered while another is handled."""
        self._nmi = True

    @property
    def nmi_pending(self) -> bool:
        """Whether an NMI is to be taken now."""
        return self._nmi and not self.nmi_blocked

    def take_nmi(self) -> None:
        """Begin an NMI's handler; further NMIs are blocked. Raises ValueError if none is to be taken."""
        if not self.nmi_pending:
            raise ValueError(f"no NMI is pending on CPU {self.number}")
        self._nmi = False
        self.nmi_blocked = True

    def iret(self) -> None:
        """IRET, of whatever handler: NMIs are no longer blocked (6.7.1), even if it was not the NMI's own."""
        self.nmi_blocked = False

    # Timer.

    def start_timer(self, period: int, vector: int, *, periodic: bool = True) -> None:
        """Raise `vector` every `period` units of the logical clock from now on, or once (11.5.4)."""
        if period < 1:
            raise ValueError(f"a timer's period is at least 1, not {period}")
        self._timer = (period if periodic else 0, vector, self.now + period)

    def stop_timer(self) -> None:
        """Stop the timer; an interrupt that it raised stays."""
        self._timer = None

    @property
    def timer_due(self) -> int | None:
        """When the timer next expires, in units of `now`; None while it is stopped."""
        return None if self._timer is None else self._timer[2]

    def advance(self, units: int = 1) -> bool:
        """Let time pass; return whether the timer expired, which raised its interrupt."""
        self.now += units
        if self._timer is None or self.now < self._timer[2]:
            return False
        period, vector, due = self._timer
        # Expiries that nobody took in time are one interrupt: the IRR has one bit for the vector.
        self._timer = (period, vector, due + period * (1 + (self.now - due) // period)) if period else None
        self.request(vector)
        return True
