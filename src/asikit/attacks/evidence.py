"""What an attacker saw, and whether the attack took place: what a verdict rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asikit.attacks.vulnerability import Branch, Mechanism

if TYPE_CHECKING:
    from asikit.attacks.vulnerability import Way

__all__ = ["Evidence", "Observation"]

_SHORT, _FEW = 24, 6
"""Characters of an item and items of an observation that are shown."""

_NO_CHANCE: Final = {
    Mechanism.DEFERRED: "the attacker has no page tables in the model to load through",
    Mechanism.TERMINAL: "the secret never came into the L1D",
    Mechanism.INJECT: "no load of the victim's faults in the model's programs",
    Mechanism.BYPASS: "no store of the victim's goes over the secret in the model's programs",
}
"""What did not happen, by mechanism."""
_BRANCHES: Final = {
    Branch.INDIRECT: "indirect branch",
    Branch.RETURN: "return",
    Branch.UNDERFLOW: "return that finds the return stack empty",
    Branch.CONDITIONAL: "bounds check",
    Branch.ENTRY: "branch of entry code",
    Branch.STRAIGHT_LINE: "return",
}


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


@dataclass
class Evidence:
    """What happened in one run.

    :ivar chances: How often the victim came to where the processor can go wrong, or its secret to where the attacker
        looks, whatever the mitigations made of it.
    :ivar looks: How often the attacker looked afterwards, with all that it does to prepare done before.
    :ivar unfinished: Why the run did not come to its end; empty if it did.
    """

    chances: int = 0
    looks: int = 0
    unfinished: str = ""
    _since: int = 0

    def prepared(self) -> None:
        """Note that the attacker has prepared: what was before is of another try."""
        self._since = 0

    def chance(self) -> None:
        """Note that the victim gave the attacker a chance."""
        self.chances += 1
        self._since += 1

    def look(self) -> None:
        """Note that the attacker looks: it counts if there was a chance since it prepared."""
        self.looks += bool(self._since)

    def missing(self, way: Way) -> str:
        """Return what an attack of its mechanism lacked, so that equal observations say nothing; empty if nothing."""
        if self.unfinished:
            return f"the attack did not come to its end: {self.unfinished}"
        if not self.chances:
            return _no_chance(way)
        return "" if self.looks else "the attacker never came to look at what it had prepared"


def _no_chance(way: Way) -> str:
    if way.branch is not None:
        return f"the victim executes no {_BRANCHES[way.branch]} in the model's programs"
    if way.mechanism is Mechanism.SAMPLE:
        return f"the secret never got into what is sampled ({', '.join(way.structures)}) in the model's programs"
    return _NO_CHANCE[way.mechanism]
