"""How mutants are made: edits of the protocol's data, of its configuration, of what the rest of the kernel owes it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from asikit.protocol import (
    AsiClass,
    ExitReason,
    Happening,
    MicroOp,
    Protocol,
    ProtocolError,
    Taint,
    TaintPolicy,
    space_of,
)
from asikit.protocol.expressions import ALWAYS, BitAnd, Const
from asikit.protocol.operations import END
from asikit.protocol.switching import enter_name
from asikit.protocol.taints import DATA_MASK
from asikit.protocol.vocabulary import CONTROL, DATA, RELAXED, RESTRICTED, SPACES, TAINTS, TARGET, TENSE

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.proofs.model import World
    from asikit.protocol import ProtocolConfig

    Edit = Callable[[World], World]

RETURNS = (Happening.RETURN_USER, Happening.VM_ENTRY)


def of_protocol(change: Callable[[Protocol], Protocol]) -> Edit:
    """An edit of the protocol alone; a protocol that has no such element stays as it is."""

    def edit(world: World) -> World:
        try:
            return replace(world, protocol=change(world.protocol))
        except ProtocolError:  # the configuration has no such element
            return world

    return edit


def without(*paths: str) -> Edit:
    """Remove micro-operations, those of them that there are."""

    def change(protocol: Protocol) -> Protocol:
        for path in paths:
            name, _, op = path.partition(".")
            if any(found.name == op for found in protocol.transitions[name].ops):
                protocol = protocol.without(path)
        return protocol

    return of_protocol(change)


def moved(path: str, *, before: str = "", after: str = "") -> Edit:
    """Move a micro-operation inside its transition."""
    return of_protocol(lambda protocol: protocol.reordered(path, before=before, after=after))


def taints_first(name: str) -> Edit:
    """Clear the taints before the flush that they ask for."""

    def change(protocol: Protocol) -> Protocol:
        first_flush = protocol.transitions[name].ops[1].name
        return protocol.reordered(f"{name}.clear_taints", before=f"{name}.{first_flush}")

    return of_protocol(change)


def at_resume(change: Callable[[MicroOp], tuple[MicroOp, ...]]) -> Edit:
    """Put others in the place of the last check before untrusted code."""

    def edit(protocol: Protocol) -> Protocol:
        for name in RETURNS:
            for op in protocol.transitions[name].ops:
                if op.name == "resume" and op.waits is not ALWAYS:
                    protocol = protocol.replacing(f"{name}.resume", *change(op))
        return protocol

    return of_protocol(edit)


def masking_taints(mask: Taint) -> Edit:
    """Let no assignment keep a taint outside of a mask."""

    def change(path: str, op: MicroOp) -> MicroOp:
        del path
        sets = tuple(
            replace(assign, value=BitAnd(assign.value, Const(int(mask)))) if assign.field == TAINTS else assign
            for assign in op.sets
        )
        return replace(op, sets=sets)

    return of_protocol(lambda protocol: protocol.rewriting(change))


def of_policy(asi_class: AsiClass, change: Callable[[TaintPolicy], TaintPolicy]) -> Edit:
    """Change the taint policy of a class."""

    def edit(world: World) -> World:
        config = world.config
        if asi_class not in config.classes:
            return world
        policy = change(config.registry.policy(asi_class))
        others = tuple(entry for entry in config.policies if entry[0] is not asi_class)
        changed = replace(config, policies=(*others, (asi_class, policy)))
        return replace(world, protocol=_configured(world.protocol, changed))

    return edit


def _configured(protocol: Protocol, config: ProtocolConfig) -> Protocol:
    """Return a protocol with another configuration, and the transitions that were edited as they are."""
    plain = Protocol(protocol.config).transitions
    edited = {name: each for name, each in protocol.transitions.items() if each != plain.get(name)}
    return Protocol(config, {**Protocol(config).transitions, **edited})


def stays_restricted(protocol: Protocol) -> Protocol:
    """Let a switch of mm go to the idle domain, whose page tables map nothing of any mm, where it can.

    It cannot where a task is preempted: the target is the task's, for when it comes back. Nor with SMT: what keeps the
    sibling from going on in the old mm (core scheduling) is that an exit stuns it.
    """
    config = protocol.config
    if config.smt:
        return protocol
    protocol = _configured(protocol, replace(config, classes=config.classes | {AsiClass.IDLE}))
    exit_ = MicroOp(name="exit", when=TENSE, call="asi_exit", reason=ExitReason.CONTEXT_SWITCH)
    idle = SPACES[space_of(AsiClass.IDLE)]
    protocol = protocol.replacing("mm_switch.exit", exit_)
    return protocol.inserting(
        MicroOp(name="enter_idle", when=RELAXED & RESTRICTED, call=enter_name(AsiClass.IDLE)),
        MicroOp(name="relax", when=TARGET.equals(idle), call="asi_relax"),
        after="mm_switch.squash",
    )


def _clear_without_guest_data(path: str, op: MicroOp) -> MicroOp:
    if path != "maybe_flush_data.clear_taints":
        return op
    published = Const(int(DATA_MASK & ~Taint.GUEST_DATA), "the published DATA_MASK")
    return replace(op, sets=tuple(replace(assign, value=TAINTS.clear(published)) for assign in op.sets))


def without_guest_data(path: str, op: MicroOp) -> MicroOp:
    """Let flush and squash use the published DATA_MASK."""
    if path != "asi_handle_switch_mm.squash_data":
        return _clear_without_guest_data(path, op)
    return replace(op, when=TAINTS.has(Const(int(DATA.value) & ~int(Taint.GUEST_DATA))))


def exit_asks_own_taints(protocol: Protocol) -> Protocol:
    """Let asi_exit flush the predictors only if this thread's taints say so, as published."""
    name = "maybe_flush_control_for_exit"
    first = protocol.transitions[name].ops[0].name
    if first == "clean":
        return protocol
    clean = MicroOp(name="clean", when=~TAINTS.has(CONTROL), jump=END)
    return protocol.inserting(clean, before=f"{name}.{first}")
