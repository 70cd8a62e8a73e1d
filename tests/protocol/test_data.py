"""The protocol as data: expressions, programs, edits, and the text that documents use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asikit.protocol import AsiClass, Happening, MicroOp, Protocol, ProtocolConfig, UnknownNameError, blanket_config
from asikit.protocol.errors import EditError
from asikit.protocol.expressions import ALWAYS, Bit, Const, Lookup, fields_of
from asikit.protocol.invariants import step_invariants, taint_invariants
from asikit.protocol.operations import Assign
from asikit.protocol.vocabulary import CR3, CURR_ASI, DEPTH, FIELDS, TAINTS, TARGET, TENSE

EVERYTHING = ProtocolConfig(
    classes=frozenset(AsiClass),
    smt=True,
    pti=True,
    noflush=True,
    flush_data_on_exit=True,
    kvm_exit_on_user_return=True,
)


def env(**values: int) -> list[int]:
    """Return an environment with the given fields of this thread, all others 0."""
    return [values.get(str(field), 0) for field in FIELDS]


def test_terms() -> None:
    """Each operator computes what it prints."""
    table = Lookup("table", ((1, 5), (2, 6)), TARGET)
    cases = [
        (TAINTS & 6, "taints & 6", 2),
        (TAINTS | 8, "taints | 8", 11),
        (TAINTS.clear(2), "taints & ~2", 1),
        (DEPTH.plus(-1), "intr_nest_depth - 1", 0),
        (Bit(TARGET), "bit(target)", 4),
        (table, "table[target]", 6),
        (Const(7, "seven"), "seven", 7),
    ]
    state = env(taints=3, target=2, intr_nest_depth=1)
    assert [(str(term), term.compiled()(state)) for term, _, _ in cases] == [(text, value) for _, text, value in cases]
    assert table.compiled()(env(target=3)) == 0


def test_guards() -> None:
    """Each predicate decides what it prints."""
    state = env(taints=3, target=2, curr_asi=2)
    cases = [
        (TARGET.equals(CURR_ASI), "target == curr_asi", True),
        (TARGET.differs(CURR_ASI), "target != curr_asi", False),
        (TAINTS.has(4), "taints & 4", False),
        (DEPTH.below(1), "intr_nest_depth < 1", True),
        (~TAINTS.has(4) & TENSE, "not (taints & 4) and tense", True),
        (TAINTS.has(4) | CR3.equals(1), "taints & 4 or cr3 == 1", False),
        (ALWAYS, "always", True),
    ]
    assert [(str(guard), guard.compiled()(state)) for guard, _, _ in cases] == [
        (text, holds) for _, text, holds in cases
    ]
    assert fields_of(TENSE & TAINTS.has(Bit(CR3))) == {TARGET, TAINTS, CR3}


@pytest.mark.parametrize("config", [EVERYTHING, ProtocolConfig(), blanket_config(), ProtocolConfig(asi=False)])
def test_every_happening_has_a_transition(config: ProtocolConfig) -> None:
    """And every step is in the text."""
    protocol = Protocol(config)
    assert set(Happening) <= set(protocol.transitions)
    text = protocol.describe()
    assert all(f" {op.name} " in text for transition in protocol.transitions.values() for op in transition.ops)


def test_programs_only_go_forward() -> None:
    """So every transition ends, unless it waits."""
    for program in Protocol(EVERYTHING).programs.values():
        assert all(pc < op.goto <= len(program.ops) for pc, op in enumerate(program.ops))


def test_description() -> None:
    """What documents show: the order of `asi_exit`, one micro-operation a line."""
    lines = Protocol(ProtocolConfig(smt=True)).describe("asi_exit").splitlines()
    assert [line.partition("  #")[0].rstrip() for line in lines] == [
        "asi_exit: Go to the unrestricted address space, now. Nothing to do when there already.",
        "  1. already_there      if curr_asi == none: return",
        "  2. check              require not (in the critical section)",
        "  3. stun_sibling       sibling.stunned := 1",
        "  4. interrupt_sibling  sibling.stun_ipi := sibling.untrusted; ask for STUN",
        "  5. wait_for_sibling   wait until sibling.untrusted == 0",
        "  6. flush_control      call maybe_flush_control_for_exit",
        "  7. taint_kernel_data  taints := taints | KERNEL_DATA",
        "  8. write_cr3          cr3 := unrestricted; ask for WRITE_CR3(unrestricted)",
        "  9. clear_curr_asi     curr_asi := none",
    ]


def names(protocol: Protocol, transition: str) -> list[str]:
    """Return the names of a transition's micro-operations."""
    return [op.name for op in protocol.transitions[transition].ops]


