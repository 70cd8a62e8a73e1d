"""Enter, exit, relax, and what they are made of: the functions of `arch/x86/mm/asi.c`, step by step.

The order of the steps is the whole point. Any interrupt or NMI may come between any two of them, touch sensitive memory
and so run a complete exit, and on its return a complete enter; the sibling hyperthread runs beside them all the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.protocol.classes import AsiClass, Space, space_of
from asikit.protocol.effects import EffectKind
from asikit.protocol.errors import (
    EnterFromInterruptError,
    EnterPreemptibleError,
    EnterTwiceError,
    ExitInCriticalSectionError,
    NestingTooDeepError,
    RelaxFromInterruptError,
    RelaxWhenRelaxedError,
    UnbalancedInterruptExitError,
)
from asikit.protocol.expressions import ALWAYS, Bit, Const, Guard, Lookup, Term
from asikit.protocol.operations import END, Assign, MicroOp, Request, Requirement, Transition
from asikit.protocol.roles import Role, Routine
from asikit.protocol.taints import Taint
from asikit.protocol.vocabulary import (
    CONTROL,
    CR3,
    CURR_ASI,
    DATA,
    DEPTH,
    IN_CRITICAL_SECTION,
    NONE,
    OWN_MM,
    PREEMPTIBLE,
    RELAXED,
    SIBLING_STUN_IPI,
    SIBLING_STUNNED,
    SIBLING_UNTRUSTED,
    SPACES,
    TAINT,
    TAINTS,
    TARGET,
    TENSE,
    TLB_READ,
    TLB_STALE,
    UNRESTRICTED,
)

if TYPE_CHECKING:
    from asikit.protocol.config import ProtocolConfig


def switching_transitions(config: ProtocolConfig) -> tuple[Transition, ...]:
    """Return the transitions of the ASI API and their parts."""
    return (
        # With SMT this thread's taints say too little: the sibling's untrusted code trains until it is stunned,
        # even after a flush for a switch to another domain and before that one's taints are set.
        _flush_control(Routine.FLUSH_CONTROL_FOR_EXIT, ALWAYS if config.smt else TAINTS.has(CONTROL), config),
        _flush_control(Routine.FLUSH_CONTROL_FOR_ENTER, TAINTS.has(policy_table(config, "prevent_control")), config),
        _flush_data(config),
        _enter(config),
        *(_enter_class(asi_class) for asi_class in sorted(config.classes)),
        _exit(config),
        _relax(),
        _intr_enter(config),
        _intr_exit(),
        _handle_switch_mm(),
    )


def enter_name(asi_class: AsiClass) -> str:
    """Return the name of the transition by which a class' client enters its domain."""
    return f"asi_enter_{asi_class.name.lower()}"


def restricted_spaces(config: ProtocolConfig) -> tuple[Space, ...]:
    """Return the restricted address spaces that exist."""
    return tuple(space_of(asi_class) for asi_class in sorted(config.classes))


def flush_ops(kinds: tuple[EffectKind, ...]) -> tuple[MicroOp, ...]:
    """Return one micro-operation for each primitive of a flush."""
    return tuple(MicroOp(name=str(kind), asks=Request(kind)) for kind in kinds)


def policy_table(config: ProtocolConfig, attribute: str) -> Lookup:
    """Return the target's taint policy: `prevent_control`, `protect_data` or `set`."""
    table = tuple(
        (int(space_of(asi_class)), int(getattr(policy, attribute))) for asi_class, policy in config.registry.entries
    )
    return Lookup(f"policy.{attribute}", table, TARGET)


def _flush_control(name: str, tainted: Guard, config: ProtocolConfig) -> Transition:
    return Transition(
        name,
        "Flush the branch predictors if an attacker may have trained them (backward-looking).",
        (
            *(
                ()
                if tainted is ALWAYS
                else (MicroOp(name="clean", role=Role.CLEAN, why="nothing to fear", when=~tainted, jump=END),)
            ),
            *flush_ops(config.control_flush),
            MicroOp(
                name="clear_taints",
                role=Role.CLEAR_TAINTS,
                why="one instruction; only the domain being entered can have interleaved, and its taint is set later",
                sets=(Assign(TAINTS, TAINTS.clear(CONTROL)),),
            ),
        ),
    )


