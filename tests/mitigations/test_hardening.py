"""What a kernel's mitigations make of a machine, and that their price has no say in it."""

from __future__ import annotations

import msgspec
import pytest

from asikit.machine.x86 import Bug, cpu_names, load_cpu
from asikit.machine.x86.model import Clearing
from asikit.mitigations import (
    Hardening,
    KernelMitigation,
    Measure,
    MitigationError,
    Occasion,
    When,
    Work,
    hardening,
    load_mitigation,
    mitigation,
    shipped_mitigations,
)
from asikit.protocol import EffectKind, Happening


@pytest.mark.parametrize("cpu", cpu_names())
def test_a_price_decides_no_verdict(cpu: str) -> None:
    """Without any of the costs, or with others, a kernel does the same."""
    linux, model = load_mitigation("linux"), load_cpu(cpu)
    free = tuple(
        msgspec.structs.replace(work, costs=(("nothing", "cr3_write"),) if work.costs else ()) for work in linux.work
    )
    assert hardening(linux, model) == hardening(msgspec.structs.replace(linux, work=free), model)


def test_what_is_flushed_is_paid_for() -> None:
    """An entry that flushes and costs something costs that flush."""
    for name in shipped_mitigations():
        for work in load_mitigation(name).work:
            if work.costs:
                assert {kind.value for kind in work.flushes} <= {cost for product in work.costs for cost in product}


def test_linux_takes_every_measure() -> None:
    """None is left without an entry that says when it is taken."""
    assert {measure for work in load_mitigation("linux").work for measure in work.measures} == set(Measure)


def test_an_entry_at_each_occasion() -> None:
    """User entries are four; what has a condition on what came before is apart; instructions flush nothing."""
    whens = (
        When(Occasion.USER_ENTRY),
        When(Occasion.USER_RETURN, (Occasion.VM_EXIT,)),
        When(Occasion.VM_ENTRY, (Occasion.PROCESS_SWITCH,)),
        When(Occasion.KERNEL_INSTRUCTION),
        When(Occasion.PROCESS_SWITCH),
    )
    work = tuple(
        Work(
            vulnerability=Bug.SRSO,
            name=when.text,
            source="a test",
            at=(when.occasion,),
            first_after=when.first_after,
            flushes=(Clearing("ibpb"),),
        )
        for when in whens
    )

    made = hardening(KernelMitigation(title="x", work=work), load_cpu("generic"))
    entries = [happening for happening in Happening if happening.from_user]
    assert made == Hardening(
        flushes=tuple((happening, EffectKind.IBPB) for happening in (*entries, Happening.MM_SWITCH)),
        first_after=(
            (Happening.RETURN_USER, (Happening.VM_EXIT,), EffectKind.IBPB),
            (Happening.VM_ENTRY, (Happening.MM_SWITCH,), EffectKind.IBPB),
        ),
    )


def test_unknown_names() -> None:
    """What can be attacked is named, with the nearest."""
    with pytest.raises(MitigationError) as caught:
        mitigation("linus")
    assert str(caught.value).startswith(
        'no mitigation "linus"; the nearest is "linux" (there are none, linux, linux-nosmt, blanket, '
    )
    assert caught.value.exit_code == 2