def test_edits_are_pure() -> None:
    """An edit gives another protocol; the first one stays."""
    protocol = Protocol(ProtocolConfig())
    before = names(protocol, "__asi_enter")
    assert before == ["already_there", "set_curr_asi", "flush_control", "write_cr3", "flush_data", "set_taints"]
    without = names(protocol.without("__asi_enter.flush_data"), "__asi_enter")
    assert without == ["already_there", "set_curr_asi", "flush_control", "write_cr3", "set_taints"]
    moved = names(protocol.reordered("__asi_enter.flush_data", before="__asi_enter.write_cr3"), "__asi_enter")
    assert moved == ["already_there", "set_curr_asi", "flush_control", "flush_data", "write_cr3", "set_taints"]
    more = names(protocol.inserting(MicroOp(name="new"), after="__asi_enter.set_taints"), "__asi_enter")
    assert more == [*before, "new"]
    assert names(protocol, "__asi_enter") == before


def test_jumps_survive_edits() -> None:
    """A jump to a step that is gone goes to the next one."""
    protocol = Protocol(replace(EVERYTHING, smt=False))
    shorter = protocol.without("__asi_enter.flush_data").without("__asi_enter.set_taints")
    ops = shorter.transitions["__asi_enter"].ops
    assert next(op.jump for op in ops if op.name == "written") == "end"


def test_edits_that_make_no_sense() -> None:
    """Unknown names, moves to another transition, jumps backwards, and transitions that call themselves."""
    protocol = Protocol(ProtocolConfig())
    with pytest.raises(UnknownNameError, match="no micro-operation of asi_exit called 'flush_contrl'; did you mean"):
        protocol.without("asi_exit.flush_contrl")
    with pytest.raises(UnknownNameError, match="no transition called 'asi_leave'"):
        protocol.without("asi_leave.flush_control")
    with pytest.raises(EditError, match="can only move inside asi_exit"):
        protocol.reordered("asi_exit.flush_control", before="__asi_enter.flush_data")
    with pytest.raises(EditError, match="either before= or after="):
        protocol.reordered("asi_exit.flush_control")
    with pytest.raises(EditError, match="not a later step"):
        protocol.inserting(MicroOp(name="back", jump="already_there"), after="asi_exit.write_cr3")
    with pytest.raises(EditError, match="it can do nothing else"):
        protocol.inserting(
            MicroOp(name="both", call="asi_relax", sets=(Assign(TAINTS, Const(0)),)), after="asi_exit.write_cr3"
        )
    with pytest.raises(EditError, match="two micro-operations of asi_exit have the same name"):
        protocol.inserting(MicroOp(name="check"), after="asi_exit.write_cr3")
    with pytest.raises(EditError, match="calls itself"):
        protocol.inserting(MicroOp(name="again", call="asi_exit"), after="asi_exit.write_cr3")


def test_everything_can_be_removed() -> None:
    """Every single micro-operation can be edited out, so that every mutant exists."""
    protocol = Protocol(EVERYTHING)
    paths = [f"{name}.{op.name}" for name, transition in protocol.transitions.items() for op in transition.ops]
    assert len({protocol.without(path).describe() for path in paths}) == len(paths)


def test_invariants_read_well() -> None:
    """Invariants have names and a sentence each; the same ones serve tests, checkers and proofs."""
    invariants = (*taint_invariants(EVERYTHING), *step_invariants(EVERYTHING))
    assert len({invariant.name for invariant in invariants}) == len(invariants) == 9
    assert all(invariant.says and str(invariant.guard) for invariant in invariants)


def test_kinds_of_happenings() -> None:
    """Entries are from user mode, from a guest, or from the kernel; the first two are from untrusted code."""
    entries = {happening: (happening.from_user, happening.from_untrusted, happening.nested) for happening in Happening}
    from_user = {happening for happening, (user, _, _) in entries.items() if user}
    nested = {happening for happening, (_, _, inner) in entries.items() if inner}
    assert from_user == {happening for happening in Happening if happening.endswith("_entry")} - {Happening.VM_ENTRY}
    assert {happening for happening, (_, untrusted, _) in entries.items() if untrusted} == from_user | {
        Happening.VM_EXIT
    }
    assert nested == {
        *(happening for happening in Happening if happening.startswith("nested_")),
        Happening.DOUBLE_FAULT,
    } - {Happening.NESTED_RETURN}
