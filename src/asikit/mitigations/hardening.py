"""What a kernel's mitigations make of the processor and the kernel that an attack meets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.mitigations.work import Measure, Occasion, When
from asikit.protocol import EffectKind, Happening

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asikit.machine.x86 import Bug, CpuModel
    from asikit.mitigations.work import KernelMitigation

__all__ = ["Hardening", "hardening"]

_HAPPENINGS: Mapping[Occasion, tuple[Happening, ...]] = {
    Occasion.SYSCALL_ENTRY: (Happening.SYSCALL_ENTRY,),
    Occasion.EXCEPTION_ENTRY: (Happening.EXCEPTION_ENTRY,),
    Occasion.INTERRUPT_ENTRY: (Happening.INTERRUPT_ENTRY,),
    Occasion.NMI_ENTRY: (Happening.NMI_ENTRY,),
    Occasion.USER_ENTRY: tuple(happening for happening in Happening if happening.from_user),
    Occasion.USER_RETURN: (Happening.RETURN_USER,),
    Occasion.VM_EXIT: (Happening.VM_EXIT,),
    Occasion.VM_ENTRY: (Happening.VM_ENTRY,),
    Occasion.NESTED_INTERRUPT: (Happening.NESTED_INTERRUPT,),
    Occasion.IDLE: (),
    Occasion.TASK_SWITCH: (Happening.CONTEXT_SWITCH,),
    Occasion.MM_SWITCH: (Happening.MM_SWITCH,),
    Occasion.PROCESS_SWITCH: (Happening.MM_SWITCH,),
    Occasion.KERNEL_INSTRUCTION: (),
}
_AFTER_GUEST = When(Occasion.USER_RETURN, (Occasion.VM_EXIT,))
"""The one condition on what came before that the machine has a mark for."""


@dataclass(frozen=True)
class Hardening:
    """What a kernel does on one processor.

    :ivar flushes: Primitives at happenings, in order.
    :ivar first_after: Primitives at the first of a happening since one of others, on that CPU.
    :ivar before_idle: Primitives before a CPU sleeps that has nothing to do.
    :ivar measures: What becomes different.
    :ivar hidden: Structures that a vulnerability cannot reach any more.
    """

    flushes: tuple[tuple[Happening, EffectKind], ...] = ()
    first_after: tuple[tuple[Happening, tuple[Happening, ...], EffectKind], ...] = ()
    before_idle: tuple[EffectKind, ...] = ()
    measures: frozenset[Measure] = frozenset()
    hidden: frozenset[tuple[Bug, str]] = frozenset()


def hardening(mitigation: KernelMitigation, cpu: CpuModel) -> Hardening:
    """Return what a kernel does on a processor.

    A flush under a condition that the machine has no mark for is left out: so a verdict errs towards a leak.
    """
    done = mitigation.on(cpu)
    flushes = [
        (happening, EffectKind(kind.value))
        for work in done
        for when in work.times
        if not when.first_after
        for happening in _HAPPENINGS[when.occasion]
        for kind in work.flushes
    ]
    first_after = [
        (happening, _happenings(when.first_after), EffectKind(kind.value))
        for work in done
        for when in work.times
        if when.first_after
        for happening in _HAPPENINGS[when.occasion]
        for kind in work.flushes
    ]
    before_idle = [EffectKind(kind.value) for work in done if Occasion.IDLE in work.at for kind in work.flushes]
    return Hardening(
        before_idle=tuple(dict.fromkeys(before_idle)),
        flushes=tuple(dict.fromkeys(flushes)),
        first_after=tuple(dict.fromkeys(first_after)),
        measures=frozenset(measure for work in done for measure in work.measures),
        hidden=frozenset((work.vulnerability, str(name)) for work in done for name in work.hides),
    )


def _happenings(occasions: Iterable[Occasion]) -> tuple[Happening, ...]:
    return tuple(happening for occasion in occasions for happening in _HAPPENINGS[occasion])