def _flush_data(config: ProtocolConfig) -> Transition:
    return Transition(
        Routine.FLUSH_DATA,
        "Flush the data side channels if they may hold what the domain must not see (forward-looking).",
        (
            MicroOp(
                name="clean",
                role=Role.CLEAN,
                why="nothing to hide",
                when=~TAINTS.has(policy_table(config, "protect_data")),
                jump=END,
            ),
            *flush_ops(config.data_flush),
            MicroOp(
                name="clear_taints",
                role=Role.CLEAR_TAINTS,
                why="all data taints, GUEST_DATA among them",
                sets=(Assign(TAINTS, TAINTS.clear(DATA)),),
            ),
        ),
    )


def _enter_class(asi_class: AsiClass) -> Transition:
    space = SPACES[space_of(asi_class)]
    return Transition(
        enter_name(asi_class),
        f"A client's asi_enter(): from here to asi_relax() the CPU is to be in {space_of(asi_class).label}.",
        (
            MicroOp(
                name="set_target",
                role=Role.SET_TARGET,
                why="before anything else: from now on an interrupt's return restores the restricted address space",
                requires=(
                    Requirement(PREEMPTIBLE.equals(0), EnterPreemptibleError),
                    Requirement(DEPTH.equals(0), EnterFromInterruptError),
                    Requirement(TARGET.equals(NONE), EnterTwiceError),
                ),
                sets=(Assign(TARGET, space),),
            ),
            MicroOp(name="enter", role=Role.ENTER_TARGET, call=Routine.ENTER),
        ),
    )


def _enter(config: ProtocolConfig) -> Transition:
    return Transition(
        Routine.ENTER,
        "Go to the restricted address space of the target, from the unrestricted or another restricted one.",
        (
            MicroOp(
                name="already_there",
                role=Role.ALREADY_ENTERED,
                why="most of the time an enter does nothing, which is the whole point",
                when=TARGET.equals(NONE) | TARGET.equals(CURR_ASI),
                jump=END,
            ),
            MicroOp(
                name="set_curr_asi",
                role=Role.SET_CURR_ASI,
                why="before CR3, so that an interrupting asi_exit() sees that it must act",
                requires=(Requirement(DEPTH.equals(0), EnterFromInterruptError),),
                sets=(Assign(CURR_ASI, TARGET),),
            ),
            MicroOp(
                name="flush_control",
                role=Role.FLUSH_CONTROL_ON_ENTER,
                why="before CR3",
                call=Routine.FLUSH_CONTROL_FOR_ENTER,
            ),
            *_write_cr3(config, TARGET, Role.LOAD_ON_ENTER, then="flush_data"),
            MicroOp(
                name="flush_data",
                role=Role.FLUSH_DATA,
                why="after CR3: no more secrets can come into the channel",
                call=Routine.FLUSH_DATA,
            ),
            MicroOp(
                name="set_taints",
                role=Role.SET_TAINTS,
                why="late is fine: only a re-entry into the same domain can have come between",
                sets=(Assign(TAINTS, TAINTS | policy_table(config, "set")),),
            ),
            *_release_sibling(config),
        ),
    )


