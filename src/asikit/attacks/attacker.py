"""What an attacker does with the processor's structures from untrusted code: it trains, evicts, and looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.attacks.evidence import Observation
from asikit.attacks.training import train
from asikit.attacks.vulnerability import Mechanism, Trainer
from asikit.machine.x86 import Datum, Training
from asikit.mitigations import Measure
from asikit.threat import left_behind

if TYPE_CHECKING:
    from asikit.attacks.lab import Lab

__all__ = ["Attacker"]

_WORD: Final = 8
_OUT_OF_REACH: Final = "nothing: out of reach"
"""What a look gives that a measure of the kernel's, or microcode, keeps from getting there."""


class Attacker:
    """An attacker's tools, for the way of a lab's. They act on the CPU that runs: the attacker's."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._way = lab.way
        self._last: dict[str, tuple[str, ...]] = {}
        self._known: dict[str, set[bytes | tuple[int, int]]] = {}

    # Before the victim runs.

    def before(self) -> None:
        """Train or evict what the way needs, and flush the lines of the probe array."""
        self._lab.lines.clear()
        self._lab.evidence.prepared()
        self._lab.evict()
        if self._way.mechanism is Mechanism.STEER and self._way.trained_by is Trainer.ATTACKER:
            train(self._lab, self._lab.hw.owner)

    def leave_pointer(self, address: int) -> None:
        """Leave a pointer in registers, and in a fill buffer: a load of a line that was flushed (CLFLUSH) first."""
        hw, pointer = self._lab.hw, address.to_bytes(_WORD, "little")
        self._lab.recorder.vector(hw.thread, hw.owner, pointer)
        self._lab.recorder.fill_buffer.add(Datum(hw.owner, pointer * _WORD, None, hw.thread))

    # After it.

    def after(self, step: str, address: int | None = None) -> None:
        """Look, by whatever the way gives, and write it down.

        :param address: What the attacker is after, as it reaches it itself.
        """
        match self._way.mechanism:
            case Mechanism.STEER | Mechanism.INJECT:
                lines = (f"{line:02x}" for line in sorted(self._lab.lines))
                self._see(step, "cached lines of the probe array", *lines)
            case Mechanism.SAMPLE:
                self._sample(step)
            case Mechanism.DEFERRED:
                self._deferred(step, address)
            case Mechanism.TERMINAL:
                self._terminal(step)
            case Mechanism.BYPASS:
                self._bypass(step)

    def _deferred(self, step: str, address: int | None) -> None:
        lab = self._lab
        if address is None and lab.secret_paddr is not None:  # user memory, which the kernel maps too
            address = lab.kernel.layout.virt(lab.secret_paddr)
        if address is None or lab.kernel.cpu.in_guest:
            return
        lab.evidence.chance()
        value = lab.load(address, _WORD, defer_permission=True)
        self._see(step, f"transient load of {address:#x}", "nothing: not mapped" if value is None else value.hex())

    def _terminal(self, step: str) -> None:
        lab = self._lab
        if lab.secret_paddr is None:
            return
        line = lab.recorder.l1d.line(lab.secret_paddr)
        shown = "no such line" if line is None else line.value.hex()
        if lab.hides("l1d") or (not lab.kernel.cpu.in_guest and lab.keeps(Measure.INVERT_ENTRIES)):
            shown = _OUT_OF_REACH
        self._see(step, f"L1D line of physical {lab.secret_paddr:#x}", shown)

    def _sample(self, step: str) -> None:
        for name, entries in left_behind(self._lab.recorder, self._lab.hw.thread, self._way.structures).items():
            if self._lab.hides(name):
                self._see(step, name, _OUT_OF_REACH)
                continue
            known = self._known.setdefault(name, set())
            # What it has seen before tells it nothing new; each value once.
            new = dict.fromkeys(each for each in map(_contents, entries) if each not in known)
            known.update(new)
            self._see(step, name, *map(_text, new))

    def _bypass(self, step: str) -> None:
        lab = self._lab
        if lab.keeps(Measure.ORDER_LOADS):
            self._see(step, "a load before an older store", _OUT_OF_REACH)
            return
        pending = {entry.paddr for entry in lab.recorder.store_buffer.visible(lab.hw.thread)}
        shown = [old.hex() for paddr, old in lab.stale.items() if paddr in pending]
        self._see(step, "a load before an older store", *shown)

    def _see(self, step: str, source: str, *value: str) -> None:
        lab = self._lab
        seen = Observation(f"cpu {lab.hw.number}, {step}", source, value)
        lab.log.append(seen)
        lab.evidence.look()
        again = self._last.get(source) == value
        self._last[source] = value
        lab.story.append("the attacker sees nothing new" if again else f"the attacker sees {seen}")
        lab.told.append(len(lab.story))
        if lab.tell is not None:
            lab.tell(seen)


def _contents(entry: Datum | Training) -> bytes | tuple[int, int]:
    """Return what can be read of an entry."""
    return entry.value if isinstance(entry, Datum) else (entry.source, entry.target)


def _text(contents: bytes | tuple[int, int]) -> str:
    return contents.hex() if isinstance(contents, bytes) else f"{contents[0]:#x}->{contents[1]:#x}"
