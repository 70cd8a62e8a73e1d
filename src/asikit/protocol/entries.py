"""What each happening runs: the entry code, the page-fault handler, the scheduler's and the TLB's hooks with ASI on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from asikit.protocol.classes import AsiClass, Space, space_of
from asikit.protocol.effects import EffectKind, ExitReason
from asikit.protocol.errors import (
    EnterTwiceError,
    RelaxFromInterruptError,
    ReturnFromNestedInterruptError,
    SensitiveAccessInCriticalSectionError,
    SwitchInCriticalSectionError,
)
from asikit.protocol.expressions import ALWAYS, Bit, Const
from asikit.protocol.happenings import Happening
from asikit.protocol.operations import END, Assign, MicroOp, Request, Requirement, Transition
from asikit.protocol.roles import Role, Routine
from asikit.protocol.switching import enter_name, note_tlb_gen, outdate_tlb, record_tlb_gen, restricted_spaces
from asikit.protocol.vocabulary import (
    CR3,
    CURR_ASI,
    DEPTH,
    IN_CRITICAL_SECTION,
    NONE,
    RELAXED,
    RESTRICTED,
    SPACES,
    STUN_IPI,
    STUNNED,
    TARGET,
    TENSE,
    TLB_STALE,
    UNRESTRICTED,
    UNTRUSTED,
    USER_CR3,
)

if TYPE_CHECKING:
    from asikit.protocol.config import ProtocolConfig

NESTED_RETURN_TO_USER_HALF = "nested_return_to_user_half"
"""Return from a handler that interrupted the kernel while CR3 selected the user half of the page tables."""

STOP_WAITING = "stop_waiting"
"""A stunned thread has something better to do than to spin before untrusted code: it gives up the return."""

LEAVE_UNTRUSTED = MicroOp(
    name="leave_untrusted",
    role=Role.LEAVE_UNTRUSTED,
    # In nested entries too: an NMI may come before the interrupted entry got as far as this. If its handler exited
    # while still counted as untrusted, two siblings could wait for one another for ever.
    why="the acknowledgement that a stunning sibling waits for",
    sets=(Assign(UNTRUSTED, Const(0)), Assign(STUN_IPI, Const(0))),
)
LEAVE_USER_HALF = MicroOp(
    name="leave_user_half",
    why="PTI: the same address space, its kernel half",
    when=USER_CR3.differs(0),
    sets=(Assign(USER_CR3, Const(0)),),
    asks=Request(EffectKind.WRITE_CR3, CR3, noflush=True),
)
ENTER_USER_HALF = MicroOp(
    name="enter_user_half",
    role=Role.ENTER_USER_HALF,
    why="PTI: the same address space, its user half",
    sets=(Assign(USER_CR3, Const(1)),),
    asks=Request(EffectKind.WRITE_CR3, CR3, noflush=True, user_half=True),
)
NOT_IN_CRITICAL_SECTION = MicroOp(
    name="check",
    why="preemption is off in the critical section",
    requires=(Requirement(~IN_CRITICAL_SECTION, SwitchInCriticalSectionError),),
)


_FLUSHES_OF_THE_KERNEL = (
    # "mm: asi: Make TLB flushing correct under ASI" (12 Jul 2024) puts an asi_exit() into native_flush_tlb_local(), and
    # nowhere else: CR3 may change under code that reads it and writes it back. __flush_tlb_all() comes there only on
    # CPUs without global pages; ASI leaves CR4.PGE alone and only makes no page global.
    (
        Happening.TLB_FLUSH_USER,
        "It reads CR3 and writes it back, so it exits first; other PCIDs are flushed whenever they are loaded.",
    ),
    (Happening.TLB_FLUSH_KERNEL, "By INVPCID or CR4.PGE, which discard the entries of all PCIDs."),
    (Happening.TLB_FLUSH_USER_RANGE, "INVLPG in the PCID of CR3; other PCIDs are flushed whenever they are loaded."),
    (
        Happening.TLB_FLUSH_KERNEL_RANGE,
        "INVLPG for each page; no page is global, so ASIDs of other mms are marked, to be flushed when loaded.",
    ),
)
"""The flushes of a kernel whose CR3 writes keep no entries, and what makes each of them right."""


def resume(config: ProtocolConfig) -> MicroOp:
    """Return the last step before untrusted code: the check of the stun and the going are one."""
    return MicroOp(
        name="resume",
        role=Role.RESUME,
        why="checked with interrupts off, spun for with them on; never HLT or MWAIT, which would repartition buffers",
        waits=STUNNED.equals(0) if config.smt else ALWAYS,
        sets=(Assign(UNTRUSTED, Const(1)),),
    )


def entry_transitions(config: ProtocolConfig) -> tuple[Transition, ...]:
    """Return the transition of each happening, ASI on."""
    return (
        *_from_untrusted(config),
        *_nested(config),
        _unmapped_touch(),
        _return_user(config),
        _vm_entry(config),
        *((_stop_waiting(config),) if config.smt else ()),
        *_scheduler(config),
        *_tlb(config),
        Transition(
            Happening.EXPLICIT_EXIT,
            "Code that reads, derives and writes CR3 could undo an exit that an NMI made in between.",
            (MicroOp(name="exit", call=Routine.EXIT, reason=ExitReason.MISC),),
        ),
    )


def _from_untrusted(config: ProtocolConfig) -> tuple[Transition, ...]:
    pti = (LEAVE_USER_HALF,) if config.pti else ()
    relax = MicroOp(
        name="relax",
        why="the kernel may go anywhere from here, even into another domain",
        when=TENSE,
        requires=(Requirement(DEPTH.equals(0), RelaxFromInterruptError),),
        sets=(Assign(TARGET, NONE),),
    )
    interrupt = MicroOp(name="interrupt", why="the critical section goes on afterwards", call=Routine.INTR_ENTER)
    return (
        Transition(Happening.SYSCALL_ENTRY, "From user mode, to stay in the kernel.", (LEAVE_UNTRUSTED, *pti, relax)),
        *(
            Transition(happening, "From user mode, to come back to it.", (LEAVE_UNTRUSTED, *pti, interrupt))
            for happening in Happening
            if happening.from_user and happening is not Happening.SYSCALL_ENTRY
        ),
        Transition(Happening.VM_EXIT, "From a guest; HOST_CR3 is its domain's.", (LEAVE_UNTRUSTED, relax)),
    )


def _nested(config: ProtocolConfig) -> tuple[Transition, ...]:
    pti = (LEAVE_USER_HALF,) if config.pti else ()
    intr_enter = MicroOp(name="intr_enter", call=Routine.INTR_ENTER)
    intr_exit = MicroOp(name="intr_exit", call=Routine.INTR_EXIT)
    return (
        *(
            Transition(
                happening, "From kernel mode; it exits only if its handler faults.", (LEAVE_UNTRUSTED, *pti, intr_enter)
            )
            for happening in (Happening.NESTED_EXCEPTION, Happening.NESTED_INTERRUPT, Happening.NESTED_NMI)
        ),
        Transition(
            Happening.NESTED_PAGE_FAULT,
            "Every page fault from kernel mode exits, then looks: accessible now means return and retry.",
            (
                LEAVE_UNTRUSTED,
                *pti,
                intr_enter,
                MicroOp(name="exit", role=Role.EXIT_ON_FAULT, call=Routine.EXIT, reason=ExitReason.PAGE_FAULT),
                MicroOp(
                    name="walk",
                    role=Role.WALK,
                    why="raw present bits, in the page tables of CR3: an NMI may have exited before us",
                    asks=Request(EffectKind.PAGE_WALK),
                ),
            ),
        ),
        Transition(
            Happening.DOUBLE_FAULT,
            "Nothing may fault in it, so it exits at once.",
            (LEAVE_UNTRUSTED, *pti, intr_enter, MicroOp(name="exit", call=Routine.EXIT, reason=ExitReason.MISC)),
        ),
        Transition(Happening.NESTED_RETURN, "Back into the interrupted kernel code.", (intr_exit,)),
        *(
            (
                Transition(
                    NESTED_RETURN_TO_USER_HALF,
                    "Back into entry code that had left, or not yet loaded, the kernel half.",
                    (intr_exit, ENTER_USER_HALF),
                ),
            )
            if config.pti
            else ()
        ),
    )


def _unmapped_touch() -> Transition:
    return Transition(
        Happening.UNMAPPED_TOUCH,
        "Something absent from the restricted address space is accessed: fault, exit, retry.",
        (
            MicroOp(name="mapped", why="unrestricted: everything is mapped", when=CR3.equals(UNRESTRICTED), jump=END),
            MicroOp(
                name="fault",
                requires=(Requirement(~IN_CRITICAL_SECTION, SensitiveAccessInCriticalSectionError),),
                asks=Request(EffectKind.PAGE_FAULT),
            ),
            MicroOp(name="handle", call=Happening.NESTED_PAGE_FAULT),
            MicroOp(name="retry", call=Happening.NESTED_RETURN),
        ),
    )


def _return_user(config: ProtocolConfig) -> Transition:
    pti = (ENTER_USER_HALF,) if config.pti else ()
    if AsiClass.USERSPACE not in config.classes:
        exit_ = MicroOp(
            name="exit",
            why="no registered domain maps user addresses, so user mode needs the unrestricted address space",
            call=Routine.EXIT,
            reason=ExitReason.USER_RET,
        )
        return Transition(Happening.RETURN_USER, "Back to user mode, which no class covers.", (exit_, *pti))
    userspace = SPACES[space_of(AsiClass.USERSPACE)]
    kvm_exit = MicroOp(
        name="end_of_kvm_run",
        why="a limit of the prototype, not of the design",
        when=RELAXED & CURR_ASI.equals(SPACES[space_of(AsiClass.KVM)]),
        call=Routine.EXIT,
        reason=ExitReason.USER_RET,
    )
    return Transition(
        Happening.RETURN_USER,
        "Back to user mode: a system call enters, an interrupt ends.",
        (
            *((kvm_exit,) if config.kvm_exit_on_user_return else ()),
            MicroOp(
                name="check",
                when=TENSE,
                requires=(
                    Requirement(TARGET.equals(userspace), EnterTwiceError),
                    Requirement(DEPTH.differs(0), EnterTwiceError),
                    Requirement(DEPTH.below(2), ReturnFromNestedInterruptError),
                ),
            ),
            MicroOp(name="end_interrupt", role=Role.END_INTERRUPT, when=TENSE, call=Routine.INTR_EXIT),
            MicroOp(name="enter", role=Role.ENTER_ON_RETURN, when=RELAXED, call=enter_name(AsiClass.USERSPACE)),
            *pti,
            resume(config),
        ),
    )


def _vm_entry(config: ProtocolConfig) -> Transition:
    if AsiClass.KVM not in config.classes:
        return Transition(Happening.VM_ENTRY, "Into a guest, which no class covers.", ())
    return Transition(
        Happening.VM_ENTRY,
        "Into a guest. The conventional flushes before VM entry are not needed besides.",
        (
            MicroOp(name="enter", call=enter_name(AsiClass.KVM)),
            MicroOp(
                name="refresh_host_cr3",
                role=Role.REFRESH_HOST_CR3,
                why="KVM caches CR3 in the VMCS; the VM exit must come back into this address space",
                asks=Request(EffectKind.REFRESH_HOST_CR3, CR3),
            ),
            resume(config),
        ),
    )


def _stop_waiting(config: ProtocolConfig) -> Transition:
    return Transition(
        STOP_WAITING,
        "Stunned, and another task wants the CPU, or a signal came: relax, do that, and enter again afterwards.",
        (
            *((LEAVE_USER_HALF,) if config.pti else ()),
            MicroOp(name="relax", when=TENSE, sets=(Assign(TARGET, NONE),)),
        ),
    )


def _scheduler(config: ProtocolConfig) -> tuple[Transition, ...]:
    exit_ = MicroOp(name="exit", why="stabilises CR3", call=Routine.EXIT)
    outdate = outdate_tlb(
        _bits(restricted_spaces(config), "all domains"),
        "the other mm's domains have PCIDs of their own, of which this CPU may have seen nothing",
    )
    return (
        Transition(
            Happening.CONTEXT_SWITCH,
            "Another task. Lazy TLB needs nothing: without a change of mm the domain may stay.",
            (
                NOT_IN_CRITICAL_SECTION,
                *(
                    (replace(exit_, role=Role.EXIT_ON_CONTEXT_SWITCH, reason=ExitReason.CONTEXT_SWITCH),)
                    if config.exit_on_context_switch
                    else ()
                ),
            ),
        ),
        Transition(
            Happening.MM_SWITCH,
            "The mm really changes; its page tables are loaded after this.",
            (
                NOT_IN_CRITICAL_SECTION,
                replace(exit_, role=Role.EXIT_ON_MM_SWITCH, reason=ExitReason.SWITCH_MM),
                MicroOp(name="squash", role=Role.SQUASH, call=Routine.HANDLE_SWITCH_MM),
                *((outdate,) if config.noflush else ()),
            ),
        ),
    )


def _tlb(config: ProtocolConfig) -> tuple[Transition, ...]:
    if not config.noflush:
        exit_ = MicroOp(name="exit", call=Routine.EXIT, reason=ExitReason.TLB_FLUSH)
        return tuple(
            Transition(happening, why, (exit_,) if happening in config.exit_on_tlb_flush else ())
            for happening, why in _FLUSHES_OF_THE_KERNEL
        )
    user = (Space.UNRESTRICTED, *(space for space in restricted_spaces(config) if _maps_user(space)))
    everything = (Space.UNRESTRICTED, *restricted_spaces(config))
    return (
        _flush(Happening.TLB_FLUSH_USER, "user addresses", user),
        _flush(Happening.TLB_FLUSH_KERNEL, "kernel addresses", everything),
        # A CPU that missed an earlier generation flushes all for a range too, so the steps are the same.
        _flush(Happening.TLB_FLUSH_USER_RANGE, "user addresses", user),
        _flush(Happening.TLB_FLUSH_KERNEL_RANGE, "kernel addresses", everything),
    )


def _flush(happening: Happening, what: str, spaces: tuple[Space, ...]) -> Transition:
    return Transition(
        happening,
        f"Entries for {what} go: at once where CR3 points, elsewhere when it comes to point there.",
        (
            outdate_tlb(_bits(spaces, what), "the new generation"),
            note_tlb_gen(CR3),
            MicroOp(
                name="flush_domain",
                role=Role.FLUSH_DOMAIN,
                why="the kernel's own flush sees to the unrestricted address space",
                when=TLB_STALE.has(Bit(CR3)) & RESTRICTED & CR3.differs(UNRESTRICTED),
                asks=Request(EffectKind.TLB_FLUSH, CR3),
            ),
            record_tlb_gen(CR3),
        ),
    )


def _maps_user(space: Space) -> bool:
    return space.asi_class is not None and space.asi_class.maps_user


def _bits(spaces: tuple[Space, ...], label: str) -> Const:
    return Const(sum(1 << space for space in spaces), f"spaces of {label}")