def _exit(config: ProtocolConfig) -> Transition:
    return Transition(
        Routine.EXIT,
        "Go to the unrestricted address space, now. Nothing to do when there already.",
        (
            MicroOp(name="already_there", role=Role.ALREADY_EXITED, when=CURR_ASI.equals(NONE), jump=END),
            MicroOp(
                name="check",
                why="leaving inside the critical section would never be undone",
                requires=(Requirement(~IN_CRITICAL_SECTION, ExitInCriticalSectionError),),
            ),
            *_stun_sibling(config),
            MicroOp(
                name="flush_control",
                role=Role.FLUSH_CONTROL_ON_EXIT,
                why="before CR3, and after the sibling stopped training",
                call=Routine.FLUSH_CONTROL_FOR_EXIT,
            ),
            *(flush_ops(config.data_flush) if config.flush_data_on_exit else ()),
            MicroOp(
                name="taint_kernel_data",
                role=Role.TAINT_KERNEL_DATA,
                why="before CR3: an NMI's return that enters again must know that it has to flush",
                sets=(Assign(TAINTS, TAINTS | TAINT[Taint.KERNEL_DATA]),),
            ),
            *_write_cr3(config, UNRESTRICTED, Role.LOAD_ON_EXIT, then="clear_curr_asi", leaves=True),
            MicroOp(
                name="clear_curr_asi",
                role=Role.CLEAR_CURR_ASI,
                why="after CR3, else a nested exit would believe that it has nothing to do",
                sets=(Assign(CURR_ASI, NONE),),
            ),
        ),
    )


def _write_cr3(
    config: ProtocolConfig, space: Term, role: Role, *, then: str, leaves: bool = False
) -> tuple[MicroOp, ...]:
    """Load an address space, keeping its TLB entries if no generation went by since this CPU last saw them.

    `role` is that of the write which flushes, `then` the name of the step that follows.
    """
    load = (Assign(CR3, space),)
    write = MicroOp(
        name="write_cr3",
        role=role,
        why="the address space changes here, and its TLB entries go",
        sets=load,
        asks=Request(EffectKind.WRITE_CR3, space),
        leaves=leaves,
    )
    if not config.noflush:
        return (write,)
    return (
        MicroOp(
            name="barrier",
            role=Role.PREPARE_LOAD,
            why="curr_asi is seen by others before generations are read here: a flusher either sees us or is seen",
            asks=Request(EffectKind.BARRIER),
        ),
        MicroOp(
            name="read_tlb_gen",
            role=Role.PREPARE_LOAD,
            why="no flush if this CPU has seen the current generation of that address space",
            when=~TLB_STALE.has(Bit(space)),
            jump="write_cr3_noflush",
        ),
        note_tlb_gen(space),
        write,
        record_tlb_gen(space),
        MicroOp(name="written", role=Role.LOADED, jump=then),
        MicroOp(
            name="write_cr3_noflush",
            role=Role.LOAD_KEEPING,
            why="the address space changes here, and its TLB entries stay",
            sets=load,
            asks=Request(EffectKind.WRITE_CR3, space, noflush=True),
            leaves=leaves,
        ),
    )


def note_tlb_gen(space: Term) -> MicroOp:
    """Return the step that reads the generation which the coming flush is for."""
    return MicroOp(
        name="note_tlb_gen",
        role=Role.NOTE_TLB_GEN,
        why="before the flush: what is counted after this, the flush need not have seen",
        sets=(Assign(TLB_READ, TLB_READ | Bit(space)),),
    )


def record_tlb_gen(space: Term) -> MicroOp:
    """Return the step that notes the generation as seen."""
    return MicroOp(
        name="record_tlb_gen",
        role=Role.RECORD_TLB_GEN,
        # Both matter. An NMI before the flush that exits and enters must not believe that it is done; and a flusher may
        # count after the flush, then look at curr_asi just when an NMI has exited, and so not interrupt this CPU.
        why="after the flush, and the generation read before it, not what is current by now",
        when=TLB_READ.has(Bit(space)),
        sets=(Assign(TLB_STALE, TLB_STALE.clear(Bit(space))), Assign(TLB_READ, TLB_READ.clear(Bit(space)))),
    )


def outdate_tlb(spaces: Const, why: str) -> MicroOp:
    """Return the step that counts a generation of address spaces (bits)."""
    return MicroOp(
        name="outdate",
        role=Role.OUTDATE_TLB,
        why=why,
        sets=(Assign(TLB_STALE, TLB_STALE | spaces), Assign(TLB_READ, TLB_READ.clear(spaces))),
    )


