"""The catalogue of mutants: every element of the mechanism removed, or moved, alone.

A mutant is an edit: of the protocol's data, or of what the rest of the kernel owes it. What becomes of it is never
written here: it is found by exploring.

Some elements carry no weight in ASI as it is published, where each switch of mm exits and thereby does more than they
would: they are there for an ASI that does not. Such a mutant is one of a variant that it matters to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from asikit.protocol import AsiClass, Happening, ProtocolConfig, Role, Routine, Taint
from asikit.protocol.expressions import ALWAYS
from asikit.protocol.switching import enter_name
from asikit.threat.edits import (
    at_resume,
    exit_asks_own_taints,
    masking_taints,
    moved,
    of_policy,
    of_protocol,
    stays_restricted,
    taints_first,
    without,
    without_flush,
    without_guest_data,
)
from asikit.threat.errors import ThreatError, UnknownMutantError

if TYPE_CHECKING:
    from asikit.threat.design import Design
    from asikit.threat.edits import AnyDesign, Edit

ENTRIES = tuple(happening for happening in Happening if happening.from_untrusted)
NESTED = tuple(happening for happening in Happening if happening.nested)
RESTRICTED_SWITCH = "mm-switch-stays-restricted"
_CONTROL_FLUSHES = (Routine.FLUSH_CONTROL_FOR_EXIT, Routine.FLUSH_CONTROL_FOR_ENTER)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A way to get ASI wrong.

    :ivar name: For the command line.
    :ivar says: What is changed, one line.
    :ivar family: `stun`, `order`, `flush`, `taint`, `interrupt`, `kernel` (what the rest of the kernel owes),
        `published` (bugs of the public patches), or `alternative`.
    :ivar edit: Makes the mutant of a design; a design that has no such element stays as it is.
    :ivar variant: The name of the alternative of which it is a mutant, empty for ASI as it is.
    """

    name: str
    says: str
    family: str
    edit: Edit
    variant: str = ""

    def base(self, design: AnyDesign) -> AnyDesign:
        """Return the design that it is a mutant of: the given one, or its variant.

        :raises ThreatError: It is the blanket mitigation, which has no such elements.
        """
        if not design.config.asi:
            raise ThreatError(f"{self.name} is a mutant of ASI: use it with --mitigation asi")
        return mutant(self.variant).edit(design) if self.variant else design


def mutant(name: str) -> Mutant:
    """Return a mutant or an alternative by name.

    :raises UnknownMutantError: There is none; it says the nearest.
    """
    known = (*CATALOGUE, *ALTERNATIVES)
    for candidate in known:
        if candidate.name == name:
            return candidate
    raise UnknownMutantError(name, [candidate.name for candidate in known])


def has_element(design: Design, candidate: Mutant) -> bool:
    """Whether a mutant differs from the design: without SMT there is no stun to remove."""
    design = candidate.base(design)
    changed = candidate.edit(design)
    same = dict(changed.protocol.transitions) == dict(design.protocol.transitions)
    return not same or replace(changed, protocol=design.protocol) != design


