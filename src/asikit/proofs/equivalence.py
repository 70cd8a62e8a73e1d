"""T2: where ASI and the blanket mitigation are equivalent, and where one leaks and the other does not.

Both are explored in the same situations: each capability of the attacker alone, then each side condition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from asikit.proofs.verify import Verdict, Verification, verify, world_for
from asikit.protocol import CpuBug, Protocol
from asikit.threat import Capability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asikit.proofs.model import World

    Change = Callable[[World], World]

ALL_BUGS = frozenset({CpuBug.L1TF, CpuBug.MDS, CpuBug.DIV0, CpuBug.BHI})


@dataclass(frozen=True, slots=True)
class Situation:
    """Something under which both mitigations are explored.

    :ivar name: Short.
    :ivar says: One line.
    :ivar change: What it does to a model.
    :ivar outside: It breaks an assumption that ASI is built on, so that it says what ASI gives up, not whether it
        holds.
    """

    name: str
    says: str
    change: Change
    outside: bool = False


@dataclass(frozen=True, slots=True)
class SideBySide:
    """What becomes of both mitigations in a situation."""

    situation: Situation
    asi: Verification
    blanket: Verification

    @property
    def equivalent(self) -> bool:
        """Whether both have the same verdict."""
        return self.asi.verdict is self.blanket.verdict

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {
            "situation": self.situation.name,
            "says": self.situation.says,
            "asi": str(self.asi.verdict),
            "blanket": str(self.blanket.verdict),
            "equivalent": self.equivalent,
            "outside": self.situation.outside,
            "counterexamples": {
                side.mitigation: side.counterexample.to_dict()
                for side in (self.asi, self.blanket)
                if side.counterexample is not None
            },
        }


def _capability(capability: Capability) -> Change:
    return lambda world: replace(world, capabilities=capability)


def _without_pti(world: World) -> World:
    config = replace(world.config, pti=False)
    return replace(world, protocol=Protocol(config))


def _all_bugs(world: World) -> World:
    return replace(world, protocol=Protocol(replace(world.config, bugs=ALL_BUGS)))


SITUATIONS: tuple[Situation, ...] = (
    Situation("all capabilities", "no NMIs, kernel entry code free of gadgets", lambda world: world),
    Situation("train", "only steering by trained predictors (Spectre v2 and its kin)", _capability(Capability.TRAIN)),
    Situation("sample", "only sampling of data structures (L1TF, MDS and their kin)", _capability(Capability.SAMPLE)),
    Situation("deferred", "only reading what is mapped, permitted or not (Meltdown)", _capability(Capability.DEFERRED)),
    Situation("more structures", "a CPU that leaks through divider and branch history too", _all_bugs),
    Situation("NMI", "an NMI that touches a secret, anywhere", lambda world: replace(world, nesting=1)),
    Situation(
        "gadget at the return",
        "the code between the last flush and untrusted code can be made to load secrets",
        lambda world: replace(world, gadgets_anywhere=True),
    ),
    Situation("no PTI", "user mode runs on page tables that map the kernel's half", _without_pti),
    Situation(
        "declared nonsensitive",
        "a secret lies in memory that the restricted address space maps",
        lambda world: replace(world, unmapped=False),
        outside=True,
    ),
    Situation(
        "stale translation",
        "memory turns sensitive, and a TLB still has its translation",
        lambda world: replace(world, shootdown=False),
        outside=True,
    ),
)


def compare(situations: tuple[Situation, ...] = SITUATIONS) -> Iterator[SideBySide]:
    """Yield what becomes of ASI and of the blanket mitigation in each situation, with one thread to a core."""
    for situation in situations:
        asi, blanket = (
            verify(situation.change(replace(world_for(name, threads=1, nesting=0), gadgets_anywhere=False)))
            for name in ("asi", "blanket")
        )
        yield SideBySide(situation, asi, blanket)


def equivalence_verdict(comparisons: list[SideBySide]) -> Verdict:
    """Return REFUTED if ASI leaks where the blanket mitigation does not, though the assumptions of both hold.

    UNKNOWN if some exploration did not come to its end.
    """
    if any(Verdict.UNKNOWN in {item.asi.verdict, item.blanket.verdict} for item in comparisons):
        return Verdict.UNKNOWN
    inside = [item for item in comparisons if not item.situation.outside]
    worse = any(item.asi.verdict is Verdict.REFUTED and not item.equivalent for item in inside)
    return Verdict.REFUTED if worse else Verdict.PROVED