def _stun_sibling(config: ProtocolConfig) -> tuple[MicroOp, ...]:
    if not config.smt:
        return ()
    return (
        MicroOp(
            name="stun_sibling",
            role=Role.STUN_SIBLING,
            why="before the interrupt: from now on its last check before untrusted code fails",
            sets=(Assign(SIBLING_STUNNED, Const(1)),),
        ),
        MicroOp(
            name="interrupt_sibling",
            role=Role.INTERRUPT_SIBLING,
            why="a sibling in the kernel already ignores it",
            sets=(Assign(SIBLING_STUN_IPI, SIBLING_UNTRUSTED),),
            asks=Request(EffectKind.STUN),
        ),
        MicroOp(
            name="wait_for_sibling",
            role=Role.WAIT_FOR_SIBLING,
            why="the acknowledgement; it never waits for one who waits, who is not in untrusted code",
            waits=SIBLING_UNTRUSTED.equals(0),
        ),
    )


def _release_sibling(config: ProtocolConfig) -> tuple[MicroOp, ...]:
    if not config.smt:
        return ()
    return (
        MicroOp(
            name="release_sibling",
            role=Role.RELEASE_SIBLING,
            why="after the data flush: nothing is left for it to sample",
            when=SIBLING_STUNNED.differs(0),
            sets=(Assign(SIBLING_STUNNED, Const(0)),),
            asks=Request(EffectKind.UNSTUN),
        ),
    )


def _relax() -> Transition:
    return Transition(
        Routine.RELAX,
        "End the critical section. The address space stays.",
        (
            MicroOp(
                name="clear_target",
                requires=(
                    Requirement(TENSE, RelaxWhenRelaxedError),
                    Requirement(DEPTH.equals(0), RelaxFromInterruptError),
                ),
                sets=(Assign(TARGET, NONE),),
            ),
        ),
    )


def _intr_enter(config: ProtocolConfig) -> Transition:
    return Transition(
        Routine.INTR_ENTER,
        "First in every handler: the critical section is interrupted, not ended.",
        (
            MicroOp(
                name="count",
                role=Role.COUNT_INTERRUPT,
                when=TENSE,
                requires=(Requirement(DEPTH.below(config.max_nest_depth), NestingTooDeepError),),
                sets=(Assign(DEPTH, DEPTH.plus(1)),),
            ),
        ),
    )


def _intr_exit() -> Transition:
    return Transition(
        Routine.INTR_EXIT,
        "Last in every handler: the outermost restores the target's address space if something left it.",
        (
            MicroOp(name="not_counted", why="outside of critical sections nothing is counted", when=RELAXED, jump=END),
            MicroOp(
                name="uncount",
                role=Role.UNCOUNT_INTERRUPT,
                why="after the handler's last access that may fault, before the enter",
                requires=(Requirement(DEPTH.differs(0), UnbalancedInterruptExitError),),
                sets=(Assign(DEPTH, DEPTH.plus(-1)),),
            ),
            MicroOp(name="enter_again", role=Role.ENTER_AGAIN, when=DEPTH.equals(0), call=Routine.ENTER),
        ),
    )


def _handle_switch_mm() -> Transition:
    return Transition(
        Routine.HANDLE_SWITCH_MM,
        "What the old mm left becomes what another mm left: the taints are squashed.",
        (
            MicroOp(
                name="squash_control",
                when=TAINTS.has(CONTROL),
                sets=(Assign(TAINTS, TAINTS | TAINT[Taint.OTHER_MM_CONTROL]),),
            ),
            MicroOp(
                name="squash_data",
                role=Role.SQUASH_DATA,
                when=TAINTS.has(DATA),
                sets=(Assign(TAINTS, TAINTS | TAINT[Taint.OTHER_MM_DATA]),),
            ),
            MicroOp(name="forget_own", sets=(Assign(TAINTS, TAINTS.clear(OWN_MM)),)),
        ),
    )
