"""How mutants are made: edits of the protocol's data, of its configuration, of what the rest of the kernel owes it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar
from typing import Protocol as Interface

from asikit.protocol import (
    AsiClass,
    ExitReason,
    Happening,
    MicroOp,
    Protocol,
    Role,
    Routine,
    Taint,
    TaintPolicy,
    space_of,
)
from asikit.protocol.errors import EditError
from asikit.protocol.expressions import ALWAYS, BitAnd, Const
from asikit.protocol.operations import END
from asikit.protocol.switching import enter_name
from asikit.protocol.taints import DATA_MASK
from asikit.protocol.vocabulary import CONTROL, DATA, RELAXED, RESTRICTED, SPACES, TAINTS, TARGET, TENSE
from asikit.threat.design import Design

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.protocol import EffectKind, ProtocolConfig

AnyDesign = TypeVar("AnyDesign", bound=Design)


class Edit(Interface):
    """Makes another design of one, of the same class: a model of the proofs, or a mitigation's of an attack."""

    def __call__(self, design: AnyDesign, /) -> AnyDesign:
        """Return the edited design."""


RETURNS = (Happening.RETURN_USER, Happening.VM_ENTRY)


def of_protocol(change: Callable[[Protocol], Protocol]) -> Edit:
    """An edit of the protocol alone."""

    def edit(design: AnyDesign) -> AnyDesign:
        return replace(design, protocol=change(design.protocol))

    return edit


def without(role: Role, *within: str, optional: bool = False) -> Edit:
    """Remove the micro-operations of a role, in all transitions or in those named.

    A protocol without any raises MissingRoleError; if they are optional it stays as it is.
    """

    def change(protocol: Protocol) -> Protocol:
        for path in protocol.having(role, *within, optional=optional):
            protocol = protocol.without(path)
        return protocol

    return of_protocol(change)


def without_flush(kind: EffectKind, *within: str) -> Edit:
    """Remove a primitive from some flushes; a CPU that does not need it stays as it is."""

    def change(protocol: Protocol) -> Protocol:
        for name in within:
            for op in protocol.transitions[name].ops:
                if op.asks is not None and op.asks.kind is kind:
                    protocol = protocol.without(f"{name}.{op.name}")
        return protocol

    return of_protocol(change)


def moved(
    role: Role, *, before: Role | None = None, after: Role | None = None, within: str = "", optional: bool = False
) -> Edit:
    """Move the micro-operation of a role to before, or after, that of another one of the same transition.

    A protocol that lacks one of them raises MissingRoleError; if they are optional it stays as it is.
    """

    def change(protocol: Protocol) -> Protocol:
        path, first, last = ("" if each is None else one(protocol, each) for each in (role, before, after))
        return protocol.reordered(path, before=first, after=last) if path and (first or last) else protocol

    def one(protocol: Protocol, each: Role) -> str:
        paths = protocol.having(each, *([within] if within else []), optional=optional)
        if len(paths) > 1:
            raise EditError(f"{' and '.join(paths)} have the role {each.name}; say within which transition one moves")
        return "".join(paths)

    return of_protocol(change)


def taints_first(name: str) -> Edit:
    """Clear the taints before the flush that they ask for."""

    def change(protocol: Protocol) -> Protocol:
        (clear,) = protocol.having(Role.CLEAR_TAINTS, name)
        first_flush = f"{name}.{protocol.transitions[name].ops[1].name}"
        return protocol if first_flush == clear else protocol.reordered(clear, before=first_flush)

    return of_protocol(change)


def at_resume(change: Callable[[MicroOp], tuple[MicroOp, ...]]) -> Edit:
    """Put others in the place of the last check before untrusted code."""

    def edit(protocol: Protocol) -> Protocol:
        for name in RETURNS:
            for op in protocol.transitions[name].ops:
                if op.role is Role.RESUME and op.waits is not ALWAYS:
                    protocol = protocol.replacing(f"{name}.{op.name}", *change(op))
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

    def edit(design: AnyDesign) -> AnyDesign:
        config = design.config
        if asi_class not in config.classes:
            return design
        policy = change(config.registry.policy(asi_class))
        others = tuple(entry for entry in config.policies if entry[0] is not asi_class)
        changed = replace(config, policies=(*others, (asi_class, policy)))
        return replace(design, protocol=_configured(design.protocol, changed))

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
    (exits,), (squashes,) = protocol.having(Role.EXIT_ON_MM_SWITCH), protocol.having(Role.SQUASH)
    exit_ = MicroOp(
        name="exit", role=Role.EXIT_ON_MM_SWITCH, when=TENSE, call=Routine.EXIT, reason=ExitReason.CONTEXT_SWITCH
    )
    idle = SPACES[space_of(AsiClass.IDLE)]
    protocol = protocol.replacing(exits, exit_)
    return protocol.inserting(
        MicroOp(name="enter_idle", when=RELAXED & RESTRICTED, call=enter_name(AsiClass.IDLE)),
        MicroOp(name="relax", when=TARGET.equals(idle), call=Routine.RELAX),
        after=squashes,
    )


def without_guest_data(path: str, op: MicroOp) -> MicroOp:
    """Let flush and squash use the published DATA_MASK."""
    if op.role is Role.SQUASH_DATA:
        return replace(op, when=TAINTS.has(Const(int(DATA.value) & ~int(Taint.GUEST_DATA))))
    if op.role is not Role.CLEAR_TAINTS or not path.startswith(f"{Routine.FLUSH_DATA}."):
        return op
    published = Const(int(DATA_MASK & ~Taint.GUEST_DATA), "the published DATA_MASK")
    return replace(op, sets=tuple(replace(assign, value=TAINTS.clear(published)) for assign in op.sets))


def exit_asks_own_taints(protocol: Protocol) -> Protocol:
    """Let asi_exit flush the predictors only if this thread's taints say so, as published."""
    name = Routine.FLUSH_CONTROL_FOR_EXIT
    first = protocol.transitions[name].ops[0]
    if first.role is Role.CLEAN:
        return protocol
    clean = MicroOp(name="clean", role=Role.CLEAN, when=~TAINTS.has(CONTROL), jump=END)
    return protocol.inserting(clean, before=f"{name}.{first.name}")