_STUN = (
    Mutant("no-stun", "asi_exit does not mark the sibling stunned", "stun", without(Role.STUN_SIBLING, optional=True)),
    Mutant(
        "no-stun-interrupt",
        "asi_exit does not interrupt the sibling",
        "stun",
        without(Role.INTERRUPT_SIBLING, optional=True),
    ),
    Mutant(
        "no-stun-acknowledgement",
        "asi_exit does not wait until the sibling has left untrusted code",
        "stun",
        without(Role.WAIT_FOR_SIBLING, optional=True),
    ),
    Mutant(
        "no-stun-check",
        "the return to untrusted code does not look whether it is stunned",
        "stun",
        at_resume(lambda op: (replace(op, waits=ALWAYS),)),
    ),
    Mutant(
        "stun-check-not-atomic",
        "the return checks the stun in one step and goes in the next",
        "stun",
        at_resume(lambda op: (replace(op, sets=()), replace(op, name="go", role=None, waits=ALWAYS))),
    ),
    Mutant(
        "release-before-data-flush",
        "__asi_enter releases the sibling before it flushes",
        "stun",
        moved(Role.RELEASE_SIBLING, before=Role.FLUSH_DATA, optional=True),
    ),
    Mutant(
        "no-release", "__asi_enter never releases the sibling", "stun", without(Role.RELEASE_SIBLING, optional=True)
    ),
    Mutant(
        "control-flush-before-stun",
        "asi_exit flushes the predictors while the sibling still trains them",
        "stun",
        moved(Role.FLUSH_CONTROL_ON_EXIT, before=Role.STUN_SIBLING, optional=True),
    ),
    Mutant(
        "untrusted-kept-in-nested-entries",
        "a nested entry does not acknowledge for the entry that it interrupts",
        "stun",
        without(Role.LEAVE_UNTRUSTED, *NESTED),
    ),
    Mutant(
        "untrusted-kept-in-entries",
        "an entry from untrusted code does not say that it left it",
        "stun",
        without(Role.LEAVE_UNTRUSTED, *ENTRIES),
    ),
    Mutant(
        "no-core-scheduling",
        "siblings run untrusted code of different processes",
        "stun",
        lambda design: replace(design, core_scheduling=not design.config.smt),
    ),
)
_FLUSH = (
    Mutant(
        "no-control-flush-on-exit",
        "asi_exit does not flush the predictors",
        "flush",
        without(Role.FLUSH_CONTROL_ON_EXIT),
    ),
    Mutant(
        "no-control-flush-on-enter",
        "__asi_enter does not flush the predictors",
        "flush",
        without(Role.FLUSH_CONTROL_ON_ENTER),
    ),
    Mutant(
        "no-data-flush",
        "__asi_enter does not flush the data side channels",
        "flush",
        without(Role.FLUSH_DATA),
    ),
    *(
        Mutant(
            f"no-{kind.replace('_', '-')}",
            f"the flush of the {what} lacks {kind}",
            "flush",
            without_flush(kind, *routines),
        )
        for kinds, what, routines in (
            (ProtocolConfig().control_flush, "predictors", _CONTROL_FLUSHES),
            (ProtocolConfig().data_flush, "data side channels", (Routine.FLUSH_DATA,)),
        )
        for kind in kinds
    ),
)
_ORDER = (
    Mutant(
        "cr3-before-control-flush-on-exit",
        "asi_exit writes CR3 before it flushes the predictors",
        "order",
        moved(Role.FLUSH_CONTROL_ON_EXIT, after=Role.LOAD_ON_EXIT),
    ),
    Mutant(
        "cr3-before-control-flush-on-enter",
        "__asi_enter writes CR3 before it flushes the predictors",
        "order",
        moved(Role.FLUSH_CONTROL_ON_ENTER, after=Role.LOAD_ON_ENTER),
    ),
    Mutant(
        "data-flush-before-cr3",
        "__asi_enter flushes the data side channels before it writes CR3",
        "order",
        moved(Role.FLUSH_DATA, before=Role.LOAD_ON_ENTER),
    ),
    Mutant(
        "cr3-before-curr-asi-on-enter",
        "__asi_enter sets curr_asi after CR3",
        "order",
        moved(Role.SET_CURR_ASI, after=Role.LOAD_ON_ENTER),
    ),
    Mutant(
        "curr-asi-before-cr3-on-exit",
        "asi_exit clears curr_asi before CR3",
        "order",
        moved(Role.CLEAR_CURR_ASI, before=Role.LOAD_ON_EXIT),
    ),
    Mutant(
        "taint-cleared-before-control-flush",
        "the control taints are cleared before the predictors are flushed",
        "order",
        taints_first(Routine.FLUSH_CONTROL_FOR_EXIT),
    ),
    Mutant(
        "target-after-enter",
        "asi_enter sets the target after it switched",
        "order",
        moved(Role.SET_TARGET, after=Role.ENTER_TARGET, within=enter_name(AsiClass.USERSPACE), optional=True),
    ),
)
_TAINT = (
    Mutant(
        "no-kernel-data-taint",
        "asi_exit does not record that kernel data will linger",
        "taint",
        without(Role.TAINT_KERNEL_DATA),
    ),
    Mutant("no-class-taints", "__asi_enter sets no taints", "taint", without(Role.SET_TAINTS)),
    Mutant(
        "no-squash",
        "a switch of mm does not squash the taints",
        "taint",
        without(Role.SQUASH),
        variant=RESTRICTED_SWITCH,
    ),
    Mutant(
        "guest-control-not-set",
        "a guest is believed to leave no training",
        "taint",
        of_policy(AsiClass.KVM, lambda policy: replace(policy, set=Taint.GUEST_DATA)),
    ),
    Mutant(
        "user-control-not-set",
        "a process is believed to leave no training",
        "taint",
        of_policy(AsiClass.USERSPACE, lambda policy: replace(policy, set=Taint.USER_DATA)),
    ),
    Mutant(
        "guest-may-sample-user",
        "KVM's policy does not protect USER_DATA",
        "taint",
        of_policy(AsiClass.KVM, lambda policy: replace(policy, protect_data=policy.protect_data & ~Taint.USER_DATA)),
    ),
    Mutant(
        "boot-untainted",
        "booting leaves no taint, so the first enter does not flush",
        "published",
        lambda design: replace(design, boot_tainted=False),
    ),
)
_INTERRUPT = (
    Mutant(
        "no-reentry",
        "the outermost interrupt return does not enter again",
        "interrupt",
        without(Role.ENTER_AGAIN),
    ),
    Mutant(
        "no-interrupt-depth",
        "asi_intr_enter does not count",
        "interrupt",
        without(Role.COUNT_INTERRUPT),
    ),
    Mutant(
        "reentry-before-uncount",
        "asi_intr_exit enters again before it counts down",
        "interrupt",
        moved(Role.UNCOUNT_INTERRUPT, after=Role.ENTER_AGAIN),
    ),
    Mutant(
        "no-exit-in-page-fault",
        "the page-fault handler does not exit",
        "interrupt",
        without(Role.EXIT_ON_FAULT),
    ),
    Mutant(
        "no-enter-on-return",
        "the return to user mode does not enter",
        "interrupt",
        without(Role.ENTER_ON_RETURN, optional=True),
    ),
    Mutant(
        "no-interrupt-end-on-return",
        "the return from an interrupt to user mode does not end it",
        "interrupt",
        without(Role.END_INTERRUPT, optional=True),
    ),
)
_KERNEL = (
    Mutant(
        "no-exit-on-mm-switch",
        "a switch of mm does not exit",
        "kernel",
        without(Role.EXIT_ON_MM_SWITCH),
    ),
    Mutant(
        "no-unmapping",
        "the restricted address space maps sensitive memory",
        "kernel",
        lambda design: replace(design, unmapped=False),
    ),
    Mutant(
        "no-shootdown",
        "memory turns sensitive while TLBs still have its translation",
        "kernel",
        lambda design: replace(design, shootdown=False),
    ),
)
_PUBLISHED = (
    Mutant(
        "exit-asks-own-taints",
        "with SMT, asi_exit flushes the predictors only if this thread's taints ask for it",
        "published",
        of_protocol(exit_asks_own_taints),
    ),
    Mutant(
        "kvm-policy-assigns",
        "KVM's policy sets GUEST_CONTROL with `=`, which loses GUEST_DATA",
        "published",
        of_policy(AsiClass.KVM, lambda policy: replace(policy, set=Taint.GUEST_CONTROL)),
        variant=RESTRICTED_SWITCH,
    ),
    Mutant(
        "data-mask-without-guest-data",
        "DATA_MASK lacks GUEST_DATA: never flushed away, forgotten by a switch of mm",
        "published",
        of_protocol(lambda protocol: protocol.rewriting(without_guest_data)),
        variant=RESTRICTED_SWITCH,
    ),
    Mutant(
        "six-taints",
        "ASI_NUM_TAINTS is 6: OTHER_MM_CONTROL falls off",
        "published",
        masking_taints(Taint(0x3F)),
        variant=RESTRICTED_SWITCH,
    ),
)
CATALOGUE: tuple[Mutant, ...] = (*_STUN, *_FLUSH, *_ORDER, *_TAINT, *_INTERRUPT, *_KERNEL, *_PUBLISHED)
"""Ways to get ASI wrong."""
ALTERNATIVES: tuple[Mutant, ...] = (
    Mutant(
        RESTRICTED_SWITCH,
        "without SMT, a switch of mm in a system call stays restricted, in the idle domain",
        "alternative",
        of_protocol(stays_restricted),
    ),
    Mutant(
        "kernel-data-after-cr3",
        "asi_exit records KERNEL_DATA after CR3",
        "alternative",
        moved(Role.TAINT_KERNEL_DATA, before=Role.CLEAR_CURR_ASI),
    ),
    Mutant(
        "taint-cleared-before-data-flush",
        "the data taints are cleared before the flush",
        "alternative",
        taints_first(Routine.FLUSH_DATA),
    ),
    Mutant(
        "no-exit-on-context-switch",
        "a switch of tasks in one mm does not exit",
        "alternative",
        without(Role.EXIT_ON_CONTEXT_SWITCH, optional=True),
    ),
)
"""Changes that one may ask about: another order, another scope."""
