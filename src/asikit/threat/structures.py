"""The structures of a core that data or training stay behind in: what holds what, and which primitive empties it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from asikit.machine.x86 import Sharing
from asikit.protocol import PRIMITIVES, FlushSide
from asikit.threat.parties import FOLDED, Party

if TYPE_CHECKING:
    from collections.abc import Container

    from asikit.machine.x86 import CpuModel, Datum, Recorder, Training
    from asikit.protocol import EffectKind, ProtocolConfig


@dataclass(frozen=True, slots=True)
class Channel:
    """One microarchitectural structure of the core.

    :ivar name: As it is printed.
    :ivar holds: `data` of victims, or `training` by attackers.
    :ivar cleared_by: The primitive that empties it (H2).
    """

    name: str
    holds: str
    cleared_by: EffectKind


STRUCTURES: tuple[Channel, ...] = tuple(
    Channel(primitive.channel, holds, primitive.kind)
    for side, holds in ((FlushSide.DATA, "data"), (FlushSide.CONTROL, "training"))
    for primitive in PRIMITIVES
    if primitive.side is side
)
"""The kernel's Documentation/admin-guide/hw-vuln. What no primitive clears is beyond any protocol."""

FIELD_BITS = 4


@dataclass(frozen=True, slots=True)
class ContentsLayout:
    """The structures that one CPU leaks through, and their place in the packed contents: a field of `Party` each.

    :ivar structures: Those that the configuration's flushes clear; others leak nothing, or cannot be helped.
    """

    structures: tuple[Channel, ...]

    @property
    def bits(self) -> int:
        """The width of the packed contents."""
        return FIELD_BITS * len(self.structures)

    def spread(self, holds: str, parties: Party) -> int:
        """Return the contents in which all structures of a kind hold what is of some parties."""
        return sum(
            int(parties) << FIELD_BITS * place
            for place, structure in enumerate(self.structures)
            if structure.holds == holds
        )

    def cleared_by(self, kind: EffectKind) -> int:
        """Return the mask of what a primitive clears."""
        everything = (1 << FIELD_BITS) - 1
        return sum(
            everything << FIELD_BITS * place
            for place, structure in enumerate(self.structures)
            if structure.cleared_by is kind
        )

    @property
    def other(self) -> int:
        """The mask of all fields' bits for `Party.OTHER`."""
        return sum(int(Party.OTHER) << FIELD_BITS * place for place in range(len(self.structures)))

    def fold(self, contents: int) -> int:
        """Return the contents after another mm was loaded: what was the own user's and guest's is another's."""
        return (contents & ~(self.other * int(FOLDED))) | (((contents >> 1) | (contents >> 2)) & self.other)

    def unpack(self, contents: int) -> dict[str, Party]:
        """Return what each structure holds, by its name."""
        return {
            structure.name: Party((contents >> FIELD_BITS * place) & ((1 << FIELD_BITS) - 1))
            for place, structure in enumerate(self.structures)
        }


def layout_for(config: ProtocolConfig) -> ContentsLayout:
    """Return the structures that a configuration's flushes are for."""
    cleared = {*config.control_flush, *config.data_flush}
    return ContentsLayout(tuple(structure for structure in STRUCTURES if structure.cleared_by in cleared))


def _structures(side: FlushSide) -> dict[str, tuple[EffectKind, str]]:
    """Return the structures of one side: what empties each, and what it is called."""
    return {
        name: (primitive.kind, label)
        for primitive in PRIMITIVES
        if primitive.side is side
        for name, label in primitive.empties
    }


DATA = _structures(FlushSide.DATA)
PREDICTORS = _structures(FlushSide.CONTROL)
"""The machine's data structures and predictors that some primitive empties: its kind, and what they are called."""
ALL_PREDICTORS: Final = frozenset({*PREDICTORS, "pht"})
"""With the one that no primitive empties."""


def assumed(model: CpuModel) -> CpuModel:
    """Return a CPU model with the structures of a core as the proofs assume them: H2, H3."""
    structures = {
        name: replace(getattr(model.structures, name), sharing=Sharing.CORE, cleared_by=(str(cleared),))
        for name, (cleared, _) in {**DATA, **PREDICTORS}.items()
    }
    return replace(model, structures=replace(model.structures, **structures))


def left_behind(
    recorder: Recorder, thread: int, names: Container[str]
) -> dict[str, tuple[Datum, ...] | tuple[Training, ...]]:
    """Return what a hardware thread may come by in a core's structures of some names, each's newest first (H4)."""
    return {structure.name: structure.visible(thread) for structure in recorder.structures if structure.name in names}
